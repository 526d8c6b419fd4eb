"""The comparison that a user holds: what changed, and the text and the page that are made of it."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

from retrograde import _files
from retrograde._notebook import card
from retrograde.report import compare_views
from retrograde.report.changes import Changes


@dataclass(frozen=True)
class Comparison(Changes):
    """What changed from one report to another; made by `compare`.

    Attributes:
        names: what to call the two.
        settings: what was set or run differently; a change below may come from there.
        findings: findings of the model as a whole, and of layers that one report alone has.
        layers: the layers that both have, with their findings.
        only_before, only_after: layers that one report alone has.
        loss: that of the batch in both, where both know it.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.report import compare
        >>> model, x = torch.nn.LSTM(2, 4), torch.ones(20, 3, 2)
        >>> before = retrograde.diagnose(model, x, lambda model, x: model(x)[0].sum())
        >>> retrograde.nn.initialise(model, "forget-bias", value=3.0)
        >>> after = retrograde.diagnose(model, x, lambda model, x: model(x)[0].sum())
        >>> comparison = compare(before, after, names=("as drawn", "with a forget bias"))
        >>> comparison.same, comparison.names
        (False, ('as drawn', 'with a forget bias'))
    """

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained page that opens offline.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        _files.write_text(path, compare_views.page(self))

    def __repr__(self) -> str:
        return f"Comparison from {self.names[0]} to {self.names[1]}: {self.summary}"

    def _repr_html_(self) -> str:
        return card(str(self))

    def __str__(self) -> str:
        return compare_views.text(self)

    def __rich__(self) -> Any:
        return compare_views.renderable(self)
