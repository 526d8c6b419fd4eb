"""Verdicts of training: confirmed on other seeds by a plain loop, honest where there are none."""

import copy
import itertools
import math
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retrograde
from retrograde.diagnosis import Evidence, Finding, Training, Trial, training
from retrograde.diagnosis.batches import draw, is_source, taken
from retrograde.diagnosis.remedies import REMEDIES, Applied
from retrograde.diagnosis.rules import RULES
from retrograde.diagnosis.verdict import inconclusive, verdict
from retrograde.errors import ArgumentError
from retrograde.tasks.trial_set import BY_NAME
from retrograde.tasks.trial_set.models import Forecaster, squared

pytestmark = pytest.mark.usefixtures("unchecked")

ADAM = partial(torch.optim.Adam, lr=1e-2)


def made(name):
    case = BY_NAME[name]
    return *case.build()[:2], case.options


def small():
    """A small model whose gradient explodes, for what does not depend on the case."""
    torch.manual_seed(0)
    model = Forecaster(nn.RNN(3, 8), 8)
    with torch.no_grad():
        model.recurrent.weight_hh_l0.normal_(0, 3)
    return model, (torch.randn(12, 8, 3), torch.randn(8, 1)), {}


@pytest.fixture
def one_look(monkeypatch):
    """Findings are those of one batch, where the question is what remedies are trained on."""
    monkeypatch.setattr(sys.modules["retrograde.report.diagnose"], "LOOKED_AT", 1)


@pytest.fixture(scope="module")
def huge():
    """A report of remedies that were trained, with model and batch."""
    model, batch, options = made("huge recurrent weights (RNN)")
    return model, batch, trained(model, batch, try_training=40, **options)


def trained(model, batch, loss_fn=squared, **options):
    how = {"remedies": "train", "try_training": 12, "optimizer": ADAM, **options}
    return retrograde.diagnose(model, batch, loss_fn, **how)


def trials_of(report):
    return {trial.remedy: trial for finding in report.findings for trial in finding.trials}


