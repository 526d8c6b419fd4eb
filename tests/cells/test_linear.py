"""Linear recurrences against their papers: the equations as they stand there, written once more."""

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

import retrograde
from retrograde.engine import unroll
from support.problems import MINGRU, MINGRU_LOG, MINLSTM, B

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def positive(a):
    return torch.where(a >= 0, a + 0.5, torch.sigmoid(a))


def log_positive(a):
    return torch.where(a >= 0, (a.clamp(min=0) + 0.5).log(), logsigmoid(a))


def parallel_scan_log(log_coefficients, log_values):
    """Feng et al. (2024), appendix B.1, after Heinsen (2023): time first, h_0 among the values."""
    sums = torch.nn.functional.pad(log_coefficients.cumsum(0), (0, 0, 0, 0, 1, 0))
    return (sums + (log_values - sums).logcumsumexp(0))[1:].exp()


def min_gru_by_logarithms(a, h_0):
    """Algorithm 6 there."""
    k, n = a.chunk(2, -1)
    values = torch.cat((h_0.log().unsqueeze(0), -softplus(-k) + log_positive(n)))
    return parallel_scan_log(-softplus(k), values)


def min_lstm_by_logarithms(a, h_0):
    """Algorithm 8 there."""
    f, i, n = a.chunk(3, -1)
    difference = softplus(-f) - softplus(-i)
    values = torch.cat((h_0.log().unsqueeze(0), -softplus(-difference) + log_positive(n)))
    return parallel_scan_log(-softplus(difference), values)


def min_gru_step_by_step(a, h):
    """Equations of section 3.1.3."""
    z, n = a.chunk(2, -1)
    z, states = z.sigmoid(), []
    for z_k, n_k in zip(z, n, strict=True):
        h = (1 - z_k) * h + z_k * n_k
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize(
    ("make", "paper", "form"),
    [
        (MINGRU_LOG, min_gru_by_logarithms, "log"),
        (MINLSTM, min_lstm_by_logarithms, "log"),
        (MINGRU, min_gru_step_by_step, "linear"),
    ],
    ids=["min-gru-log", "min-lstm-log", "min-gru"],
)
def test_the_states_are_those_of_the_paper(make, paper, form):
    sound = make()
    cell = type(sound)(sound.weight_ih, sound.bias_ih, form)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, B, 2, generator=generator, dtype=torch.float64)
    initial = 0.5 + torch.rand(B, cell.hidden_size, generator=generator, dtype=torch.float64)
    found = unroll(cell, x, initial).output
    torch.testing.assert_close(found, paper(cell.project(x), initial), **EXACT)


@pytest.mark.parametrize("kind", [retrograde.nn.MinGRU, retrograde.nn.MinLSTM])
def test_a_module_is_recorded_decomposed_and_diagnosed(kind):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"rnn": kind(2, 4, 2, form="log"), "out": torch.nn.Linear(4, 1)})
    x = torch.randn(20, B, 2)

    def loss_fn(model, x):
        return model["out"](model["rnn"](x)[0][-1]).square().mean()

    with retrograde.record(model) as recording:
        loss_fn(model, x).backward()
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and flow.routes == ("carousel_l0", "carousel_l1")
    report = retrograde.diagnose(model, x, loss_fn, remedies=None)
    status = {check.name: check.status for check in report.checks}
    assert status["saturated"] == "passed" and status["misleading-radius"] == "not applicable"
    assert list(retrograde.spectrum(recording).horizons.time_constants) == ["h_l0", "h_l1"]
