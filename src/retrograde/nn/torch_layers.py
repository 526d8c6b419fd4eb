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


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def torch_cells(
    mode: str, ends: tuple[str, ...], weights: Mapping[str, Tensor]
) -> tuple[AbstractCell, ...]:
    """The cell of each layer and direction, by the ends of its weights' names in torch.nn."""

    def cell(suffix: str) -> AbstractCell:
        own = {name: weights[name + suffix] for name in NAMES if name + suffix in weights}
        return ProjectedLSTM(**own) if "weight_hr" in own else CELLS[mode](**own)

    return tuple(cell(suffix) for suffix in ends)