def plain_loss(model, batch, steps, clip=math.inf):
    """The loss at the end of a loop of plain torch, on a copy."""
    model = copy.deepcopy(model)
    optimizer = ADAM(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = squared(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return float(loss.detach())


def test_what_trained_better_does_so_on_other_seeds(huge):
    """The printed lines are run on the model, other random numbers and other data decide."""
    model, batch, report = huge
    better = [t for t in trials_of(report).values() if t.verdict == "trained better"]
    assert better and all(t.recommended and t.training.difference < 0 for t in better)
    for seed in (101, 102, 103):
        torch.manual_seed(seed)
        drawn = torch.get_rng_state()  # from here on for each remedy
        data = tuple(torch.randn_like(part) for part in batch)
        untreated = plain_loss(model, data, 40)
        for trial in better:
            torch.set_rng_state(drawn)
            treated = copy.deepcopy(model)
            exec(trial.code, {"model": treated, "torch": torch, "retrograde": retrograde})
            assert plain_loss(treated, data, 40) < untreated, trial.remedy


@pytest.fixture
def harmful(monkeypatch):
    """In the place of every remedy of a rule: one that does nothing, and one that does harm."""

    def nothing(target):
        return Applied("nothing", "pass", by_training=True)

    def harm(target):
        def reverse(model):
            for parameter in model.parameters():
                parameter.grad.neg_()

        return Applied("up the hill", "pass", reverse, by_training=True)

    def blow(target):
        def infinite(model):
            for parameter in model.parameters():
                parameter.grad.fill_(math.nan)

        return Applied("not a number", "pass", infinite, by_training=True)

    names = ("orthogonal", "fresh", "clip")
    for name, apply in zip(names, (nothing, harm, blow), strict=True):
        row = REMEDIES[name]
        monkeypatch.setitem(REMEDIES, name, type(row)(name, row.description, apply))
    for name, rule in list(RULES.items()):
        if rule.remedies:
            monkeypatch.setitem(RULES, name, type(rule)(**{**vars(rule), "remedies": names}))


def test_worse_is_worse_and_the_original_is_no_different_from_itself(harmful):
    model, batch, options = small()
    # Enough steps uphill that no rounding of this chaotic pass makes up for them on any seed.
    report = trained(model, batch, try_training=80, **options)
    trials = trials_of(report)
    assert trials["orthogonal"].verdict == "no difference"
    assert trials["orthogonal"].training.differences == (0.0,) * training.SEEDS
    assert trials["orthogonal"].training.spread == 0
    assert trials["fresh"].verdict in ("trained worse", "diverged")
    assert trials["clip"].verdict == "diverged"
    assert not any(trial.recommended for trial in trials.values())
    assert "the lines that do it" not in str(report)
    assert "none trained better" in report.summary
    assert str(report).index("no difference:") < str(report).index("diverged:")


@pytest.fixture
def fresh_alone(monkeypatch):
    """Of all remedies this one is trained."""
    plan = training.plan
    monkeypatch.setattr(
        training, "plan", lambda *given: [pair for pair in plan(*given) if pair[1] == "fresh"]
    )


def test_finite_but_worse_is_trained_worse(harmful, fresh_alone, monkeypatch):
    def stop(target):
        def nothing_learned(model):
            for parameter in model.parameters():
                parameter.grad.zero_()

        return Applied("no step at all", "pass", nothing_learned, by_training=True)

    row = REMEDIES["fresh"]
    monkeypatch.setitem(REMEDIES, "fresh", type(row)("fresh", row.description, stop))
    model, batch, options = made("tiny recurrent weights (RNN)")
    report = trained(model, batch, try_training=40, **options)
    trial = trials_of(report)["fresh"]
    assert trial.verdict == "trained worse" and trial.training.difference > 0
    assert "trained worse: no step at all" in str(report)


@pytest.mark.parametrize(
    ("original", "remedy", "expected"),
    [
        ((1.0, 1.1, 0.9, 1.0, 1.0), (0.5, 0.6, 0.4, 0.5, 0.5), "trained better"),
        ((0.5, 0.6, 0.4, 0.5, 0.5), (1.0, 1.1, 0.9, 1.0, 1.0), "trained worse"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (0.99, 0.99, 0.99, 0.99, 0.99), "no difference"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5, 1.2), "no difference"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (0.7, 0.7, 0.7, 0.7, 0.98), "no difference"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (1.3, 1.3, 1.3, 1.3, 1.02), "no difference"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (0.2, 0.94, 0.94, 0.94, 0.94), "no difference"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5, math.inf), "diverged"),
        ((math.inf,) * 5, (0.5,) * 5, "trained better"),
        ((math.inf, 1.0, 1.0, 1.0, 1.0), (0.5,) * 5, "no difference"),
        ((math.inf,) * 5, (math.inf,) * 5, "diverged"),
    ],
)
def test_the_words_follow_from_the_losses(original, remedy, expected):
    assert verdict(Training("Adam", (1.5,), (1.5,), original, remedy)) == expected


def test_what_is_the_users_stays_as_found():
    model, batch, options = small()
    model.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    weights, data = copy.deepcopy(model.state_dict()), copy.deepcopy(batch)
    generator = torch.Generator().manual_seed(3)
    x, y = batch
    loader = DataLoader(TensorDataset(x.transpose(0, 1), y), 4, shuffle=True, generator=generator)

    def loss_fn(model, batch):
        return (model(batch[0].transpose(0, 1)) - batch[1]).square().mean()

    drawn, own = torch.get_rng_state(), generator.get_state()
    reports = [trained(model, loader, loss_fn, try_training=3, **options) for _ in range(2)]
    same = "the same seed, the same numbers"
    assert repr(reports[0].findings) == repr(reports[1].findings), same
    assert "with replacement for each seed, judged on another" in str(reports[0].notes)
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(generator.get_state(), own)
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.recurrent.weight_hh_l0.grad is None and not model.training
    assert all(torch.equal(one, other) for one, other in zip(batch, data, strict=True))


def test_what_gives_batches_and_what_is_one():
    x = torch.ones(3)
    assert is_source(DataLoader([x])) and is_source(iter([x])) and is_source(y for y in [x])
    assert is_source(lambda seed: x) and is_source(partial(torch.full, (3,)))
    for batch in ([x, x], (x, x), {"x": x}, x, lambda: x, lambda a, b: x, nn.Linear(1, 1), "x"):
        assert not is_source(batch)
    seeds = []
    source = draw(lambda seed: seeds.append(seed) or torch.rand(2), seed=5)
    first, second, again = source.by_step(1), source.by_step(2), source.by_step(1)
    assert seeds == [5]
    assert torch.equal(first(3), again(3)) and not torch.equal(first(3), second(3))
    assert not torch.equal(first(3), first(4))
    pool = draw(itertools.count(), seed=0, most=8)
    assert pool.first == 0 and pool.drawn == tuple(range(8))
    assert {pool.by_step(1)(step) for step in range(200)} == set(range(8))
    assert list(map(pool.by_step(1), range(8))) != list(map(pool.by_step(2), range(8)))


