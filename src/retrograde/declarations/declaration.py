"""What a user says of a recurrence of their own, so that it is recorded where it stands in a model.

A declaration is a value: it holds no module and no weights, and serves every module of a class.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde.cells import AbstractCell, Gate
from retrograde.cells.function_cell import FunctionCell, handed_on, untried
from retrograde.errors import ArgumentError

Selector = int | str | Callable[[Any], Any]
"""Which of several values is meant: by position, by name, or by a function of all of them."""

Size = int | str | Callable[[nn.Module], int] | None
"""The size of a piece of the state: a number, an attribute of the module, or a function of it."""

Step = Callable[..., Any]

Cells = Callable[[nn.Module, Mapping[str, Tensor]], AbstractCell | Sequence[AbstractCell]]


@dataclass(frozen=True, eq=False)
class Declaration:
    """A module of one's own as a recurrence: what its step does, and how its call is read.

    `record`, `diagnose` and `Monitor` take declarations by the name or the class of modules, as in
    `cells={MyLSTM: declaration}`. Recording only keeps what goes into the module and comes out of
    it. When the layer is asked for, outside of training, the recorded call is replayed step by
    step, and has to give the module's own outputs; its gradients are compared with the module's
    own `.grad`.

    A module is called with a sequence, x of shape [B, T, I] or [T, B, I] or packed, or with a
    single step, x of shape [B, I], in a loop of the model.

    Args:
        step: the recurrence s_k = step(weights, x_k, s_{k-1}), as `retrograde.cells.from_function`
            takes it, with `weights` the module's parameters by name (`named_parameters()`); one of
            four arguments, (module, weights, x, state), is given the module, too. Or the name of
            the part of the module that does one step when it is called with (x, state), "" for the
            module itself, which is also what None stands for.
        cell: instead of `step`: a function of the module and its weights that gives one of
            `retrograde.cells`, or those of each layer and direction in torch's order. They must
            take the weights as they are.
        state: the names of the pieces of the state, in the order in which the module takes and
            returns them; with several names, or a mapping from them to their sizes, the step takes
            and returns a mapping. A size is a number, the name of an attribute of the module, or
            a function of the module. Without sizes they are read off the recorded state, and a
            piece that is not seen has the size of the output.
        readout: the name of an output that the module computes of its state where the two differ,
            as a projection does. The step returns it beside the pieces of the state.
        x: which argument of the call is the input: its name, its position, or a function of all
            arguments by name, with the module as "self". What is a sample's own goes to the
            features of x.
        initial: which argument is the initial state, None to look for one that is named like a
            state, or that stands second. A tuple gives a selector for every piece.
        lengths: which argument holds the number of steps of each sample, None for none.
        output: what of the returned value is the output of all steps, None to look: the value
            itself, or its first part. A mapping says which sequence is that of which piece, as in
            {"h": 0, "c": 1}, where a module returns more than one.
        last: what of the returned value is the last state, None to look. A tuple gives a selector
            for every piece.
        held: the attribute of the module that holds the state between calls, or one for each piece.
        start: the attributes (parameters, buffers) that hold the state from which a call without
            one starts, one for each piece; none for zeros.
        batch_first: whether sequences are [B, T, *]; None for the module's own `batch_first`, and
            True where it has none.
        bidirectional: whether `cell` gives a cell for each of two directions; None for the module's
            own `bidirectional`, and False where it has none.
        weights: the names of the parameters that the step uses, or what they begin with; all where
            nothing is named. A module may hold others, as those of a readout.
        carousel: the routes that cross no recurrent weights, as in `from_function`.
        gates: the gates that the step or the module names with `retrograde.cells.gate` where it
            computes them, which gives routes by gate, or whose values the step returns beside the
            pieces, by their names; with a role and an activation the rules of `diagnose` that need
            them apply.
        names: what parameters are called here, by their names in the module, where these say too
            much; then those that are not among them are not used by the step.
        method: the method of the module whose calls are read.
        reading: instead of all that says how a call is read: a function of the module, the
            arguments by name and the returned value that gives the
            `retrograde.declarations.reading.CallTensors` of the call.

    Raises:
        ArgumentError: for values that fit no module.

    Example:
        >>> import torch, retrograde
        >>> class Leaky(torch.nn.Module):
        ...     def __init__(self, inputs, hidden):
        ...         super().__init__()
        ...         self.hidden_size = hidden
        ...         self.mix = torch.nn.Linear(inputs + hidden, hidden)
        ...     def forward(self, x):  # [B, T, I]
        ...         h, outputs = x.new_zeros(len(x), self.hidden_size), []
        ...         for x_k in x.unbind(1):
        ...             h = 0.9 * h + 0.1 * torch.tanh(self.mix(torch.cat((x_k, h), -1)))
        ...             outputs.append(h)
        ...         return torch.stack(outputs, 1)
        >>> def step(weights, x, h):
        ...     both = torch.cat((x, h), -1)
        ...     mixed = both @ weights["mix.weight"].T + weights["mix.bias"]
        ...     return 0.9 * h + 0.1 * torch.tanh(mixed)
        >>> model = Leaky(2, 3)
        >>> with retrograde.record(model, cells={Leaky: retrograde.Declaration(step)}) as recording:
        ...     model(torch.ones(4, 10, 2))[:, -1].sum().backward()
        >>> retrograde.decompose(recording).residual.ok
        True
    """

    step: Step | str | None = None
    cell: Cells | None = None
    state: str | Sequence[str] | Mapping[str, Size] = "h"
    readout: str = ""
    x: Selector = 0
    initial: Selector | tuple[Selector, ...] | None = None
    lengths: Selector | None = None
    output: Selector | Mapping[str, Selector] | None = None
    last: Selector | tuple[Selector, ...] | None = None
    held: str | tuple[str, ...] = ()
    start: str | tuple[str, ...] = ()
    batch_first: bool | None = None
    bidirectional: bool | None = None
    weights: str | tuple[str, ...] = ()
    carousel: Iterable[str] = ()
    gates: tuple[Gate, ...] = field(default=())
    names: Mapping[str, str] = field(default_factory=dict)
    method: str = "forward"
    reading: Callable[[nn.Module, Mapping[str, Any], Any], Any] | None = None

    def __post_init__(self) -> None:
        self._check_reading()
        if self.step is not None and not isinstance(self.step, str):
            _checks.function("step", self.step, "(weights, x, state) -> state")
            if not any(_takes(self.step, count) for count in (3, 4)):
                raise ArgumentError(
                    "step must be a function (weights, x, state) -> state, or one of (module, "
                    f"weights, x, state); got {_checks.shown(self.step)}"
                )
        if self.cell is not None:
            _checks.function("cell", self.cell, "(module, weights) -> cell", takes=2)
            if self.step is not None:
                raise ArgumentError("a declaration has a step or a cell; got both")
        for called in _checks.mapping("names", self.names, "of names to names").items():
            _checks.names("names", called)
        _checks.instance("method", self.method, str, "the name of a method")
        if self.reading is not None:
            words = "(module, arguments, returned) -> CallTensors"
            _checks.function("reading", self.reading, words, takes=3)
        named = [self.weights] if isinstance(self.weights, str) else self.weights
        object.__setattr__(self, "weights", _checks.names("weights", named))
        if self.bidirectional and self.cell is None:
            raise ArgumentError(
                "bidirectional=True needs cell=, a function that gives a cell for each direction"
            )
        object.__setattr__(self, "carousel", _checks.names("carousel", self.carousel))
        if self.gates:
            _checks.tuple_of("gates", self.gates, Gate, "Gate values of retrograde.cells")
        for name, counts in {
            "held": (0, 1, len(self.pieces)),
            "start": (0, len(self.pieces)),
        }.items():
            value = getattr(self, name)
            named = _checks.names(name, [value] if isinstance(value, str) else value)
            object.__setattr__(self, name, named)
            if len(named) not in counts:
                raise ArgumentError(
                    f"{name} must name an attribute for each piece of the state "
                    f"({', '.join(self.pieces)}); got {', '.join(named)}"
                )
        if isinstance(self.output, Mapping):
            for piece in self.output:
                _checks.existing("piece of the state", piece, self.pieces)

    def _check_reading(self) -> None:
        """Refuse what says nothing about how a call is read."""
        if isinstance(self.state, str):
            pieces: tuple[str, ...] = (self.state,)
        else:
            _checks.instance("state", self.state, Iterable, "the names of the pieces of the state")  # type: ignore[type-abstract]
            pieces = _checks.names("state", self.state)
        if not pieces or not all(pieces):
            raise ArgumentError("state must name the pieces of the state, as in ('h', 'c')")
        _checks.instance("readout", self.readout, str, "a name")
        for name in ("batch_first", "bidirectional"):
            if getattr(self, name) is not None:
                _checks.flag(name, getattr(self, name))
        for name in ("x", "initial", "lengths", "output", "last"):
            value = getattr(self, name)
            several = name in ("initial", "last") and isinstance(value, tuple)
            several |= name == "output" and isinstance(value, Mapping)
            values = value.values() if isinstance(value, Mapping) else value
            for one in values if several else (value,):
                known = isinstance(one, int | str) and not isinstance(one, bool)
                if not known and not callable(one) and (one is not None or name == "x" or several):
                    raise ArgumentError(
                        f"{name} must say which value is meant: a position, a name, or a function "
                        f"of all of them; got {_checks.shown(one)}"
                    )
        for name in ("carousel", "held", "start", "weights"):
            words = "a name or a sequence of names"
            _checks.instance(name, getattr(self, name), Iterable, words)  # type: ignore[type-abstract]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Declaration":
        """Itself: a value."""
        return self

    def batch_comes_first(self, module: nn.Module) -> bool:
        """Whether the module's sequences are [B, T, *]."""
        if self.batch_first is None:
            return bool(getattr(module, "batch_first", True))
        return self.batch_first

    def directions(self, module: nn.Module) -> int:
        """How many directions the module runs in."""
        own = bool(getattr(module, "bidirectional", False)) and self.cell is not None
        return 1 + (own if self.bidirectional is None else self.bidirectional)

    def uses(self, parameter: str) -> bool:
        """Whether the step uses a parameter of the module."""
        if parameter in self.start:
            return False
        if self.names:
            return parameter in self.names
        return not self.weights or any(
            parameter == name or parameter.startswith(f"{name}.") for name in self.weights
        )

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The names of the pieces of the state, in order."""
        if isinstance(self.state, str):
            return (self.state,)
        return _checks.names("state", self.state)

    @property
    def named(self) -> bool:
        """Whether the step takes and returns a mapping of pieces."""
        return not isinstance(self.state, str) or bool(self.readout)

    @property
    def handed_on(self) -> str:
        """The piece that is the output."""
        return self.readout or handed_on(self.pieces)

    def sizes(self, module: nn.Module, seen: Mapping[str, int]) -> dict[str, int]:
        """The size of every piece.

        Args:
            module: whose state it is.
            seen: the sizes of those that were seen in a call.

        Raises:
            ArgumentError: where a size is not known.
        """
        given = dict(self.state) if isinstance(self.state, Mapping) else dict.fromkeys(self.pieces)
        if self.readout:
            given[self.readout] = None
        found = {}
        for piece, size in given.items():
            if isinstance(size, str):
                size = getattr(module, size, None)
            elif callable(size):
                size = size(module)
            size = seen.get(piece, seen.get(self.handed_on)) if size is None else size
            if not isinstance(size, int):
                raise ArgumentError(
                    f"the size of {piece!r} cannot be told from the call: declare it, as in "
                    f"state={{{piece!r}: 'hidden_size'}}"
                )
            found[piece] = size
        return found

    def cells_of(
        self,
        module: nn.Module,
        weights: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        inputs: int,
        sizes: Mapping[str, int],
    ) -> tuple[AbstractCell, ...]:
        """The cell of a module, or those of its layers and directions; not tried out yet.

        Args:
            module: the module.
            weights: copies of the parameters that get a gradient.
            fixed: of those that get none.
            inputs: I.
            sizes: of the pieces of the state.

        Raises:
            ArgumentError: if `cell` gives no cells.
        """
        if self.cell is not None:
            made = self.cell(module, {**fixed, **weights})
            cells = (made,) if isinstance(made, AbstractCell) else tuple(made)
            if not cells or not all(isinstance(one, AbstractCell) for one in cells):
                raise ArgumentError(
                    f"cell must give one of retrograde.cells; got {_checks.shown(made)}"
                )
            return cells
        step = _with_fixed(self._step_of(module), fixed) if fixed else self._step_of(module)
        how = (self.named, self.gates, self.carousel, self.handed_on)
        return (untried(step, weights, inputs, dict(sizes), *how),)

    def _step_of(self, module: nn.Module) -> Step:
        """The step as a function of weights, x and state."""
        if self.step is None or isinstance(self.step, str):
            return _Stepping(module, self.step or "", self)
        return self.step if _takes(self.step, 3) else partial(self.step, module)


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of a builtin, which does not say
        return count == 3
    return True


@dataclass(frozen=True, eq=False)
class _Stepping:
    """A module that does one step when it is called, as a function of its weights."""

    module: nn.Module
    part: str
    declaration: Declaration

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor, state: Any) -> Any:
        how = self.declaration
        part = self.module.get_submodule(self.part)
        start = f"{self.part}." if self.part else ""
        own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        given = tuple(state[piece] for piece in how.pieces) if how.named else state
        if isinstance(how.state, str) and how.named:
            (given,) = given
        new = torch.func.functional_call(part, own, (x, given))
        if not how.named:
            return new[-1] if isinstance(new, tuple | list) else new
        output = {how.readout: new[0]} if how.readout else {}
        if isinstance(new, tuple | list) and isinstance(new[-1], tuple | list | Mapping):
            new = new[-1]
        if isinstance(new, Mapping):
            return {**{piece: new[piece] for piece in how.pieces}, **output}
        last = new[-len(how.pieces) :]
        return {**dict(zip(how.pieces, last, strict=True)), **output}


def _with_fixed(step: Step, fixed: Mapping[str, Tensor]) -> Step:
    def with_fixed(weights: Mapping[str, Tensor], x: Tensor, state: Any) -> Any:
        return step({**fixed, **weights}, x, state)

    return with_fixed


def without(cell: AbstractCell, idle: Iterable[str]) -> AbstractCell:
    """A cell of a function with some of its weights fixed, which get no gradient."""
    if not isinstance(cell, FunctionCell):
        return cell
    fixed = {name: cell.weights[name] for name in idle if name in cell.weights}
    if not fixed:
        return cell
    weights = {name: value for name, value in cell.weights.items() if name not in fixed}
    return replace(cell, function=_with_fixed(cell.function, fixed), weights=weights)
