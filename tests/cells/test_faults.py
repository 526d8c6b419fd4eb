"""Cells broken on purpose: the conformance table must reject every one of them."""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch

from retrograde.cells import (
    GRU,
    GRU2014,
    LRU,
    LSTM,
    MLSTM,
    SLSTM,
    Elman,
    GatedLinearAttention,
    MinGRU,
    MinLSTM,
    SelectiveScan,
    folding,
    program,
)
from retrograde.cells.edges import Diagonal, Opaque, Weight
from retrograde.cells.function_cell import FunctionCell, FunctionDerivative
from support.conformance import CHECKS
from support.problems import (
    ATTENTION,
    FAMILY,
    GRU2014_,
    GRU_,
    LEAKY,
    LRU_,
    LSTM_,
    MGU,
    MINGRU,
    MINLSTM,
    MLSTM_,
    OWN_SLSTM,
    SELECTIVE,
    SLSTM_,
    TANH,
    H,
)


class _Rewired:
    """A cell with one thing wrong in the graph of its step: some edges are others, or missing."""

    def linearise(self, step):
        graph = super().linearise(step)
        edges = [self.rewire(edge, step) for edge in graph.edges]
        return replace(graph, edges=tuple(edge for edge in edges if edge is not None))


def leads(edge, source, target):
    """Whether an edge joins these nodes."""
    return isinstance(edge, Diagonal | Weight) and (edge.source, edge.target) == (source, target)


class SignFlip(_Rewired, Elman):
    def rewire(self, edge, step):
        return replace(edge, factor=-edge.factor) if edge.target == "h+" else edge


class MissingTanhDerivative(_Rewired, Elman):
    def rewire(self, edge, step):
        return replace(edge, factor=None) if edge.target == "h+" else edge


class OffByOneInTime(_Rewired, Elman):
    """A wrong operand."""

    def rewire(self, edge, step):
        if edge.source != "h-":
            return edge
        return replace(edge, use=replace(edge.use, operand=step.state))


class UntransposedWeights(_Rewired, Elman):
    def rewire(self, edge, step):
        return replace(edge, matrix=self.weight_hh.T) if edge.source == "h-" else edge


class MissingRecurrentEdge(_Rewired, Elman):
    def rewire(self, edge, step):
        return None if edge.source == "h-" else edge


class MissingBias(_Rewired, Elman):
    def rewire(self, edge, step):
        return None if edge.use and edge.use.parameter == "bias_hh" else edge


class SwappedGates(_Rewired, LSTM):
    """The factors of two edges are swapped."""

    def rewire(self, edge, step):
        i, f, g, _, _ = step.activations.values()
        c_previous = step.previous[..., self.slots["c"]]
        if leads(edge, "a.input", "c"):
            return replace(edge, factor=c_previous * f * (1 - f))
        if leads(edge, "a.forget", "c"):
            return replace(edge, factor=g * i * (1 - i))
        return edge


class SwappedRows(_Rewired, LSTM):
    """Two gates have each other's rows of the weights."""

    def rewire(self, edge, step):
        first, second = slice(0, H), slice(H, 2 * H)
        if leads(edge, "h-", "a.input"):
            return replace(edge, rows=second)
        return replace(edge, rows=first) if leads(edge, "h-", "a.forget") else edge


class MissingReadout(_Rewired, LSTM):
    def rewire(self, edge, step):
        return None if edge.route == "readout" else edge


class DroppedOneMinusF(_Rewired, LSTM):
    def rewire(self, edge, step):
        f, c_previous = step.activations["forget"], step.previous[..., self.slots["c"]]
        return replace(edge, factor=c_previous * f) if leads(edge, "a.forget", "c") else edge


class NewCellStateInsteadOfOld(_Rewired, LSTM):
    def rewire(self, edge, step):
        f, c = step.activations["forget"], step.state[..., self.slots["c"]]
        return replace(edge, factor=c * f * (1 - f)) if leads(edge, "a.forget", "c") else edge


class ClosedCarousel(_Rewired, LSTM):
    def rewire(self, edge, step):
        if edge.route != "carousel":
            return edge
        return replace(edge, factor=torch.zeros_like(edge.factor))


class ResetGateForgotten(_Rewired, GRU):
    def rewire(self, edge, step):
        return replace(edge, factor=None) if leads(edge, "q", "a.candidate") else edge


class UpdateGateTurnedRound(_Rewired, GRU):
    def rewire(self, edge, step):
        return replace(edge, factor=1 - edge.factor) if edge.route == "carousel" else edge


class PeepholeOfTheOutputGateForgotten(_Rewired, LSTM):
    def rewire(self, edge, step):
        return replace(edge, source="") if edge.route == "peephole.output" else edge


class PeepholeSeesTheOldCell(_Rewired, LSTM):
    def rewire(self, edge, step):
        if edge.route != "peephole.output":
            return edge
        old = step.previous[..., self.slots["c"]]
        return replace(edge, use=replace(edge.use, operand=old))


