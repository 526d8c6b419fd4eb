"""Calls of the library, all of them: tensors are checked here before their addresses are passed."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import is_
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.nn import Parameter

from retrograde.cells import GRU, GRU2014, LSTM, AbstractCell, Clipped, Cut, Elman
from retrograde.cells.generations import SIGMOID_GATES, Generation, generations
from retrograde.clipping import PreActivationValue
from retrograde.compiled.library import FIELDS, Library, library

CELLS = {"lstm": 0, "elman": 1, "gru-torch": 2, "gru-2014": 3}
GATES = {"input": 1, "forget": 2, "cell": 4, "output": 8}
COUPLED = 16
ACTIVATIONS = (
    *("tanh", "relu", "sigmoid", "identity", "4*sigmoid-2", "2*sigmoid-1"),
    *("softplus", "relu+sigmoid"),
)
"""Numbers of csrc/recurrence.h."""

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch", "weight_gg")
_PASS = struct.Struct(f"{len(FIELDS)}q")
_BACKWARD = (0,) * (len(FIELDS) - FIELDS.index("by_h"))
"""`struct pass`, and the fields that the forward pass does not read."""

_TYPES = Tensor, Parameter
"""Those whose numbers lie where their address says, and not the types derived from them."""


@dataclass(frozen=True)
class Kind:
    """What the library has to know of a cell besides its weights.

    Attributes:
        name: of its family and of what it is there, for `named`.
        fields: the first four of `struct pass`.
        blocks: how many gates have weights, and how many have a peephole.
        activations: the names of what it keeps of each step, in order.
        parts: the names of the parts of the state that a pass writes.
        gates: those of the parts behind them, the gates i, f and o where the next step sees them.
            They are among the activations; initial ones are given side by side (`with_gates`).
        torch: the name of torch's own function that computes the same, "" if there is none.
    """

    name: str
    fields: tuple[int, int, int, int]
    blocks: tuple[int, int]
    activations: tuple[str, ...]
    parts: tuple[str, ...] = ("h",)
    gates: tuple[str, ...] = ()
    torch: str = ""

    @cached_property
    def state(self) -> tuple[str, ...]:
        """The names of all parts of the state."""
        return self.parts + self.gates

    @cached_property
    def given(self) -> int:
        """How many tensors the initial state comes in."""
        return len(self.parts) + (self.gates != ())

    @property
    def reads_output(self) -> bool:
        """Whether the backward pass reads h; that of an LSTM follows from what is kept."""
        return self.parts == ("h",)


def _lstm(row: Generation) -> Kind:
    gates = sum(GATES[gate] for gate in row.gates) + COUPLED * row.coupled
    functions = ACTIVATIONS.index(row.cell_activation), ACTIVATIONS.index(row.state_activation)
    fields = CELLS["lstm"], gates, *functions
    blocks = len(row.gates), len(row.peephole_gates)
    same = "lstm" if row.name in ("lstm-2000", "np") else ""
    activations, seen = (*row.gates, "squashed"), tuple("ifo" if row.gate_recurrence else "")
    return Kind(f"lstm {row.name}", fields, blocks, activations, ("h", "c"), seen, same)


def _elman(activation: str) -> Kind:
    same = f"rnn_{activation}" if activation in ("tanh", "relu") else ""
    fields = CELLS["elman"], 0, ACTIVATIONS.index(activation), 0
    return Kind(f"elman {activation}", fields, (1, 0), (), torch=same)


def _gru(name: str, same: str) -> Kind:
    activations = ("reset", "update", "candidate", "inner")
    return Kind(f"gru {name}", (CELLS[name], 0, 0, 0), (3, 0), activations, torch=same)


LSTMS = {name: _lstm(row) for name, row in generations.items()}
"""By generation."""
ELMANS = {activation: _elman(activation) for activation in ACTIVATIONS}
GRUS = {"gru-torch": _gru("gru-torch", "gru"), "gru-2014": _gru("gru-2014", "")}


def named(name: str) -> Kind:
    """A kind by its name."""
    family, which = name.split(" ")
    return {"lstm": LSTMS, "elman": ELMANS, "gru": GRUS}[family][which]


def kind_of(cell: AbstractCell) -> Kind | None:
    """What the library knows of a cell; None if it does not have it."""
    if type(cell) is LSTM:
        return LSTMS.get(cell.generation)
    if type(cell) is Elman:
        return ELMANS[cell.activation]
    if type(cell) in (GRU, GRU2014):
        return GRUS["gru-torch" if type(cell) is GRU else "gru-2014"]
    return None


@dataclass(frozen=True)
class Altered:
    """What a backward pass does otherwise than the derivative.

    Attributes:
        truncated: nothing comes back through the recurrent weights.
        max_value: the largest size that the gradient of a pre-activation may have; None for any.
    """

    truncated: bool = False
    max_value: float | None = None


DERIVATIVE = Altered()


def plain(cell: AbstractCell) -> tuple[AbstractCell, Altered]:
    """The cell without what alters its backward pass, as far as the library knows that."""
    truncated, max_value = False, None
    if isinstance(cell, Cut) and cell.cut == frozenset(cell.cell.recurrent_routes):
        cell, truncated = cell.cell, True
    if isinstance(cell, Clipped) and type(cell.policy) is PreActivationValue:
        max_value, cell = cell.policy.max_value, cell.cell
    return cell, Altered(truncated, max_value)


def weights_of(cell: AbstractCell) -> tuple[Tensor | None, ...]:
    """The weights by `WEIGHTS`, None for those that it lacks."""
    return tuple(getattr(cell, name, None) for name in WEIGHTS)


def followed() -> bool:
    """Whether torch traces or transforms what runs, and so has to see every operation."""
    return bool(
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )


def transformed() -> bool:
    """Whether torch maps over samples or differentiates forwards, as its own recurrences cannot."""
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(
        [each.key() != TransformType.Grad for each in stack]
    )


def in_use(x: Tensor, *others: Tensor | None) -> Library | None:
    """The library, if it is there and can read these; None if torch operations are to run.

    That is so for other devices and data types, for subclasses of Tensor, and while torch traces,
    compiles or transforms: it cannot see into a call of the library.
    """
    if torch.compiler.is_compiling():
        return None
    found, dtype, strided = library(), x.dtype, torch.strided
    if found is None or dtype not in found.forward or followed():
        return None
    for tensor in (x, *others):
        if tensor is not None and not (
            type(tensor) in _TYPES
            and tensor.is_cpu
            and tensor.dtype is dtype
            and tensor.layout is strided
        ):
            return None
    return found


class Read(NamedTuple):
    """What a forward pass has read, of which the backward pass need ask little if it is unchanged.

    Attributes:
        x: the input, not held by this.
        others: the weights, and h_0, c_0 and gates_0.
        addresses: of their numbers, and of those of x.
        fields: those of `struct pass` that name them.
    """

    x: ref[Tensor]
    others: list[Tensor | None]
    addresses: list[int]
    fields: tuple[int, ...]


class Pass(NamedTuple):
    """What a forward pass gives, and what the backward pass needs of it.

    Attributes:
        states: the parts of the state after each step, [T, B, H] each; None for an h that the
            backward pass does not read.
        last: those after the last step that ran, [1, B, H].
        kept: the activations [T, B, K, H padded to whole vectors], None where none were kept.
        read: what it read, if that was laid out as the library reads it.
    """

    states: tuple[Tensor, ...]
    last: tuple[Tensor, ...]
    kept: Tensor | None
    read: Read | None = None


def forward(
    library: Library,
    kind: Kind,
    x: Tensor,
    initial: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    reverse: bool = False,
    keep: bool = True,
) -> Pass:
    """All states of a sequence, but for gates, which `with_gates` finds in what is kept.

    Args:
        library: the library.
        kind: the cell.
        x: [T, B, I], any strides.
        initial: the parts of the initial state, [B, H], and gates side by side, [B, 3H]; None for
            zeros.
        weights: by `WEIGHTS`.
        reverse: run from the end of the sequence to its start.
        keep: keep the activations, which the backward pass needs, and a cell whose gates are parts
            of the state.

    Raises:
        MemoryError: where there is not enough.
    """
    assert keep or not kind.gates
    sizes = steps, samples, _, hidden = _sizes(x, weights)
    given, fields, read = _given(kind, sizes, x, [*weights, *_three(initial)])
    states = tuple([x.new_empty(steps, samples, hidden) for _ in kind.parts])
    last = tuple([x.new_empty(1, samples, hidden) for _ in kind.parts])
    kept = None
    if keep and kind.activations:
        kept = x.new_empty(steps, samples, len(kind.activations), padded(library, x, hidden))
    written = _addresses((*_two(states), *_two(last), kept))
    begin = _begin(library, kind, sizes, reverse)
    _call(library.forward[x.dtype], (*begin, *fields, *written, *_BACKWARD))
    return Pass(states, last, kept, read)


def padded(library: Library, x: Tensor, hidden: int) -> int:
    """How many numbers the activations of `hidden` units take, in whole vectors."""
    lanes = library.vector // x.element_size()
    return -(-hidden // lanes) * lanes


def side_by_side(kind: Kind, initial: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The parts of an initial state as a pass is given them, gates that are some in one tensor."""
    if not kind.gates:
        return initial
    count = len(kind.parts)
    gates = [gate for gate in initial[count:] if gate is not None]
    return [*initial[:count], torch.cat(gates, -1) if gates else None]