def test_the_samples_of_a_batch_are_drawn_again_where_the_loss_allows_it():
    x, y = torch.arange(24.0).reshape(4, 3, 2), torch.arange(3.0)
    numbers = torch.tensor([2, 2, 0])
    batch = taken({"x": x, "y": (y, 7, "a")}, numbers)
    assert torch.equal(batch["x"], x[:, numbers])
    assert torch.equal(batch["y"][0], y[numbers]) and batch["y"][1:] == (7, "a")
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 2]))
    for odd in ((torch.ones(3, 3), y), torch.ones(4), (packed, y), (object(), y)):
        with pytest.raises(ArgumentError):
            taken(odd, numbers)

    def ordered(model, batch):  # which sample is where matters to it
        weights = torch.arange(8.0)
        return ((model(batch[0]) - batch[1]).square().mean(1) * weights).mean()

    model, batch, options = small()
    for loss_fn, again in ((squared, True), (ordered, False)):
        report = trained(model, batch, loss_fn, try_training=1, **options)
        words = next(t for t in trials_of(report).values() if t.training).training.optimizer
        assert ("its samples drawn with replacement" in words) == again


def test_batches_of_a_function_and_of_an_iterator_are_trained_on(one_look):
    model, batch, options = small()

    def new(seed):
        return torch.randn_like(batch[0]), torch.randn_like(batch[1])

    for given, words in (
        ({"batch": new}, "a new batch at every step"),
        ({"batch": batch, "batches": new}, "a new batch at every step"),
        (
            {"batch": None, "batches": [batch, new(1), new(2)]},
            "2 batches, drawn with replacement, judged on another",
        ),
        (
            {"batch": (new(seed) for seed in range(9))},
            "7 batches, drawn with replacement, judged on 2 others",
        ),
    ):
        report = trained(model, **given, try_training=2, **options)
        assert any(words in t.training.optimizer for t in trials_of(report).values() if t.training)
        assert report.settings.batch == "([12, 8, 3] float32, [8, 1] float32)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": lambda p: 1 / 0}, "it failed: ZeroDivisionError"),
        ({"optimizer": lambda p: p}, "it returned"),
        ({"optimizer": lambda p: torch.optim.SGD([torch.ones(1)])}, "an optimiser of others"),
        ({"optimizer": 3}, "must be a function parameters -> torch.optim.Optimizer"),
        ({"batches": iter(())}, "there is no batch"),
        ({"batches": []}, "there is no batch"),
        ({"batches": 3}, "must be a DataLoader, an iterable of batches or a function of a seed"),
        ({"batches": lambda seed: 1 / 0}, "called with 0, failed: ZeroDivisionError"),
        ({"batches": (1 / 0 for _ in range(3))}, "failed: ZeroDivisionError"),
        ({"budget": -1}, "budget must be 0 or a positive number; got -1"),
        ({"budget": math.nan}, "budget must be 0 or a positive number"),
        ({"remedies": "trian"}, "remedies must be one of train, pass; got 'trian'"),
        ({"remedies": 2}, 'remedies must be "train", "pass", True, False or None; got 2'),
    ],
)
def test_what_cannot_be_trained_with_is_refused(options, message):
    model, batch, needs = small()
    with pytest.raises(ArgumentError) as error:
        trained(model, batch, **needs, **options)
    assert message in str(error.value)


def test_a_budget_too_small_leaves_the_evidence_of_one_pass_and_says_so():
    model, batch, options = small()
    for budget, steps in ((0, 0), (1.0, 10**6)):
        report = trained(model, batch, budget=budget, try_training=steps, **options)
        trials = trials_of(report)
        assert {trial.verdict for trial in trials.values()} == {"not trained"}
        assert any(trial.closer and trial.recommended for trial in trials.values())
        assert f"the budget of {budget:g} s is too small" in str(report.notes)
        assert "the evidence of one backward pass, and no verdict" in str(report.notes)


