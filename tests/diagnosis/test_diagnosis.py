"""What the rules find, and every claimed improvement measured again on its own."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.diagnosis import RULES, Evidence, NotApplicable, explain, limits
from retrograde.diagnosis.activity import keeping_for, look
from retrograde.diagnosis.batches import Batches
from retrograde.diagnosis.examine import examine
from retrograde.diagnosis.experiments import EXPERIMENTS
from retrograde.diagnosis.need import autocorrelation, season_of
from retrograde.diagnosis.remedies import REMEDIES
from retrograde.diagnosis.training import Plan
from retrograde.diagnosis.trials import progress
from retrograde.errors import ArgumentError, UnsupportedModelError
from retrograde.tasks.trial_set import BY_NAME
from retrograde.tasks.trial_set.models import Forecaster, squared
from support.measured_apart import Measured

# Very many passes; those of the command line and the reports are checked for shapes as well.
pytestmark = pytest.mark.usefixtures("unchecked")

NUMBERS = {
    "vanishing": Measured.reach,
    "exploding": Measured.growth_of_the_adjoint,
    "saturated": Measured.saturated_share,
    "forget-gate-too-short": Measured.time_constant,
    "dead-units": Measured.dead_units,
    "output-outweighs": Measured.imbalance,
}
"""Numbers that measured_apart.py can measure, of single layers of torch read at the last step."""

APART = (
    "tiny recurrent weights (RNN)",
    "a season beyond its reach",
    "huge recurrent weights (RNN)",
    "large recurrent weights, open forget gate",
    "input that is not scaled",
    "forget bias -2",
    "update gate shut (GRU)",
    "half of the relu units dead",
    "output layer times 100",
)


FORECASTERS = (
    "LSTM, forget bias 3",
    "LSTM, chrono",
    "LSTM, loss at every step",
    "LSTM, two layers",
    "GRU, torch's default, short",
    "GRU, chrono, a lag named",
    "RNN, orthogonal",
    "relu RNN, identity",
)
"""Healthy models of one recurrent layer and a linear output layer."""


def made(name, dtype=torch.float32):
    model, batch, _ = BY_NAME[name].build()
    return model.to(dtype), tuple(part.to(dtype) for part in batch)


def examined(name, dtype=torch.float32, **options):
    model, batch = made(name, dtype)
    options = {**BY_NAME[name].options, **options}
    return examine(model, batch, squared, limits(), **options)


def findings_of(name):
    return examined(name, remedies=False).findings


@pytest.mark.parametrize("name", APART)
def test_every_claim_of_a_remedy_is_measured_again(name):
    """The lines of code that the report prints are run on a fresh model; plain torch measures.

    In float64: a pass whose gradient explodes is chaotic, and rounding grows in it.
    """
    findings = examined(name, torch.float64).findings
    finding = next(each for each in findings if each.rule in NUMBERS)
    number, own = NUMBERS[finding.rule], finding.evidence[0]
    assert number(Measured(*made(name, torch.float64))) == pytest.approx(own.value, rel=1e-5)
    claims = 0
    for trial in finding.trials:
        if trial.remedy in ("window", "clip"):  # loops and steps of the user's own
            continue
        model, (x, y) = made(name, torch.float64)
        options, clipped = {}, {}
        torch.manual_seed(0)
        if trial.remedy == "clip-groups":
            clipped = {"clipped_to": min(Measured(model, (x, y)).norms())}
        elif trial.remedy == "truncated-1997":
            options = {"truncated": True}
        else:
            names = {"model": model, "torch": torch, "retrograde": retrograde, "x": x}
            exec(trial.code, names)
            x = names["x"]
            model.double()  # a layer that is put in the place of another comes in float32
            if trial.remedy == "clip-inside":
                options = {"held": model.recurrent.clipping.policy.max_norm}
        after = number(Measured(model, (x, y), **options), **clipped)
        assert after == pytest.approx(trial.after, rel=1e-5, abs=1e-9), trial.remedy
        up = own.healthy == "above"
        healthy = after >= own.threshold if up else after <= own.threshold
        assert trial.closer or not healthy
        assert healthy or not trial.healthy
        claims += trial.closer
    assert claims


@pytest.mark.parametrize("name", ["NaN in one gate", "states beyond float32"])
def test_a_pass_that_is_said_to_be_mended_is_finite(name):
    trials = examined(name).findings[0].trials
    assert any(trial.healthy for trial in trials)
    for trial in trials:
        model, batch = made(name)
        torch.manual_seed(0)
        exec(trial.code, {"model": model, "torch": torch, "retrograde": retrograde})
        squared(model, batch).backward()
        spoilt = sum(int((~p.grad.isfinite()).sum()) for p in model.recurrent.parameters())
        assert trial.closer == (spoilt == 0)


def test_the_forget_bias_is_said_to_stand_in_one_of_two():
    finding = examined("forget bias 1 in both biases").findings[0]
    model, _ = made("forget bias 1 in both biases")
    exec(finding.trials[0].code, {"model": model, "torch": torch})
    layer = model.recurrent
    assert finding.trials[0].healthy and finding.trials[0].after == 0
    assert torch.equal(layer.bias_ih_l0[16:32], torch.ones(16))
    assert torch.equal(layer.bias_hh_l0[16:32], torch.zeros(16))
    assert bool(layer.bias_hh_l0[:16].all() and layer.bias_hh_l0[32:].all()), "no other gate"


def test_trials_come_in_the_order_of_their_effect():
    trials = examined("a season beyond its reach").findings[0].trials
    assert len(trials) >= 3
    assert [t.healthy for t in trials] == sorted((t.healthy for t in trials), reverse=True)
    others = [t.after for t in trials if not t.healthy]
    assert others == sorted(others, reverse=True)
    assert not trials[-1].healthy and trials[0].closer


def test_a_remedy_that_did_not_help_is_reported_as_such():
    trials = {t.remedy: t for t in examined("huge recurrent weights (RNN)").findings[0].trials}
    clip = trials["clip"]
    assert not clip.closer and not clip.healthy
    assert clip.after == clip.before
    assert trials["window"].closer and trials["window"].after < clip.after


def test_a_remedy_that_the_model_does_not_stand_is_said():
    class Strict(Forecaster):
        def forward(self, x):
            if not isinstance(self.recurrent, nn.RNN):
                raise TypeError("an RNN, please")
            return super().forward(x)

    torch.manual_seed(0)
    model = Strict(nn.RNN(3, 16))
    nn.init.zeros_(model.recurrent.weight_hh_l0)
    batch = torch.randn(30, 4, 3), torch.randn(4, 1)
    found = examine(model, batch, squared, limits(), needs_lag=15).findings[0]
    lstm = next(trial for trial in found.trials if trial.remedy == "lstm")
    assert lstm.note == "TypeError: an RNN, please"
    assert lstm.after is None and not lstm.closer


def test_a_cure_that_brings_another_finding_is_none():
    """Fresh weights mend a pass that overflows, and reach no further than those of torch do."""
    trials = {
        t.remedy: t for t in examined("states beyond float32", needs_lag=12).findings[0].trials
    }
    fresh = trials["fresh"]
    assert fresh.after == 0 and fresh.closer and not fresh.healthy
    assert fresh.note == "brings a new finding: vanishing"
    assert trials["spectral-norm"].healthy and not trials["spectral-norm"].note


def test_the_users_model_and_random_numbers_are_left_alone():
    model, batch = made("huge recurrent weights (RNN)")
    model.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    one = examine(model, batch, squared, limits())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not model.training and not model.recurrent.training
    assert all(torch.equal(before[n], w) for n, w in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.recurrent.weight_hh_l0.grad is None
    assert not model.recurrent._forward_hooks and not model.recurrent._forward_pre_hooks
    torch.manual_seed(8)
    other = examine(model, batch, squared, limits())
    assert one.findings == other.findings  # the seed decides, not what was drawn before
    third = examine(model, batch, squared, limits(), seed=1)
    orthogonal = [
        next(t.after for t in e.findings[0].trials if t.remedy == "orthogonal")
        for e in (one, third)
    ]
    assert orthogonal[0] != orthogonal[1]


def test_training_tells_original_and_remedy_apart():
    model, batch = made("huge recurrent weights (RNN)")
    done = []
    adam = partial(torch.optim.Adam, lr=1e-3)
    findings = examine(
        model,
        batch,
        squared,
        limits(),
        training=Plan(Batches(batch, (batch,)), adam, steps=4),
        progress=lambda *told: done.append(told),
    ).findings
    trained = {t.remedy: t.training for t in findings[0].trials if t.training}
    best = next(t.remedy for t in findings[0].trials if t.training and t.closer)
    assert {best, "clip"} <= set(trained)
    assert "Adam" in trained[best].optimizer
    loop = plain_training(model, batch, 4)
    assert trained[best].original == pytest.approx(loop, rel=1e-5)
    assert trained["clip"].remedy == pytest.approx(plain_training(model, batch, 4, 1.0), rel=1e-5)
    assert trained[best].remedy != trained[best].original
    assert done[0][0] == 0 and all(now <= whole for now, whole, _ in done)
    assert any("training" in what for *_, what in done)


def plain_training(model, batch, steps, clip=math.inf):
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = squared(model, batch)
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return losses


def test_thresholds_are_the_users_to_set():
    model, batch = made("forget bias -2")
    table = limits({"reach_fraction": 0.02})
    findings = examine(model, batch, squared, table, remedies=False).findings
    assert {finding.severity for finding in findings} == {"info"}
    assert {row.name: row.value for row in table}["reach_fraction"] == 0.02
    for row in table:
        assert row.reason.endswith(".") and row.unit
    with pytest.raises(ArgumentError, match="no threshold 'reach'; there are: reach_fraction"):
        limits({"reach": 3.0})


def test_every_threshold_changes_some_finding():
    """None stands in the table without effect."""
    moved = {
        "reach_fraction": (0.001, "forget bias -2"),
        "season_correlation": (0.99, "a season beyond its reach"),
        "far_share": (0.0, "a fast unit drowns a slow one"),
        "growth_total": (1e3, "huge recurrent weights (RNN)"),
        "saturated_slope": (0.0, "input that is not scaled"),
        "saturated_share": (1.0, "input that is not scaled"),
        "saturated_state_share": (1.0, "a cell state that drifts (no forget gate)"),
        "dead_share": (1.0, "half of the relu units dead"),
        "double_bias": (5.0, "forget bias 1 in both biases"),
        "imbalance": (9.0, "output layer times 100"),
        "usual_imbalance": (-2.7, "output layer times 100"),
        "conflict": (-100.0, "near and far errors opposed"),
        "radius_margin": (-1.0, "huge recurrent weights (RNN)"),  # asks for e a step, and more
    }
    of_experiments = {name for each in EXPERIMENTS.values() for name in each.thresholds}
    assert set(moved) | of_experiments == {row.name for row in limits()}
    for threshold, (value, name) in moved.items():
        model, batch = made(name)
        options = {**BY_NAME[name].options, "remedies": False}
        if threshold in ("reach_fraction", "season_correlation"):
            options.pop("needs_lag")  # they are asked where no lag is named
        changed = limits({threshold: value})
        now = examine(model, batch, squared, changed, **options).findings
        before = examine(model, batch, squared, limits(), **options).findings
        assert now != before, threshold


def test_the_route_behind_an_explosion_is_that_without_which_it_grows_least():
    examination = examined("large recurrent weights, open forget gate", remedies=False)
    finding = examination.findings[0]
    flow = examination.subjects["recurrent"].flow
    growth = {}
    for route in flow.routes:
        mean = flow.without(route).adjoints.log2_mean_by_lag
        mean = mean[mean.isfinite()]
        growth[route] = float((mean - mean[0]).max())
    assert finding.route == min(growth, key=growth.get)
    alone = next(e for e in finding.evidence if e.name.startswith("growth without"))
    assert alone.value == pytest.approx(growth[finding.route], abs=1e-6)
    assert finding.gate == finding.route.split(".")[1]


def test_the_predicted_overflow_is_where_float32_ends():
    """A recurrence that triples: its adjoint is 3^lag, and 3^80 < float32's largest < 3^81."""
    torch.manual_seed(0)
    model = Forecaster(nn.RNN(3, 1, nonlinearity="relu"), 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_({"recurrent.weight_hh_l0": 3.0, "head.weight": 1.0}.get(name, 0.0))
        model.recurrent.bias_ih_l0.fill_(1e-30)
    batch = torch.zeros(20, 1, 3), torch.full((1, 1), -0.5)  # dL/dh of the last step is 1
    finding = examine(model, batch, squared, limits(), remedies=False).findings[0]
    numbers = {e.name: e.value for e in finding.evidence}
    assert finding.rule == "exploding" and finding.severity == "warning"
    assert numbers["mean growth"] == pytest.approx(math.log2(3))
    assert numbers["steps until float32 overflows"] == 80
    longer = torch.zeros(85, 1, 3), batch[1]
    worst = examine(model, longer, squared, limits(), remedies=False).findings
    assert worst[0].rule == "non-finite" and worst[0].severity == "error"
    assert worst[1].rule == "exploding" and worst[1].severity == "error"


def test_a_loss_that_weighs_its_last_step_most_is_no_growth():
    """Few entries are seen at long lags; that they are the large ones is not that they grow."""
    torch.manual_seed(0)
    model = Forecaster(nn.RNN(3, 16, nonlinearity="relu"), last=False)
    with torch.no_grad():
        nn.init.eye_(model.recurrent.weight_hh_l0)
        model.recurrent.bias_ih_l0.fill_(9.0)  # every unit is active, and J is the identity
    weight = torch.full((200, 1, 1), 1e-6)
    weight[-1] = 1.0

    def loss_fn(model, x):
        return (weight * model(x)).sum()

    seen = examine(model, torch.rand(200, 4, 3), loss_fn, limits(), remedies=False)
    assert "exploding" not in {finding.rule for finding in seen.findings}
    adjoints = seen.subjects["recurrent"].flow.adjoints
    mean, growth = adjoints.log2_mean_by_lag, adjoints.log2_growth_by_lag
    assert float((mean - mean[0]).max()) > 7, "the plain mean does rise"
    torch.testing.assert_close(growth, torch.zeros_like(growth), atol=1e-5, rtol=0)


def test_the_nan_is_found_in_its_gate():
    finding = findings_of("NaN in one gate")[0]
    assert finding.gate == "cell" and "weight_hh_l0" in finding.message
    found = findings_of("infinity in the input")
    (finding,) = [each for each in found if each.rule == "non-finite"]
    assert finding.steps == (11, 11) and "sample 2" in finding.message


def test_a_loss_that_is_not_finite_although_all_else_is():
    model, batch = made("LSTM, forget bias 3")

    def infinite(model, batch):
        return squared(model, batch) + torch.inf

    report = retrograde.diagnose(model, batch, infinite, remedies=False)
    assert not report.ok
    assert report.findings[0].rule == "non-finite-loss" and report.findings[0].layer is None
    assert report.findings[0].message.startswith("The predictions are finite, and the loss")


@given(st.integers(4, 30), st.integers(0, 10**6))
def test_a_season_is_found_and_a_trend_is_none(period, seed):
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(4.0 * period).view(-1, 1, 1)
    phase = 7 * torch.rand(1, 3, 2, generator=generator)
    noise = torch.randn(4 * period, 3, 2, generator=generator)
    season = torch.sin(2 * torch.pi * time / period + phase)
    lag, height = season_of(season + 0.01 * noise, 0.5)
    assert lag % period == 0 and height > 0.9
    assert season_of(0.3 * time + 0.01 * noise, 0.5) is None
    assert season_of(torch.ones(4 * period, 3, 2), 0.5) is None


def test_the_autocorrelation_is_the_sum_it_says():
    torch.manual_seed(0)
    x = torch.randn(21, 2, 3, dtype=torch.float64)
    time = torch.arange(21.0, dtype=torch.float64)
    columns = torch.stack((torch.ones(21), time), 1).double()
    r = torch.zeros(11, dtype=torch.float64)
    for series in x.flatten(1).T:
        z = series - columns @ torch.linalg.lstsq(columns, series.unsqueeze(1)).solution.squeeze(1)
        for lag in range(11):
            r[lag] += (z[lag:] * z[: 21 - lag]).sum() / (21 - lag) / (z.square().mean() * 6)
    torch.testing.assert_close(autocorrelation(x), r)


def test_gates_over_time_leave_padding_out():
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 3).double()
    x, lengths = torch.randn(7, 3, 2).double(), torch.tensor([7, 2, 5])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    with retrograde.record(lstm) as recording:
        output, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0])
        output.square().sum().backward()
    recorded = recording["LSTM"]
    flow = retrograde.decompose(recorded)
    seen = {a.name: a for a in look(recorded, flow.unrolled, 0.04)[0]}["forget"]
    forget = []
    lstm.requires_grad_(False)
    h = c = torch.zeros(3, 3).double()
    for x_k in x:
        i, f, g, o = (
            x_k @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        ).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        forget.append(f.sigmoid())
    order = [int((x[0] == recorded.x[0, b]).all(-1).nonzero()) for b in range(3)]
    inside = [f[[b for b in order if k < lengths[b]]] for k, f in enumerate(forget)]
    torch.testing.assert_close(seen.mean, torch.cat(inside).mean(0).detach())
    assert seen.series.steps == tuple(range(7))
    for k, values in enumerate(inside):
        ordered = values.flatten().sort().values
        assert seen.series.median[k] == pytest.approx(float(ordered[round((len(ordered) - 1) / 2)]))


