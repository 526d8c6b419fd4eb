"""Gates that a step function names where it computes them, and the step cut open at them.

A value that is named as a gate is one more place that an adjoint passes on its way back. The step
is run once more with each gate held at its value, plus a change that starts at 0: what comes back
to the state before past all gates, and what comes back to the changes, then are told apart.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.errors import ArgumentError

PAST = ""
"""The way from the state before to the state after that leads through no gate."""


@dataclass(eq=False)
class Marks:
    """What a step names while it runs.

    Attributes:
        changes: what to add to each gate, which is then held at its value; None leaves them alone.
        values: the gates by name, in the order in which they were named.
    """

    changes: Mapping[str, Tensor] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, value: Tensor) -> Tensor:
        """The gate in the place of its value."""
        if name in self.values:
            raise ArgumentError(
                f"the step names gate {name!r} twice: give each gate a name of its own"
            )
        self.values[name] = value
        return value if self.changes is None else value.detach() + self.changes[name]


_running: ContextVar[Marks | None] = ContextVar("retrograde_gates", default=None)


@contextmanager
def marking(changes: Mapping[str, Tensor] | None = None) -> Iterator[Marks]:
    """In the block, what steps name as gates is kept, and replaced if there are changes."""
    marks = Marks(changes)
    token = _running.set(marks)
    try:
        yield marks
    finally:
        _running.reset(token)


def gate(name: str, value: Float[Tensor, "*L H"]) -> Float[Tensor, "*L H"]:
    """Name a value that a step function computes as a gate; the value comes back as it is.

    With its gates named, a step function or a declared module has the routes that the cells of
    this package have, each exact:

        recurrent.NAME  from the state before to the gate, through recurrent weights
        peephole.NAME   from the state before to the gate, unit by unit
        carousel        past all gates, unit by unit; `recurrent` if it mixes units

    A route ends at the first gate on its way. What depends on what, and whether units are mixed, is
    found by trying the step out. The rows of a parameter that lead to one gate after the other
    are its blocks in `by_parameter`.

    Args:
        name: the gate's name. A `Gate` of this name in the declaration says its role.
        value: the value of the gate, after its activation function, one row for each sample.

    Raises:
        ArgumentError: for a name that is empty or no text, and, when the step is tried out, for a
            name that is used twice in one step.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import gate
        >>> def step(w, x, h):
        ...     z = gate("update", torch.sigmoid(x @ w["W"].T + h @ w["R"].T))
        ...     return z * h + (1 - z) * gate("candidate", torch.tanh(h @ w["C"].T))
        >>> shapes = {"W": (3, 2), "R": (3, 3), "C": (3, 3)}
        >>> weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        >>> cell = retrograde.cells.from_function(step, weights, input_size=2, state=3)
        >>> cell.routes
        ('recurrent.update', 'recurrent.candidate', 'carousel')
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"gate needs a name; got {_checks.shown(name)}")
    _checks.instance(name, value, Tensor, "the tensor that the gate is")
    marks = _running.get()
    return value if marks is None else marks.take(name, value)
