"""The monitor: its numbers are the Flow's, nothing is left behind, and nothing stops training."""

import copy
import gc
import math
import pickle
import sys
import warnings
import weakref
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import retrograde
from retrograde.decomposition.summary import _Sums, growth
from retrograde.engine import fold
from retrograde.errors import ArgumentError, RecordingError
from retrograde.monitor.schedule import Schedule


class Model(nn.Module):
    def __init__(self, kind=nn.LSTM, sizes=(3, 5)):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": kind(*sizes, batch_first=True)})
        self.head = nn.Linear(sizes[1], 1)

    def forward(self, x):
        return self.head(self.encoder["rnn"](x)[0])


def loss_of(model, x):
    return model(x).square().mean()


def block(monitor, model, x):
    with monitor:
        loss_of(model, x).backward()


KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "stack": lambda i, h, **o: nn.LSTM(i, h, 2, **o),
    "no bias": lambda i, h, **o: nn.GRU(i, h, bias=False, **o),
    "peephole": lambda i, h, **o: retrograde.nn.LSTM(i, h, generation="peephole", **o),
    "all gates recurrent": lambda i, h, **o: retrograde.nn.LSTM(i, h, generation="fgr", **o),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 7, 45])  # 45: more than one chunk of steps, and a rest
def test_the_scalars_are_the_flows_own_numbers(kind, steps):
    torch.manual_seed(0)
    model, x = Model(KINDS[kind]).double(), torch.randn(6, steps, 3, dtype=torch.float64)
    monitor = retrograde.Monitor(model, samples=6, entries=steps)
    block(monitor, model, x)
    flow = retrograde.decompose(monitor.recording["encoder.rnn"])
    by_route = flow.by_route()
    carousel = set(flow.routes) - set(flow.unrolled.cell.recurrent_routes)
    shares = by_route.share.sum(1)
    expected = {
        "reach": flow.reach,
        "rate": -1 / flow.half_life,
        "share_near": float(flow.by_lag(bins=(0, 11) if steps > 11 else (0,)).share[0]),
        "growth": growth(flow.adjoints),
        "gradient_norm": gradient_norm(model.encoder),
        "nonfinite": 0,
    }
    if carousel:
        expected["share_carousel"] = float(
            sum(s for s, way in zip(shares, by_route.labels, strict=True) if way in carousel)
        )
    found = of_layer(monitor, "encoder.rnn")
    finite = {name: value for name, value in expected.items() if math.isfinite(value)}
    assert found.keys() == finite.keys()
    for name, value in finite.items():  # float64: what is left is rounding
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert monitor.scalars["retrograde/gradient_norm_rest"] == pytest.approx(
        gradient_norm(model.head)
    )
    assert monitor.scalars["retrograde/unrecorded"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_contribution_has_the_size_that_by_time_finds(kind):
    """The reach is a whole number and would not show a small mistake."""
    torch.manual_seed(0)
    model, x = Model(KINDS[kind]).double(), torch.randn(3, 40, 3, dtype=torch.float64)
    with retrograde.record(model) as recording:
        loss_of(model, x).backward()
    flow = retrograde.decompose(recording)
    seen = _Sums(flow.unrolled, flow.entries)
    fold(flow.unrolled, flow.entries, [seen])
    torch.testing.assert_close(seen.contributions, flow.by_time().log2, rtol=0, atol=1e-7)


def shares_and_what_is_lost(recorded):
    flow, lost = retrograde.decompose(recorded), []
    seen = _Sums(flow.unrolled, flow.entries)
    found = seen._lost
    seen._lost = lambda *args: lost.append(found(*args)) or lost[-1]
    fold(flow.unrolled, flow.entries, [seen])
    return seen.shares(), torch.cat([each.flatten() for each in lost])


def recording_in(dtype, loss, x):
    torch.manual_seed(1)
    model = nn.LSTM(3, 5).to(dtype)
    with retrograde.record(model) as recording:
        loss(model(x.to(dtype))[0]).backward()
    return recording["LSTM"]


def test_what_is_lost_in_rounding_need_not_be_summed(monkeypatch):
    monkeypatch.setattr(sys.modules[_Sums.__module__], "MANY", 0)
    x = torch.randn(200, 2, 3)
    found, lost = shares_and_what_is_lost(recording_in(torch.float32, lambda h: h[-1].sum(), x))
    assert bool(lost.any()) and not bool(lost.all())
    flow = retrograde.decompose(recording_in(torch.float64, lambda h: h[-1].sum(), x))
    summary = flow.summary()
    assert found == pytest.approx((summary.near, summary.carousel), rel=1e-5)  # float32


def test_samples_that_cancel_are_not_taken_for_lost(monkeypatch):
    """What two samples of one input leave of each other is 2^-13 of either at each step."""
    monkeypatch.setattr(sys.modules[_Sums.__module__], "MANY", 0)
    x, sign = torch.randn(30, 1, 3).expand(-1, 2, -1), torch.tensor([1, 2.0**-13 - 1]).view(2, 1)
    found, _ = shares_and_what_is_lost(recording_in(torch.float32, lambda h: (h * sign).sum(), x))
    flow = retrograde.decompose(recording_in(torch.float64, lambda h: (h * sign).sum(), x))
    summary = flow.summary()
    assert found == pytest.approx((summary.near, summary.carousel), rel=0.02)  # 2^13 roundings


def of_layer(monitor, layer):
    start = f"retrograde/{layer}/"
    return {
        name.removeprefix(start): value
        for name, value in monitor.scalars.items()
        if name.startswith(start)
    }


def gradient_norm(module):
    return float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm())