def test_a_gate_that_holds_is_not_called_saturated():
    """Forget gate open and input gate shut is what chrono asks for over a thousand steps."""
    torch.manual_seed(0)
    model = Forecaster(nn.LSTM(3, 16))
    with torch.no_grad():
        model.recurrent.bias_ih_l0[:16], model.recurrent.bias_ih_l0[16:32] = -9.0, 9.0
    batch = torch.randn(30, 4, 3), torch.randn(4, 1)
    held = examine(model, batch, squared, limits(), remedies=False)
    assert "saturated" not in {finding.rule for finding in held.findings}
    with torch.no_grad():
        model.recurrent.bias_ih_l0[:32] = -9.0
    shut = examine(model, batch, squared, limits(), remedies=False)
    assert "saturated" in {finding.rule for finding in shut.findings}


@pytest.mark.parametrize("name", FORECASTERS)
def test_what_is_usual_between_output_layer_and_recurrence(name):
    """The threshold's reason: a power of ten, give or take another."""
    balance = examined(name, remedies=False).subjects["recurrent"].balance
    relative = (balance.after / balance.after_weight) / (balance.layer / balance.layer_weight)
    assert 0 - 0.5 < math.log10(relative) < 2 + 0.5


def test_the_doubled_bias_is_named_and_not_a_larger_one():
    """A trained first layer, whose biases differ, and a second one that was set twice."""
    torch.manual_seed(0)
    model = Forecaster(nn.LSTM(3, 16, num_layers=2))
    with torch.no_grad():
        model.recurrent.bias_ih_l0[16:32] = 3.0
        for bias in (model.recurrent.bias_ih_l1, model.recurrent.bias_hh_l1):
            bias[16:32] = 1.0
    batch = torch.randn(30, 4, 3), torch.randn(4, 1)
    findings = examine(model, batch, squared, limits(), remedies=False).findings
    (finding,) = [finding for finding in findings if finding.rule == "double-bias"]
    assert "bias_ih_l1 and bias_hh_l1 hold the same, and torch adds the two" in finding.message
    assert [each.value for each in finding.evidence[:2]] == [1, 2]