def with_gates(kind: Kind, passed: Pass, reverse: bool = False) -> Pass:
    """A pass with all parts of its states, of which some may be gates that it kept."""
    kept = passed.kept
    if not kind.gates or kept is None:
        return passed
    hidden = passed.states[0].shape[-1]

    def gates_of(values: Tensor) -> list[Tensor]:
        each = zip(kind.activations, values[..., :hidden].unbind(-2), strict=True)
        return [gate for name, gate in each if name in SIGMOID_GATES]

    # Copies, for which not all that was kept has to be held, and which may be changed in place.
    ends = [gate.clone() for gate in gates_of(kept[:1] if reverse else kept[-1:])]
    states, last = (*passed.states, *gates_of(kept)), (*passed.last, *ends)
    return passed._replace(states=states, last=last)


def activations_of(kind: Kind, h: Tensor, kept: Tensor | None) -> dict[str, Tensor]:
    """The activations of a cell by name, [T, B, H], as `CellStep.activations` has them.

    Args:
        kind: the cell.
        h: its outputs, [T, B, H].
        kept: what a pass kept.
    """
    if kept is None:  # an Elman network, whose output is its activation
        return {"hidden": h}
    hidden = h.shape[-1]
    each = kept if kept.shape[-1] == hidden else kept[..., :hidden]
    had = dict(zip(kind.activations, each.unbind(-2), strict=True))
    if kind.parts == ("h",):
        return had
    if len(had) < 5:  # gates that are always open, or coupled
        one = h.new_ones(()).expand(h.shape)
        had.setdefault("input", one)
        had.setdefault("forget", 1 - had["input"] if kind.fields[1] & COUPLED else one)
        had.setdefault("output", one)
    return {name: had[name] for name in ("input", "forget", "cell", "output", "squashed")}


