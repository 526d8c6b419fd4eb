"""What an argument has to be, in one place and in one style of message.

Every check returns the value in its plain form: an int for a whole number of any kind (NumPy's, a
tensor of one integer), a float for a real one. A bool is no number, and NaN is none either.

    max_rows must be a positive integer; got 2.5
"""

import difflib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

from retrograde.errors import ArgumentError

Kind = TypeVar("Kind")

FLOATING = (torch.float32, torch.float64)
"""The precisions in which a recurrence is taken apart."""


def whole(
    name: str, value: object, least: int | None = 1, most: int | None = None, words: str = ""
) -> int:
    """A whole number from `least` to `most`, both included.

    Args:
        name: of the argument, for the message.
        value: what arrived.
        least, most: None for no limit on that side.
        words: what it must be, where "a positive integer" says too little.

    Raises:
        ArgumentError: for anything else.
    """
    found = _plain(value)
    if isinstance(found, Integral):
        number = int(found)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    raise ArgumentError(f"{name} must be {words or _range(least, most)}; got {shown(value)}")


def optional_whole(name: str, value: object, least: int | None = 1) -> int | None:
    """The same, or None."""
    return None if value is None else whole(name, value, least)


def whole_numbers(name: str, value: object, words: str = "a sequence of integers") -> list[int]:
    """Several whole numbers, in a sequence or a tensor.

    Raises:
        ArgumentError: for anything else.
    """
    found = value.tolist() if isinstance(value, Tensor | numpy.ndarray) and value.ndim else value
    try:
        if isinstance(found, Sequence) and not isinstance(found, str | bytes):
            return [whole(name, one, least=None) for one in found]
    except ArgumentError:
        pass
    raise ArgumentError(f"{name} must be {words}; got {shown(value)}")


def number(
    name: str,
    value: object,
    allowed: Callable[[float], bool] = math.isfinite,
    words: str = "a finite number",
) -> float:
    """A real number for which `allowed` holds.

    Raises:
        ArgumentError: for anything else.
    """
    found = _plain(value)
    if isinstance(found, Real):
        try:
            real = float(found)
        except OverflowError:  # an int or a fraction beyond float's range
            real = math.nan
        if not math.isnan(real) and allowed(real):
            return real
    raise ArgumentError(f"{name} must be {words}; got {shown(value)}")


def positive(name: str, value: object) -> float:
    """A positive number; infinity is one, as the threshold that is never passed.

    Raises:
        ArgumentError: for anything else.
    """
    return number(name, value, lambda real: real > 0, "a positive number")


def between(name: str, value: object, low: float, high: float, words: str) -> float:
    """A real number from `low` to `high`, both included.

    Raises:
        ArgumentError: for anything else.
    """
    return number(name, value, lambda real: low <= real <= high, words)


def fields(of: object, **checks: Callable[[str, object], object]) -> None:
    """Check fields of a frozen dataclass, each by a function of name and value, which it keeps.

    Raises:
        ArgumentError: for the first that does not pass.
    """
    for name, check in checks.items():
        object.__setattr__(of, name, check(name, getattr(of, name)))


def flag(name: str, value: object) -> bool:
    """True or False, NumPy's included.

    Raises:
        ArgumentError: for anything else.
    """
    if value is True or value is False or isinstance(value, numpy.bool_):
        return bool(value)
    raise ArgumentError(f"{name} must be True or False; got {shown(value)}")


def one_of(name: str, value: object, known: Collection[str]) -> str:
    """One of several names.

    Raises:
        ArgumentError: for any other; the message lists them.
    """
    if isinstance(value, str) and value in known:
        return value
    raise ArgumentError(
        f"{name} must be one of {listed(known)}; got {shown(value)}{closest(value, known)}"
    )


