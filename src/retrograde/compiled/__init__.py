"""The compiled backend: whole passes of a layer in one call of a small C library (csrc/).

It is chosen where it was built and nothing else is asked for; without it everything runs on
operations of torch, step by step.
"""

from retrograde.compiled.library import Backend, backend

__all__ = ["Backend", "backend"]
