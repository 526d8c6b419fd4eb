"""From a user's torch model to what the engine needs: one forward and one backward pass.

Hooks on the recurrent layers keep their inputs, initial states and weights; hooks on the tensors
that come out keep dL/dh and what enters the last state; hooks on the parameters keep autograd's own
gradient of this very pass. All of them are gone when the `with` block ends.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retrograde.cells import AbstractCell, Stacked
from retrograde.errors import (
    ArgumentError,
    NonFiniteError,
    RecordingError,
    RetrogradeError,
    UnsupportedModelError,
)
from retrograde.nn import GRU, LSTM, RNN, AbstractRecurrent

Layer = nn.RNNBase | AbstractRecurrent
"""A recurrent layer of torch, or one of ours."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """One backward pass through one recurrent layer or stack.

    Attributes:
        name: the layer's name in its model.
        cell: its weights, copied, as a cell.
        x: its input, shape [T, B, I].
        initial: its initial state (h of each layer, and c), shape [B, S].
        output_adjoint: dL/dh_t of the top layer as the loss gives it, shape [T, B, H].
        final_adjoint: what enters the last state through h_n and c_n, shape [B, S].
        gradients: autograd's own gradient of each parameter in this pass.
    """

    name: str
    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    initial: Float[Tensor, "B S"]
    output_adjoint: Float[Tensor, "T B H"]
    final_adjoint: Float[Tensor, "B S"]
    gradients: Mapping[str, Tensor]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name."""
        return self.cell.parameters

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

    def check_finite(self) -> None:
        """Refuse NaN and infinity in what was recorded.

        Raises:
            NonFiniteError: with the tensor and the first place.
        """
        for name, weight in self.cell.parameters.items():
            self._refuse(
                weight, f"the weight {name}", ("row", "column"), "it was so before this pass"
            )
        axes = ("step", "sample", "feature")
        self._refuse(self.x, "the input", axes, "look at the data, or at the layers before")
        self._refuse(self.initial, "the initial state", ("sample", "unit"), "look where it is made")
        self._refuse(
            self.output_adjoint,
            "dL/dh",
            axes,
            "it comes from the loss or the layers after this one",
        )
        self._refuse(
            self.final_adjoint, "dL/d(h_n, c_n)", ("sample", "unit"), "it comes from the loss"
        )

    def check_states(self, states: Float[Tensor, "T1 B S"]) -> None:
        """Refuse a forward pass that overflowed.

        Raises:
            NonFiniteError: with the first step.
        """
        self._refuse(
            states[1:],
            "the state",
            ("step", "sample", "unit"),
            "the forward pass itself overflows: the recurrent weights are too large",
        )

    def _refuse(self, values: Tensor, what: str, axes: tuple[str, ...], advice: str) -> None:
        bad = ~values.isfinite()
        if not bool(bad.any()):
            return
        first = torch.nonzero(bad)[0].tolist()
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first, strict=False))
        value = float(values[tuple(first)])
        raise NonFiniteError(
            f"{what} of {self.name!r} is {value} first at {place} ({int(bad.sum())} such values in "
            f"all): {advice}. A decomposition needs a finite pass"
        )