def existing(kind: str, value: object, known: Collection[str]) -> str:
    """The name of something that exists, as a rule or a layer does.

    Args:
        kind: what it names, for the message.
        value: what arrived.
        known: the names that exist.

    Raises:
        ArgumentError: for any other; the message lists them, and the one closest in spelling.
    """
    if isinstance(value, str) and value in known:
        return value
    raise ArgumentError(
        f"there is no {kind} {shown(value)}{closest(value, known)}; there are: {listed(known)}"
    )


def closest(value: object, known: Iterable[str]) -> str:
    """A question after a name that is not known, if one that is known is spelled much like it."""
    asked = str(value).casefold()
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(asked, list(folded), n=1) if len(asked) < 200 else []
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def instance(name: str, value: object, kind: type[Kind], words: str) -> Kind:
    """A value of a class.

    Raises:
        ArgumentError: for anything else; the message says in words what is needed.
    """
    if isinstance(value, kind):
        return value
    raise ArgumentError(f"{name} must be {words}; got {shown(value)}")


def tuple_of(name: str, value: object, kind: type, words: str) -> None:
    """Refuse anything but a tuple of values of a class, at least one.

    Raises:
        ArgumentError: with the first that is none.
    """
    if not isinstance(value, tuple) or not value:
        raise ArgumentError(f"{name} must be a tuple of {words}; got {shown(value)}")
    for one in value:
        if not isinstance(one, kind):
            raise ArgumentError(f"{name} must be {words}; got {shown(one)} among them")


def names(name: str, value: Iterable[object]) -> tuple[str, ...]:
    """Several names.

    Raises:
        ArgumentError: with the first that is no text.
    """
    return tuple(instance(f"each of {name}", one, str, "a name") for one in value)


def model(name: str, value: object) -> nn.Module:
    """A module.

    Raises:
        ArgumentError: for anything else.
    """
    package = type(value).__module__.partition(".")[0]
    if package in ("keras", "tf_keras") and not isinstance(value, nn.Module):
        arrived = f"a {type(value).__name__} of {package}"
        config: Any = getattr(sys.modules.get(package), "config", None)
        if hasattr(config, "backend"):
            arrived += f" on its {config.backend()} backend"
        raise ArgumentError(
            f"{name} must be a torch.nn.Module; got {arrived}, whose gradients torch does not "
            "compute. Keras 3 runs on torch with KERAS_BACKEND=torch, set before it is imported"
        )
    return instance(name, value, nn.Module, "a torch.nn.Module")