def test_the_budget_bounds_the_steps():
    model, batch, options = small()
    report = trained(model, batch, budget=2.5, try_training=0, **options)
    done = [trial.training for trial in trials_of(report).values() if trial.training]
    assert all(len(each.original) <= training.STEPS for each in done)
    assert done or "No remedy was trained" in str(report.notes)


def test_a_pass_alone_says_that_it_is_no_verdict():
    model, batch, options = small()
    report = retrograde.diagnose(model, batch, squared, remedies="pass", **options)
    assert training.ONE_PASS in report.notes
    assert {trial.verdict for trial in trials_of(report).values()} == {"not trained"}
    words = str(report) + report._repr_html_()
    assert "in one pass" in words
    assert not re.search("helped|cured|did not help", words)
    for remedies in (False, None):
        report = retrograde.diagnose(model, batch, squared, remedies=remedies, **options)
        assert training.ONE_PASS not in report.notes and not trials_of(report)


def test_a_loss_that_fails_on_a_later_batch_is_a_reason():
    model, batch, options = small()

    def loss_fn(model, batch):
        return squared(model, batch)

    report = trained(model, batch, loss_fn, batches=["not a batch", "nor this"], **options)
    why = "the original could not be trained: ValueError"
    assert any(why in trial.note for trial in trials_of(report).values())
    assert f"No remedy was trained: {why}" in str(report.notes)


def test_an_optimiser_that_asks_for_the_loss_again_and_a_sweep_of_rates():
    model, batch, options = small()
    twice = partial(torch.optim.LBFGS, max_iter=3)
    trial = next(
        t
        for t in trials_of(
            trained(model, batch, optimizer=twice, try_training=2, **options)
        ).values()
        if t.training
    )
    assert "LBFGS" in trial.training.optimizer and len(trial.training.remedy) == 2
    trial = next(
        t
        for t in trials_of(
            trained(model, batch, optimizer=None, try_training=3, **options)
        ).values()
        if t.training
    )
    assert any(
        f"Adam, learning rate {rate:g}" in trial.training.optimizer for rate in training.RATES
    )


def test_a_remedy_that_explodes_or_overflows_is_no_help():
    """Recurrent weights that are blown up would open the way for a gradient that vanishes."""
    model, batch, options = made("tiny recurrent weights (RNN)")
    row = REMEDIES["orthogonal"]

    def blow_up(target):
        with torch.no_grad():
            nn.init.orthogonal_(target.layer.weight_hh_l0).mul_(3)
            for name, weight in target.layer.named_parameters():
                if name != "weight_hh_l0":
                    weight.mul_(1e-6)
        return Applied("blown up", "pass")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REMEDIES, "orthogonal", type(row)("orthogonal", row.description, blow_up))
        report = retrograde.diagnose(model, batch, squared, remedies="pass", **options)
    trial = trials_of(report)["orthogonal"]
    assert "exploding" in trial.note and not trial.closer and not trial.recommended
    assert trial.harmful and not replace(trial, verdict="trained better").recommended