class Recording(Mapping[str, Recorded]):
    """Recorded layers by name; filled when the `with` block of `record` ends.

    Asking for a layer that could not be recorded raises an error that says why.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, Recorded] = {}
        self._refused: dict[str, RetrogradeError] = {}

    def __getitem__(self, name: str) -> Recorded:
        if name in self._refused:
            raise self._refused[name]
        return self._recorded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorded)

    def __len__(self) -> int:
        return len(self._recorded)

    def __repr__(self) -> str:
        return f"Recording({', '.join(map(repr, self._recorded)) or 'nothing yet'})"

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
        if not self._recorded:
            raise RecordingError(
                "nothing is recorded yet: leave the `with record(...)` block first"
            )
        if len(self) > 1:
            raise ArgumentError(
                f"{len(self)} recurrent layers were recorded; pick one, as in "
                f"recording[{next(iter(self))!r}]. There are: " + ", ".join(self)
            )
        return next(iter(self._recorded.values()))


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record one forward and one backward pass through every recurrent layer of a model.

    The model is used as it is and left as it was: weights, `.grad`, modes, hooks, random state.

    Args:
        model: any module with nn.LSTM, nn.GRU or nn.RNN layers inside, torch's or of
            `retrograde.nn` (or one of these itself).

    Yields:
        The `Recording`, filled when the block ends.

    Raises:
        UnsupportedModelError: if no layer inside can be recorded; the message says why for each.
        RecordingError: when the block ends without exactly one backward pass through a layer.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Sequential(torch.nn.LSTM(2, 3))
        >>> with retrograde.record(model) as recording:
        ...     output, (h_n, c_n) = model(torch.ones(4, 1, 2))
        ...     output[-1].sum().backward()
        >>> recording["0"].x.shape
        torch.Size([4, 1, 2])
    """
    recording = Recording()
    watches: list[_Watch] = []
    for name, module in recurrent_layers(model).items():
        problem = _why_not(module)
        if problem:
            recording._refused[name] = UnsupportedModelError(f"{name!r}: {problem}")
        elif not isinstance(module, nn.RNNCellBase):
            watches.append(_Watch(name, module))
    if not watches:
        raise UnsupportedModelError(_nothing_to_record(model, recording))
    try:
        for watch in watches:
            watch.attach()
        yield recording
    finally:
        for watch in watches:
            watch.detach()
    for watch in watches:
        try:
            recording._recorded[watch.name] = watch.recorded()
        except RetrogradeError as error:
            recording._refused[watch.name] = error
    if not recording:
        raise RecordingError("; ".join(recording.refused.values()))


def record_cell(
    cell: AbstractCell,
    x: Float[Tensor, "T B I"],
    loss: Callable[[Float[Tensor, "T B H"], Float[Tensor, "B S"]], Tensor],
    initial: Float[Tensor, "B S"] | None = None,
    name: str = "cell",
) -> Recorded:
    """Record a bare cell: run it over x, and let autograd differentiate the loss.

    Args:
        cell: any cell, also one that torch.nn does not have.
        x: inputs, shape [T, B, I].
        loss: maps (outputs [T, B, H], last state [B, S]) to a scalar.
        initial: the initial state, shape [B, S]; zeros if None.
        name: what to call it in messages and reports.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import Elman
        >>> linear = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> recorded = retrograde.record_cell(linear, torch.ones(3, 1, 1), lambda h, s: s.sum())
        >>> retrograde.decompose(recorded).by_time("weight_ih").norm
        tensor([[0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    if initial is None:
        initial = x.new_zeros(x.shape[1], cell.state_size)
    with torch.enable_grad():
        weights = {n: w.detach().clone().requires_grad_() for n, w in cell.parameters.items()}
        live = cell.with_parameters(weights)
        state, hidden = initial, []
        for x_k in x:
            state = live.step(x_k, state).state
            hidden.append(state[:, cell.output])
        output = torch.stack(hidden)
        # The loss sees leaves, so that what it gives to each h_t is known without what comes later.
        leaf_output = output.detach().requires_grad_()
        leaf_state = state.detach().requires_grad_()
        value = loss(leaf_output, leaf_state)
        direct = torch.autograd.grad(value, (leaf_output, leaf_state), materialize_grads=True)
        grads = torch.autograd.grad(
            (output, state), list(weights.values()), direct, materialize_grads=True
        )
    gradients = dict(zip(weights, grads, strict=True))
    return Recorded(name, cell, x.detach(), initial.detach(), direct[0], direct[1], gradients)


def recurrent_layers(model: nn.Module) -> dict[str, Layer | nn.RNNCellBase]:
    """Every recurrent layer inside the model, torch's or ours, by name (or else its class)."""
    kinds = (nn.RNNBase, nn.RNNCellBase, AbstractRecurrent)
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def cell_of(module: Layer) -> Stacked:
    """The cell that computes what a recurrent layer computes, weights copied."""
    live = module if isinstance(module, AbstractRecurrent) else _OURS[module.mode](module)
    return Stacked(
        tuple(
            cell.with_parameters({n: w.detach().clone() for n, w in cell.parameters.items()})
            for cell in live.cells()
        )
    )