def test_saturation_that_comes_and_goes_is_not_said_to_stay():
    torch.manual_seed(0)
    model = Forecaster(nn.RNN(3, 16))
    x = torch.randn(30, 4, 3)
    x[:20] *= 300
    loud = examine(model, (x, torch.randn(4, 1)), squared, limits(), remedies=False)
    (finding,) = [finding for finding in loud.findings if finding.rule == "saturated"]
    assert finding.steps is None and "to the end" not in finding.message
    quiet = (x.flip(0), torch.randn(4, 1))
    stays = examine(model, quiet, squared, limits(), remedies=False)
    (finding,) = [finding for finding in stays.findings if finding.rule == "saturated"]
    assert finding.steps == (10, 29) and "stays so to the end" in finding.message


@given(st.integers(1, 500))
def test_a_gate_value_for_a_lag_keeps_one_percent(lag):
    assert keeping_for(lag) ** lag == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("value", "threshold", "after", "way"),
    [
        (5.0, 20.0, 20.0, 1.0),
        (5.0, 20.0, 5.0, 0.0),
        (30.0, 6.0, 12.0, 0.75),
        (math.inf, 0.0, 0.0, math.inf),
    ],
)
def test_how_far_a_remedy_got(value, threshold, after, way):
    healthy = "above" if value < threshold else "below"
    assert progress(Evidence("n", value, "u", threshold, healthy), after) == way


