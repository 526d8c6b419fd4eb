"""The networks of 1997 and 2000: blocks of cells that share their gates, and gates fed by gates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde import _checks
from retrograde.declarations import Declaration
from retrograde.errors import ArgumentError

Weights = Mapping[str, Tensor]

SQUASHES = {"[0, 1]": (1.0, 0.0), "[-1, 1]": (2.0, -1.0), "[-2, 2]": (4.0, -2.0)}
"""The papers' functions by their range, as multiples of the logistic one: its factor, and what is
added."""


def squash(kind: str, net: Tensor) -> tuple[Tensor, Tensor]:
    """One of the papers' functions, by its range, or "identity": its value and its slope."""
    if kind == "identity":
        return net, torch.ones_like(net)
    factor, shift = SQUASHES[kind]
    sigma = torch.sigmoid(net)
    return factor * sigma + shift, factor * sigma * (1 - sigma)


BIASED: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "gates": frozenset({"gates"}),
    "hidden": frozenset({"gates", "cells"}),
    "gates and outputs": frozenset({"gates", "outputs"}),
    "all": frozenset({"gates", "cells", "outputs"}),
}
"""Which units have a bias, by the word for it."""


@dataclass(frozen=True)
class Blocks:
    """The plan of a network of cell blocks.

        i, f, o = sigma(net)  once per block        c_t = f c_{t-1} + i g(net_c)     h_t = o h(c_t)

    Attributes:
        inputs, outputs: widths of what it reads and answers.
        blocks, size: C blocks of S cells each.
        output_gates, forget_gates: whether blocks have them; one that is left out stands at 1.
        seen: what cells and gates see of the step before: the outputs of all cells and all gates
            (1997), of the cells alone (2000), or nothing (task 2a of 1997).
        skip: whether the outputs see the inputs, too.
        biased: the units that have biases: "none", "gates", "hidden", "gates and outputs" or "all".
        cell_input: the range of g, `cell_output` that of h, and `output` that of the outputs (the
            papers' logistic functions), or "identity".
        spread: weights, and the biases not named below, are uniform in [-spread, spread].
        input_biases, forget_biases, output_biases: of the gates, block by block.
        peepholes: whether the gates of a block see the state of its cell (2002): input and forget
            gate that before the step, the output gate that after it. Blocks then have one cell
            each, and all three gates.

    Raises:
        ArgumentError: for values that fit no network.

    Example:
        >>> from retrograde.tasks.blocks import Blocks
        >>> Blocks(inputs=2, outputs=1, blocks=2, size=2, biased="all").weights
        93
    """

    inputs: int
    outputs: int
    blocks: int
    size: int = 1
    output_gates: bool = True
    forget_gates: bool = False
    seen: Literal["all", "cells", "nothing"] = "all"
    skip: bool = False
    biased: str = "none"
    cell_input: str = "[-2, 2]"
    cell_output: str = "[-1, 1]"
    spread: float = 0.1
    input_biases: tuple[float, ...] = ()
    forget_biases: tuple[float, ...] = ()
    output_biases: tuple[float, ...] = ()
    peepholes: bool = False
    output: str = "[0, 1]"

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "blocks", "size"):
            _checks.whole(name, getattr(self, name))
        _checks.positive("spread", self.spread)
        _checks.one_of("seen", self.seen, ("all", "cells", "nothing"))
        _checks.one_of("biased", self.biased, BIASED)
        for name in ("cell_input", "cell_output", "output"):
            _checks.one_of(name, getattr(self, name), ("identity", *SQUASHES))
        if self.peepholes and (self.size > 1 or len(self.gates) < 3):
            raise ArgumentError(
                "networks with peepholes have one cell in each block, and input, forget and output "
                f"gates; got size={self.size} and the gates {', '.join(self.gates)}"
            )
        for gate in ("input", "forget", "output"):
            biases = getattr(self, f"{gate}_biases")
            there = gate in self.gates and "gates" in BIASED[self.biased]
            if biases and (len(biases) != self.blocks or not there):
                raise ArgumentError(
                    f"{gate}_biases are one for each of {self.blocks} blocks whose {gate} gates "
                    f"have biases; got {_checks.shown(biases)}"
                )

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates of each block, in the order of the rows of the weights."""
        return (
            "input",
            *(("forget",) if self.forget_gates else ()),
            *(("output",) if self.output_gates else ()),
        )

    @property
    def cells(self) -> int:
        """C S, the number of cells."""
        return self.blocks * self.size

    @property
    def fed_back(self) -> int:
        """How many outputs of the step before each hidden unit sees."""
        gates = self.blocks * len(self.gates)
        return {"all": self.cells + gates, "cells": self.cells, "nothing": 0}[self.seen]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight: hidden units in the order cells, then gate by gate."""
        gates, biased = self.blocks * len(self.gates), BIASED[self.biased]
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (self.cells + gates, self.inputs),
            "weight_hh": (self.cells + gates, self.fed_back),
            "bias_cells": (self.cells * ("cells" in biased),),
            "bias_gates": (gates * ("gates" in biased),),
            "weight_ch": (gates * self.peepholes,),
            "weight_ho": (self.outputs, self.cells),
            "weight_io": (self.outputs, self.inputs * self.skip),
            "bias_o": (self.outputs * ("outputs" in biased),),
        }
        return {name: shape for name, shape in shapes.items() if 0 not in shape}

    @property
    def weights(self) -> int:
        """The number of weights, as the papers count them."""
        return sum(torch.Size(shape).numel() for shape in self.shapes().values())

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights as the paper draws them."""
        drawn = {
            name: torch.empty(shape).uniform_(-self.spread, self.spread, generator=generator)
            for name, shape in self.shapes().items()
        }
        for gate, biases in zip(
            self.gates,
            torch.split(drawn.get("bias_gates", torch.empty(0)), self.blocks),
            strict=False,
        ):
            if given := getattr(self, f"{gate}_biases"):
                biases.copy_(torch.tensor(given))
        return drawn

    def step(
        self,
        weights: Weights,
        x: Float[Tensor, "B I"],
        state: Mapping[str, Float[Tensor, "B *"]],
        truncated: bool = False,
    ) -> dict[str, Float[Tensor, "B *"]]:
        """One step of the hidden layer.

        Args:
            weights: by name.
            x: the input.
            state: "c", the states of the cells, and "y", what is fed back.
            truncated: no error flows back through "y", as in 1997; only the carousel carries it.

        Returns:
            The new state, and "h", the outputs of the cells.
        """
        y = state["y"].detach() if truncated else state["y"]
        net = x @ weights["weight_ih"].mT
        if self.fed_back:
            net = net + y @ weights["weight_hh"].mT
        cells, gates = net[..., : self.cells], net[..., self.cells :]
        gates = gates + weights.get("bias_gates", 0.0)
        cells, _ = squash(self.cell_input, cells + weights.get("bias_cells", 0.0))
        nets = dict(zip(self.gates, torch.split(gates, self.blocks, -1), strict=True))
        if self.peepholes:
            seeing = torch.split(weights["weight_ch"], self.blocks)
            peepholes = dict(zip(self.gates, seeing, strict=True))
        opened = {}

        def gate(name: str, c: Tensor) -> Tensor | float:
            if name not in nets:
                return 1.0
            net = nets[name]
            if self.peepholes:
                net = net + (c.detach() if truncated else c) * peepholes[name]
            opened[name] = torch.sigmoid(net)
            return opened[name].repeat_interleave(self.size, -1)

        c = gate("forget", state["c"]) * state["c"] + gate("input", state["c"]) * cells
        h = gate("output", c) * squash(self.cell_output, c)[0]
        gates = torch.cat([opened[name] for name in self.gates], -1)
        fed_back = {"all": (h, gates), "cells": (h,), "nothing": (h[..., :0],)}[self.seen]
        return {"c": c, "y": torch.cat(fed_back, -1), "h": h}


class BlockLayer(nn.Module):
    """The hidden layer of such a network: x [T, B, I] to the outputs of all cells, [T, B, C S].

    Args:
        plan: of the network.
        weights: by name; those of the output layer are not taken.
        truncated: no error flows back but through the carousel, as in 1997.
    """

    batch_first = False

    def __init__(self, plan: Blocks, weights: Weights, truncated: bool = False):
        super().__init__()
        self.plan, self.truncated = plan, truncated
        for name, value in weights.items():
            if name in plan.shapes() and not name.endswith("o"):
                self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, x: Float[Tensor, "T B I"]) -> Float[Tensor, "T B H"]:
        weights, batch = dict(self.named_parameters()), x.shape[1]
        state = {
            "c": x.new_zeros(batch, self.plan.cells),
            "y": x.new_zeros(batch, self.plan.fed_back),
        }
        outputs = []
        for x_k in x:
            state = self.plan.step(weights, x_k, state, self.truncated)
            outputs.append(state.pop("h"))
        return torch.stack(outputs)


class BlockNetwork(nn.Module):
    """A whole network: the hidden layer and the outputs, x [T, B, I] to [T, B, O].

    Args:
        plan: of the network.
        weights: by name, as `plan.draw` gives them.
        truncated: no error flows back but through the carousel, as in 1997; outputs and hidden
            units of the same step pass it on.

    Attributes:
        hidden: the hidden layer, the part that `retrograde.record` takes apart.

    Example:
        The truncated gradient crosses no weights between steps:

        >>> import torch, retrograde
        >>> from retrograde.tasks.blocks import DECLARATIONS, Blocks, BlockNetwork
        >>> plan = Blocks(inputs=2, outputs=1, blocks=2, size=2, biased="all")
        >>> weights = plan.draw(torch.Generator().manual_seed(0))
        >>> network = BlockNetwork(plan, weights, truncated=True)
        >>> with retrograde.record(network, cells=DECLARATIONS) as recording:
        ...     network(torch.ones(20, 3, 2))[-1].sum().backward()
        >>> f"{retrograde.decompose(recording).by_crossing().share[1:].sum():.0%}"
        '0%'
    """

    def __init__(self, plan: Blocks, weights: Weights, truncated: bool = False):
        super().__init__()
        self.plan = plan
        self.hidden = BlockLayer(plan, weights, truncated)
        for name, value in weights.items():
            if name.endswith("o"):
                self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, x: Float[Tensor, "T B I"]) -> Float[Tensor, "T B O"]:
        weights = dict(self.named_parameters(recurse=False))
        net = self.hidden(x) @ weights["weight_ho"].mT
        if self.plan.skip:
            net = net + x @ weights["weight_io"].mT
        return squash(self.plan.output, net + weights.get("bias_o", 0.0))[0]


def _step(module: nn.Module, weights: Weights, x: Tensor, state: dict[str, Tensor]) -> object:
    assert isinstance(module, BlockLayer)
    return module.plan.step(weights, x, state, module.truncated)


def _cells(module: nn.Module) -> int:
    assert isinstance(module, BlockLayer)
    return module.plan.cells


def _fed_back(module: nn.Module) -> int:
    assert isinstance(module, BlockLayer)
    return module.plan.fed_back


DECLARATIONS = {
    BlockLayer: Declaration(
        _step, state={"c": _cells, "y": _fed_back}, readout="h", carousel=("c->c", "c->h", "c->y")
    )
}
"""What makes these networks recordable: `retrograde.record(network, cells=DECLARATIONS)`."""