_OURS: Mapping[str, Callable[..., AbstractRecurrent]] = {
    "LSTM": LSTM.from_torch,
    "GRU": GRU.from_torch,
    "RNN_TANH": RNN.from_torch,
    "RNN_RELU": RNN.from_torch,
}


def _why_not(module: Layer | nn.RNNCellBase) -> str:
    """What stands in the way of recording this layer, and what to do; empty if nothing."""
    if isinstance(module, nn.RNNCellBase):
        return (
            f"an {type(module).__name__} stepped by the model's own loop is not recorded yet; use "
            "the layer (nn.LSTM, nn.GRU, nn.RNN) where the loop only feeds the sequence through"
        )
    reasons = []
    if isinstance(module, nn.RNNBase) and module.mode not in _OURS:
        reasons.append(f"its mode {module.mode!r} is unknown; use nn.LSTM, nn.GRU or nn.RNN")
    if module.bidirectional:
        reasons.append(
            "bidirectional=True is not recorded yet; use two layers, one of them fed x.flip(0)"
        )
    if isinstance(module, nn.RNNBase) and module.proj_size:
        reasons.append(f"proj_size={module.proj_size} is not recorded yet; set proj_size=0")
    if module.dropout and module.num_layers > 1 and module.training:
        reasons.append(
            f"dropout={module.dropout} between layers draws masks that are not recorded yet; call "
            "model.eval(), or set dropout=0, for the recorded pass"
        )
    named = dict(module.named_parameters(recurse=False))
    expected = (
        module.weight_names if isinstance(module, AbstractRecurrent) else module._flat_weights_names
    )
    missing = [name for name in expected if name not in named]
    if missing:
        reasons.append(
            f"{', '.join(missing)} is computed, not a plain parameter (parametrized or pruned?); "
            "remove the parametrization for the recorded pass"
        )
    wrong = {p.dtype for p in named.values() if p.dtype not in (torch.float32, torch.float64)}
    if wrong:
        kinds = ", ".join(sorted(str(dtype) for dtype in wrong))
        reasons.append(
            f"its weights are {kinds}; only float32 and float64 are taken apart: call .float() "
            "on the model and the batch for the recorded pass"
        )
    frozen = [name for name, p in named.items() if not p.requires_grad]
    if frozen:
        reasons.append(
            f"{', '.join(frozen)} has requires_grad=False, so autograd gives no gradient to take "
            "apart; set requires_grad_(True) for the recorded pass"
        )
    return "; ".join(reasons)


def _nothing_to_record(model: nn.Module, recording: Recording) -> str:
    if recording.refused:
        return "no recurrent layer of this model can be recorded. " + "; ".join(
            recording.refused.values()
        )
    return (
        f"{type(model).__name__} holds no recurrent layer: expected an nn.LSTM, nn.GRU or nn.RNN "
        "somewhere inside. Pass the module that owns it; a recurrence written by hand is not found"
    )


