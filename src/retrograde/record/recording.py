"""What a recording holds: layers by name, taken from one or several backward passes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells import AbstractCell
from retrograde.engine import Border
from retrograde.errors import ArgumentError, RecordingError, RetrogradeError


@dataclass(frozen=True, eq=False)
class Recorded:
    """One backward pass through one recurrent layer or stack.

    Steps count along the layer's own reading, so that those of a reverse direction run backwards.
    Calls that carried a state on follow each other in time; those that did not (a layer used
    twice) lie side by side as further samples.

    Attributes:
        name: the layer's name in its model.
        cell: its weights, copied, as a cell.
        x: the layer's input, shape [T, B, I], in the order in which it was given.
        initial: its initial state (h of each layer, and c), shape [B, S].
        direct: dL/ds_t as the loss gives it, without what comes back through later steps,
            shape [T, B, S].
        gradients: autograd's own gradient of each parameter in this pass, as far as it came
            through this layer.
        reads: what the cell reads at each step, if that is not x alone: x in both directions, the
            layers below, the masks of a dropout.
        borders: the steps before which a state was detached, reset or replaced.
        lengths: the number of steps of each sample, None if all run to the end.
        notes: what a reader must know about this pass.
    """

    name: str
    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    initial: Float[Tensor, "B S"]
    direct: Float[Tensor, "T B S"]
    gradients: Mapping[str, Tensor]
    reads: Float[Tensor, "T B R"] | None = None
    borders: Mapping[int, Border] = field(default_factory=dict)
    lengths: Int[Tensor, "B"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name."""
        return self.cell.parameters

    @property
    def inputs(self) -> Float[Tensor, "T B R"]:
        """What the cell reads at each step."""
        return self.x if self.reads is None else self.reads

    def part(self, samples: int) -> "Recorded":
        """The first samples alone; what they gave to the gradient, autograd does not tell.

        All of them where samples read each other's states (a batch in another order).
        """
        if any(border.mixes_samples for border in self.borders.values()):
            return replace(self, gradients={})
        borders = {k: border.part(samples) for k, border in self.borders.items()}
        return replace(
            self,
            x=self.x[:, :samples],
            initial=self.initial[:samples],
            direct=self.direct[:, :samples],
            gradients={},
            reads=None if self.reads is None else self.reads[:, :samples],
            borders=borders,
            lengths=None if self.lengths is None else self.lengths[:samples],
        )

    @property
    def output_adjoint(self) -> Float[Tensor, "T B H"]:
        """dL/dh_t of the layer's output, of both directions side by side, as the loss gives it."""
        return self.direct[..., self.cell.output]

    @property
    def h0(self) -> Float[Tensor, "layers B H"]:
        """The initial hidden states, as torch.nn takes them."""
        return self._initial("h")

    @property
    def c0(self) -> Float[Tensor, "layers B H"] | None:
        """The initial cell states, or None for a cell without them."""
        return self._initial("c") if any(name[0] == "c" for name in self.cell.slots) else None

    def _initial(self, letter: str) -> Tensor:
        slots = self.cell.slots.items()
        return torch.stack([self.initial[:, slot] for name, slot in slots if name[0] == letter])


if TYPE_CHECKING:
    Layers = Mapping[str, Recorded]
else:  # a type check at run time would look inside, and so put a layer together
    Layers = Mapping


class Recording(Layers):
    """Recorded layers by name; filled when the `with` block of `record` ends.

    Asking for a layer that could not be recorded raises an error that says why. Where several
    backward passes ran in the block, `passes` holds a recording of each.
    """

    def __init__(self) -> None:
        self.passes: tuple[Recording, ...] = ()
        self._makers: dict[str, Callable[[], Recorded]] = {}
        self._made: dict[str, Recorded] = {}
        self._refused: dict[str, RetrogradeError] = {}

    def __getitem__(self, name: str) -> Recorded:
        if name in self._refused:
            raise self._refused[name]
        if name not in self._made:
            try:
                self._made[name] = self._makers[name]()
            except RetrogradeError as error:
                self._refused[name] = error
                raise
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self))
        if not layers and self.passes:
            layers = f"{len(self.passes)} backward passes, see .passes"
        return f"Recording({layers or 'nothing yet'})"

    @property
    def refused(self) -> Mapping[str, str]:
        """Layers that were found but not recorded, and why."""
        return {name: str(error) for name, error in self._refused.items()}

    def only(self) -> Recorded:
        """The one recorded layer.

        Raises:
            RecordingError: if nothing is recorded yet.
            ArgumentError: if there are several; the message lists them.
        """
        if not self and self.refused:
            raise RecordingError("; ".join(self.refused.values()))
        if not self:
            raise RecordingError(
                "nothing is recorded yet: leave the `with record(...)` block first"
            )
        if len(self) > 1:
            raise ArgumentError(
                f"{len(self)} recurrent layers were recorded; pick one, as in "
                f"recording[{next(iter(self))!r}]. There are: " + ", ".join(self)
            )
        return next(iter(self.values()))

    def fill(self, name: str, maker: Callable[[], Recorded]) -> None:
        """A layer that was recorded; it is put together when it is asked for."""
        self._makers[name] = maker

    def refuse(self, name: str, error: RetrogradeError) -> None:
        """A layer that was not recorded."""
        self._refused[name] = error