def test_a_recording_alone_is_diagnosed_without_remedies():
    model, batch = made("huge recurrent weights (RNN)")
    with retrograde.record(model) as recording:
        squared(model, batch).backward()
    report = retrograde.diagnose(recording)
    assert report.findings[0].rule == "exploding" and report.findings[0].trials == ()
    assert "Remedies were not tried: that takes diagnose(model, batch, loss_fn)." in report.notes


def test_one_layer_of_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTM(3, 4), nn.LSTM(4, 5)

        def forward(self, x):
            return self.second(self.first(x)[0])[0]

    torch.manual_seed(0)
    model, x = Two(), torch.randn(30, 2, 3)

    def loss_fn(model, x):
        return model(x)[-1].square().sum()

    report = retrograde.diagnose(model, x, loss_fn, layer="second", needs_lag=25, remedies="pass")
    assert [layer.name for layer in report.layers] == ["second"]
    assert {finding.layer for finding in report.findings} == {"second"}
    both = retrograde.diagnose(model, x, loss_fn, needs_lag=25, remedies=False)
    assert {finding.layer for finding in both.findings} == {"first", "second"}
    assert both.summary.startswith(f"{both.findings[0].layer}: {both.findings[0].message}")
    assert report.summary.startswith(report.findings[0].message)  # there is no other layer
    assert report.findings[0].trials[0].title in report.summary
    with pytest.raises(ArgumentError, match="no layer 'third'; there are: first, second"):
        retrograde.diagnose(model, x, loss_fn, layer="third")


