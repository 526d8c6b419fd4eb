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


def minimal(kind):
    return kind(2, 4, 2, form="log"), ("carousel_l0", "carousel_l1"), ["h_l0", "h_l1"]


MODULES = {
    "min-gru": lambda: minimal(retrograde.nn.MinGRU),
    "min-lstm": lambda: minimal(retrograde.nn.MinLSTM),
    "lru": lambda: (retrograde.nn.LRU(2, 3), ("carousel",), ["re_l0"]),
    "selective": lambda: (retrograde.nn.SelectiveScan(2, 3), ("carousel",), ["S_l0"]),
    "attention": lambda: (
        retrograde.nn.GatedLinearAttention(2, 3, key_size=2),
        ("carousel",),
        ["S_l0"],
    ),
    "mlstm": lambda: (
        retrograde.nn.MLSTM(2, 3, key_size=2),
        ("carousel.normaliser", "carousel"),
        ["n_l0"],
    ),
    "slstm": lambda: (retrograde.nn.SLSTM(2, 3), None, ["c_l0"]),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_recorded_decomposed_and_diagnosed(name):
    """Its state is handed on from call to call, and all parts of the last one enter the loss."""
    torch.manual_seed(0)
    layer, routes, constants = MODULES[name]()
    model = torch.nn.ModuleDict({"rnn": layer, "out": torch.nn.LazyLinear(1)})
    x = torch.randn(20, B, 2)

    def loss_fn(model, x):
        _, state = model["rnn"](x[:12])
        output, state = model["rnn"](x[12:], state)
        state = state if isinstance(state, tuple) else (state,)
        given = sum((weight * part).sum() for weight, part in enumerate(state, 1))
        return model["out"](output[-1]).square().mean() + 0.1 * given

    with torch.no_grad():
        loss_fn(model, x)
    with retrograde.record(model) as recording:
        loss_fn(model, x).backward()
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and routes in (None, flow.routes)
    report = retrograde.diagnose(model, x, loss_fn, remedies=None)
    status = {check.name: check.status for check in report.checks}
    assert status["misleading-radius"] == "not applicable"
    assert list(retrograde.spectrum(recording).memory.time_constants) == constants


def test_the_ways_of_a_selective_scan_can_be_cut():
    """Without delta no gradient is left in what only delta reads; B, C and A keep theirs."""
    torch.manual_seed(0)
    scan = retrograde.nn.SelectiveScan(2, 3, dtype=torch.float64)
    recorded = retrograde.record_cell(
        scan.cells()[0], torch.randn(9, B, 2).double(), lambda h, s: h.square().sum()
    )
    flow = retrograde.decompose(recorded)
    assert {"delta", "B", "C", "input", "readout"} <= set(flow.unrolled.cell.inner_routes)
    without = flow.without("delta").gradient
    assert not without["weight_delta"].plain().any() and without["weight_B"].plain().any()
    torch.testing.assert_close(
        without["A_log"].plain(), flow.gradient["A_log"].plain(), rtol=1e-12, atol=1e-14
    )
