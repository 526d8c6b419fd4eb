"""Cells broken on purpose: the conformance table must reject every one of them."""

from dataclasses import fields, replace

import pytest
import torch

from conformance import CHECKS
from problems import FAMILY, GRU2014_, GRU_, LEAKY, LSTM_, MGU, SLSTM, TANH
from retrograde.cells import GRU, GRU2014, LSTM, Elman
from retrograde.cells.base import FEW_ROWS
from retrograde.cells.from_function import FunctionCell


class SignFlip(Elman):
    def pull_back(self, step, delta):
        return super().pull_back(step, -delta)


class MissingTanhDerivative(Elman):
    def linearise(self, step, cut=frozenset()):
        return replace(step, derivatives={"h by a": torch.ones_like(step.state).unsqueeze(-2)})


class OffByOneInTime(Elman):
    def pull_back(self, step, delta):
        return super().pull_back(replace(step, previous=step.state), delta)


class UntransposedWeights(Elman):
    def pull_back(self, step, delta):
        adjoint = super().pull_back(step, delta)
        return replace(adjoint, edges=(replace(adjoint.edges[0], weight=self.weight_hh.T),))


class _Altered:
    """Changes one pointwise derivative of a gated cell."""

    def linearise(self, step, cut=frozenset()):
        derivatives = dict(super().linearise(step).derivatives)
        self.alter(step, derivatives)
        return replace(step, derivatives=derivatives)


