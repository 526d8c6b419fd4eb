"""The cells of torch's own recurrent layers."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from retrograde.cells import GRU, LSTM, AbstractCell, Elman, ProjectedLSTM

CELLS: Mapping[str, Callable[..., AbstractCell]] = {
    "LSTM": LSTM,
    "GRU": GRU,
    "RNN_TANH": partial(Elman, activation="tanh"),
    "RNN_RELU": partial(Elman, activation="relu"),
}
"""By the `mode` of torch's layers."""


def torch_cells(
    mode: str, ends: tuple[str, ...], weights: Mapping[str, Tensor]
) -> tuple[AbstractCell, ...]:
    """The cell of each layer and direction, from weights named as in torch.nn."""

    def cell(suffix: str) -> AbstractCell:
        own = {
            name.removesuffix(suffix): weight
            for name, weight in weights.items()
            if _layer_of(name) == suffix
        }
        return ProjectedLSTM(**own) if "weight_hr" in own else CELLS[mode](**own)

    return tuple(cell(suffix) for suffix in ends)


def _layer_of(name: str) -> str:
    """The suffix of a weight's name: weight_ih_l1_reverse belongs to _l1_reverse."""
    start = name.find("_l")
    return name[start:] if start >= 0 else ""
