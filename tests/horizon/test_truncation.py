"""Against really truncating: the state detached in a plain loop, at every K, in float64."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.truncation import Measures
from retrograde.truncation.truncated import Truncation

T, B, INPUTS, H = 9, 3, 2, 4

LAYERS = {
    "lstm": lambda: nn.LSTM(INPUTS, H),
    "gru": lambda: nn.GRU(INPUTS, H),
    "rnn": lambda: nn.RNN(INPUTS, H, nonlinearity="relu"),
    "stack": lambda: nn.LSTM(INPUTS, H, num_layers=2),
    "projected": lambda: nn.LSTM(INPUTS, H, proj_size=2),
    "peepholes": lambda: retrograde.nn.LSTM(INPUTS, H, num_layers=2),
    "linear": lambda: retrograde.nn.MinLSTM(INPUTS, H),
    "gru stack": lambda: nn.GRU(INPUTS, H, num_layers=2, bias=False),
}


def run(layer, x, state=None):
    """A layer over some steps: its output and its state, as a tuple."""
    output, state = layer(x, state)
    return output, state


def detached(state):
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def gradient(layer, loss):
    found = torch.autograd.grad(loss, tuple(layer.parameters()))
    return torch.cat([one.flatten() for one in found])


def weights(seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, 1, dtype=torch.float64, generator=generator)


def loss_at(output, t, lengths=None):
    """The part of the loss that enters at step t: not linear in the output."""
    seen = 1.0 if lengths is None else (t < lengths).double().unsqueeze(1)
    return (weights()[t] * output.square() * seen).sum()


def sliding(layer, x, k, lengths=None):
    """Every loss step looks back over k steps: the state before them is detached."""
    total = 0.0
    for t in range(T):
        first = max(0, t - k + 1)
        state = detached(run(layer, x[:first])[1]) if first else None
        output, _ = run(layer, x[first : t + 1], state)
        total = total + gradient(layer, loss_at(output[-1], t, lengths))
    return total


def chunks(layer, x, k, phase, lengths=None):
    """The state is detached before steps phase, phase + k, ..."""
    cuts = sorted({0, *range(phase, T, k), T})
    state, loss = None, 0.0
    for first, stop in zip(cuts, cuts[1:], strict=False):
        output, state = run(layer, x[first:stop], state)
        for t in range(first, stop):
            loss = loss + loss_at(output[t - first], t, lengths)
        state = detached(state)
    return gradient(layer, loss)


def recorded(layer, x, lengths=None):
    with retrograde.record(layer) as recording:
        if lengths is None:
            output = layer(x)[0]
        else:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output = nn.utils.rnn.pad_packed_sequence(layer(packed)[0], total_length=T)[0]
        sum(loss_at(output[t], t, lengths) for t in range(T)).backward()
    return retrograde.decompose(recording)


def expected(whole, truncated):
    """Bias, cosine, ratio and share of signs that differ."""
    return torch.stack(
        (
            (whole - truncated).norm() / whole.norm(),
            torch.dot(whole, truncated) / whole.norm() / truncated.norm(),
            truncated.norm() / whole.norm(),
            (whole.sign() != truncated.sign()).double().mean(),
        )
    )


def found(horizon):
    return torch.stack((horizon.bias, horizon.cosine, horizon.ratio, horizon.signs), 1)


def problem(name):
    torch.manual_seed(1)
    layer = LAYERS[name]().double()
    return layer, torch.randn(T, B, INPUTS, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_the_curves_are_those_of_really_detaching(name):
    layer, x = problem(name)
    flow = recorded(layer, x)
    by_hand = [sliding(layer, x, k) for k in range(1, T + 1)]
    wanted = torch.stack([expected(by_hand[-1], each) for each in by_hand])
    curves = found(flow.horizon())
    torch.testing.assert_close(curves[:-1], wanted[:-1], rtol=1e-9, atol=1e-12)
    assert curves[-1, 0] < 1e-14  # nothing is missing at K = T; its rounding is its own

    phases = [[chunks(layer, x, k, phase) for phase in range(1, k + 1)] for k in range(1, T + 1)]
    mean = [sum(some) / len(some) for some in phases]
    wanted = torch.stack([expected(by_hand[-1], each) for each in mean])
    horizon = flow.horizon("chunks")
    torch.testing.assert_close(found(horizon), wanted, rtol=1e-9, atol=1e-12)
    for k, each in horizon.by_phase.items():
        bias = [float((by_hand[-1] - one).norm() / by_hand[-1].norm()) for one in phases[k - 1]]
        assert each == pytest.approx(bias, rel=1e-9, abs=1e-13)
        squares = [
            float((one - mean[k - 1]).norm() / by_hand[-1].norm()) ** 2 for one in phases[k - 1]
        ]
        assert horizon.spread[k] == pytest.approx((sum(squares) / k) ** 0.5, rel=1e-6, abs=1e-7)


def test_samples_that_end_before_others():
    layer, x = problem("stack")
    lengths = torch.tensor([T, 4, 7])
    flow = recorded(layer, x, lengths)
    by_hand = [sliding(layer, x, k, lengths) for k in range(1, T + 1)]
    wanted = torch.stack([expected(by_hand[-1], each) for each in by_hand])
    torch.testing.assert_close(found(flow.horizon())[:-1], wanted[:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("growth", [60, -60])
def test_steps_whose_adjoints_are_on_scales_far_apart(monkeypatch, growth):
    """Pulled back some at a time, each group in units of its own."""
    monkeypatch.setattr("retrograde.engine.lags.TOGETHER", B * 2 * H)  # a step at a time
    layer, x = problem("lstm")
    with retrograde.record(layer) as recording:
        output = layer(x)[0]
        sum(2.0 ** (growth * (t - T // 2)) * output[t].sum() for t in range(T)).backward()
    flow = retrograde.decompose(recording)
    whole = flow.by_lag("weight_hh_l0", bins="every").parts()
    found = torch.cat([part["weight_hh_l0"].plain() for part in flow.lag_by_lag()])
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["sliding", "chunks"])
def test_the_scan_ends_where_no_contribution_counts_any_more(kind):
    torch.manual_seed(0)
    layer, x = nn.LSTM(INPUTS, H), torch.randn(60, B, INPUTS)
    with retrograde.record(layer) as recording:
        layer(x)[0].square().sum().backward()
    flow = retrograde.decompose(recording)
    whole = Truncation(kind, flow.gradient)
    whole.take(flow.lag_by_lag())
    assert 15 < flow.lags_that_count < 55
    for name, measures in whole.result().items():
        found = flow.truncated(kind)[name]
        torch.testing.assert_close(found.bias, measures.bias, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.cosine, measures.cosine, rtol=1e-6, atol=1e-6)


def one_lag_late(parts):
    yield {
        name: Scaled(torch.zeros_like(row.values), row.exponent) for name, row in parts[0].items()
    }
    yield from parts[:-1]


def no_exponents(parts):
    for part in parts:
        yield {name: Scaled(row.values, row.exponent * 0) for name, row in part.items()}


@pytest.mark.parametrize("fault", [one_lag_late, no_exponents])
def test_planted_faults_show(fault):
    layer, x = problem("gru")
    flow = recorded(layer, x)
    by_hand = [sliding(layer, x, k) for k in range(1, T + 1)]
    wanted = torch.stack([expected(by_hand[-1], each) for each in by_hand])
    broken = Truncation("sliding", flow.gradient)
    broken.take(fault(list(flow.lag_by_lag())))
    bias = Measures.together(list(broken.result().values())).bias
    assert not torch.allclose(bias, wanted[:, 0], rtol=1e-3)


def test_another_weight_of_the_phases_shows():
    """(1 - (l + 1) / K), as if a cut lay before the loss step itself, is another curve."""
    layer, x = problem("gru")
    flow, k = recorded(layer, x), 4
    parts = [torch.cat([p.plain().flatten() for p in part.values()]) for part in flow.lag_by_lag()]
    mean = sum(chunks(layer, x, k, phase) for phase in range(1, k + 1)) / k
    right = sum((1 - lag / k) * parts[lag] for lag in range(k))
    wrong = sum((1 - (lag + 1) / k) * parts[lag] for lag in range(k))
    torch.testing.assert_close(right, mean, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(wrong, mean, rtol=1e-2)


def test_bad_input():
    layer, x = problem("gru")
    horizon = recorded(layer, x).horizon()
    assert horizon.bias_at(T) == float(horizon.bias[-1])
    for steps in (0, T + 1, 2.5):
        with pytest.raises(ArgumentError, match="steps must be"):
            horizon.bias_at(steps)
    assert horizon.window(delta=0) is None
    assert horizon.summary(delta=0)[0] == "window     none: the bias stays above 0"
    assert "No K up to 9" in horizon.recommendation(delta=0)


@pytest.mark.parametrize("layers, ends", [(1, False), (2, True)])
def test_a_stack_that_reads_both_ways_says_where_its_lags_end(layers, ends):
    """Its upper layer reads the whole sequence below: really detaching would lose more."""
    layer = nn.GRU(INPUTS, H, num_layers=layers, bidirectional=True).double()
    horizon = recorded(layer, torch.randn(T, B, INPUTS, dtype=torch.float64)).horizon()
    assert any("counts as given by the loss" in note for note in horizon.notes) == ends
