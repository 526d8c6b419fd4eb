"""How the call of a declared module is read: where input, state and outputs are.

What a declaration leaves open is looked for where modules usually have it.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde import _checks
from retrograde.declarations.declaration import Declaration, Selector
from retrograde.errors import RecordingError

OUTPUT = "output"
"""The name of a layer's output among its results; those of the last state are its letters."""

OF_PIECE = OUTPUT + " "
"""What the name begins with of the sequence of another piece of the state; its letter follows."""

STATES = (
    *("hx", "state", "states", "hidden", "hidden_state", "initial_state", "initial_states"),
    *("init_states", "init_state", "prev_state", "s0"),
)
"""What arguments are called that hold a state."""


@dataclass(frozen=True, eq=False)
class CallTensors:
    """What went into the call of a layer and came out of it.

    Attributes:
        x: the input.
        given: the parts of the initial state by letter; empty if none was given.
        results: what came out, by name: "output", or "output c" for the sequence of another piece
            than the layer hands on, and the letters of the last state.
        lengths: the steps of each sample, where they came with the call.
        others: further tensors that went in.
        places: of a module that skips steps, which step of `x` each output [B, T] is that of; -1
            where it is that of none. The steps that are skipped are left out of `x`.
        rounding: the relative rounding error of its arithmetic, where that is coarser than its
            tensors say.
    """

    x: Tensor | PackedSequence
    given: Mapping[str, Tensor]
    results: dict[str, Tensor]
    lengths: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    places: Tensor | None = None
    rounding: float = 0.0


def held_state(declaration: Declaration, module: nn.Module) -> dict[str, Tensor]:
    """The state that the module's attributes hold; empty where they hold none."""
    values = [getattr(module, attribute, None) for attribute in declaration.held]
    if all(value is None for value in values):
        return {}
    return _parts(declaration, values[0] if len(values) == 1 else values, "held state")


def started_from(declaration: Declaration, module: nn.Module) -> dict[str, Tensor]:
    """The state from which a call starts that was given none; empty for zeros."""
    attributes = zip(declaration.pieces, declaration.start, strict=False)
    return {piece: _attribute(module, attribute) for piece, attribute in attributes}


