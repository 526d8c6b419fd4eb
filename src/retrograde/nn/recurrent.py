"""What all modules have in common: torch.nn's constructor, names, shapes and return values."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde import _checks
from retrograde.cells import AbstractCell, Position, clipped, truncated
from retrograde.compiled.passes import Kind, in_use, transformed
from retrograde.errors import ArgumentError
from retrograde.nn.clipping import Clipping
from retrograde.nn.on_library import through_library
from retrograde.nn.sequence import Sequences, State, sizes_of, through

Activations = tuple[Mapping[str, Tensor | PackedSequence], ...]
Shapes = Mapping[str, tuple[int, ...]]


class AbstractRecurrent(nn.Module):
    """A recurrence as a module: `num_layers` cells, in one or both directions.

    Weights are named as in torch.nn (`weight_ih_l0`, `bias_hh_l1_reverse`, ...), and drawn as
    there: all of them from U(-1/sqrt(H), 1/sqrt(H)). `initialise` has others.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM.
        truncated: train with the truncated backward pass of Hochreiter and Schmidhuber (1997).
        device, dtype: of the weights.

    Example:
        >>> import torch, retrograde
        >>> gru = retrograde.nn.GRU(2, 3, num_layers=2, bidirectional=True)
        >>> isinstance(gru, retrograde.nn.AbstractRecurrent), hasattr(gru, "weight_hh_l1_reverse")
        (True, True)
        >>> output, state = gru(torch.ones(5, 4, 2))
        >>> output.shape, state.shape
        (torch.Size([5, 4, 6]), torch.Size([4, 4, 3]))
    """

    clipping: Clipping | None = None
    """What `clip_inside` put into its back-propagation."""

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
        self.input_size = _checks.whole("input_size", input_size)
        self.hidden_size = _checks.whole("hidden_size", hidden_size)
        self.num_layers = _checks.whole("num_layers", num_layers)
        self.dropout = _checks.between("dropout", dropout, 0.0, 1.0, "a probability from 0 to 1")
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers, but there is only one", stacklevel=3
            )
        self.bias = _checks.flag("bias", bias)
        self.batch_first = _checks.flag("batch_first", batch_first)
        self.bidirectional = _checks.flag("bidirectional", bidirectional)
        self.truncated = _checks.flag("truncated", truncated)
        _check_dtype(dtype)
        for name, shape in self._named_shapes().items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()

    @abstractmethod
    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        """The weights of a layer, both biases included."""

    @abstractmethod
    def _layer(self, weights: Mapping[str, Tensor]) -> AbstractCell:
        """The cell of a layer with these weights."""

    def _kernel(self) -> Callable[..., Any] | None:
        """torch's own function that computes the same, if there is one."""
        return None

    def _kind(self, inside: bool) -> Kind | None:
        """What the compiled library has to know of its cells, if it is to run on it.

        Args:
            inside: whether activations are wanted.
        """
        return None

    def _torch(self) -> Callable[..., nn.RNNBase] | None:
        """torch's own module that computes the same, if there is one."""
        return None

    def _fitting(self, found: Shapes, inputs: int, hidden: int) -> str:
        """In words, which kinds of this module have just these weights in a layer, or nearly."""
        expected = self._shapes(inputs, hidden)
        return f"A layer has {', '.join(f'{n} {list(shape)}' for n, shape in expected.items())}"

    def reset_parameters(self) -> None:
        """Draw all weights as torch.nn does."""
        bound = self.hidden_size**-0.5
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        return_activations: bool = False,
    ) -> tuple[Tensor | PackedSequence, State] | tuple[Tensor | PackedSequence, State, Activations]:
        """Run over a sequence.

        Args:
            input: shape [T, B, I]; [B, T, I] with `batch_first`; [T, I] without a batch; or packed.
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
        _checks.flag("return_activations", return_activations)
        plain = not (self.truncated or self.clipping)
        kind = self._kind(return_activations) if plain else None
        if kind is not None:
            found = through_library(kind, self, input, hx, return_activations)
            if found is not None:
                out, ends, activations = found
                state = ends if len(ends) > 1 else ends[0]
                return (out, state, activations) if return_activations else (out, state)
        weights = {name: getattr(self, name) for name in self.weight_names}  # parametrized or not
        dtype = next(iter(weights.values())).dtype
        sequences = Sequences.of(input, self.input_size, self.batch_first, dtype)
        if plain and not return_activations:
            found_by_torch = self._through_torch(sequences, hx, weights, kind)
            if found_by_torch is not None:
                return found_by_torch
        cells = self.cells(weights)
        initial = sequences.initial(hx, len(cells), sizes_of(cells[0]))
        steps, last, inside = through(
            cells,
            sequences,
            initial,
            directions=1 + self.bidirectional,
            dropout=self.dropout if self.training else 0.0,
            inside=return_activations,
            note=self.clipping.note if self.clipping else None,
        )
        result = sequences.as_given(steps), sequences.state(last)
        if not return_activations:
            return result
        laid_out = (
            {name: sequences.as_given(value) for name, value in layer.items()} for layer in inside
        )
        return *result, tuple(laid_out)

    def _through_torch(
        self,
        sequences: Sequences,
        hx: State | None,
        weights: Mapping[str, Tensor],
        kind: Kind | None,
    ) -> tuple[Tensor | PackedSequence, State] | None:
        """What torch's own function gives; None where it has none, or is not to run.

        It is slower than the library by far, but for the LSTM in float32 (`_kind`).
        """
        kernel, own = self._kernel(), self._kind(inside=True)
        if kernel is None or own is None or transformed():
            return None
        layers = self.num_layers * (1 + self.bidirectional)
        initial = sequences.initial(hx, layers, dict.fromkeys(own.state, self.hidden_size))
        if kind is not None and in_use(sequences.x, *initial, *weights.values()) is not None:
            return None
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        output, last = sequences.on_kernel(kernel, initial, [*weights.values()], *options)
        return output, sequences.state(last)

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
            cell = clipped(layer, self.clipping.policy) if self.clipping else layer
            return truncated(cell) if self.truncated else cell

        every = Position.every(self.num_layers, self.bidirectional)
        return tuple(cell(position.suffix) for position in every)

    def to_torch(self) -> nn.RNNBase:
        """The same layer as a module of torch.nn, weights copied.

        Raises:
            ArgumentError: if torch.nn does not have it.
        """
        kind = self._torch()
        if kind is None or self.truncated or self.clipping:
            raise ArgumentError(
                f"torch.nn has nothing that computes {self!r}; it has nn.LSTM (generation "
                "'lstm-2000'), nn.GRU ('gru-torch') and nn.RNN (tanh, relu), neither truncated nor "
                "clipped inside"
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
        if self.clipping:
            different["clipping"] = self.clipping.policy
        return ", ".join([sizes, *(f"{name}={value!r}" for name, value in different.items())])

    def _options(self) -> dict[str, Any]:
        """The arguments that torch.nn's constructors take too."""
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
        return {name: getattr(self, name) for name in (*names, "bidirectional")}

    @property
    def state_pieces(self) -> tuple[str, ...]:
        """The names of the parts of the state, in the order of `hx` and of what forward returns."""
        shapes = self._shapes(self.input_size, self.hidden_size)
        empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return tuple(self._layer(empty).slots)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of all weights, in torch's order."""
        return tuple(self._named_shapes())

    def _named_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of the module."""
        named = {}
        for position in Position.every(self.num_layers, self.bidirectional):
            above = self.hidden_size * (1 + self.bidirectional)
            inputs = above if position.layer else self.input_size
            for name, shape in self._shapes(inputs, self.hidden_size).items():
                if self.bias or not name.startswith("bias"):
                    named[name + position.suffix] = shape
        return named

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
        end = Position(0).suffix
        first = {n.removesuffix(end): shape for n, shape in found.items() if n.endswith(end)}
        advice = self._fitting(first, self.input_size, self.hidden_size)
        return f"these weights are not those of {self!r} ({named}). {advice}"


def _check_dtype(dtype: object) -> None:
    """Refuse what no weights can have.

    Raises:
        ArgumentError: for anything but a floating-point type.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype must be a floating-point type of torch; got {dtype!r}")


def nearest(found: Shapes, kinds: Mapping[str, Shapes]) -> str:
    """Which kinds have just the weights that were found, or else which comes nearest."""
    fitting = [name for name, shapes in kinds.items() if dict(shapes) == dict(found)]
    if fitting:
        return f"They fit generation {' or '.join(map(repr, fitting))}"

    def differences(shapes: Shapes) -> int:
        return len(set(shapes.items()) ^ set(found.items()))

    best = min(kinds, key=lambda name: differences(kinds[name]))
    return f"No generation fits with these sizes; the nearest is {best!r}"