class SwappedGates(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["a by c"] = derivatives["a by c"].flip(-2)


class MissingReadout(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["h by c"] = torch.zeros_like(derivatives["h by c"])


class DroppedOneMinusF(_Altered, LSTM):
    def alter(self, step, derivatives):
        f = slice(1, 2)
        by_a = derivatives["a by c"].clone()
        by_a[..., f, :] /= (1 - step.activations["forget"]).unsqueeze(-2)
        derivatives["a by c"] = by_a


class NewCellStateInsteadOfOld(_Altered, LSTM):
    def alter(self, step, derivatives):
        shifted = LSTM.linearise(self, replace(step, previous=step.state)).derivatives
        derivatives["a by c"] = shifted["a by c"]


class ClosedCarousel(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["carousel"] = torch.zeros_like(derivatives["carousel"])
        derivatives.pop("c by c", None)


class ResetGateForgotten(_Altered, GRU):
    def alter(self, step, derivatives):
        derivatives["h by q"] = derivatives["h by a"]


class UpdateGateTurnedRound(_Altered, GRU):
    def alter(self, step, derivatives):
        derivatives["h by h"] = 1 - derivatives["h by h"]


class PeepholeOfTheOutputGateForgotten(_Altered, LSTM):
    def alter(self, step, derivatives):
        o, y = step.activations["output"], step.activations["squashed"]
        derivatives["h by c"] = o * (1 - y * y)


class PeepholeSeesTheOldCell(_Altered, LSTM):
    def alter(self, step, derivatives):
        o, y = step.activations["output"], step.activations["squashed"]
        old = step.previous[..., self.slots["c"]]
        derivatives["p by h"] = (old * y * o * (1 - o)).unsqueeze(-2)


class PeepholeRouteForgotten(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["peephole.forget"] = torch.zeros_like(derivatives["peephole.forget"])
        derivatives.pop("c by c")


class CarouselAndPeepholesThatDoNotAddUp(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["c by c"] = derivatives["carousel"]


class CouplingForgotten(_Altered, LSTM):
    def alter(self, step, derivatives):
        by_a = derivatives["a by c"].clone()
        i, g = step.activations["input"], step.activations["cell"]
        by_a[..., 0, :] = g * i * (1 - i)
        derivatives["a by c"] = by_a


class TanhDerivativeForTheSquashingOf1997(_Altered, LSTM):
    def alter(self, step, derivatives):
        o, y = step.activations["output"], step.activations["squashed"]
        derivatives["h by c"] = o * (1 - y * y)


class GatesOfTheStepBeforeForgotten(_Altered, LSTM):
    def alter(self, step, derivatives):
        derivatives["h by o"] = torch.zeros_like(derivatives["h by o"])


class ResetGateMultipliesTheWrongSide(_Altered, GRU2014):
    def alter(self, step, derivatives):
        derivatives["q by h"] = torch.ones_like(derivatives["q by h"])


class OperandBeforeTheReset(GRU2014):
    def pull_back(self, step, delta):
        adjoint = super().pull_back(step, delta)
        gates, candidate = adjoint.uses["weight_hh"]
        uses = dict(adjoint.uses, weight_hh=(gates, replace(candidate, operand=step.previous)))
        return replace(adjoint, find_uses=lambda: uses)


class JacobianOfTheWrongSample(LSTM):
    """Right for few rows, wrong where each sample's Jacobian is formed."""

    def pull_back(self, step, delta):
        if len(delta) < FEW_ROWS:
            return super().pull_back(step, delta)
        shifted = {name: value.roll(1, 0) for name, value in step.derivatives.items()}
        return super().pull_back(replace(step, derivatives=shifted), delta)


class BiasOfTheWrongSide(GRU):
    def pull_back(self, step, delta):
        adjoint = super().pull_back(step, delta)
        uses = dict(adjoint.uses, bias_hh=adjoint.uses["bias_ih"])
        return replace(adjoint, find_uses=lambda: uses)


class FunctionSeesTheNewState(FunctionCell):
    def pull_back(self, step, delta):
        return super().pull_back(replace(step, previous=step.state), delta)


class RoutesThatOverlap(FunctionCell):
    """Each route brings what all routes from its piece bring."""

    def pull_back(self, step, delta):
        adjoint = super().pull_back(step, delta)
        edges = (replace(edge, pulls=(edge.pull,) * len(edge.pulls)) for edge in adjoint.edges)
        return replace(adjoint, edges=tuple(edges))


class GradientsAveragedOverTheBatch(FunctionCell):
    def pull_back(self, step, delta):
        adjoint = super().pull_back(step, delta)
        (formed,) = adjoint.formed

        def pull(rows):
            return {name: sums / rows.shape[1] for name, sums in formed.pull(rows).items()}

        return replace(adjoint, formed=(replace(formed, pull=pull),))


class SamplesOfOtherStates(FunctionCell):
    """Steps and samples flattened in two different orders."""

    def advance(self, x, projected, state):
        if state.ndim < 3:
            return super().advance(x, projected, state)
        mixed = state.transpose(0, 1).reshape(state.shape)
        return replace(super().advance(x, projected, mixed), previous=mixed)


FAULTS = [
    (SignFlip, TANH),
    (MissingTanhDerivative, TANH),
    (OffByOneInTime, TANH),
    (UntransposedWeights, TANH),
    (SwappedGates, LSTM_),
    (MissingReadout, LSTM_),
    (DroppedOneMinusF, LSTM_),
    (NewCellStateInsteadOfOld, LSTM_),
    (ClosedCarousel, LSTM_),
    (ResetGateForgotten, GRU_),
    (UpdateGateTurnedRound, GRU_),
    (JacobianOfTheWrongSample, LSTM_),
    (BiasOfTheWrongSide, GRU_),
    (PeepholeOfTheOutputGateForgotten, FAMILY["lstm-2002"]),
    (PeepholeSeesTheOldCell, FAMILY["lstm-2002"]),
    (PeepholeRouteForgotten, FAMILY["lstm-2002"]),
    (CarouselAndPeepholesThatDoNotAddUp, FAMILY["lstm-2002"]),
    (CouplingForgotten, FAMILY["cifg"]),
    (TanhDerivativeForTheSquashingOf1997, FAMILY["lstm-1997"]),
    (GatesOfTheStepBeforeForgotten, FAMILY["fgr"]),
    (ResetGateMultipliesTheWrongSide, GRU2014_),
    (OperandBeforeTheReset, GRU2014_),
    (FunctionSeesTheNewState, MGU),
    (RoutesThatOverlap, SLSTM),
    (GradientsAveragedOverTheBatch, LEAKY),
    (SamplesOfOtherStates, MGU),
]


EVERY_GENERATION = [
    pytest.param(broken, make, id=f"{broken.__name__}-{name}")
    for name, make in FAMILY.items()
    for broken in (ClosedCarousel, MissingReadout)
]


@pytest.mark.parametrize(
    ("broken", "make"),
    [pytest.param(*fault, id=fault[0].__name__) for fault in FAULTS] + EVERY_GENERATION,
)
def test_the_suite_rejects(broken, make):
    sound = make()
    cell = broken(**{field.name: getattr(sound, field.name) for field in fields(sound)})
    rejected = []
    for check in CHECKS:
        check(sound)
        try:
            check(cell)
        except AssertionError:
            rejected.append(check.__name__)
    assert rejected, f"no check noticed {broken.__name__}"
