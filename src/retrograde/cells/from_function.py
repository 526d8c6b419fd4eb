"""A recurrence of the user's own: any step function of torch operations as a cell."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from retrograde import _checks
from retrograde.cells.base import AbstractCell
from retrograde.cells.function_cell import Step, untried
from retrograde.cells.gates import Gate
from retrograde.cells.trying_out import check_parameters, try_out
from retrograde.errors import ArgumentError


def from_function(
    step: Step,
    parameters: Mapping[str, Tensor],
    *,
    input_size: int,
    state: int | Mapping[str, int],
    output: str | None = None,
    carousel: Iterable[str] = (),
    gates: Iterable[Gate] = (),
) -> AbstractCell:
    """Any step function of torch operations as a cell, with everything but the names of its gates.

        s_k = step(parameters, x_k, s_{k-1})

    The cell can be unrolled, recorded with `retrograde.record_cell`, decomposed, cut and stacked
    like any other. Its derivatives come from `torch.func`, which costs more time than derivatives
    written out by hand.

    Args:
        step: a function (parameters, x [B, I], state) -> state. The state is a tensor [B, S], or,
            if its pieces are named, a dictionary of tensors [B, size]. Samples must not depend on
            each other (no normalisation over the batch) nor on their place in the batch, nothing
            may be changed in place that was passed in, and nothing drawn at random: what is random,
            or a sample's own, belongs into x.
        parameters: the weights by name, float32 or float64, of any shapes, as `step` wants them;
            for a module stepped by `torch.func.functional_call`, `dict(module.named_parameters())`.
        input_size: I, the number of input features.
        state: S, the size of the state, or the sizes of its named pieces: `{"h": 8, "c": 8}`.
        output: the piece that the layer hands on; by default "h", or the first if there is none. A
            state without names is handed on as a whole.
        carousel: the routes that cross no recurrent weights, so that `by_crossing` and `truncated`
            know what a crossing is. Whatever is not named counts as one.
        gates: gates that the step names with `retrograde.cells.gate` where it computes them, or
            whose values [B, H] it returns beside the pieces of the state under their names. Those
            with a role and an activation answer what `diagnose` asks of gates.

    Returns:
        The cell. With gates that the step names its routes are those of torch's layers: "carousel",
        "recurrent.forget", ... (see `retrograde.cells.gate`). Else, with named pieces, they are
        "c->c", "c->h", ...: from a piece of s_{k-1} to a piece of s_k, the Jacobian block by block.
        Without names there is one, "recurrent".

    Raises:
        ArgumentError: for arguments that do not fit together, a step that `torch.func` cannot
            pull back, or parameters that no gradient comes back to. The step is tried out on two
            samples of zeros, on equal ones, and at random.

    Example:
        >>> import torch, retrograde
        >>> def step(w, x, s):
        ...     c = w["leak"] * s["c"] + x
        ...     return {"h": torch.tanh(c + w["gain"] * s["h"]), "c": c}
        >>> cell = retrograde.cells.from_function(
        ...     step,
        ...     {"leak": torch.tensor(0.5), "gain": torch.tensor(0.0)},
        ...     input_size=1,
        ...     state={"h": 1, "c": 1},
        ...     carousel=["c->c", "c->h"],
        ... )
        >>> cell.routes
        ('h->h', 'h->c', 'c->h', 'c->c')
        >>> recorded = retrograde.record_cell(cell, torch.ones(4, 2, 1), lambda h, s: s.sum())
        >>> by_crossing = retrograde.decompose(recorded).by_crossing("leak", max_crossings=1)
        >>> f"{by_crossing.share[0].sum():.0%}"  # a gain of 0: nothing comes back through h
        '100%'
    """
    pieces = _pieces(state)
    named = isinstance(state, Mapping)
    _checks.function("step", step, "(parameters, x, state) -> state", takes=3)
    check_parameters(parameters)
    input_size = _checks.whole("input_size", input_size)
    if output is not None and (not isinstance(output, str) or output not in pieces):
        raise ArgumentError(
            f"output must name a piece of the state, one of {', '.join(pieces)}; got "
            f"{_checks.shown(output)}"
        )
    if isinstance(carousel, str):
        raise ArgumentError(f"carousel must be a sequence of route names: write ({carousel!r},)")
    _checks.instance("carousel", carousel, Iterable, "a sequence of route names")  # type: ignore[type-abstract]
    carousel = _checks.names("carousel", carousel)
    _checks.instance("gates", gates, Iterable, "a sequence of Gate values")  # type: ignore[type-abstract]
    gates = tuple(gates)
    if gates:
        _checks.tuple_of("gates", gates, Gate, "Gate values of retrograde.cells")
    cell = untried(step, parameters, input_size, pieces, named, gates, carousel, output)
    return try_out(cell)


def _pieces(state: object) -> dict[str, int]:
    """The sizes of the pieces by name; a state without names is one piece."""
    words = "a positive integer, or the sizes of named pieces as in {'h': 8, 'c': 8}"
    if not isinstance(state, Mapping):
        return {"h": _checks.whole("state", state, words=words)}
    if not state or not all(isinstance(name, str) for name in state):
        raise ArgumentError(f"state must be {words}; got {_checks.shown(state)}")
    return {
        name: _checks.whole(f"the size of {name!r} in state", size) for name, size in state.items()
    }