@pytest.mark.parametrize("lag", [0, -3, True])
def test_a_lag_that_is_none(lag):
    model, batch = made("LSTM, forget bias 3")
    with pytest.raises(ArgumentError, match="needs_lag must be a positive number of steps"):
        retrograde.diagnose(model, batch, squared, needs_lag=lag)


def test_a_model_without_recurrent_layers_is_refused():
    with pytest.raises(UnsupportedModelError, match="holds no recurrent layer"):
        retrograde.diagnose(nn.Linear(2, 3), torch.ones(1, 2), lambda m, x: m(x).sum())


def test_rules_are_explained_from_the_table_they_run_on():
    used = {name for rule in RULES.values() for name in rule.thresholds}
    assert used == {row.name for row in limits()}
    tried = {name for rule in RULES.values() for name in rule.remedies}
    assert tried == set(REMEDIES)
    for name, rule in RULES.items():
        page = explain(name)
        assert page.startswith(f"# {rule.title}\n")
        for word in (*rule.thresholds, *rule.remedies, *rule.sources):
            assert word in page
    listed = "samples-mixed, unreached, no-time"
    with pytest.raises(
        ArgumentError, match=f"no rule 'vanish' .did you mean 'vanishing'.*; there are: {listed}"
    ):
        explain("vanish")


