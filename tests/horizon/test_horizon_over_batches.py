"""A model over batches: what it uses, what its gradient reaches, what the data let it learn."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import retrograde
from retrograde.errors import ArgumentError
from retrograde.report import HorizonReport

T, B, H = 14, 6, 5


class Model(nn.Module):
    def __init__(self, layer, batch_first=False):
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(layer.hidden_size, 1)

    def forward(self, x):
        return self.readout(self.layer(x)[0])


def model(kind=nn.LSTM, hidden=H, **options):
    torch.manual_seed(3)
    return Model(kind(1, hidden, **options))


def batches(seed, steps=T, size=B):
    x = torch.randn(steps, size, 1, generator=torch.Generator().manual_seed(seed))
    return x, x.roll(3, 0)


def loss_at_every_step(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def loss_at_the_end(model, batch):
    return (model(batch[0]) - batch[1])[-2:].square().mean()


def pooled(model, batch):
    """The mean over time before the square: no sum over steps."""
    return (model(batch[0]).mean(0) - batch[1][-1]).square().mean()


def fixed(model, batch):
    return (model(batch[0]) - batch[1])[T - 1].square().mean()


def moving(model, batch):
    """Of the last two steps; with the input cut, of the last one alone."""
    output = model(batch[0])
    return (output[-2:] if len(output) == T else output[-1:]).square().mean()


def neighbours(model, batch):
    """Two steps next to each other, both in the same half, and nothing else."""
    output = model(batch[0])
    return (output - batch[1]).square().sum() + (output[1] * output[2]).sum()


def with_last_state(model, batch):
    output, (last, _) = model.layer(batch[0])
    return (last[-1] * output[3]).sum()


def test_losses_that_are_sums_over_steps_are_taken_for_that():
    for loss, made in (
        (loss_at_every_step, model()),
        (loss_at_the_end, Model(Encoder())),  # what is below another layer is no part of the loss
    ):
        assert retrograde.horizon(made, batches(0, 8), loss, kind="chunks").bias_at(2) > 0


@pytest.mark.parametrize("feedback", [False, True])
def test_outputs_that_come_back_through_the_input_are_named(feedback):
    """Without such a path the bias is that of really detaching; with one it is not, as noted."""
    cell, x = nn.GRUCell(2, 2).double(), torch.randn(6, 3, 2, dtype=torch.float64)

    def loss(cell, x, k=6):
        total, state = 0.0, x.new_zeros(3, 2)
        for t, now in enumerate(x):
            read = state.tanh() if feedback and t else now
            state = cell(read, state.detach() if t % k == 0 else state)
            total = total + state.square().sum()
        return total

    found = retrograde.horizon(cell, x, loss, kind="chunks")
    assert any("GRUCell: its outputs come back" in n for n in found.notes) == feedback
    assert (found.used is None) == feedback
    whole, cut = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss(cell, x, k), cell.parameters())])
        for k in (6, 2)
    )
    bias = float((whole - cut).norm() / whole.norm())
    assert (found.by_phase[2][-1] == pytest.approx(bias, rel=1e-9)) != feedback


def test_of_a_layer_called_step_by_step_it_is_said_that_the_loss_was_not_asked():
    cell = nn.GRUCell(1, 3)

    def loss(cell, x):
        states = [cell(x[0])]
        for now in x[1:]:
            states.append(cell(now, states[-1]))
        return torch.stack(states).square().sum()

    found = retrograde.horizon(cell, torch.randn(5, 2, 1), loss, kind="chunks")
    assert any("cannot be asked of a layer that is called more than once" in n for n in found.notes)


def test_an_encoder_and_a_decoder_have_no_window_in_common():
    class Seq2Seq(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.GRU(1, 3), nn.GRU(1, 3)

        def forward(self, x):
            return self.decoder(x[-2:], self.encoder(x[:-2])[1])[0]

    def loss(model, x):
        return model(x).square().sum()

    with pytest.raises(ArgumentError, match="encoder reads 12 steps, decoder reads 2 steps"):
        retrograde.horizon(Seq2Seq(), batches(0)[0], loss, kind="window")
    made = Seq2Seq()  # the mean over the phases of a cut goes on beyond the shorter one's steps
    found = retrograde.horizon(made, batches(0)[0], loss, kind="chunks").of("decoder").bias
    assert found[1] > found[2] > found[11] > 0


def test_a_cut_of_the_users_own_is_taken_at_its_word():
    """Where no gradient comes is no proof that the loss does not enter (a hinge)."""

    def loss(model, x):
        output = model(x)[-2:]
        return output[0].sum() * (len(x) == T) + output[1].square().sum()

    torch.manual_seed(0)
    with pytest.raises(ArgumentError, match="other steps"):
        retrograde.horizon(model(), batches(0)[0], loss, kind="window")
    found = retrograde.horizon(
        model(), batches(0)[0], loss, kind="window", cut=lambda x, steps: x[-steps:]
    )
    assert found.price.further == 1


class Encoder(nn.Module):
    """A layer below: it sends the loss of the last steps to the first ones, too."""

    def __init__(self):
        super().__init__()
        self.hidden_size = H
        self.low, self.high = nn.GRU(1, 3), nn.LSTM(3, H)

    def forward(self, x):
        return self.high(self.low(x)[0])


@pytest.mark.parametrize("two", [False, True])
def test_a_shorter_window_is_that_of_really_feeding_it(two, monkeypatch):
    made = Model(Encoder()).double() if two else model().double()

    def doubled(seed):
        return tuple(each.double() for each in batches(seed))

    monkeypatch.delattr("retrograde.decomposition.Flow.truncated")  # no lags are scanned
    horizon = retrograde.horizon(made, doubled, loss_at_the_end, kind="window", most=2)
    assert horizon.steps[0] == 1 and horizon.steps[-1] == T - 1  # before the first loss step
    assert not two or {"layer.low", "layer.high", "layer.low: weight_hh_l0"} <= {*horizon.names}
    for number in range(2):
        x, y = doubled(number)

        def gradient(first, x=x, y=y):
            loss = (made(x[first:]) - y[first:])[-2:].square().mean()
            found = torch.autograd.grad(loss, tuple(made.layer.parameters()))
            return torch.cat([one.flatten() for one in found])

        whole = gradient(0)
        bias = [float((whole - gradient(T - 1 - k)).norm() / whole.norm()) for k in horizon.steps]
        torch.testing.assert_close(horizon.each("bias")[number].tolist(), bias, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_is_used_is_the_loss_with_an_older_past_replaced(kind):
    made, (x, y) = model(kind, num_layers=2), batches(0)
    horizon = retrograde.horizon(made, (x, y), loss_at_every_step)
    other = x.roll(B // 2, 1)
    for k, loss in zip(horizon.used.steps, horizon.used.losses[0], strict=True):
        outputs = []
        for t in range(T):
            first = max(0, t - k + 1)
            state = made.layer(other[:first])[1] if first else None
            if k == 0:
                outputs.append(made.layer(other[: t + 1])[0][-1])
            else:
                outputs.append(made.layer(x[first : t + 1], state)[0][-1])
        by_hand = (made.readout(torch.stack(outputs)) - y).square().mean().detach()
        assert float(loss) == pytest.approx(float(by_hand), rel=1e-4), k


def test_the_mean_and_zeros_as_the_past():
    x, y = batches(0)
    for past, constant in (("zeros", 0.0), ("mean", float(x.mean()))):
        made = model(nn.GRU)
        horizon = retrograde.horizon(made, (x, y), loss_at_the_end, past=past)
        cut = torch.cat((torch.full_like(x[: T - 5], constant), x[T - 5 :]))
        at = horizon.used.steps.index(5)
        last = (made(cut)[-1] - y[-1]).square().sum()
        earlier = torch.cat((torch.full_like(x[: T - 6], constant), x[T - 6 : T - 1]))
        both = (last + (made(earlier)[-1] - y[-2]).square().sum()) / (2 * B)
        assert float(horizon.used.losses[0, at]) == pytest.approx(float(both.detach()), rel=1e-4)


def test_sensitivity_to_the_input_adds_up_and_is_that_of_each_loss_step():
    made = model(nn.LSTM, num_layers=2).double()
    x = torch.randn(7, 3, 1, dtype=torch.float64, requires_grad=True)
    with retrograde.record(made) as recording:
        made(x).square().sum().backward()
    parts = retrograde.decompose(recording).by_lag("input", "every")
    wanted = torch.zeros(7, 7, 3, 1, dtype=torch.float64)
    for t in range(7):
        (found,) = torch.autograd.grad(made(x)[t].square().sum(), x)
        for k in range(t + 1):
            wanted[t - k, k] = found[k]
    torch.testing.assert_close(parts.parts(), wanted, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(parts.sum().parts(), x.grad, rtol=1e-9, atol=1e-14)


def planted(lag, steps, size=16):
    """Batches in which the answer lies `lag` steps back; None for a series that only repeats."""

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(steps + (lag or 1), size, 1, generator=generator)
        if lag is None:
            x = [noise[0]]
            for now in noise[1:]:
                x.append(0.6 * x[-1] + now)
            series = torch.stack(x)
            return series[:-1], series[1:]
        return noise[lag:], noise[:-lag]

    return drawn


def bin_of(lag, horizon):
    return next(each.stop - 1 for each in horizon.signal.lags if lag in each)


@pytest.fixture(scope="module")
def repeating():
    """The horizon of a fresh network and a series that only repeats."""
    return retrograde.horizon(model(nn.RNN, 8), planted(None, 36), loss_at_every_step, most=8)


def test_a_fresh_network_learns_of_the_lag_that_the_data_hold(repeating):
    """Its gradient reaches a few steps; no lag is invented in a series that has no further one."""
    made = model(nn.RNN, 8)
    far = retrograde.horizon(made, planted(20, 36), loss_at_every_step, most=8)
    assert far.reach < 20 and far.learnable == bin_of(20, far)
    strongest = max(far.columns, key=lambda column: column.interval[0])
    assert 20 in strongest.lags
    assert f"{far.learnable} says something of the loss" in far.recommendation()
    assert repeating.learnable == 0
    assert "cannot be told from 8 batches" in repeating.recommendation()
    assert repeating.signal.learnable(repeating.training_steps) > 0  # as any past would have


def test_a_longer_window_cannot_help_only_where_that_is_shown(repeating):
    """That is where every interval beyond the window ends below 1, not where some straddle it.

    Of what lies beyond the sequences nothing is said.
    """
    for steps, size, words, learnable in (
        (1000, 16, "windows between 3 and 36 steps would help 1000 training steps", 0),
        (1, 1, "windows between 3 and 36 steps cannot help", None),
    ):
        asked = replace(repeating, training_steps=steps, batch_size=size)
        ends = [c.interval[1] for c in asked.columns if c.lags.stop > asked.window()]
        assert asked.window() == 3 and (max(ends) < 1) == ("cannot" in words)
        assert words in asked.recommendation() and asked.learnable == learnable
    assert "learnable  up to lag 0" in str(repeating)
    few = replace(repeating, training_steps=1, batch_size=1)
    assert "learnable  cannot be told" in str(few)
    everything = repeating.recommendation(delta=0)
    assert "help" not in everything and "these sequences do not show" in everything


def test_a_list_of_batches_is_one_batch_and_the_error_says_so():
    several = [batches(seed) for seed in range(3)]
    with pytest.raises(AttributeError) as failed:
        retrograde.horizon(model(), several, loss_at_every_step)
    assert any("a list is one batch, iter(batches) is several" in n for n in failed.value.__notes__)
    assert retrograde.horizon(model(), iter(several), loss_at_every_step).batches == 3


def test_a_trained_network_uses_and_reaches_the_planted_lag():
    made, draw = model(nn.LSTM, 12), planted(5, 24)
    retrograde.nn.initialise(made.layer, "forget-bias", value=1.0)
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    for step in range(120):
        optimiser.zero_grad()
        loss_at_every_step(made, draw(1000 + step)).backward()
        optimiser.step()
    horizon = retrograde.horizon(made, draw, loss_at_every_step, most=4)
    assert horizon.used.lag == bin_of(5, horizon)
    assert 5 <= horizon.window()


def test_batches_of_a_loader_and_several_layers():
    data = [(x[:, 0], y[:, 0]) for x, y in (batches(seed, size=1) for seed in range(10))]
    loader = DataLoader(data, batch_size=4)  # the last batch has two samples

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.GRU(1, 3, batch_first=True), nn.RNN(3, 2, batch_first=True)

        def forward(self, x):
            return self.high(self.low(x)[0])[0].sum(2, keepdim=True)

    torch.manual_seed(0)
    two, told = Two(), []
    horizon = retrograde.horizon(
        two, loader, loss_at_every_step, progress=lambda *now: told.append(now)
    )
    assert horizon.batches == 2 and told[0][:2] == (0, 3)
    assert "left out: 1 batch of another size" in horizon.notes
    assert {"low", "high", "low: weight_hh_l0"} <= set(horizon.names)
    assert horizon.used is None and any("several recurrent layers" in n for n in horizon.notes)
    low, high = horizon.of("low").each("bias"), horizon.of("high").each("bias")
    assert (horizon.bias.max() <= torch.maximum(low, high).max() + 1e-9).all()
    alone = retrograde.horizon(two, loader, loss_at_every_step, layer="high")
    torch.testing.assert_close(alone.each("bias"), high)
    assert alone.used is not None and alone.learnable is None
    assert any("one of several recurrent layers" in note for note in alone.notes)


def test_one_batch_has_no_noise_and_says_so():
    horizon = retrograde.horizon(model(), batches(0), loss_at_every_step)
    assert horizon.learnable is None and "a single batch" in str(horizon)
    assert [column.learnable for column in horizon.columns] == [None] * len(horizon.columns)
    assert horizon.price.present == T and horizon.price.steps == horizon.window()
    assert "proves nothing about other weights" in horizon.recommendation()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_is_linear_in_the_outputs_has_nothing_to_learn_by_lag(dtype):
    made = model(nn.GRU).to(dtype)

    def drawn(seed):
        return batches(seed, 20)[0].to(dtype)

    horizon = retrograde.horizon(made, drawn, lambda model, x: model(x).mean(), most=3)
    assert horizon.unexplained.nothing and horizon.learnable is None
    assert not horizon.unexplained.shown(1000).any()
    assert not horizon.unexplained.excluded(1000).any()
    assert "something for a longer window" not in horizon.recommendation()
    assert "there is nothing to learn by lag" in horizon.recommendation()
    told = " ".join(horizon.notes)
    assert "nothing to learn by lag" in told and "change places within the batch" in told
    assert all(column.learnable != column.learnable for column in horizon.columns)  # 0 / 0


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_horizon_asked_for_where_gradients_are_off(without):
    made, batch = model(), batches(0)
    plain = retrograde.horizon(made, batch, loss_at_every_step)
    with without():
        found = retrograde.horizon(made, batch, loss_at_every_step)
    assert (found.bias == plain.bias).all() and found.price is not None


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def cross_entropy(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


PRESENT = [
    (nn.LSTM, lambda x: 2 * x.square() + 1, squared_error),
    (nn.GRU, lambda x: (x.abs() > 0.7).float(), cross_entropy),
]
"""What follows from the present input, none of it by a straight line."""


@pytest.mark.parametrize("kind, target, loss", PRESENT)
def test_no_lag_is_invented_where_the_present_input_says_all(kind, target, loss):
    """The gradient itself has a mean at far lags: dL/ds_t and the gates that x_t opens agree."""

    def drawn(seed):
        x = torch.randn(T, 12, 1, generator=torch.Generator().manual_seed(seed))
        return x, target(x)

    found = retrograde.horizon(model(kind), drawn, loss, most=8)
    assert found.learnable == 0 and "something for a longer window" not in found.recommendation()
    assert found.signal.learnable(1000) > 2


def test_inputs_that_depend_on_earlier_ones_make_no_lag():
    """y = x_t^2 of a first-order autoregression; the past says something of x_t, not of y."""

    def drawn(seed):
        x, _ = planted(None, T, 32)(seed)
        return x, x.square()

    assert retrograde.horizon(model(nn.RNN), drawn, squared_error, most=8).learnable == 0


def test_a_lag_of_one_of_several_inputs():
    def drawn(seed):
        x = torch.randn(T, 16, 3, generator=torch.Generator().manual_seed(seed))
        return x, (x[..., 1:2] * x[..., 2:]).roll(3, 0)

    torch.manual_seed(0)
    made = Model(nn.GRU(3, 8))

    def loss(model, batch):
        return (model(batch[0]) - batch[1])[3:].square().mean()

    assert retrograde.horizon(made, drawn, loss, most=9).learnable == 4  # of lags 3 and 4


def _packed(layer, x):
    lengths = torch.full((x.shape[1],), len(x))
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(layer(packed)[0])[0]


def _encoded_and_decoded(layer, x):
    encoded, state = layer(x[:9])
    return torch.cat((encoded, layer(x[9:], state)[0]))


def _step_by_step(cell, x):
    states = [cell(x[0])]
    for now in x[1:]:
        states.append(cell(now, states[-1]))
    return torch.stack([each[0] if isinstance(each, tuple) else each for each in states])


def horizon_of_three(made):
    return retrograde.horizon(made, batches, loss_at_every_step, most=3)


@cache
def in_one_call(kind):
    return horizon_of_three(model(kind))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (nn.GRU, _packed),
        (nn.LSTM, _encoded_and_decoded),
        (nn.LSTM, _step_by_step),
        (nn.GRU, _step_by_step),
    ],
)
def test_however_a_layer_is_called_it_says_what_one_call_does(kind, call):
    made = model(kind)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.readout = made.layer, made.readout
            if call is _step_by_step:
                self.layer = getattr(nn, kind.__name__ + "Cell")(1, H)
                for name, weight in made.layer.named_parameters():
                    getattr(self.layer, name.removesuffix("_l0")).data.copy_(weight.data)

        def forward(self, x):
            return self.readout(call(self.layer, x))

    plain, called = in_one_call(kind), horizon_of_three(Called())
    torch.testing.assert_close(called.used.losses, plain.used.losses)
    torch.testing.assert_close(
        called.unexplained.signal, plain.unexplained.signal, rtol=0.01, atol=0
    )


def test_batches_that_are_equal_are_one():
    x, y = batches(0)
    found = retrograde.horizon(model(), lambda seed: (x, y), loss_at_every_step, most=4)
    assert found.batches == 1 and found.learnable is None
    assert any("left out: 3 batches equal to an earlier one" in note for note in found.notes)


def test_a_loader_that_does_not_shuffle_is_named():
    x, y = batches(0, 5, 4)
    data = [*zip(x.unbind(1), y.unbind(1), strict=True)]
    made = model(batch_first=True)
    for shuffle in (False, True):
        found = retrograde.horizon(made, DataLoader(data, 2, shuffle), loss_at_every_step)
        assert any("does not shuffle" in note for note in found.notes) is not shuffle


def test_batches_whose_gradient_is_zero_are_no_part_of_the_curves(tmp_path):
    def drawn(seed):
        return *batches(seed), float(seed != 2)

    def sometimes(model, batch):
        return (model(batch[0]) - batch[1]).square().mean() * batch[2]

    found = retrograde.horizon(model(), drawn, sometimes, most=4)
    others = retrograde.horizon(model(), iter([*map(drawn, (0, 1, 3))]), sometimes)
    assert torch.equal(found.bias, others.bias) and torch.equal(found.signs, others.signs)
    assert found.window() == others.window() and found.columns[0].reached > 0
    assert "the gradient is 0 in 1 of 4 batches, left out of the curves" in found.notes
    assert found.each("bias").isnan().all(1).tolist() == [False, False, True, False]

    nothing = retrograde.horizon(model(), batches(0), lambda m, x: (m(x[0]) * 0).sum())
    assert nothing.bias.isnan().all() and nothing.window() is None
    assert nothing.summary()[0] == "window     none: the gradient is 0"
    assert "No window can be named: the gradient is 0." in nothing.recommendation()
    report = HorizonReport.of(nothing)
    report.to_html(tmp_path / "page.html")
    for view in (str(report), str(nothing), repr(report)):
        assert " nan" not in view and "- to -" not in view
    assert "nan</td>" not in (tmp_path / "page.html").read_text()


def test_no_loss_step_that_looks_further_back_is_no_want_of_batches():
    for drawn in (batches, batches(0)):
        found = retrograde.horizon(model(), drawn, lambda m, x: m(x[0])[0].square().sum(), most=3)
        assert "windows between 1 and 14 steps add nothing to this" in found.recommendation()


def test_a_past_that_moves_the_loss_by_rounding_alone():
    horizon = retrograde.horizon(
        model(), batches(0), lambda model, x: model(x[0]).mean() * 1e-9 + 1, past="zeros"
    )
    assert horizon.used.rounding and "moves by rounding alone" in str(horizon)


def test_columns_of_a_gradient_beyond_the_range_of_float64():
    made = nn.RNN(1, 2).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.zero_()
        made.weight_hh_l0.copy_(torch.eye(2) * 2.0**40)
    x = torch.zeros(34, 3, 1, dtype=torch.float64)  # all states are 0, and dL/db grows by 2^40
    horizon = retrograde.horizon(made, x, lambda model, x: model(x)[0][-1].sum())
    assert horizon.measures[""][0].whole > 1024
    assert max(column.reached for column in horizon.columns) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "kind, further, layer",
    [("sliding", 0, retrograde.nn.LSTM), ("window", 5, nn.LSTM)],
)
def test_the_price_is_that_of_the_steps_read_and_not_of_the_weights(kind, further, layer):
    """A shorter input keeps what comes after the first loss step."""

    def late(model, batch):
        return (model(batch[0]) - batch[1])[-6:].square().mean()

    found = retrograde.horizon(Model(layer(1, 64)), batches(0), late, kind=kind)
    price, steps = found.price, found.window()
    assert (price.steps, price.further) == (steps, further) and steps + further < T
    assert price.memory == pytest.approx((steps + further) / T, rel=0.3)


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"kind": "window"}, "the loss enters at step 0"),
        ({"kind": "window", "loss_fn": loss_at_the_end, "steps": B}, "which axis of a tensor"),
        ({"kind": "window", "loss_fn": loss_at_the_end, "cut": lambda b, n: b}, "then reads 14"),
        ({"kind": "window", "loss_fn": fixed}, "IndexError.* count them from the last.* cut="),
        ({"kind": "window", "loss_fn": moving}, "other steps: -1, not -2, -1 .* cut="),
        ({"kind": "chunks", "loss_fn": pooled}, "needs a loss that is a sum over steps"),
        ({"kind": "chunks", "loss_fn": neighbours}, "needs a loss that is a sum over steps"),
        ({"kind": "chunks", "loss_fn": with_last_state}, "needs a loss that is a sum over steps"),
        ({"kind": "windows"}, "did you mean|must be"),
        ({"layer": "layers"}, "layer"),
    ],
)
def test_bad_input(changed, says):
    given = {"loss_fn": loss_at_every_step, **changed}
    steps = given.pop("steps", T)
    with pytest.raises(ArgumentError, match=says):
        retrograde.horizon(model(), batches(0, steps), **given)
