"""How a recurrent layer reads, names and lays out things."""

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrograde.cells import Position
from retrograde.nn import AbstractRecurrent
from retrograde.recording.interception import is_own

Layer = nn.RNNBase | nn.RNNCellBase | AbstractRecurrent
"""A recurrent layer of torch, stepped by the model's own loop or not, or one of ours."""


@dataclass(frozen=True)
class Form:
    """How a layer reads, names and lays out things: all that is needed of it after the pass.

    Attributes:
        kind: its class, for messages.
        stepped: it does one step a call (nn.LSTMCell and the like).
        batch_first: as given to its constructor.
        directions: 2 if it is bidirectional.
        dropout: the probability that acted between its layers, 0 in eval mode.
        overridden: it is a subclass with a forward of its own.
        positions: its layers and directions in torch's order; none for a single step.
        weights: the names of its weights.
        declared: it is a module of the user's own, called with sequences or, if stepped, with one
            step.
        readout: the part of its state that no step reads.
        pieces: the parts of its state, in the order in which it takes and returns them.
    """

    kind: str
    stepped: bool
    batch_first: bool
    directions: int
    dropout: float
    overridden: bool
    positions: tuple[Position, ...]
    weights: tuple[str, ...]
    declared: bool = False
    readout: str = ""
    pieces: tuple[str, ...] = ("h", "c")

    @property
    def layers(self) -> int:
        return 1 if not self.positions else len(self.positions) // self.directions

    @property
    def plain(self) -> bool:
        """Whether it is one cell in one direction."""
        return len(self.positions) < 2 and self.directions == 1

    @property
    def transparent(self) -> bool:
        """Whether the graph shows what is inside it, where its results may be used as well."""
        return self.stepped or self.declared

    def of_layer(self, part: Tensor, number: int, width: int) -> Tensor:
        """What belongs to one of its layers and directions of a part of a state, [B, width]."""
        if self.positions:
            return part[number]
        return part.reshape(-1, width) if self.declared else part

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of its weights' names, in the same order."""
        return tuple(each.suffix for each in self.positions) or ("",)


def form_of(module: Layer) -> Form:
    """The form of a recurrent layer."""
    kind, overridden = class_of(module), not is_own(type(module).forward)
    if isinstance(module, nn.RNNCellBase):
        names = tuple(n for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if has(module, n))
        return Form(kind, True, False, 1, 0.0, overridden, (), names)
    positions = Position.every(module.num_layers, bool(module.bidirectional))
    dropout = module.dropout if module.training and module.num_layers > 1 else 0.0
    listed = module._flat_weights_names if isinstance(module, nn.RNNBase) else module.weight_names
    names = tuple(map(str, listed))
    directions, batch_first = 1 + bool(module.bidirectional), bool(module.batch_first)
    form = Form(kind, False, batch_first, directions, dropout, overridden, positions, names)
    if isinstance(module, AbstractRecurrent):
        return replace(form, pieces=module.state_pieces)
    return form


def class_of(module: nn.Module) -> str:
    """The name of its class, also if it is parametrized, or clipped inside after that."""
    kind: type = vars(type(module)).get("original", type(module))
    return (kind.__bases__[0] if parametrize.is_parametrized(module) else kind).__name__


def has(module: nn.Module, name: str) -> bool:
    """Whether the module has such a weight, as a parameter or computed; biases may be missing."""
    if parametrize.is_parametrized(module, name):
        return True
    return isinstance(getattr(module, name, None), Tensor)