def test_the_time_constant_is_compared_with_the_one_that_keeps_one_percent():
    finding = findings_of("forget bias -2")[0]
    assert finding.evidence[0].threshold == pytest.approx(1 / (1 - 0.01 ** (1 / 30)))


def test_clipping_is_advised_on_by_the_norms_of_training():
    """As a plain loop of Adam over the same batch gives them."""
    model, batch = made("huge recurrent weights (RNN)")
    adam = partial(torch.optim.Adam, lr=1e-3)
    report = retrograde.diagnose(model, batch, squared, try_training=6, optimizer=adam)
    trials = {trial.remedy: trial for trial in report.findings[0].trials}
    optimizer, norms = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(6):
        optimizer.zero_grad()
        squared(model, batch).backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        optimizer.step()
    threshold = retrograde.clipping.suggest(torch.stack(norms)).threshold
    said = re.search(r"Clip the norm at ([\d.e+]+): it would have clipped", trials["clip"].note)
    assert float(said[1]) == pytest.approx(threshold, rel=0.02)  # float32, and it explodes
    assert "Applied to the output group alone" in trials["clip"].note
    assert "Clip the norm" not in trials["clip-inside"].note


def plain_rnn(matrix, bias, start, inputs, steps=60):
    """A tanh RNN with these recurrent weights, run over noise, and its recording."""
    torch.manual_seed(0)
    rnn = nn.RNN(1, len(matrix), dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(matrix)
        rnn.bias_ih_l0.copy_(bias)
        rnn.bias_hh_l0.zero_()
    x = inputs * torch.randn(steps, 3, 1, dtype=torch.float64)
    with retrograde.record(rnn) as recording:
        rnn(x, start.expand(1, 3, -1).contiguous())[0][-1].sum().backward()
    return rnn, recording


def misled(recording):
    report = retrograde.diagnose(recording)
    (found,) = [f for f in report.findings if f.rule == "misleading-radius"]
    assert found.severity == "info"
    return found


def largest_growth(rnn, recording):
    """ln of the norm of the product of the Jacobians a step, from slopes and weights alone.

    A tenth of the steps is left out at each end.
    """
    h = rnn(recording.only().x, recording.only().initial[None])[0]
    h = h[len(h) // 10 : len(h) - len(h) // 10]
    grown = []
    for sample in range(3):
        product = torch.eye(rnn.hidden_size, dtype=torch.float64)
        for state in h:
            product = torch.diag(1 - state[sample].detach() ** 2) @ rnn.weight_hh_l0 @ product
        grown.append(math.log(float(torch.linalg.matrix_norm(product.detach(), 2))) / len(h))
    return sum(grown) / 3


def test_where_the_radius_says_vanish_and_gradients_grow():
    """The published counter-example: nilpotent, and the adjoint doubles at every step."""
    matrix = torch.tensor([[8, 8], [-8, -8]], dtype=torch.float64)
    at = torch.tensor([0, 0.5], dtype=torch.float64)  # where the state stays, for a while
    rnn, recording = plain_rnn(matrix, torch.atanh(at) - matrix @ at, at, inputs=0.0, steps=24)
    found = misled(recording)
    assert "vanish" in found.message and "they grow" in found.message
    assert found.evidence[0].value == pytest.approx(math.log(2), rel=1e-3)
    assert found.evidence[0].setting == "radius_margin"
    # of so few steps one in twenty goes into the first direction, which is none of the matrix
    assert largest_growth(rnn, recording) == pytest.approx(math.log(2), abs=0.1)
    assert found.evidence[1].value == pytest.approx(0, abs=1e-6)  # of eigenvalues, to rounding


def test_where_the_radius_says_explode_and_gradients_shrink():
    matrix = 1.5 * torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)  # a rotation
    zero = torch.zeros(2, dtype=torch.float64)
    rnn, recording = plain_rnn(matrix, zero, zero, inputs=4.0, steps=200)
    found = misled(recording)
    assert "explode" in found.message and "they shrink" in found.message
    grown = largest_growth(rnn, recording)
    assert found.evidence[0].value == pytest.approx(grown, rel=0.05)  # a norm, not a direction
    assert found.evidence[1].value == pytest.approx(1.5)


def test_too_few_steps_for_the_leading_direction_say_nothing_about_the_radius():
    """Of rank one, and linear as long as states are small: every direction but one is lost."""
    matrix = torch.full((16, 16), 1.2 / 16, dtype=torch.float64)
    zero = torch.zeros(16, dtype=torch.float64)
    for steps in (2, 5, 9, 10):
        _, recording = plain_rnn(matrix, zero, zero, inputs=1e-9, steps=steps)
        rules = [finding.rule for finding in retrograde.diagnose(recording).findings]
        assert "misleading-radius" not in rules


def test_where_the_radius_is_right_or_has_no_say():
    zero = torch.zeros(2, dtype=torch.float64)
    for scale, inputs in ((0.5, 1.0), (1.5, 1e-9), (1.02, 4.0)):
        matrix = scale * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        findings = retrograde.diagnose(plain_rnn(matrix, zero, zero, inputs)[1]).findings
        assert "misleading-radius" not in [finding.rule for finding in findings]
    lstm = examined("forget bias 1 in both biases")
    assert "misleading-radius" not in [finding.rule for finding in lstm.findings]
    assert lstm.subjects["recurrent"].radii == NotApplicable(
        "it is not known to be a plain recurrence"
    )
    assert ("misleading-radius", "not applicable") in {(c.name, c.status) for c in lstm.checks}
