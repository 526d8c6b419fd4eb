"""A stack of layers is itself a cell: its state is the states of all layers, side by side."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellAdjoint, CellStep, shifted
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Stacked(AbstractCell):
    """Layer l+1 reads the output of layer l at the same step, as in torch.nn.LSTM(num_layers=...).

    Parameters are named as there: `weight_ih_l0`, `weight_hh_l1`, ... Routes of more than one layer
    carry the same suffix (`carousel_l1`); a single layer keeps its own names.

    Args:
        layers: the cells from the input upwards.

    Raises:
        ArgumentError: for no layers, or a layer whose input is not the output of the one below.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, Stacked
        >>> lower = GRU(torch.zeros(6, 3), torch.zeros(6, 2))
        >>> upper = GRU(torch.zeros(6, 2), torch.zeros(6, 2))
        >>> Stacked((lower, upper)).slots
        {'h_l0': slice(0, 2, None), 'h_l1': slice(2, 4, None)}
    """

    layers: tuple[AbstractCell, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ArgumentError("a stack needs at least one layer; got none")
        for number, (below, above) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            width = below.output.stop - below.output.start
            if above.input_size != width:
                raise ArgumentError(
                    f"layer {number} of a stack must read the {width} outputs of layer "
                    f"{number - 1}; it expects {above.input_size} inputs"
                )

    @cached_property
    def _offsets(self) -> list[int]:
        offsets = [0]
        for layer in self.layers[:-1]:
            offsets.append(offsets[-1] + layer.state_size)
        return offsets

    def _suffix(self, layer: int) -> str:
        return f"_l{layer}" if len(self.layers) > 1 else ""

    def _suffixed(self, routes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        """The routes of all layers, each with its layer's suffix."""
        return tuple(r + self._suffix(number) for number, of in enumerate(routes) for r in of)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {
            f"{name}_l{number}": value
            for number, layer in enumerate(self.layers)
            for name, value in layer.parameters.items()
        }

    @property
    def input_size(self) -> int:
        return self.layers[0].input_size

    @property
    def slots(self) -> Mapping[str, slice]:
        return {
            f"{name}_l{number}": slice(slot.start + offset, slot.stop + offset)
            for number, (layer, offset) in enumerate(zip(self.layers, self._offsets, strict=True))
            for name, slot in layer.slots.items()
        }

    @property
    def output(self) -> slice:
        top, offset = self.layers[-1].output, self._offsets[-1]
        return slice(top.start + offset, top.stop + offset)

    @property
    def routes(self) -> tuple[str, ...]:
        return self._suffixed(layer.routes for layer in self.layers)

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        return self._suffixed(layer.recurrent_routes for layer in self.layers)

    @property
    def inner_routes(self) -> tuple[str, ...]:
        return self._suffixed(layer.inner_routes for layer in self.layers)

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "Stacked":
        return replace(
            self,
            layers=tuple(
                layer.with_parameters(
                    {name: parameters[f"{name}_l{number}"] for name in layer.parameters}
                )
                for number, layer in enumerate(self.layers)
            ),
        )

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        name, number = parameter.rsplit("_l", 1)
        return self.layers[int(number)].gates_of(name)

    def project(self, x: Input) -> Projected:
        return self.layers[0].project(x)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        first, *others = self._split(state)
        steps = [self.layers[0].advance(x, projected, first)]
        for below, layer, part in zip(self.layers, self.layers[1:], others, strict=False):
            steps.append(layer.step(steps[-1].state[..., below.output], part))
        joined = torch.cat([step.state for step in steps], -1)
        return CellStep(x, state, joined, layers=tuple(steps))

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        def within(number: int) -> frozenset[str]:
            suffix = self._suffix(number)
            return frozenset(r.removesuffix(suffix) for r in cut if r.endswith(suffix))

        layers = enumerate(zip(self.layers, step.layers, strict=True))
        parts = tuple(layer.linearise(part, within(number)) for number, (layer, part) in layers)
        return replace(step, layers=parts)

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        parts = self._split(delta)
        adjoints: dict[int, CellAdjoint] = {}
        for number in reversed(range(len(self.layers))):
            part = parts[number]
            if number + 1 in adjoints:  # what the layer above reads of this one's output
                part = part.clone()
                part[..., self.layers[number].output] += adjoints[number + 1].input()
            adjoints[number] = self.layers[number].pull_back(step.layers[number], part)
        ordered = [(number, adjoints[number]) for number in range(len(self.layers))]
        return CellAdjoint(
            edges=tuple(
                shifted(edge, self._offsets[number], self._suffix(number))
                for number, adjoint in ordered
                for edge in adjoint.edges
            ),
            to_input=adjoints[0].to_input,
            find_uses=lambda: {
                f"{name}_l{number}": uses
                for number, adjoint in ordered
                for name, uses in adjoint.uses.items()
            },
            like=delta,
        )

    def _split(self, state: Float[Tensor, "*L S"]) -> tuple[Tensor, ...]:
        return torch.split(state, [layer.state_size for layer in self.layers], -1)
