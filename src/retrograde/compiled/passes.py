"""The one door to the library: tensors are checked here, and nowhere is it called but here."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from retrograde.cells import GRU, GRU2014, LSTM, AbstractCell, Elman
from retrograde.cells.generations import generation
from retrograde.compiled.library import FIELDS, Library, library

Fields = dict[str, int]

CELLS = {"lstm": 0, "elman": 1, "gru-torch": 2, "gru-2014": 3}
GATES = {"input": 1, "forget": 2, "cell": 4, "output": 8}
COUPLED = 16
ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity", "4*sigmoid-2", "2*sigmoid-1")
"""Numbers of csrc/recurrence.h."""

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch")
_Array = ctypes.c_int64 * len(FIELDS)


@dataclass(frozen=True)
class Kind:
    """What the library has to know of a cell besides its weights.

    Attributes:
        fields: the first four of `struct pass`.
        activations: the names of what it keeps of each step, in order.
        parts: the names of the parts of the state.
    """

    fields: tuple[int, int, int, int]
    activations: tuple[str, ...]
    parts: tuple[str, ...] = ("h",)


@cache
def _lstm(name: str) -> Kind | None:
    row = generation(name)
    if row.gate_recurrence:
        return None
    gates = sum(GATES[gate] for gate in row.gates) + COUPLED * row.coupled
    functions = ACTIVATIONS.index(row.cell_activation), ACTIVATIONS.index(row.state_activation)
    return Kind((CELLS["lstm"], gates, *functions), (*row.gates, "squashed"), ("h", "c"))


_GRU_ACTIVATIONS = ("reset", "update", "candidate", "inner")


def kind_of(cell: AbstractCell) -> Kind | None:
    """What the library knows of a cell; None if it does not have it."""
    if type(cell) is LSTM:
        return _lstm(cell.generation)
    if type(cell) is Elman and cell.activation in ACTIVATIONS:
        return Kind((CELLS["elman"], 0, ACTIVATIONS.index(cell.activation), 0), ())
    if type(cell) is GRU:
        return Kind((CELLS["gru-torch"], 0, 0, 0), _GRU_ACTIVATIONS)
    if type(cell) is GRU2014:
        return Kind((CELLS["gru-2014"], 0, 0, 0), _GRU_ACTIVATIONS)
    return None


def weights_of(cell: AbstractCell) -> tuple[Tensor | None, ...]:
    """The weights by `WEIGHTS`, None for those that it lacks."""
    return tuple(getattr(cell, name, None) for name in WEIGHTS)


def in_use(cell: AbstractCell, x: Tensor) -> Library | None:
    """The library, if it computes this cell for this input; None if torch operations do.

    That is so for cells it does not have, for other devices and data types, for subclasses of
    Tensor, and while torch traces, compiles or transforms: a call of the library cannot be seen.
    """
    found = library()
    if (
        found is None
        or not x.is_cpu
        or x.dtype not in found.forward
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or any(
            weight is not None and not (_is_plain(weight) and weight.dtype == x.dtype)
            for weight in weights_of(cell)
        )
        or not _is_plain(x)
    ):
        return None
    return found


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_cpu


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass gives, and what the backward pass needs of it.

    Attributes:
        kind: the cell.
        reverse: whether it ran from the end of the sequence to its start.
        h, c: the states [T+1, B, H], in the order of time; the initial one comes first, or last if
            the pass ran in reverse. c is None where the cell has none.
        kept: its activations [T, B, K * Hpad], None where they were not to be kept.
    """

    kind: Kind
    reverse: bool
    h: Tensor
    c: Tensor | None
    kept: Tensor | None

    def steps(self, states: Tensor) -> Tensor:
        """The states after each step, [T, B, H]."""
        return states[:-1] if self.reverse else states[1:]

    def last(self, states: Tensor) -> Tensor:
        """The state after the last step that ran, [B, H]."""
        return states[0] if self.reverse else states[-1]