@dataclass
class _Watch:
    """The hooks on one layer, and what they saw."""

    name: str
    module: Layer
    calls: int = 0
    problem: str = ""
    seen: "dict[str, Any]" = field(default_factory=dict)
    adjoints: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self) -> None:
        self.handles.append(self.module.register_forward_hook(self._forward, with_kwargs=True))
        for name, parameter in self.module.named_parameters(recurse=False):
            self.handles.append(_on_gradient(parameter, self.gradients, name))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.calls += 1
        call = {**dict(zip(("input", "hx"), args, strict=False)), **kwargs}
        x = call["input"]
        if not isinstance(x, Tensor):
            self.problem = (
                f"its input is a {type(x).__name__}, which is not recorded yet; pass the padded "
                "tensor (with lengths that are all equal) for the recorded pass"
            )
            return
        if self.calls > 1:
            return
        self.seen = {"x": x.detach(), "hx": call.get("hx"), "cell": cell_of(self.module)}
        hidden, last = output
        parts = self._by_letter(last)
        for name, tensor in {"output": hidden, **parts}.items():
            self.adjoints[name] = []
            if tensor.requires_grad:
                self.handles.append(_on_gradient(tensor, self.adjoints, name))

    def recorded(self) -> Recorded:
        """What the hooks saw, with time first and the state as one vector."""
        self._complain()
        cell: Stacked = self.seen["cell"]
        x = self._time_first(self.seen["x"])
        like = x.new_zeros(x.shape[1], cell.state_size)
        adjoints = {name: each[0] for name, each in self.adjoints.items() if each}
        output = adjoints.pop("output", None)
        top = cell.output.stop - cell.output.start
        return Recorded(
            self.name,
            cell,
            x,
            self._state(cell, like, self._by_letter(self.seen["hx"])),
            x.new_zeros(*x.shape[:2], top) if output is None else self._time_first(output),
            self._state(cell, like, adjoints),
            {name: self.gradients[name][0] for name in cell.parameters},
        )

    def _complain(self) -> None:
        passes = max((len(each) for each in self.gradients.values()), default=0)
        problem = self.problem
        if problem:
            pass
        elif self.calls == 0:
            problem = "it was not called inside the `with` block; run the forward pass there"
        elif self.calls > 1:
            problem = (
                f"it was called {self.calls} times inside the `with` block; step-by-step calls and "
                "several passes are not recorded yet: call it once, with the whole sequence"
            )
        elif self.seen["x"].numel() == 0:
            shape = tuple(self.seen["x"].shape)
            problem = f"its input has shape {shape}: there is no step or sample to look at"
        elif self.seen["x"].dtype not in (torch.float32, torch.float64):
            problem = f"its input is {self.seen['x'].dtype}; expected float32 or float64"
        elif passes == 0:
            problem = (
                "no backward pass reached it inside the `with` block: either loss.backward() was "
                "not called there (torch.autograd.grad does not count), or the loss does not "
                "depend on this layer"
            )
        elif passes > 1:
            problem = f"{passes} backward passes went through it; record one at a time"
        if problem:
            raise RecordingError(f"{self.name!r}: {problem}")

    def _time_first(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:  # torch's unbatched form
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1).contiguous() if self.module.batch_first else tensor

    def _by_letter(self, state: Any) -> dict[str, Tensor]:
        """The parts of a state as the layer takes and returns it: h, and c where there is one."""
        parts = () if state is None else (state,) if isinstance(state, Tensor) else state
        return dict(zip(self.seen["cell"].layers[0].slots, parts, strict=False))

    def _state(self, cell: Stacked, like: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """[layers, B, H] tensors for the parts of the state as one state vector [B, S]."""
        state = like.clone()
        for letter, tensor in given.items():
            tensor = tensor.detach()
            layers = tensor.unsqueeze(1) if tensor.ndim == 2 else tensor
            for number, values in enumerate(layers):
                state[:, cell.slots[f"{letter}_l{number}"]] = values
        return state


def _on_gradient(tensor: Tensor, store: dict[str, list[Tensor]], name: str) -> RemovableHandle:
    """Copy the gradient of a tensor into the store, each time that one arrives."""

    def keep(grad: Tensor) -> None:
        store.setdefault(name, []).append(grad.detach().clone())

    handle: RemovableHandle = tensor.register_hook(keep)  # type: ignore[no-untyped-call]
    return handle