class Gradients(NamedTuple):
    """What a backward pass gives; None for what was not wanted.

    Attributes:
        x, initial, weights: the gradients.
        clipped: how many gradients of pre-activations were clipped, one number for each thread.
    """

    x: Tensor | None
    initial: list[Tensor | None]
    weights: list[Tensor | None]
    clipped: Tensor | None = None


def backward(
    library: Library,
    kind: Kind,
    x: Tensor,
    initial: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    passed: Pass,
    direct: Sequence[Tensor | None],
    last: Sequence[Tensor | None],
    by_kept: Tensor | None,
    needs: Sequence[bool],
    reverse: bool = False,
    altered: Altered = DERIVATIVE,
) -> Gradients:
    """The gradients of a loss that are wanted.

    Numbers below the normal range of the type count as 0.

    Args:
        library, kind, x, initial, weights, reverse: as the forward pass had them; of the biases it
            matters only whether there are any.
        passed: the forward pass, its activations kept.
        direct: what the loss gives to each part of the state, [T, B, H]; None for nothing.
        last: what it gives to the last state, [1, B, H].
        by_kept: what it gives to the activations, shaped as they are.
        needs: whether the gradient is wanted of x, of the parts of the initial state, and of each
            weight.
        altered: what is done otherwise than the derivative.

    Raises:
        MemoryError: where there is not enough.
    """
    sizes = steps, samples, inputs, hidden = _sizes(x, weights)
    dtype, rows, holes = x.dtype, kind.blocks[0] * hidden, kind.blocks[1] * hidden
    every, one = (steps, samples, hidden), (1, samples, hidden)
    inside = (steps, samples, len(kind.activations), padded(library, x, hidden))
    # Hooks on saved tensors (torch.autograd.graph) may give them back with other strides.
    given, fields, _ = _given(kind, sizes, x, [*weights, *_three(initial)], passed.read)
    others, (h, c, of_kept, of_by_kept, of_h_n, of_c_n) = _dense(
        (*_two(passed.states), passed.kept, by_kept, *_two(last)),
        (every, every, inside, inside, one, one),
        dtype,
    )
    by_h, (of_h, *h_strides) = _rows(direct[0], every, dtype)
    by_c, (of_c, *c_strides) = _rows(_two(direct)[1], every, dtype)
    count = 1 + len(kind.parts)
    by_x = x.new_empty(steps, samples, inputs) if needs[0] else None
    by_initial = [x.new_empty(samples, hidden) if need else None for need in needs[1:count]]
    if kind.gates:
        by_initial.append(x.new_empty(samples, 3 * hidden) if needs[count] else None)
        count += 1
    of_weights = needs[count:]
    # The sums over the steps are formed for a matrix, and all that belongs to it.
    by_weights = [
        x.new_empty(rows, inputs) if of_weights[0] else None,
        x.new_empty(rows, hidden) if any(of_weights) else None,
        x.new_empty(rows) if of_weights[2] else None,
        x.new_empty(rows) if of_weights[3] else None,
        x.new_empty(holes) if of_weights[4] else None,
        x.new_empty(3 * hidden, 3 * hidden) if of_weights[5] else None,
    ]
    limit = clipped = None
    if altered.max_value is not None:
        limit = x.new_full((1,), altered.max_value)
        clipped = torch.zeros(torch.get_num_threads(), dtype=torch.int64)
    results = _addresses((by_x, *by_weights, *_three(by_initial), limit, clipped))
    values = (
        *_begin(library, kind, sizes, reverse),
        *(*fields, h, c, 0, 0, of_kept),
        *(of_h, of_c, of_by_kept, *h_strides, *c_strides, of_h_n, of_c_n),
        *(*results[:-2], altered.truncated, *results[-2:]),
    )
    _call(library.backward[dtype], values)
    if not of_weights[1]:
        by_weights[1] = None
    return Gradients(by_x, by_initial, by_weights, clipped)


