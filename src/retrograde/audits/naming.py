"""Why an implementation may part from its step function: candidates, each computed and compared.

A dropped term, a window, an adjoint that was forgotten give a gradient that can be worked out; the
candidate that gives the implementation's gradient to rounding is named. Where none does, the route
is named along which most of the difference lies.
"""

import math
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from retrograde.audits.reference import INITIAL, X, reference
from retrograde.audits.trial import Trial
from retrograde.cells import Stacked
from retrograde.cells.trying_out import tried
from retrograde.declarations.reading import OUTPUT
from retrograde.decomposition import Flow, decompose
from retrograde.engine import Scaled
from retrograde.errors import RetrogradeError
from retrograde.recording import Recorded
from retrograde.recording.calls import is_output

FITS = 1e-3
"""A candidate explains a difference if less than this share of it is left."""

EXACT = 1e-6
"""With less than this left no other candidate is tried."""

LONG = 256
"""Windows are candidates up to this many steps."""

MOST = 0.9
"""A route is named if the difference and its part have at least this cosine."""


def explain(trial: Trial) -> str:
    """What the difference looks like, in words; empty where nothing fits."""
    wrong = [one for one in trial.differences if one.what in trial.true.gradients]
    if any(one.what not in trial.true.gradients for one in trial.differences):
        return _forward(trial)
    ran = {one.what: trial.ran.gradients[one.what] for one in wrong}
    if all(not bool(gradient.any()) for gradient in ran.values()):
        return "nothing comes back to it"
    parameters = {name: gradient for name, gradient in ran.items() if name not in (X, INITIAL)}
    best, fitting = FITS, ""
    for words, candidate in _candidates(trial) if parameters else ():
        left = _left(trial, parameters, candidate)
        if left <= EXACT:
            return words
        best, fitting = (left, words) if left <= best else (best, fitting)
    return fitting or _scaled(trial, ran) or _blocks(trial, ran) or _along(trial, ran)


def _forward(trial: Trial) -> str:
    """Of a forward pass that parts."""
    first = next((one.step for one in trial.differences if one.step is not None), None)
    if first:
        return f"the forward pass is right up to step {first}: look at what the state carries there"
    return "the forward pass differs: the order of gates, a bias, a peephole, an activation"