def test_growth_is_the_largest_step_of_the_adjoint():
    """A linear scalar recurrence multiplies the adjoint by its weight at every step."""
    model = retrograde.nn.RNN(1, 1, nonlinearity="identity")
    with torch.no_grad():
        model.weight_hh_l0.fill_(4.0)
    monitor = retrograde.Monitor(model)
    with monitor:
        model(torch.ones(6, 2, 1))[0][-1].sum().backward()
    found = of_layer(monitor, "RNN")
    assert found["growth"] == pytest.approx(2)
    assert found["rate"] == pytest.approx(2)
    assert found["reach"] == 5


def test_norms_beyond_the_range_have_shares_and_a_reach():
    """float32 ends at 2^-149: the far contributions are there all the same."""
    model = retrograde.nn.RNN(1, 1, nonlinearity="identity")
    with torch.no_grad():
        model.weight_hh_l0.fill_(2.0**-5)
    monitor = retrograde.Monitor(model)
    with monitor:
        (model(torch.ones(100, 2, 1))[0][-1].sum() * 2.0**-100).backward()
    found = of_layer(monitor, "RNN")
    assert found["growth"] == pytest.approx(-5)
    assert found["rate"] == pytest.approx(-5)
    assert found["share_near"] == pytest.approx(1)


def test_a_part_of_the_pass_is_decomposed_exactly():
    torch.manual_seed(0)
    model, x = Model().double(), torch.randn(6, 40, 3, dtype=torch.float64)
    monitor = retrograde.Monitor(model, samples=2, entries=3)
    block(monitor, model, x)
    flow = monitor.flow("encoder.rnn")
    assert flow.residual < 1e-12
    assert flow.entries.steps.tolist() == [12, 25, 39]
    assert monitor.samples_read == {"encoder.rnn": (1, 4)} and flow.recorded.samples == (1, 4)
    assert flow.unrolled.x.shape == (40, 2, 3)
    found = of_layer(monitor, "encoder.rnn")
    assert found["reach"] == flow.reach
    assert found["share_near"] == pytest.approx(float(flow.by_lag(bins=(0, 11)).share[0]))

    model.zero_grad()  # its gradient is that of the loss of those samples at those steps
    torch.autograd.backward(
        model.encoder["rnn"](x[[1, 4]])[0][:, [12, 25, 39]],
        flow.recorded.output_adjoint[[12, 25, 39]].transpose(0, 1),
    )
    for name, p in model.encoder["rnn"].named_parameters():
        torch.testing.assert_close(flow.gradient[name].plain()[0], p.grad)


