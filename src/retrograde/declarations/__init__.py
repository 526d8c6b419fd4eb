"""Recurrences of one's own, and of other packages, as `record` finds them in a model."""

from retrograde.declarations.declaration import Declaration

__all__ = ["Declaration"]