def _left(trial: Trial, ran: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> float:
    """Which share of the difference a candidate leaves unexplained."""
    left = whole = 0.0
    for name, gradient in ran.items():
        left += float((gradient - candidate[name]).square().sum())
        whole += float((gradient - trial.true.gradients[name]).square().sum())
    share = (left / whole) ** 0.5 if whole else math.inf
    return math.inf if math.isnan(share) else share


def _candidates(trial: Trial) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """What some mistakes would give."""
    for name, adjoint in trial.adjoints.items():
        without = {**trial.adjoints, name: torch.zeros_like(adjoint)}
        what = "the outputs" if is_output(name) else f"{name} of the last state"
        words = f"as if what the loss gives to {what} were dropped"
        yield words, reference(trial.call, trial.names, without).gradients
    if OUTPUT in trial.adjoints and trial.size[0] > 1:
        last = torch.zeros_like(trial.adjoints[OUTPUT])
        time = 1 if trial.call.form.batch_first else 0
        if last.ndim > 2:
            end = trial.size[0] - 1
            last.narrow(time, end, 1).copy_(trial.adjoints[OUTPUT].narrow(time, end, 1))
            only = {**trial.adjoints, OUTPUT: last}
            words = "as if the loss entered at the last step alone"
            yield words, reference(trial.call, trial.names, only).gradients
    flow = flow_of(trial)
    if flow is None:
        return
    for route in (*flow.routes, *flow.recorded.cell.inner_routes):
        yield f"as if the route {route} were missing", _plain(trial, flow.without(route).gradient)
    recurrent = tuple(flow.recorded.cell.recurrent_routes)
    others = tuple(route for route in flow.routes if route not in recurrent)
    leaving = [
        tuple(route for route in flow.routes if route.startswith(f"{piece}->"))
        for piece in flow.recorded.cell.slots
    ]
    for routes in dict.fromkeys((recurrent, others, *leaving)):
        if 1 < len(routes):
            words = f"as if the routes {', '.join(routes)} were missing"
            yield words, _plain(trial, flow.without(*routes).gradient)
    lags = range(trial.size[0])
    if len(lags) > LONG:
        return
    parts = {
        trial.names[name]: flow.by_lag(name, bins=tuple(lags)).parts() for name in flow.parameters
    }
    for window in lags[1:]:
        words = f"as if the gradient ended after {window} step{'s' * (window > 1)}"
        yield words, {name: sum_of(some[:window]) for name, some in parts.items()}


def sum_of(parts: Tensor) -> Tensor:
    return torch.as_tensor(parts).sum(0)


def flow_of(trial: Trial) -> Flow | None:
    """The pass of the step function decomposed; None for forms that one cell does not hold."""
    call = trial.call
    x, lengths = call.sequence(call.x)
    if call.form.directions == 2 or lengths is not None:
        return None
    cells = tried(call.cells)
    cell = Stacked(cells) if call.form.positions else cells[0]
    state = call.state({n: a for n, a in trial.adjoints.items() if not is_output(n)})
    direct = state.new_zeros(len(x), *state.shape)
    if OUTPUT in trial.adjoints:
        direct[..., cell.output] += call.outputs(trial.adjoints[OUTPUT])
    direct[-1] += state
    own = {name: trial.true.gradients[trial.names[name]] for name in cell.parameters}
    initial = call.state(call.given)
    recorded = Recorded(call.layer, cell, x, initial, direct, own)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decompose(recorded)
    except RetrogradeError:
        return None


def _plain(trial: Trial, gradient: Mapping[str, Scaled]) -> dict[str, Tensor]:
    return {trial.names[name]: row.plain().squeeze(0) for name, row in gradient.items()}


def _blocks(trial: Trial, ran: Mapping[str, Tensor]) -> str:
    """Of gates, by blocks of rows: which are wrong, and whether two are exchanged."""
    cell = tried(trial.call.cells)[0]
    gates = tuple(gate.name for gate in cell.gates)
    own = {own: name for name, own in trial.names.items()}
    if len(gates) < 2:
        return ""
    for one in range(len(gates)):
        for other in range(one):
            exchanged = {}
            for name in ran:
                true = trial.true.gradients[name]
                if name in (X, INITIAL) or len(true) % len(gates) or own.get(name) is None:
                    continue
                order = list(range(len(gates)))
                order[one], order[other] = other, one
                blocks = true.view(len(gates), -1, *true.shape[1:])
                exchanged[name] = blocks[order].view_as(true)
            if exchanged and _left(trial, {n: ran[n] for n in exchanged}, exchanged) <= FITS:
                return f"as if the gates {gates[other]} and {gates[one]} were exchanged"
    wrong: set[str] = set()
    for name, gradient in ran.items():
        true = trial.true.gradients[name]
        if name in (X, INITIAL) or len(true) % len(gates):
            continue
        rows = zip(gates, gradient.chunk(len(gates)), true.chunk(len(gates)), strict=True)
        wrong |= {g for g, a, b in rows if not torch.allclose(a, b, 1e-6, 1e-9)}
    if wrong and len(wrong) < len(gates):
        return f"only the rows of {', '.join(g for g in gates if g in wrong)} differ"
    return ""


def _along(trial: Trial, ran: Mapping[str, Tensor]) -> str:
    """The route along which most of the difference lies."""
    flow = flow_of(trial)
    if flow is None:
        return ""
    best, route = MOST, ""
    for name in flow.parameters:
        if trial.names[name] not in ran:
            continue
        gap = (ran[trial.names[name]] - trial.true.gradients[trial.names[name]]).flatten()
        split = flow.by_route(name)
        for label, part in zip(split.labels, split.sum("lag").parts(), strict=True):
            flat = torch.as_tensor(part).double().flatten()
            norms = float(gap.norm() * flat.norm())
            cosine = abs(float(gap @ flat)) / norms if norms else 0.0
            if cosine > best:
                best, route = cosine, label
    return f"most of the difference lies along {route}" if route else ""


def _scaled(trial: Trial, ran: Mapping[str, Tensor]) -> str:
    """Whether it is a multiple of what it should be."""
    one = torch.cat([gradient.flatten() for gradient in ran.values()])
    other = torch.cat([trial.true.gradients[name].flatten() for name in ran])
    norms = float(one.norm() * other.norm())
    if norms and float(one @ other) / norms > 1 - 1e-6:
        return f"it is {float(one.norm() / other.norm()):.4g} times what it should be"
    return ""