def function(name: str, value: object, words: str, takes: int = 0) -> Callable[..., Any]:
    """Something that can be called.

    Args:
        name: of the argument, for the message.
        value: what arrived.
        words: what it is a function of.
        takes: with how many arguments it is called, by position; 0 where it is not known.

    Raises:
        ArgumentError: for anything else, and for a function that takes other arguments.
    """
    if not callable(value):
        raise ArgumentError(f"{name} must be a function {words}; got {shown(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of a builtin, which does not say
        return value
    try:
        signature.bind(*range(takes))
    except TypeError:
        if takes:
            raise ArgumentError(
                f"{name} must be a function {words}; got {shown(value)}, which takes {signature}"
            ) from None
    return value


def loss_function(value: object) -> Callable[..., Any]:
    """The function that gives the loss of a model on a batch.

    Raises:
        ArgumentError: for anything else, a criterion of torch.nn among it.
    """
    if isinstance(value, nn.Module) and type(value).__module__ == nn.modules.loss.__name__:
        raise ArgumentError(
            f"loss_fn must be a function (model, batch) -> loss; got the criterion {value}, which "
            "knows neither. Wrap it: lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    return function("loss_fn", value, "(model, batch) -> loss", takes=2)


def mapping(name: str, value: object, words: str) -> Mapping[Any, Any]:
    """A mapping.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(value, Mapping):
        return value
    raise ArgumentError(f"{name} must be a mapping {words}; got {shown(value)}")


def tensor(
    name: str,
    value: object,
    shape: Sequence[int | str] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A floating-point tensor, strided, of a shape.

    Args:
        name: of the argument, for the message.
        value: what arrived.
        shape: a size, or the letter of one that may be any, for each axis; None for any shape.
        dtype: the one that it must have; float32 or float64 if None.

    Raises:
        ArgumentError: for anything else.
    """
    dtypes = FLOATING if dtype is None else (dtype,)
    words = " or ".join(str(each).removeprefix("torch.") for each in dtypes)
    of_shape = "" if shape is None else f" of shape [{', '.join(map(str, shape))}]"
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in dtypes:
        raise ArgumentError(f"{name} must be a {words} tensor{of_shape}; got {shown(value)}")
    if shape is not None and not fits(value.shape, shape):
        raise ArgumentError(f"{name} must have shape{of_shape[9:]}; got {list(value.shape)}")
    return value


def loss(name: str, value: object, words: str) -> Tensor:
    """A real scalar tensor with a gradient.

    Args:
        name: of the call that returned it, for the message.
        value: what it returned.
        words: what it has to depend on.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.requires_grad and value.is_floating_point():
            return value
        arrived = (
            f"a tensor of shape {list(value.shape)} and type {value.dtype}, "
            f"requires_grad={value.requires_grad}"
        )
    else:
        arrived = type(value).__name__
    raise ArgumentError(
        f"{name} must return the scalar loss as a tensor that depends on {words}; got {arrived}"
    )


def weights(of: str, named: Mapping[str, object]) -> None:
    """Refuse weights that are no floating-point tensors, all of one type.

    Raises:
        ArgumentError: with those that are not.
    """
    wrong = {
        name: value
        for name, value in named.items()
        if not isinstance(value, Tensor) or not value.is_floating_point()
    }
    if not wrong and len({value.dtype for value in named.values()}) > 1:  # type: ignore[attr-defined]
        wrong = dict(named)
    if wrong:
        found = ", ".join(f"{name} is {shown(value)}" for name, value in wrong.items())
        raise ArgumentError(
            f"the weights of {of} must be floating-point tensors, all of one type; {found}"
        )


def fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    """Whether a shape is the one expected, letters standing for any size."""
    return len(shape) == len(expected) and all(
        isinstance(size, str) or size == found for found, size in zip(shape, expected, strict=True)
    )


def listed(names: Iterable[object]) -> str:
    """Names in a row, or that there is none."""
    return ", ".join(map(str, names)) or "none"


def shown(value: object) -> str:
    """What arrived, in a few words: a tensor by its shape, a model by its class."""
    if isinstance(value, Tensor | numpy.ndarray) and value.ndim:
        kind = "a tensor" if isinstance(value, Tensor) else "a NumPy array"
        return f"{kind} of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, nn.Module):
        return f"the module {type(value).__name__}"
    return _short.repr(value)


class _Short(reprlib.Repr):
    """The text of a value, cut in its middle where it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_Tensor(self, x: Tensor, level: int) -> str:  # noqa: N802 (the name says the class)
        return f"tensor of shape {list(x.shape)}" if x.ndim else self.repr_instance(x, level)

    def repr_instance(self, x: object, level: int) -> str:
        try:
            text = repr(x)
        except Exception:  # of a class of the user's own
            text = object.__repr__(x)
        text, half = " ".join(text.split()), self.maxother // 2
        return text if len(text) <= self.maxother else f"{text[:half]}...{text[-half:]}"


_short = _Short()


def _plain(value: object) -> object:
    """The number inside a tensor or an array without axes; None for a bool, else as it is."""
    if isinstance(value, Tensor | numpy.ndarray) and not value.ndim:
        try:
            value = value.item()
        except Exception:  # a meta tensor has no number
            return None
    return None if isinstance(value, bool) else value


def _range(least: int | None, most: int | None) -> str:
    """Which whole numbers are meant, in words."""
    if most is not None:
        return f"an integer from {least} to {most}"
    if least is None:
        return "an integer"
    return {0: "0 or a positive integer", 1: "a positive integer"}.get(
        least, f"an integer of at least {least}"
    )