def _two(parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Of h and of c, which not every cell has."""
    return parts if len(parts) == 2 else (parts[0], None)


def _three(parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Of h, of c and of gates, which not every cell has."""
    return (*parts, None) if len(parts) == 2 else (*parts, None, None)[:3]


def _sizes(x: Tensor, weights: Sequence[Tensor | None]) -> tuple[int, int, int, int]:
    """Steps, samples, inputs and hidden units."""
    steps, samples, inputs = x.shape
    w_hh = weights[1]
    assert w_hh is not None
    return steps, samples, inputs, w_hh.shape[1]


@lru_cache
def _shapes(
    blocks: int, holes: int, samples: int, inputs: int, hidden: int
) -> tuple[tuple[int, ...], ...]:
    """Of the weights, and of h_0, c_0 and gates_0."""
    rows, state, gates = blocks * hidden, (samples, hidden), 3 * hidden
    of_biases = (rows,), (rows,), (holes * hidden,)
    return (
        (rows, inputs),
        (rows, hidden),
        *of_biases,
        (gates, gates),
        state,
        state,
        (samples, gates),
    )


def _given(
    kind: Kind,
    sizes: tuple[int, int, int, int],
    x: Tensor,
    others: list[Tensor | None],
    before: Read | None = None,
) -> tuple[Sequence[Tensor | None], tuple[int, ...], Read | None]:
    """What a pass is given as the library reads it, and held against each other.

    Args:
        kind, sizes: of the pass.
        x: the input.
        others: the weights, and h_0, c_0 and gates_0.
        before: what the forward pass read. The same tensors in the same place are not looked at
            again.

    Returns:
        The tensors that are read, the fields that name them, and what was read if it is these.
    """
    tensors = (x, *others)
    if before is not None and before.x() is x and all(map(is_, before.others, others)):
        if before.addresses == _addresses(tensors):
            return tensors, before.fields, before
    steps, samples, inputs, hidden = sizes
    assert (others[4] is None) == (kind.blocks[1] == 0) and others[0] is not None
    assert (others[5] is None) == (not kind.gates)
    along, of_x = _rows(x, (steps, samples, inputs), x.dtype)
    read, of_others = _dense(others, _shapes(*kind.blocks, samples, inputs, hidden), x.dtype)
    fields = (*of_x, *of_others)
    if along is x and read is others:
        return tensors, fields, Read(ref(x), others, [of_x[0], *of_others], fields)
    return (along, *read), fields, None


def _begin(
    library: Library, kind: Kind, sizes: tuple[int, int, int, int], reverse: bool
) -> tuple[int, ...]:
    """The fields up to the address of x."""
    threads, parallel = library.threads
    return (*kind.fields, *sizes, threads, reverse, parallel)


def _call(function: Callable[[object], int], values: Sequence[int]) -> None:
    if function(_PASS.pack(*values)):
        raise MemoryError("there is not enough memory for a pass of this size")


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _dense(
    tensors: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[Sequence[Tensor | None], list[int]]:
    """Tensors of these shapes with one number behind the other, and their addresses."""
    ready = True
    addresses: list[int] = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        address = 0
        if tensor is not None:
            assert tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu
            address = tensor.data_ptr()
            ready = ready and address != 0 and tensor.is_contiguous() and not tensor.is_neg()
        addresses.append(address)
    if ready:
        return tensors, addresses
    tensors = [None if tensor is None else _written(tensor).contiguous() for tensor in tensors]
    return tensors, _addresses(tensors)


_NOTHING = 0, 0, 0


def _rows(
    tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor | None, tuple[int, int, int]]:
    """A tensor of this shape with neighbouring features next to each other.

    Returns:
        It, and its address and the numbers from one step and sample to the next.
    """
    if tensor is None:
        return None, _NOTHING
    assert tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu
    address, (step, sample, unit) = tensor.data_ptr(), tensor.stride()
    if address == 0 or tensor.is_neg() or (unit != 1 and shape[2] != 1):
        tensor = _written(tensor)
        tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        address, (step, sample, _) = tensor.data_ptr(), tensor.stride()
    return tensor, (address, step, sample)


def _written(tensor: Tensor) -> Tensor:
    """Itself, or a copy where it stands for numbers that are nowhere in memory.

    These are the negatives of others, and zeros, whose address is 0.
    """
    if tensor.is_neg() or tensor._is_zerotensor():
        return torch.empty_like(tensor).copy_(tensor)
    return tensor