class PeepholeRouteForgotten(_Rewired, LSTM):
    def rewire(self, edge, step):
        return replace(edge, source="") if edge.route == "peephole.forget" else edge


class PeepholeOfAnotherUnit(_Rewired, LSTM):
    def rewire(self, edge, step):
        if edge.route != "peephole.forget":
            return edge
        return replace(edge, factor=edge.factor.flip(0))


class CouplingForgotten(_Rewired, LSTM):
    def rewire(self, edge, step):
        i, g = step.activations["input"], step.activations["cell"]
        return replace(edge, factor=g * i * (1 - i)) if leads(edge, "a.input", "c") else edge


class TanhDerivativeForTheSquashingOf1997(_Rewired, LSTM):
    def rewire(self, edge, step):
        o, y = step.activations["output"], step.activations["squashed"]
        return replace(edge, factor=o * (1 - y * y)) if edge.route == "readout" else edge


class GatesOfTheStepBeforeForgotten(_Rewired, LSTM):
    def rewire(self, edge, step):
        return None if leads(edge, "o", "o+") else edge


class ResetGateMultipliesTheWrongSide(_Rewired, GRU2014):
    def rewire(self, edge, step):
        return replace(edge, factor=None) if leads(edge, "h-", "q") else edge


class OperandBeforeTheReset(_Rewired, GRU2014):
    def rewire(self, edge, step):
        if not leads(edge, "q", "a.candidate"):
            return edge
        return replace(edge, use=replace(edge.use, operand=step.previous))


class BiasOfTheWrongSide(_Rewired, GRU):
    def rewire(self, edge, step):
        return replace(edge, target="a.candidate") if leads(edge, "", "q") else edge


class UpdateGateKeepsInsteadOfWriting(_Rewired, MinGRU):
    def rewire(self, edge, step):
        return replace(edge, factor=1 - edge.factor) if edge.route == "carousel" else edge


class CandidateAlone(_Rewired, MinGRU):
    """The update gate is taken for one that writes without forgetting."""

    def rewire(self, edge, step):
        z, n, _ = step.activations.values()
        return replace(edge, factor=n * z * (1 - z)) if leads(edge, "a.update", "h+") else edge


class GateInsteadOfItsQuotient(_Rewired, MinLSTM):
    """The carousel passes f on, and not f / (f + i)."""

    def rewire(self, edge, step):
        f = step.activations["forget"]
        return replace(edge, factor=f) if edge.route == "carousel" else edge


class QuotientWithoutTheInputGate(_Rewired, MinLSTM):
    def rewire(self, edge, step):
        return None if leads(edge, "a.input", "h+") else edge


class TurnedTheOtherWay(_Rewired, LRU):
    def rewire(self, edge, step):
        return replace(edge, factor=-edge.factor) if leads(edge, "im-", "re") else edge


class AngleWithoutItsExponential(_Rewired, LRU):
    def rewire(self, edge, step):
        if not leads(edge, "theta_log", "re"):
            return edge
        return replace(edge, factor=edge.factor / self.theta_log.exp())


class StepSizeForgotten(_Rewired, SelectiveScan):
    """delta is taken to choose how much is kept, and not how much is written."""

    def rewire(self, edge, step):
        if not leads(edge, "delta", "S0"):
            return edge
        return replace(edge, factor=edge.factor - step.activations["B"][..., :1] * step.x)


class StatesOfAnotherChannel(_Rewired, SelectiveScan):
    def rewire(self, edge, step):
        return replace(edge, factor=edge.factor.flip(-1)) if leads(edge, "C0", "h+") else edge


class KeptByAnotherKey(_Rewired, GatedLinearAttention):
    def rewire(self, edge, step):
        return replace(edge, target="S1") if leads(edge, "kept0", "S0") else edge


class RootOfTheGateForgotten(_Rewired, GatedLinearAttention):
    """sigma(a)^(1/tau) is taken for sigma(a)."""

    def rewire(self, edge, step):
        if not leads(edge, "a.alpha", "kept"):
            return edge
        return replace(edge, factor=edge.factor * self.tau)


class NormaliserAsAConstant(_Rewired, MLSTM):
    """The quotient is differentiated without its denominator, as if it were 1 everywhere."""

    def rewire(self, edge, step):
        return None if leads(edge, "size.h", "h+") else edge


class InputGateWritesNoNormaliser(_Rewired, MLSTM):
    def rewire(self, edge, step):
        return None if leads(edge, "i.n", "n") else edge


class StabiliserAsAConstant(_Rewired, SLSTM):
    """m is detached in one gate and not in the other."""

    def rewire(self, edge, step):
        return None if leads(edge, "m", "i") else edge


