"""The scan along lags against the scan along steps, which holds every lag until its end."""

import pytest
import torch
from torch import nn

import retrograde
from retrograde.clipping import PreActivationValue
from retrograde.decomposition.from_recording import unasked
from retrograde.engine import lags
from retrograde.engine.lags import PerLag, parts_by_lag
from retrograde.errors import NonFiniteError
from support.conformance import flow_of, plain_pass
from support.problems import PROBLEMS


def log2_of_difference(flow):
    """log2 of the difference of each part from that of the scan along steps, over its size."""
    off = []
    for lag, parts in enumerate(parts_by_lag(flow.unrolled, flow.entries.direct)):
        for name, part in parts.items():
            wanted = flow.by_lag(name, "every").select(lag=lag)
            size = wanted.log2
            other = wanted.scaled
            minus = type(other)(-other.values, other.exponent)
            difference = part.plus(minus).log2_norms()
            off.append(float(difference - size) if bool(size.isfinite()) else float(difference))
    return max(off)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_part_of_every_lag_of_every_cell(problem):
    cell = problem.make()
    assert log2_of_difference(flow_of(cell, plain_pass(cell))) < -40


def recorded(layer, run, steps=8):
    x = torch.randn(steps, 3, 2, dtype=torch.float64)
    with retrograde.record(layer) as recording:
        run(layer, x).backward()
    return unasked(recording.only())


def at_some_steps(layer, x):
    return layer(x)[0][2:6:3].square().sum()


def with_resets(layer, x):
    """States that are detached, masked and reordered on their way."""
    first, state = layer(x[:3])
    second, state = layer(x[3:5], state.detach())
    third, _ = layer(x[5:], state[:, [1, 0, 2]] * torch.tensor([1.0, 0.0, 0.5])[:, None])
    return (first.sum() + second.square().sum()) + third.pow(3).sum()


@pytest.mark.parametrize("run", [at_some_steps, with_resets])
def test_losses_at_some_steps_and_states_that_are_changed_between_steps(run):
    assert log2_of_difference(recorded(nn.GRU(2, 3).double(), run)) < -40


def test_a_clipped_pass():
    flow = recorded(nn.LSTM(2, 3).double(), at_some_steps)
    clipped = flow.clipped(PreActivationValue(0.01)).after
    assert log2_of_difference(clipped) < -40
    parts = next(iter(parts_by_lag(clipped.unrolled, clipped.entries.direct)))
    assert parts.keys() == clipped.gradient.keys()


@pytest.mark.parametrize("factor", [1e-3, 30.0])
@pytest.mark.parametrize("together", [2**20, 24])
def test_numbers_out_of_range(factor, together, monkeypatch):
    """The adjoint shrinks to 2^-400 or grows to 2^190, and dL/ds_t spans 2^100."""
    monkeypatch.setattr(lags, "TOGETHER", together)
    layer = nn.RNN(2, 4, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.abs_().mul_(factor)
    scale = torch.exp2(torch.linspace(-60, 40, 40))[:, None, None]
    with retrograde.record(layer) as recording:
        x = torch.rand(40, 3, 2) * (1e-30 if factor > 1 else 1)
        (layer(x)[0] * scale).sum().backward()
    flow = unasked(recording.only())
    assert log2_of_difference(flow) < -15
    sizes = flow.adjoints.log2
    sizes = sizes[sizes.isfinite()]
    assert float(sizes.max() - sizes.min()) > 150


def test_rows_within_a_factor_of_2_to_the_24_are_pulled_back_once(monkeypatch):
    """One exponent for all of them from the first lag on, so that none has to be weighed."""
    scale = torch.exp2(torch.linspace(-10, 10, 40))[:, None, None]
    flow = recorded(nn.GRU(2, 3).double(), lambda layer, x: (layer(x)[0] * scale).sum(), 40)

    def weighed(*_):
        raise AssertionError("rows were weighed and pulled back a second time")

    monkeypatch.setattr(PerLag, "_weighed", weighed)
    assert log2_of_difference(flow) < -40


def test_what_becomes_infinite_within_one_step_is_refused():
    layer = nn.RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(1e38)
        layer.weight_ih_l0.fill_(1.0)
    with retrograde.record(layer) as recording:
        (layer(torch.tensor([[[1e-38]], [[1e-38]]]))[0] * 1e-30).sum().backward()
    flow = unasked(recording.only())
    with pytest.raises(NonFiniteError, match="at step 0, within one step"):
        list(parts_by_lag(flow.unrolled, flow.entries.direct))


FAULTS = {
    "a step late": lambda rows: setattr(rows, "first", rows.first + 1),
    "an exponent dropped": lambda rows: setattr(rows, "exponent", rows.exponent * 0),
    "a sample of another": lambda rows: setattr(rows, "values", rows.values.roll(1, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_show(fault, monkeypatch):
    flow = recorded(nn.GRU(2, 3).double(), lambda layer, x: (layer(x)[0] * 1e-20).sum())
    assert log2_of_difference(flow) < -40
    advance = PerLag.advance

    def broken(self):
        if self.lag == 1:
            FAULTS[fault](self)
        return advance(self)

    monkeypatch.setattr(PerLag, "advance", broken)
    assert log2_of_difference(flow) > -20