def test_page_and_json_show_the_verdict_with_its_spread(tmp_path, huge):
    report = huge[-1]
    assert "What trained better: " in report.summary
    trial = next(t for t in report.findings[0].trials if t.verdict == "trained better")
    spread = f"± {trial.training.spread:.3g}"
    report.to_json(tmp_path / "a.json")
    again = retrograde.Report.from_json(tmp_path / "a.json")
    assert repr(again.findings) == repr(report.findings)
    report.to_html(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    for shown in (str(again), page, report._repr_html_()):
        words = " ".join(shown.split())
        assert spread in words and "trained better" in words


def test_a_model_that_cannot_be_run_twice_is_looked_at_once_and_says_so():
    model, batch, options = small()
    passes = 0

    def loss_fn(model, batch):
        nonlocal passes
        passes += 1
        if passes > 1:
            raise RuntimeError("worn out")
        return squared(model, batch)

    report = trained(model, batch, loss_fn, **options)
    assert "saturated" in {finding.rule for finding in report.findings}, "the one pass tells"
    assert {trial.verdict for trial in trials_of(report).values()} == {"not trained"}
    reasons = {check.reason for check in report.checks if check.name == "samples-mixed"}
    assert reasons == {"the model could not be run again: RuntimeError: worn out"}
    assert not any(trial.recommended for trial in trials_of(report).values())


def test_a_batch_whose_samples_cannot_be_told_is_trained_on_as_it_is():
    class Opaque:
        def __init__(self, x, y):
            self.x, self.y = x, y

    model, batch, options = small()
    report = trained(model, Opaque(*batch), lambda m, b: squared(m, (b.x, b.y)), **options)
    words = next(t for t in trials_of(report).values() if t.training).training.optimizer
    assert words.endswith("the same batch at every step")


def test_losses_are_those_of_batches_that_are_held_out(one_look, fresh_alone):
    """Targets that are noise are learned by heart, and no remedy makes noise foreseeable."""
    model, _, options = small()
    torch.manual_seed(1)
    batches = [(torch.randn(10, 2, 3), torch.randn(2, 1)) for _ in range(8)]
    report = trained(model, None, batches=batches, try_training=60, **options)
    trial = next(t for t in trials_of(report).values() if t.training)
    assert "6 batches, drawn with replacement, judged on 2 others" in trial.training.optimizer
    own = sum(trial.training.remedy[-12:]) / 12
    assert trial.training.remedy_final[0] > 2 * own


# --- trainings that cannot tell -----------------------------------------------------------------


def judged(inconclusive, verdict="no difference"):
    """The finding of a forget gate that is too short, its one remedy trained to no avail."""
    ends = (0.01,) * training.SEEDS
    done = Training("Adam", (3.0, 0.01), (3.0, 0.01), ends, ends, inconclusive)
    trial = Trial(
        *("forget-bias", "forget bias 2.4", "pass", 2.0, 15.0),
        **{"closer": True, "healthy": True, "training": done, "verdict": verdict},
    )
    claim = REMEDIES["forget-bias"].claims[0]
    return Finding(
        *("forget-gate-too-short", "error", "rnn", "Too short."),
        (Evidence("time constant", 2.0, "steps", 12.0, "above"),),
        **{"causes": (f"{claim}: so it is",), "trials": (trial,)},
    )


@pytest.mark.parametrize("why", ["by heart", "nothing learned", ""])
def test_a_training_that_cannot_tell_refutes_nothing(why):
    finding = training.without_refuted(judged(why))
    (trial,) = finding.trials
    assert trial.undecided == trial.recommended == bool(finding.causes) == bool(why)
    (worse,) = judged(why, "trained worse").trials
    assert not worse.undecided and not worse.recommended


@pytest.mark.parametrize(
    ("start", "ends", "single", "expected"),
    [
        (3.0, (0.3, 0.1), True, "by heart"),
        (3.0, (0.3, 0.1), False, ""),
        (3.0, (0.1, 0.31), True, ""),  # not for every seed
        (3.0, (2.9, 3.1), False, "nothing learned"),
        (3.0, (2.9, 3.1), True, "nothing learned"),
        (3.0, (2.7, 2.8), True, ""),
        (-1.0, (-5.0, -5.0), True, ""),  # a likelihood, of which no part can be taken
        (-1.0, (-1.01, -1.02), True, "nothing learned"),
        (3.0, (math.inf, 0.1), True, ""),
        (0.0, (0.0, 0.0), True, ""),
    ],
)
def test_why_a_training_cannot_tell(start, ends, single, expected):
    losses = (start, *ends, *ends)  # a first fifth of one step
    assert inconclusive([losses, losses], [ends, ends], single) == expected


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 12), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def test_the_report_says_that_training_cannot_tell(one_look):
    """Labels that nothing ties to the input: on new batches there is nothing to learn."""
    torch.manual_seed(0)

    def batch(seed):
        return torch.randn(30, 64, 2), torch.randint(0, 10, (64,))

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=1e-4)

    report = retrograde.diagnose(
        *(Classifier(), batch, loss_fn),
        **{"needs_lag": 29, "optimizer": adam, "budget": 600, "try_training": 20},
    )
    first = report.findings[0]
    done = [trial for trial in first.trials if trial.training]
    assert done and {trial.training.inconclusive for trial in done} == {"nothing learned"}
    assert {trial.verdict for trial in done} == {"no difference"}
    assert all("neither learned anything yet" in trial.note for trial in done)
    assert len(first.causes) == 2 and "training cannot tell, as nothing is" in report.summary