def _attribute(module: nn.Module, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    if not isinstance(value, Tensor):
        raise RecordingError(
            f"its state cannot be read: start={path!r} is {_checks.shown(value)}, no tensor"
        )
    return value


def is_sequence(x: Any) -> bool:
    """Whether an input holds many steps."""
    return isinstance(x, PackedSequence) or x.ndim > 2


def read_call(
    declaration: Declaration,
    module: nn.Module,
    arguments: Mapping[str, Any],
    returned: Any,
    before: Mapping[str, Tensor],
) -> CallTensors:
    """Read a call as its declaration says.

    Args:
        declaration: the declaration.
        module: the module.
        arguments: those of the call by name, in order.
        returned: what the call returned.
        before: the state that the module's attributes held before.

    Raises:
        RecordingError: with what was looked for, and what was there.
    """
    x = input_of(declaration, module, arguments)
    given = dict(before) if declaration.held else initial_of(declaration, arguments, x)
    if not given and declaration.start:
        given = started_from(declaration, module)
    results = _results(declaration, returned, is_sequence(x))
    if declaration.held:
        results |= held_state(declaration, module)
    if not results:
        raise RecordingError(
            f"its state cannot be read: it returned {_checks.shown(returned)}; declare output= and "
            "last=, or held= if attributes of the module hold it"
        )
    lengths = None
    if declaration.lengths is not None:
        lengths = _lengths(_picked(arguments, declaration.lengths, "lengths"))
    known = {id(x), *map(id, given.values())}
    others = [each for each in _tensors(list(arguments.values())) if id(each) not in known]
    return CallTensors(x, given, results, lengths, tuple(others))


def _lengths(value: Any) -> Tensor | None:
    """The number of steps of each sample.

    Raises:
        RecordingError: if that is not what it is.
    """
    try:
        lengths = None if value is None else torch.as_tensor(value).detach()
    except Exception:
        lengths = torch.empty(())
    if lengths is not None and (lengths.ndim != 1 or lengths.dtype == torch.bool):
        raise RecordingError(
            "its lengths cannot be read: expected the number of steps of each sample; got "
            f"{_checks.shown(value)}; declare lengths="
        )
    return lengths


def input_of(
    declaration: Declaration, module: nn.Module, arguments: Mapping[str, Any]
) -> Tensor | PackedSequence:
    """The input of a call.

    Raises:
        RecordingError: if it is no tensor.
    """
    if callable(declaration.x):
        with torch.no_grad():  # what is put together here is no part of the user's graph
            x = _picked({**arguments, "self": module}, declaration.x, "x")
    else:
        x = _picked(arguments, declaration.x, "x")
    if not isinstance(x, Tensor | PackedSequence):
        raise RecordingError(
            f"its input cannot be read: x={declaration.x!r} of its call is {_checks.shown(x)}; "
            f"declare which argument it is, one of {', '.join(arguments)}"
        )
    return x


def named_arguments(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, in order; `names` are those of the forward."""
    found = {
        (names[place] if place < len(names) else str(place)): value
        for place, value in enumerate(args)
    }
    return {**found, **kwargs}


def argument_names(module: nn.Module, method: str = "forward") -> tuple[str, ...]:
    """The names of what a module's forward, or another method, takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(getattr(type(module), method)).parameters.values()
    return tuple(each.name for each in parameters if each.kind in kinds)[1:]


def _picked(values: Any, selector: Selector, what: str) -> Any:
    """One of several values.

    Raises:
        RecordingError: if there is none.
    """
    try:
        if isinstance(selector, str):
            return values[selector] if isinstance(values, Mapping) else getattr(values, selector)
        if isinstance(selector, int):
            values = list(values.values()) if isinstance(values, Mapping) else values
            return values[selector]
        return selector(values)
    except Exception as error:
        there = ", ".join(values) if isinstance(values, Mapping) else _checks.shown(values)
        raise RecordingError(
            f"its {what} cannot be read: there is no {selector!r} in {there} "
            f"({type(error).__name__}: {error})"
        ) from None


def _parts(declaration: Declaration, value: Any, what: str) -> dict[str, Tensor]:
    """The pieces of a state in whatever holds them.

    Raises:
        RecordingError: if they are not there.
    """
    found = _pieces_in(declaration.pieces, value)
    if found is None:
        raise RecordingError(
            f"its {what} cannot be read: expected {', '.join(declaration.pieces)} as a tensor, a "
            f"tuple or a mapping of tensors; got {_checks.shown(value)}"
        )
    return found


def _pieces_in(pieces: Sequence[str], value: Any) -> dict[str, Tensor] | None:
    if value is None:
        return {}
    if isinstance(value, Tensor):
        value = (value,)
    if isinstance(value, tuple | list):
        if len(value) == 1 and not isinstance(value[0], Tensor):
            return _pieces_in(pieces, value[0])
        found = dict(zip(pieces, value, strict=False)) if len(value) == len(pieces) else {}
    elif isinstance(value, Mapping):
        found = {piece: value[piece] for piece in pieces if piece in value}
    else:
        found = {}
    right = len(found) == len(pieces) and all(isinstance(t, Tensor) for t in found.values())
    return found if right else None


def initial_of(declaration: Declaration, arguments: Mapping[str, Any], x: Any) -> dict[str, Tensor]:
    """The state that the call was given."""
    selector = declaration.initial
    if isinstance(selector, tuple):
        picked = [_picked(arguments, each, "initial state") for each in selector]
        return (
            {} if all(p is None for p in picked) else _parts(declaration, picked, "initial state")
        )
    if selector is not None:
        missing = selector not in arguments if isinstance(selector, str) else False
        missing |= isinstance(selector, int) and selector >= len(arguments)
        value = None if missing else _picked(arguments, selector, "initial state")
        return _parts(declaration, value, "initial state")
    own = [
        next(
            (
                arguments[n]
                for n in (piece, piece + "0", piece + "_0", piece + "x")
                if n in arguments and arguments[n] is not x
            ),
            None,
        )
        for piece in declaration.pieces
    ]
    found = _pieces_in(declaration.pieces, own)
    if found:
        return found
    named = [arguments[name] for name in STATES if name in arguments]
    if named:
        return _parts(declaration, named[0], "initial state")
    second = list(arguments.values())[1:2]
    found = _pieces_in(declaration.pieces, second[0]) if second else None
    floating = found and all(part.is_floating_point() for part in found.values())
    return found if found and floating else {}


def _results(declaration: Declaration, returned: Any, sequence: bool) -> dict[str, Tensor]:
    """What the call gave, by name."""
    results: dict[str, Tensor] = {}
    pieces, last, output = declaration.pieces, declaration.last, declaration.output
    if last is not None:
        value = (
            [_picked(returned, each, "last state") for each in last]
            if isinstance(last, tuple)
            else _picked(returned, last, "last state")
        )
        results |= _parts(declaration, value, "last state")
    if isinstance(output, Mapping):
        for piece, selector in output.items():
            name = OUTPUT if piece == declaration.handed_on else OF_PIECE + piece
            results[name] = _tensor(_picked(returned, selector, "output"), "output")
    elif output is not None:
        results[OUTPUT] = _tensor(_picked(returned, output, "output"), "output")
    if last is not None or output is not None:
        return results
    if not sequence:
        return _stepped_results(declaration, returned)
    if isinstance(returned, Tensor | PackedSequence):
        return {OUTPUT: _tensor(returned, "output")}
    if isinstance(returned, tuple | list) and returned:
        rest = returned[1] if len(returned) == 2 else returned[1:]
        found = _pieces_in(pieces, rest)
        if found is not None and isinstance(returned[0], Tensor | PackedSequence):
            return {OUTPUT: _tensor(returned[0], "output"), **found}
    raise RecordingError(
        f"its output cannot be read: it returned {_checks.shown(returned)}, and expected was the "
        f"output, or the output and a last state of {', '.join(pieces)}; declare output= and last="
    )


def _stepped_results(declaration: Declaration, returned: Any) -> dict[str, Tensor]:
    """What a single step gave: its state, alone or after an output."""
    pieces = declaration.pieces
    found = None if declaration.readout else _pieces_in(pieces, returned)
    if found is None and isinstance(returned, tuple | list) and len(returned) > 1:
        rest = returned[1] if len(returned) == 2 else returned[1:]
        found = _pieces_in(pieces, rest)
    if not found:
        raise RecordingError(
            f"its state cannot be read: a step returned {_checks.shown(returned)}, and expected "
            f"was a state of {', '.join(pieces)}, alone or after the output; declare last="
        )
    if declaration.readout:
        return {declaration.readout: _tensor(returned[0], "output"), **found}
    return found


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, PackedSequence):
        return value.data
    if not isinstance(value, Tensor):
        raise RecordingError(
            f"its {what} cannot be read: expected a tensor; got {_checks.shown(value)}"
        )
    return value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [found for part in value for found in _tensors(part)]
    return []