def forward(
    library: Library,
    kind: Kind,
    x: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    reverse: bool = False,
    keep: bool = True,
) -> Pass:
    """All states of a sequence.

    Args:
        library: the library.
        kind: the cell.
        x: [T, B, I], any strides.
        initial: the parts of the initial state, [B, H].
        weights: by `WEIGHTS`.
        reverse: run from the end of the sequence to its start.
        keep: keep what the backward pass needs.

    Raises:
        MemoryError: where there is not enough.
    """
    steps, samples, inputs = x.shape
    held = [None if weight is None else weight.contiguous() for weight in weights]
    assert held[1] is not None
    hidden = held[1].shape[1]
    x = _rows(x)
    parts = [_dense(part) for part in initial]
    _check(x, kind, inputs, hidden, samples, held, parts)
    h = x.new_empty(steps + 1, samples, hidden)
    c = torch.empty_like(h) if len(parts) > 1 else None
    kept = None
    if keep and kind.activations:
        padded = -(-hidden // (lanes := library.vector // x.element_size())) * lanes
        kept = x.new_empty(steps, samples, len(kind.activations) * padded)
    fields = _fields(library, kind, x, hidden, reverse)
    fields |= {name: _at(weight) for name, weight in zip(WEIGHTS, held, strict=True)}
    fields |= {"h_0": _at(parts[0]), "h": _at(h), "c": _at(c), "kept": _at(kept)}
    if c is not None:
        fields["c_0"] = _at(parts[1])
    _call(library.forward[x.dtype], fields)
    return Pass(kind, reverse, h, c, kept)


def activations_of(
    kind: Kind, cell: AbstractCell, h: Tensor, kept: Tensor | None = None
) -> dict[str, Tensor]:
    """The activations of a cell by name, [T, B, H], as `CellStep.activations` has them.

    Args:
        kind: the cell, as the library knows it.
        cell: the cell itself.
        h: its outputs, [T, B, H].
        kept: what a pass kept.
    """
    if kept is None:  # an Elman network, whose output is its activation
        return {"hidden": h}
    hidden, padded = h.shape[-1], kept.shape[-1] // len(kind.activations)
    had = {
        name: kept[..., number * padded : number * padded + hidden]
        for number, name in enumerate(kind.activations)
    }
    if not isinstance(cell, LSTM):
        return had
    one = h.new_ones(()).expand(h.shape)
    had.setdefault("input", one)
    had.setdefault("forget", 1 - had["input"] if cell.kind.coupled else one)
    had.setdefault("output", one)
    return {name: had[name] for name in ("input", "forget", "cell", "output", "squashed")}


@dataclass(frozen=True, eq=False)
class Gradients:
    """What a backward pass gives; None for what was not wanted."""

    x: Tensor | None
    initial: tuple[Tensor | None, ...]
    weights: tuple[Tensor | None, ...]


def backward(
    library: Library,
    passed: Pass,
    x: Tensor,
    weights: Sequence[Tensor | None],
    direct: Sequence[Tensor | None],
    last: Sequence[Tensor | None],
    by_kept: Tensor | None,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of a loss. Numbers below the normal range of the type count as 0.

    Args:
        library: the library.
        passed: the forward pass, its activations kept.
        x: [T, B, I], as it was given to it.
        weights: by `WEIGHTS`; biases may be left out.
        direct: what the loss gives to each part of the state, [T, B, H]; None for nothing.
        last: what it gives to the last state, [B, H].
        by_kept: what it gives to the activations, [T, B, K * Hpad].
        needs: whether the gradient is wanted of x, of the parts of the initial state, and of each
            weight.

    Raises:
        MemoryError: where there is not enough.
    """
    kind, count = passed.kind, len(passed.kind.parts)
    steps, samples, inputs = x.shape
    held = [None if weight is None else weight.contiguous() for weight in weights]
    assert held[0] is not None and held[1] is not None
    rows, hidden = held[1].shape
    x = _rows(x)
    _check(x, kind, inputs, hidden, samples, [held[0], held[1], None, None, held[4]], ())
    fields = _fields(library, kind, x, hidden, passed.reverse)
    fields |= {name: _at(weight) for name, weight in zip(WEIGHTS, held, strict=True)}
    fields |= {"h": _at(passed.h), "c": _at(passed.c), "kept": _at(passed.kept)}
    alive: list[Tensor | None] = []
    for name, states, state in zip(kind.parts, direct, last, strict=True):
        if states is not None:
            states = _rows(_like(states, x, (steps, samples, hidden)))
            fields[f"by_{name}"] = _at(states)
            fields[f"by_{name}_step"], fields[f"by_{name}_sample"] = states.stride()[:2]
        if state is not None:
            state = _dense(_like(state, x, (samples, hidden)))
            fields[f"by_{name}_n"] = _at(state)
        alive += [states, state]
    if by_kept is not None and passed.kept is not None:
        by_kept = _dense(_like(by_kept, x, passed.kept.shape))
        fields["by_kept"] = _at(by_kept)
    by_x = x.new_empty(steps, samples, inputs) if needs[0] else None
    by_initial = [
        x.new_empty(samples, hidden) if needed else None for needed in needs[1 : 1 + count]
    ]
    shapes = {
        **{"weight_ih": (rows, inputs), "weight_hh": (rows, hidden)},
        **{"bias_ih": (rows,), "bias_hh": (rows,)},
        "weight_ch": () if held[4] is None else tuple(held[4].shape),
    }
    any_weight = any(needs[1 + count :])
    by_weights = []
    for name, needed in zip(WEIGHTS, needs[1 + count :], strict=True):
        # Where one is wanted the sums of the matrices are formed in any case.
        wanted = needed or (any_weight and name == "weight_hh")
        by_weights.append(x.new_empty(shapes[name]) if wanted else None)
    fields["by_x"] = _at(by_x)
    fields |= {f"by_{n}": _at(w) for n, w in zip(WEIGHTS, by_weights, strict=True)}
    fields |= {f"by_{n}_0": _at(part) for n, part in zip(kind.parts, by_initial, strict=True)}
    _call(library.backward[x.dtype], fields)
    return Gradients(by_x, tuple(by_initial), tuple(by_weights))


def _fields(library: Library, kind: Kind, x: Tensor, hidden: int, reverse: bool) -> Fields:
    cell, gates, activation, state_activation = kind.fields
    steps, samples, inputs = x.shape
    step, sample, _ = x.stride()
    return {
        **{"cell": cell, "gates": gates},
        **{"activation": activation, "state_activation": state_activation},
        **{"steps": steps, "samples": samples, "inputs": inputs, "hidden": hidden},
        **{"parts": torch.get_num_threads() if library.parallel else 1, "reverse": int(reverse)},
        **{"parallel": library.parallel, "x": _at(x), "x_step": step, "x_sample": sample},
    }


def _call(function: object, fields: Fields) -> None:
    values = _Array(*(fields.get(name, 0) for name in FIELDS))
    if function(values):  # type: ignore[operator]
        raise MemoryError("there is not enough memory for a pass of this size")


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """With neighbouring features next to each other."""
    if tensor.is_neg() or tensor._is_zerotensor():
        tensor = torch.empty_like(tensor).copy_(tensor)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _dense(tensor: Tensor) -> Tensor:
    return _rows(tensor).contiguous()


def _like(gradient: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A gradient of that shape, as autograd promises it."""
    assert gradient.shape == torch.Size(shape) and gradient.dtype == x.dtype, gradient.shape
    return gradient


def _check(
    x: Tensor,
    kind: Kind,
    inputs: int,
    hidden: int,
    samples: int,
    weights: Sequence[Tensor | None],
    initial: Sequence[Tensor],
) -> None:
    """Hold everything against what the library will read: sizes, data type, device, layout."""
    rows = weights[1].shape[0] if weights[1] is not None else 0
    shapes = [(rows, inputs), (rows, hidden), (rows,), (rows,)]
    for tensor, shape in zip(weights, shapes, strict=False):
        assert tensor is None or tensor.shape == shape, (tensor.shape, shape)
    for tensor in initial:
        assert tensor.shape == (samples, hidden), tensor.shape
    for tensor in (*weights, *initial):
        assert tensor is None or (
            tensor.dtype == x.dtype and tensor.is_cpu and tensor.is_contiguous()
        )
