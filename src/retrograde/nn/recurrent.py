"""What all modules have in common: torch.nn's constructor, names, shapes and return values."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells import AbstractCell, AbstractLayer, truncated
from retrograde.errors import ArgumentError
from retrograde.nn.function import run

State = Tensor | tuple[Tensor, ...]
Activations = tuple[Mapping[str, Tensor], ...]
Shapes = Mapping[str, tuple[int, ...]]


class AbstractRecurrent(nn.Module):
    """A recurrence as a module: `num_layers` cells, in one or both directions.

    Weights are named as in torch.nn (`weight_ih_l0`, `bias_hh_l1_reverse`, ...), and drawn as
    there: all of them from U(-1/sqrt(H), 1/sqrt(H)). `initialise` has others.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        truncated: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{name} must be a positive integer; got {size!r}")
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ArgumentError(f"dropout must be a probability from 0 to 1; got {dropout!r}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers, and there is only one", stacklevel=3
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.truncated = bidirectional, truncated
        for name, shape in self._named_shapes().items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()

    @abstractmethod
    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        """The weights of a layer, both biases included."""

    @abstractmethod
    def _layer(self, weights: Mapping[str, Tensor]) -> AbstractLayer:
        """The cell of a layer with these weights."""

    @abstractmethod
    def _kernel(self) -> Callable[..., Any] | None:
        """torch's own function that computes the same, if there is one."""

    @abstractmethod
    def _torch(self) -> Callable[..., nn.RNNBase] | None:
        """torch's own module that computes the same, if there is one."""

    @abstractmethod
    def _fitting(self, found: Shapes, inputs: int, hidden: int) -> str:
        """In words, which kinds of this module have just these weights in a layer, or nearly."""

    def reset_parameters(self) -> None:
        """Draw all weights as torch.nn does."""
        bound = self.hidden_size**-0.5
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self, input: Tensor, hx: State | None = None, *, return_activations: bool = False
    ) -> tuple[Tensor, State] | tuple[Tensor, State, Activations]:
        """Run over a sequence.

        Args:
            input: shape [T, B, I]; [B, T, I] with `batch_first`; [T, I] without a batch.
            hx: the initial state, one tensor [layers * directions, B, H] for each part of the state
                ((h_0, c_0) for an LSTM, h_0 alone for the others); zeros if None.
            return_activations: hand out what happened inside as well. The package's own recurrence
                runs then, also where torch has a kernel.

        Returns:
            output, of every step, [T, B, directions * H] (or as the input is laid out); the last
            state, in the form of `hx`; and if asked for, for every layer and direction in torch's
            order, a mapping of names (`h`, `c`, each gate, ...) to [T, B, H]. All of them can be
            differentiated.

        Raises:
            ArgumentError: for sizes that do not fit.
        """
        weights = {name: getattr(self, name) for name in self.weight_names}  # parametrized or not
        cells = self.cells(weights)
        x, initial = self._checked(input, hx, tuple(cells[0].slots))
        kernel = None if return_activations or self.truncated else self._kernel()
        if kernel is not None:
            given = initial if len(initial) > 1 else initial[0]
            options = (self.bias, self.num_layers, self.dropout, self.training)
            output, *last = kernel(
                x, given, list(weights.values()), *options, self.bidirectional, False
            )
            inside: list[dict[str, Tensor]] = []
        else:
            output, last, inside = self._run(cells, x, initial, return_activations)
        if input.ndim == 2:
            last = [tensor.squeeze(1) for tensor in last]
        state = tuple(last) if len(last) > 1 else last[0]
        if not return_activations:
            return self._as_given(output, input), state
        laid_out = (
            {name: self._as_given(value, input) for name, value in layer.items()}
            for layer in inside
        )
        return self._as_given(output, input), state, tuple(laid_out)

    def _run(
        self, each: tuple[AbstractCell, ...], x: Tensor, initial: list[Tensor], inside: bool
    ) -> tuple[Tensor, list[Tensor], list[dict[str, Tensor]]]:
        """Layer by layer: outputs, last states and, if wanted, activations."""
        last: list[list[Tensor]] = [[] for _ in initial]
        activations: list[dict[str, Tensor]] = []
        cells = iter(each)
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(1 + self.bidirectional):
                cell = next(cells)
                number = layer * (1 + self.bidirectional) + direction
                first = torch.cat([part[number] for part in initial], -1)
                along = x.flip(0) if direction else x
                states = run(cell, along, first)
                for part, slot in zip(last, cell.slots.values(), strict=True):
                    part.append(states[-1, :, slot])
                named = {"h": states[..., cell.output]}
                if inside:
                    before = torch.cat((first.unsqueeze(0), states[:-1]))
                    named |= {name: states[..., slot] for name, slot in cell.slots.items()}
                    named |= cell.step(along, before).activations
                if direction:
                    named = {name: value.flip(0) for name, value in named.items()}
                outputs.append(named["h"])
                activations.append(named)
            x = torch.cat(outputs, -1)
            if self.dropout and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, [torch.stack(part) for part in last], activations

    def cells(self, weights: Mapping[str, Tensor] | None = None) -> tuple[AbstractCell, ...]:
        """The cell of every layer and direction, in torch's order.

        Args:
            weights: by the names in `weight_names`; the module's own, live, if None.
        """
        if weights is None:
            weights = {name: getattr(self, name) for name in self.weight_names}

        def cell(suffix: str) -> AbstractCell:
            names = (name for name in self._shapes(1, 1) if name + suffix in weights)
            layer = self._layer({name: weights[name + suffix] for name in names})
            return truncated(layer) if self.truncated else layer

        return tuple(cell(suffix) for suffix in self._suffixes())

    def to_torch(self) -> nn.RNNBase:
        """The same layer as a module of torch.nn, weights copied.

        Raises:
            ArgumentError: if torch.nn does not have it.
        """
        kind = self._torch()
        if kind is None or self.truncated:
            raise ArgumentError(
                f"torch.nn has nothing that computes {self!r}; it has nn.LSTM (generation "
                "'lstm-2000'), nn.GRU ('gru-torch') and nn.RNN (tanh, relu), not truncated"
            )
        weight = next(self.parameters())
        module = kind(**self._options(), device="meta", dtype=weight.dtype)
        module = module.to_empty(device=weight.device)  # this way no numbers are drawn
        module.load_state_dict(self.state_dict())
        return module.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}"
        plain = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        plain |= {"bidirectional": False, "truncated": False}
        different = {
            name: getattr(self, name) for name in plain if getattr(self, name) != plain[name]
        }
        return ", ".join([sizes, *(f"{name}={value!r}" for name, value in different.items())])

    def _options(self) -> dict[str, Any]:
        """The arguments that torch.nn's constructors take too."""
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
        return {name: getattr(self, name) for name in (*names, "bidirectional")}

    def _suffixes(self) -> list[str]:
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of all weights, in torch's order."""
        return tuple(self._named_shapes())

    def _named_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of the module."""
        named = {}
        for suffix in self._suffixes():
            first = suffix.startswith("_l0")
            inputs = self.input_size if first else self.hidden_size * (1 + self.bidirectional)
            for name, shape in self._shapes(inputs, self.hidden_size).items():
                if self.bias or not name.startswith("bias"):
                    named[name + suffix] = shape
        return named

    def _checked(
        self, input: Tensor, hx: State | None, names: tuple[str, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """The input with time first and a batch, and the parts of the initial state, by name."""
        layout = "[B, T, {}]" if self.batch_first else "[T, B, {}]"
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise ArgumentError(
                f"input must have shape {layout.format(self.input_size)} or [T, {self.input_size}];"
                f" got {list(input.shape)}"
            )
        x = input.unsqueeze(1) if input.ndim == 2 else input
        if self.batch_first and input.ndim == 3:
            x = x.transpose(0, 1)
        if not x.numel():
            raise ArgumentError(
                f"input of shape {list(input.shape)} has no step or no sample to run over"
            )
        shape = [self.num_layers * (1 + self.bidirectional), x.shape[1], self.hidden_size]
        if hx is None:
            return x, [x.new_zeros(shape) for _ in names]
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if input.ndim == 2:
            given = tuple(part.unsqueeze(1) if part.ndim == 2 else part for part in given)
        if len(given) != len(names) or any(list(part.shape) != shape for part in given):
            expected = ", ".join(f"{name}_0" for name in names)
            arrived = ", ".join(str(list(part.shape)) for part in given)
            raise ArgumentError(f"hx must be ({expected}), each of shape {shape}; got {arrived}")
        return x, list(given)

    def _as_given(self, value: Tensor, input: Tensor) -> Tensor:
        """[T, B, H] laid out as the input is."""
        if input.ndim == 2:
            return value.squeeze(1)
        return value.transpose(0, 1) if self.batch_first else value

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch does it; weights that do not fit are refused with what they would fit.

        Raises:
            RuntimeError: as torch does, with the names and the nearest generation.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            advice = self._why_not(state_dict)
            if advice in str(error):
                raise
            raise RuntimeError(f"{error}\n\t{advice}") from None

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Called for a layer inside a larger model too: there shapes are refused with advice."""
        before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > before:
            own = {n.removeprefix(prefix): w for n, w in state_dict.items() if n.startswith(prefix)}
            error_msgs.append(self._why_not(own))

    def _why_not(self, weights: Mapping[str, Tensor]) -> str:
        """Which of these weights do not belong here, and where they would."""
        own = self._named_shapes()
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        wrong = [name for name in own if found.get(name, own[name]) != own[name]]
        complaints = {
            "missing": sorted(set(own) - set(found)),
            "extra": sorted(set(found) - set(own)),
            "of another shape": wrong,
        }
        named = "; ".join(
            f"{what}: {', '.join(names)}" for what, names in complaints.items() if names
        )
        first = {n.removesuffix("_l0"): shape for n, shape in found.items() if n.endswith("_l0")}
        advice = self._fitting(first, self.input_size, self.hidden_size)
        return f"these weights are not those of {self!r} ({named}). {advice}"


def nearest(found: Shapes, kinds: Mapping[str, Shapes]) -> str:
    """Which kinds have just the weights that were found, or else which comes nearest."""
    fitting = [name for name, shapes in kinds.items() if dict(shapes) == dict(found)]
    if fitting:
        return f"They fit generation {' or '.join(map(repr, fitting))}"

    def differences(shapes: Shapes) -> int:
        return len(set(shapes.items()) ^ set(found.items()))

    best = min(kinds, key=lambda name: differences(kinds[name]))
    return f"No generation fits with these sizes; the nearest is {best!r}"