def test_every_hundredth_block_is_recorded_and_the_names_stay():
    model, x, seen = Model(), torch.ones(2, 4, 3), []
    monitor = retrograde.Monitor(model, every=3, log=lambda s, step: seen.append((step, list(s))))
    filled = []
    for _ in range(7):
        block(monitor, model, x)
        filled.append((bool(monitor.scalars), len(monitor.recording)))
    assert filled == [(True, 1), (False, 0), (False, 0)] * 2 + [(True, 1)]
    assert [step for step, _ in seen] == [0, 3, 6]
    layer = "reach rate share_near share_carousel growth gradient_norm nonfinite".split()
    assert seen[0][1] == [f"retrograde/encoder.rnn/{name}" for name in layer] + [
        "retrograde/gradient_norm_rest",
        "retrograde/unrecorded",
    ]
    with pytest.raises(RecordingError, match="available: nothing. One block in 3 is recorded"):
        block(monitor, model, x)
        monitor.flow("encoder.rnn")


def test_every_name_is_in_the_table_of_the_docstring():
    model = Model()
    monitor = retrograde.Monitor(model)
    block(monitor, model, torch.ones(2, 4, 3))
    for name in monitor.scalars:
        short = name.removeprefix("retrograde/encoder.rnn/")
        assert f"| `{short}` |" in retrograde.Monitor.__doc__
    assert len(of_layer(monitor, "encoder.rnn")) <= 10


def test_gradients_that_accumulate_do_not_mix_in():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 6, 3)
    monitor = retrograde.Monitor(model, every=1)
    block(monitor, model, x)
    first = monitor.scalars
    block(monitor, model, x)
    assert monitor.scalars == first


def test_scalars_read_back_from_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, x = Model(), torch.ones(2, 6, 3)
    monitor, written = retrograde.Monitor(model, every=2), {}
    with SummaryWriter(tmp_path) as writer:
        for step in range(5):
            block(monitor, model, x)
            for name, value in monitor.scalars.items():
                writer.add_scalar(name, value, step)
                written.setdefault(name, []).append((step, value))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(written)
    for name, values in written.items():
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(value)) for step, value in values]


# --- no trace ---------------------------------------------------------------------------------