class FunctionSeesTheNewState(FunctionCell):
    def linearise(self, step):
        return super().linearise(replace(step, previous=step.state))


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
    (MissingRecurrentEdge, TANH),
    (MissingBias, TANH),
    (SwappedGates, LSTM_),
    (MissingReadout, LSTM_),
    (DroppedOneMinusF, LSTM_),
    (NewCellStateInsteadOfOld, LSTM_),
    (ClosedCarousel, LSTM_),
    (ResetGateForgotten, GRU_),
    (UpdateGateTurnedRound, GRU_),
    (SwappedRows, LSTM_),
    (BiasOfTheWrongSide, GRU_),
    (PeepholeOfTheOutputGateForgotten, FAMILY["lstm-2002"]),
    (PeepholeSeesTheOldCell, FAMILY["lstm-2002"]),
    (PeepholeRouteForgotten, FAMILY["lstm-2002"]),
    (PeepholeOfAnotherUnit, FAMILY["lstm-2002"]),
    (CouplingForgotten, FAMILY["cifg"]),
    (TanhDerivativeForTheSquashingOf1997, FAMILY["lstm-1997"]),
    (GatesOfTheStepBeforeForgotten, FAMILY["fgr"]),
    (ResetGateMultipliesTheWrongSide, GRU2014_),
    (OperandBeforeTheReset, GRU2014_),
    (UpdateGateKeepsInsteadOfWriting, MINGRU),
    (CandidateAlone, MINGRU),
    (GateInsteadOfItsQuotient, MINLSTM),
    (QuotientWithoutTheInputGate, MINLSTM),
    (TurnedTheOtherWay, LRU_),
    (AngleWithoutItsExponential, LRU_),
    (StepSizeForgotten, SELECTIVE),
    (StatesOfAnotherChannel, SELECTIVE),
    (KeptByAnotherKey, ATTENTION),
    (RootOfTheGateForgotten, ATTENTION),
    (NormaliserAsAConstant, MLSTM_),
    (InputGateWritesNoNormaliser, MLSTM_),
    (StabiliserAsAConstant, SLSTM_),
    (FunctionSeesTheNewState, MGU),
    (SamplesOfOtherStates, MGU),
]


@cache
def sound_cell(make):
    """A cell that every check accepts, which is found out once."""
    cell = make()
    for check in CHECKS:
        check(cell)
    return cell


def rejected(cell):
    """Whether one of the checks rejects a cell."""
    for check in CHECKS:
        try:
            check(cell)
        except AssertionError:
            return True
    return False


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
    sound = sound_cell(make)
    cell = broken(**{field.name: getattr(sound, field.name) for field in fields(sound)})
    assert rejected(cell), f"no check noticed {broken.__name__}"


def jacobian_of_the_wrong_sample(factor, blocks, sound=program._jacobians):
    return sound(factor.roll(1, 0), blocks)


def jacobian_of_the_wrong_step(factor, blocks, sound=program._all_jacobians):
    return sound(factor.roll(1, 0), blocks)


def routes_that_do_not_add_up(self, edge, form, sound=folding.Folded._through):
    """Of the routes that lie side by side on one base the last is taken for their sum."""
    alone = {}
    sound(self, edge, alone)
    form.update(alone)


def blocks_in_another_order(self, blocks, sound=folding.Folded.segments):
    segments = sound(self, blocks)
    if len(blocks.targets) < 3:
        return segments
    return tuple(
        replace(each, factor=each.factor.flip(-2)) if each.last - each.first > 1 else each
        for each in segments
    )


def routes_that_overlap(self, wanted=None, apart=(), sound=Opaque.groups):
    """Each route brings what all routes from its piece bring."""
    if wanted is None:
        return sound(self, wanted, apart)
    sources = tuple(s for s in self.sources if any(wanted(self.routes[s, t]) for t in self.targets))
    return [(tuple(self.targets), sources, "")]


def gradients_averaged_over_the_batch(self, delta, sound=FunctionDerivative.to_parameters):
    return {name: sums / delta.shape[1] for name, sums in sound(self, delta).items()}


OF_ALL_CELLS = [
    (program, "_jacobians", jacobian_of_the_wrong_sample, LSTM_),
    (program, "_all_jacobians", jacobian_of_the_wrong_step, LSTM_),
    (folding.Folded, "_through", routes_that_do_not_add_up, FAMILY["lstm-2002"]),
    (folding.Folded, "segments", blocks_in_another_order, LSTM_),
    (Opaque, "groups", routes_that_overlap, OWN_SLSTM),
    (FunctionDerivative, "to_parameters", gradients_averaged_over_the_batch, LEAKY),
]


@pytest.mark.parametrize(
    ("owner", "name", "fault", "make"),
    [pytest.param(*fault, id=fault[2].__name__) for fault in OF_ALL_CELLS],
)
def test_the_suite_rejects_what_is_wrong_for_all_cells(owner, name, fault, make, monkeypatch):
    sound_cell(make)
    monkeypatch.setattr(owner, name, fault)
    assert rejected(make()), f"no check noticed {fault.__name__}"