@cache
def trained(how, kind, steps=40):
    """Weights, optimiser state and random state after training with dropout, watched or not."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": Model(kind), "drop": nn.Dropout(0.3)})
    optimiser = torch.optim.Adam(model.parameters())
    monitor = retrograde.Monitor(model, every=5)
    for _ in range(steps):
        x = torch.randn(4, 6, 3)
        optimiser.zero_grad()

        def run(x=x):
            model["body"](model["drop"](x)).square().mean().backward()

        if how == "record":
            with retrograde.record(model):
                run()
        elif how == "monitor":
            with monitor:
                run()
        else:
            run()
        optimiser.step()
    return model.state_dict(), optimiser.state_dict()["state"], torch.get_rng_state()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("how", ["record", "monitor"])
def test_40_steps_are_bit_identical(how, kind):
    weights, state, random = trained("plain", kind)
    watched_weights, watched_state, watched_random = trained(how, kind)
    assert random.equal(watched_random)
    for name, value in weights.items():
        assert value.equal(watched_weights[name]), name
    for number, values in state.items():
        for name, value in values.items():
            assert value.equal(watched_state[number][name]), (number, name)


def trace(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "with kwargs": [len(module._forward_hooks_with_kwargs) for module in model.modules()],
        "parameter hooks": [len(p._backward_hooks or {}) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [id(p.grad) for p in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def ours_fails(*_):
    raise ZeroDivisionError("a mistake of ours")


@pytest.mark.parametrize("watch", ["record", "monitor"])
@pytest.mark.parametrize("fails", ["nothing", "model", "loss", "backward", "ours"])
def test_no_trace(watch, fails, monkeypatch):
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 7, 3)
    model.head.weight.requires_grad_(False)
    model.head.eval()
    loss_of(model, x).backward()  # .grad is there, and must stay the same object
    if fails == "ours":
        monkeypatch.setattr("retrograde.monitor.monitor.summarise", ours_fails)
    handle = model.encoder["rnn"].register_forward_hook(lambda *_: None)
    before = trace(model)
    watched = retrograde.Monitor(model) if watch == "monitor" else retrograde.record(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with watched:
                if fails == "model":
                    model(torch.ones(2, 7, 9))
                loss = loss_of(model, x)
                if fails == "loss":
                    raise KeyError("in the user's loss")
                if fails == "backward":
                    loss.register_hook(ours_fails)
                loss.backward()
        except (RuntimeError, KeyError, ZeroDivisionError):
            assert fails in ("model", "loss", "backward")
        else:
            assert fails in ("nothing", "ours")
    assert trace(model) == before
    handle.remove()
    pickle.loads(pickle.dumps(model))
    copy.deepcopy(model)


@pytest.mark.parametrize("watch", ["record", "monitor"])
def test_nothing_is_kept_alive_after_the_recording_is_dropped(watch):
    model, x = Model(), torch.ones(2, 5, 3)
    monitor = retrograde.Monitor(model)
    kept = []
    model.encoder["rnn"].register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out[0])))
    if watch == "monitor":
        block(monitor, model, x)
        assert len(monitor.recording) == 1
        kept += [weakref.ref(layer.output_adjoint) for layer in monitor.recording.values()]
        monitor.flow("encoder.rnn")
        block(monitor, model, x)  # not recorded; the one before is dropped
    else:
        with retrograde.record(model) as recording:
            loss_of(model, x).backward()
        kept += [weakref.ref(layer.output_adjoint) for layer in recording.values()]
        kept.append(weakref.ref(recording))
        del recording
    gone = weakref.ref(model)
    del monitor, model
    gc.collect()
    assert gone() is None
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.parametrize("when", ["before", "after", "inside"])
def test_a_compiled_model_works_as_before(when):
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 7, 3)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on tracing recurrent layers
        compiled = torch.compile(model, backend="aot_eager")
        if when == "before":
            compiled(x)
        watched = compiled if when != "after" else model
        monitor = retrograde.Monitor(watched)
        block(monitor, watched, x)
        torch.testing.assert_close(compiled(x), expected)
        loss_of(compiled, x).backward()
    names = set(monitor.scalars) - {"retrograde/gradient_norm_rest", "retrograde/unrecorded"}
    assert names and all(name.startswith("retrograde/encoder.rnn/") for name in names)
    assert monitor.scalars["retrograde/unrecorded"] == 0, monitor.problems
    assert torch.compile(model.encoder["rnn"], backend="eager") is not None
    torch._dynamo.reset()


def test_wrappers_are_no_part_of_the_names():
    model = nn.Sequential(torch.compile(nn.Identity(), backend="eager"), nn.GRU(3, 4))
    wrapped = nn.DataParallel(nn.Sequential(model))
    monitor = retrograde.Monitor(wrapped)
    with monitor:
        model(torch.ones(5, 2, 3))[0].sum().backward()
    assert "retrograde/0.1/reach" in monitor.scalars


# --- nothing stops training -------------------------------------------------------------------


def no_backward(model, x):
    model(x)


def not_finite(model, x):
    (loss_of(model, x) * torch.inf).backward()


@pytest.mark.parametrize(
    ("make", "use", "reason"),
    [
        (Model, no_backward, "no backward pass reached it"),
        (Model, not_finite, "dL/dh_l0 of 'encoder.rnn' is"),
        (lambda: nn.Linear(3, 1), no_backward, "holds no recurrent layer"),
        (
            lambda: Model(lambda i, h, **o: nn.GRU(i, h, **o).requires_grad_(False)),
            lambda model, x: loss_of(model, x).backward(),
            "has requires_grad=False",
        ),
    ],
    ids=["no backward", "not finite", "no layer", "refused"],
)
def test_what_cannot_be_recorded_is_counted_and_said_once(make, use, reason):
    model, x = make(), torch.ones(2, 7, 3)
    monitor = retrograde.Monitor(model, every=1)
    with pytest.warns(UserWarning, match=reason), monitor:
        use(model, x)
    assert monitor.scalars["retrograde/unrecorded"] == 1
    assert all(math.isfinite(value) for value in monitor.scalars.values())
    assert not any(name.endswith("/reach") for name in monitor.scalars)
    with monitor:  # and not said again: a warning would be an error here
        use(model, x)
    assert monitor.scalars["retrograde/unrecorded"] == 1
    assert any(reason in why for why in monitor.problems.values())


def test_values_that_are_not_finite_are_counted():
    model, x = Model(), torch.ones(2, 7, 3)
    x[1, 3:5, 0] = torch.nan
    monitor = retrograde.Monitor(model)
    with pytest.warns(UserWarning, match="the input of 'encoder.rnn' is nan"):
        block(monitor, model, x)
    # At least the two of the input; every weight's gradient is lost as well.
    weights = sum(p.numel() for p in model.encoder.parameters())
    assert monitor.scalars["retrograde/encoder.rnn/nonfinite"] >= 2 + weights


def test_a_mistake_of_ours_is_no_error_of_the_users(monkeypatch):
    model, x = Model(), torch.ones(2, 7, 3)
    monkeypatch.setattr("retrograde.monitor.monitor.summarise", ours_fails)
    monitor = retrograde.Monitor(model)
    with pytest.warns(UserWarning, match="ZeroDivisionError: a mistake of ours"):
        block(monitor, model, x)
    assert "retrograde/encoder.rnn/gradient_norm" in monitor.scalars


@pytest.mark.parametrize("where", ["model", "alert"])
def test_errors_of_the_users_pass_through(where):
    model, x = Model(), torch.ones(2, 7, 3)
    options = {"limits": {"unrecorded": (1, None)}, "alert": ours_fails}
    monitor = retrograde.Monitor(model, every=1, **(options if where == "alert" else {}))
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"), monitor:
        loss_of(model, x).backward()
        if where == "model":
            ours_fails()
    assert bool(monitor.scalars) == (where == "alert")
    monitor.limits = {}
    block(monitor, model, x)
    assert monitor.scalars["retrograde/unrecorded"] == 0


def not_installed(scalars, step):
    import a_tracker_that_is_not_installed  # noqa: F401


def offline(scalars, step):
    raise ConnectionError("the tracker is offline")


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (offline, "ConnectionError: the tracker is offline"),
        (not_installed, "No module named 'a_tr"),
    ],
)
def test_a_tracker_that_is_not_there_ends_no_training(log, why):
    model, x = Model(), torch.ones(2, 7, 3)
    monitor = retrograde.Monitor(model, every=1, log=log)
    with pytest.warns(UserWarning, match=why) as told:
        for _ in range(3):  # said once: a second warning would be counted
            block(monitor, model, x)
    assert len(told) == 1 and "training goes on" in str(told[0].message)
    assert [row["step"] for row in monitor.history] == [0, 1, 2]

    def stopped(scalars, step):
        raise KeyboardInterrupt

    monitor.log = stopped
    with pytest.raises(KeyboardInterrupt):
        block(monitor, model, x)


def test_sparse_gradients_have_norms_too():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3, sparse=True), "rnn": nn.GRU(3, 4)})
    monitor = retrograde.Monitor(model)
    with monitor:
        model["rnn"](model["embed"](torch.tensor([[1, 1], [2, 4]])))[0].sum().backward()
    expected = float(model["embed"].weight.grad.to_dense().norm())
    assert monitor.scalars["retrograde/gradient_norm_rest"] == pytest.approx(expected)


def test_a_block_that_never_ended_is_given_up():
    model, x = Model(), torch.ones(2, 7, 3)
    before = trace(model)
    monitor = retrograde.Monitor(model, every=1)
    monitor.start()
    model(x)
    monitor.start()
    loss_of(model, x).backward()
    monitor.stop()
    assert monitor.scalars["retrograde/unrecorded"] == 0
    monitor.stop()  # nothing is open
    assert trace(model)["hooks"] == before["hooks"]
    assert trace(model)["parameter hooks"] == before["parameter hooks"]


# --- a run that is watched ----------------------------------------------------------------------


def chain(weight, steps=9):
    """A linear scalar recurrence, whose adjoint is multiplied by its weight at every step."""
    model = retrograde.nn.RNN(1, 1, nonlinearity="identity")
    with torch.no_grad():
        model.weight_hh_l0.fill_(weight)

    def run():
        model(torch.ones(steps, 2, 1))[0][-1].sum().backward()

    return model, run


def test_the_needed_lag_is_set_beside_lag_0():
    model, run = chain(0.5)
    monitor = retrograde.Monitor(model, needs_lag=3)
    with monitor:
        run()
    by_lag = retrograde.decompose(monitor.recording["RNN"]).by_lag(bins="every").log2
    assert of_layer(monitor, "RNN")["needed"] == pytest.approx(float(by_lag[3] - by_lag[0]))
    beyond = retrograde.Monitor(model, needs_lag=9)
    with beyond:
        run()
    assert "needed" not in of_layer(beyond, "RNN")


def test_the_rate_crosses_zero_where_the_half_life_would_flip():
    rates = []
    for weight in (0.9, 1.0, 1.1):
        model, run = chain(weight)
        monitor = retrograde.Monitor(model)
        with monitor:
            run()
        rates.append(of_layer(monitor, "RNN")["rate"])
    assert rates == pytest.approx([math.log2(0.9), 0, math.log2(1.1)], abs=1e-6)


def test_moving_averages_are_those_of_their_formula():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 6, 3)
    monitor = retrograde.Monitor(model, every=1, smoothing=0.6)
    name, raw = "retrograde/encoder.rnn/gradient_norm", []
    for scale in (1.0, 3.0, 0.5):
        block(monitor, model, scale * x)
        raw.append(monitor.scalars[name])
        weights = [0.6**age for age in reversed(range(len(raw)))]
        expected = sum(w * value for w, value in zip(weights, raw, strict=True)) / sum(weights)
        assert monitor.scalars[f"{name}_smoothed"] == pytest.approx(expected)
    assert "retrograde/unrecorded_smoothed" not in monitor.scalars


@pytest.mark.parametrize("name", ["reach", "retrograde/RNN/reach"])
def test_a_scalar_outside_its_limits_calls_back(name):
    model, run = chain(0.25)
    seen = []
    monitor = retrograde.Monitor(
        model, every=1, limits={name: (8, None)}, alert=lambda *told: seen.append(told)
    )
    for _ in range(2):
        with monitor:
            run()
    assert seen == [("retrograde/RNN/reach", 3.0, 0), ("retrograde/RNN/reach", 3.0, 1)]
    monitor = retrograde.Monitor(model, every=1, limits={name: (None, 2)})
    with pytest.warns(UserWarning, match="reach is 3, above 2"), monitor:
        run()
    with monitor:  # said once: a warning would be an error here
        run()


def test_history_is_rows_a_table_and_a_chart():
    model, run = chain(0.5)
    monitor = retrograde.Monitor(model, every=2, needs_lag=4)
    for _ in range(5):
        with monitor:
            run()
    history = monitor.history
    assert [row["step"] for row in history] == [0, 2, 4]
    assert history.layers == ["RNN"]
    assert history.of("RNN", "reach") == [(0, 6.0), (2, 6.0), (4, 6.0)]
    assert history.horizon("RNN") == [(at, pytest.approx(math.log2(100))) for at in (0, 2, 4)]
    assert repr(history) == "History of 3 looks, blocks 0 to 4; layers: RNN"
    assert "reach and horizon" in history.chart(needs_lag=4).to_json()
    with pytest.raises(ArgumentError, match="there is no layer 'RNM' .did you mean 'RNN'"):
        history.of("RNM", "reach")
    pandas = pytest.importorskip("pandas")
    table = history.to_dataframe()
    assert isinstance(table, pandas.DataFrame) and table.shape == (3, len(monitor.scalars) + 1)


def recorded(monitor, model, scales, as_tensor=True):
    """The blocks that were looked at, of those whose loss is scaled so."""
    found = []
    for scale in scales:
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with monitor:
                loss = loss_of(model, torch.ones(2, 5, 3)) * scale
                monitor.loss(loss if as_tensor else loss.item())
                loss.backward()
        if monitor.recording:
            found.append(monitor.step)
    return found


def test_a_norm_that_jumps_is_followed_by_a_closer_look():
    torch.manual_seed(0)
    model = Model()
    monitor = retrograde.Monitor(model, every=100, trigger=10)
    scales = [1.0] * 7 + [9.0, 1.0, 30.0, 30.0, 1.0, 1.0, 1.0, 20.0, 1.0]
    assert recorded(monitor, model, scales) == [0, 10, 11, 12, 15]
    assert [event.step for event in monitor.events] == [9, 14]
    assert "30 times the median of the 9 blocks before" in monitor.events[0].reason
    norms = dict(monitor.history.of("encoder.rnn", "gradient_norm"))
    assert norms[10] == pytest.approx(30 * norms[0], rel=1e-4)


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_one_event_while_it_lasts(value, as_tensor):
    torch.manual_seed(0)
    model = Model()
    monitor = retrograde.Monitor(model, every=4, trigger=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = recorded(monitor, model, [1.0] * 5 + [value] * 2 + [1.0], as_tensor)
    assert found[:2] == [0, 4] and 7 in found
    assert [event.step for event in monitor.events] == [5]
    assert f"the loss is {value}" in monitor.events[0].reason
    good = monitor.last_good["encoder.rnn"]
    assert good.output_adjoint.isfinite().all()


def test_the_last_good_look_is_kept():
    torch.manual_seed(0)
    model = Model()
    monitor = retrograde.Monitor(model, every=1, trigger=10)
    recorded(monitor, model, [1.0, 2.0, math.nan, math.nan])
    kept = float(monitor.last_good["encoder.rnn"].output_adjoint.abs().sum())
    recorded(again := retrograde.Monitor(model, trigger=10), model, [2.0])
    assert kept == pytest.approx(
        float(again.last_good["encoder.rnn"].output_adjoint.abs().sum()), rel=1e-5
    )
    assert monitor.problems and monitor.recording is not monitor.last_good


def test_the_alert_is_told_of_an_event():
    torch.manual_seed(0)
    model, told = Model(), []
    monitor = retrograde.Monitor(model, trigger=10, alert=lambda *what: told.append(what))
    recorded(monitor, model, [1.0] * 6 + [100.0])
    [(name, value, step)] = told
    assert (name, step) == ("retrograde/gradient_norm", 6)
    assert value == pytest.approx(gradient_norm(model), rel=1e-5)


def test_a_budget_of_time_is_kept():
    """On a clock that we turn: a block takes 1 s, a look 5 s more, the rest of a step 1 s."""
    now = 0.0
    schedule = Schedule(every=2, budget=0.05, clock=lambda: now)
    looks = []
    for step in range(200):
        looked = schedule.start()
        looks += [step] * looked
        now += 6.0 if looked else 1.0
        schedule.stop()
        now += 1.0
    assert looks[:3] == [0, 2, 52]  # after the first look no block is known to compare it with
    assert [b - a for a, b in zip(looks[1:], looks[2:], strict=False)] == [50] * 3
    cheap, looked = Schedule(every=2, budget=0.05, clock=lambda: now), []
    for _ in range(5):
        looked.append(cheap.start())
        now += 1.0  # a look costs no more than any other block
        cheap.stop()
    assert looked == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be a share of time between 0 and 1; got 0"),
        ({"budget": 1.0}, "budget must be a share"),
        ({"smoothing": 1}, "smoothing must be a weight from 0 to below 1; got 1"),
        ({"trigger": 1}, "trigger must be a number above 1; got 1"),
        ({"needs_lag": 0}, "needs_lag must be a positive integer; got 0"),
        ({"limits": ["reach"]}, "limits must be a mapping of scalars to limits"),
        ({"limits": {"reach": 5}}, "the limits of 'reach' must be a pair .lowest, highest."),
        ({"limits": {"reach": (5, 1)}}, "in this order; got .5, 1."),
        ({"limits": {"reach": ("a", 1)}}, "a limit of 'reach' must be a finite number; got 'a'"),
        ({"alert": lambda name: None}, "alert must be a function of name, value and step"),
    ],
)
def test_settings_that_can_be_none_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        retrograde.Monitor(Model(), **settings)


def test_the_loss_is_a_single_number():
    monitor = retrograde.Monitor(Model(), every=1)
    with pytest.raises(ArgumentError, match="the loss must be a single number; got a tensor of"):
        monitor.loss(torch.ones(2))
    model, x = Model(), torch.ones(2, 5, 3)
    monitor = retrograde.Monitor(model)
    with monitor:
        loss = loss_of(model, x)
        monitor.loss(loss)
        loss.backward()
    assert monitor.scalars["retrograde/loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("name", ["every", "samples", "entries"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_numbers_are_positive_integers(name, value):
    with pytest.raises(ArgumentError, match=f"{name} must be a positive integer"):
        retrograde.Monitor(Model(), **{name: value})


def test_the_window_and_how_far_there_is_a_signal():
    """What was read 5 steps before is to be told: a lag that all samples have in common.

    There are enough samples to tell it whatever weights are drawn.
    """
    torch.manual_seed(0)
    model = nn.LSTM(1, 16, batch_first=True)
    retrograde.nn.initialise(model, "chrono", horizon=30)
    x = torch.randn(300, 30, 1)
    monitor = retrograde.Monitor(model, every=1, delta=0.1, samples=300, entries=30)
    with monitor:
        (model(x)[0][:, 5:, :1] - x[:, :-5]).square().mean().backward()
    assert not monitor.problems
    window = monitor.scalars["retrograde/LSTM/window"]
    assert window == monitor.flow("LSTM").horizon().window(0.1)
    assert 5 <= monitor.scalars["retrograde/LSTM/learnable"] <= 16


def test_a_fresh_network_shows_no_signal_where_the_data_hold_none():
    """White noise that is to be told from white noise: what follows from the state is no signal."""
    torch.manual_seed(0)
    model, x = nn.LSTM(1, 16, batch_first=True), torch.randn(64, 30, 1)
    monitor = retrograde.Monitor(model, every=1, delta=0.1, samples=16, entries=30)
    with monitor:
        (model(x)[0][..., :1] - 1 - torch.randn(64, 30, 1)).square().mean().backward()
    assert monitor.scalars.get("retrograde/LSTM/learnable", -1.0) <= 0


@pytest.mark.parametrize("target", [lambda x: 2 * x.square() + 1, lambda x: x.roll(5, 1)])
def test_a_lag_is_named_where_the_target_has_one(target):
    torch.manual_seed(1)
    model, x = nn.LSTM(1, 8, batch_first=True), torch.randn(40, 18, 1)
    monitor = retrograde.Monitor(model, every=1, delta=0.1, entries=12)
    with monitor:
        (model(x)[0].mean(2, keepdim=True) - target(x))[:, 5:].square().mean().backward()
    found = monitor.scalars.get("retrograde/LSTM/learnable", 0.0)
    assert found == (8 if target(x)[0, 5] == x[0, 0] else 0)  # lags 5 to 8 are told as one


def test_what_is_learnable_is_told_where_the_past_can_be_replaced():
    both = nn.LSTM(1, 4, bidirectional=True)
    for model, samples in ((both, 20), (nn.LSTM(1, 4), 15)):
        monitor, x = retrograde.Monitor(model, every=1, delta=0.1), torch.randn(9, samples, 1)
        with monitor:
            (model(x)[0].sum(2, keepdim=True) - x).square().mean().backward()
        assert not monitor.problems and "retrograde/LSTM/window" in monitor.scalars
        assert "retrograde/LSTM/learnable" not in monitor.scalars


class Written(nn.Module):
    """A plain recurrence written out, time first."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.W, self.R = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)

    def forward(self, x):
        h, outputs = x.new_zeros(x.shape[1], self.R.in_features), []
        for x_k in x:
            h = torch.tanh(self.W(x_k) + self.R(h))
            outputs.append(h)
        return torch.stack(outputs), h


def written_step(w, x, s):
    a = x @ w["W.weight"].T + w["W.bias"] + s["h"] @ w["R.weight"].T + w["R.bias"]
    return {"h": torch.tanh(a)}


WRITTEN = retrograde.Declaration(written_step, state=("h",), batch_first=False)


@pytest.mark.parametrize("where", ["output", "state"])
@pytest.mark.parametrize("form", ["plain", "packed", "declared"])
def test_samples_are_read_that_have_a_loss(form, where):
    """Of 40 the last 8."""
    torch.manual_seed(0)
    kind = Written if form == "declared" else nn.LSTM
    model, x = kind(2, 3), torch.randn(12, 40, 2)
    given = nn.utils.rnn.pack_padded_sequence(x, [12] * 39 + [8]) if form == "packed" else x
    cells = {Written: WRITTEN} if form == "declared" else None
    monitor = retrograde.Monitor(model, cells=cells, every=1)
    for _ in range(2):  # the whole is put together, and then those samples alone
        with monitor:
            output, state = model(given)
            if form == "packed":
                output, _ = nn.utils.rnn.pad_packed_sequence(output)
            h = state if form == "declared" else state[0]
            loss = output if where == "output" else h.view(1, 40, 3)
            loss[:, -8:].square().sum().backward()
        assert not monitor.problems
        assert monitor.samples_read == {type(model).__name__: (34, 38)}
        read = monitor.flow(type(model).__name__).recorded
        assert read.x.equal(x[:, [34, 38]])
        assert bool(read.direct.any(0).any(1).all())
        assert f"retrograde/{type(model).__name__}/reach" in monitor.scalars
