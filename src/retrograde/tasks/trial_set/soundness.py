"""Are the numbers sound? Models, losses and batches whose numbers are not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrograde.tasks.trial_set.case import Case, LossFunction, Made, Training
from retrograde.tasks.trial_set.models import (
    BATCH,
    FEATURES,
    HIDDEN,
    B,
    Forecaster,
    H,
    I,
    T,
    by_hand,
    changed,
    compared,
    cross_entropy,
    data,
    every_step,
    filled,
    gru,
    last,
    lengths_of,
    linear,
    lstm,
    made,
    mse,
    orthogonal,
    packed,
    read_last,
    regression,
    rnn,
    squared,
)


def classes() -> Tensor:
    """One of four for each sample."""
    return torch.randint(0, 4, (B,))


# ------------------------------------------------------------------------------- not finite


def with_nan(where: str, loss: LossFunction = mse) -> Callable[[], Made]:
    """One number of the batch is missing."""

    def make() -> Made:
        model, (x, y), _ = regression(last)()
        (x if where == "x" else y).flatten()[4] = torch.nan
        return model, (x, y), loss

    return make


def log_loss(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of 0."""
    x, y = batch
    loss: Tensor = ((0 * model(x)).mean(1).log() - y[:, 0]).square().mean()
    return loss


def ctc(short: bool, zero: bool = False) -> Callable[[], Made]:
    """Labels of four, of which one sample has too few steps, if `short`."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, labels, steps, counts = batch
        return F.ctc_loss(model(x), labels, steps, counts, zero_infinity=zero)

    def batch() -> tuple[Tensor, ...]:
        steps = torch.full((B,), T)
        steps[2] = 3 if short else 9
        labels = torch.tensor([[1, 2, 1, 3]]).expand(B, 4).contiguous()
        return torch.randn(T, B, I), labels, steps, torch.full((B,), 4)

    return made(
        lambda m, x: every_step(m, x).log_softmax(-1),
        batch,
        loss,
        rnn=gru(batch_first=False),
        head=linear(4),
    )


def forecaster(layer: Callable[[], nn.Module], steps: int = 40) -> Callable[[], Made]:
    """A forecaster and random numbers."""
    return lambda: (
        Forecaster(layer()),
        (torch.randn(steps, BATCH, FEATURES), torch.randn(BATCH, 1)),
        squared,
    )


def _nan_in_a_gate(layer: Any) -> None:
    layer.weight_hh_l0[2 * HIDDEN + 3, 1] = torch.nan


def _infinite_input() -> Made:
    model, (x, y), loss = forecaster(lambda: nn.GRU(FEATURES, HIDDEN))()
    x[11, 2, 1] = torch.inf
    return model, (x, y), loss


def _missing_target() -> Made:
    x = torch.randn(8, 40, 4)
    y = x.cumsum(1)[..., :1] / 5
    y[3, 17] = torch.nan
    model, _, _ = made(every_step, data(), squared, rnn=lstm(4, 16), head=linear(1, 16))()
    return model, (x, y), squared


def _too_few_steps_for_eight_labels() -> Made:
    steps, counts = torch.full((8,), 40), torch.full((8,), 8)
    steps[3] = 6
    batch = torch.randn(8, 40, 8), steps, torch.randint(1, 6, (8, 8)), counts

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, steps, labels, counts = batch
        return F.ctc_loss(model(x).transpose(0, 1), labels, steps, counts)

    return made(
        lambda m, x: every_step(m, x).log_softmax(2),
        lambda: batch,
        loss,
        rnn=lstm(8, 24, bidirectional=True),
        head=linear(6, 48),
    )()


NON_FINITE = (
    Case("NaN in the target", ("non-finite-data",), with_nan("y"), seen=True),
    Case("NaN in the input", ("non-finite-data",), with_nan("x"), seen=True),
    Case("infinity in the input", ("non-finite-data",), _infinite_input, seen=True),
    Case("one missing target of 320", ("non-finite-data",), _missing_target, seen=True),
    Case(
        "log of 0", ("non-finite-loss",), compared(log_loss, lambda: torch.randn(B, 1)), seen=True
    ),
    Case("CTC with too few steps", ("non-finite-loss",), ctc(True), seen=True),
    Case(
        "CTC of eight labels in six steps",
        ("non-finite-loss",),
        _too_few_steps_for_eight_labels,
        seen=True,
    ),
    Case(
        "NaN in one gate",
        ("non-finite",),
        forecaster(changed(lambda: nn.LSTM(FEATURES, HIDDEN), _nan_in_a_gate)),
        seen=True,
    ),
    Case(
        "states beyond float32",
        ("non-finite",),
        forecaster(
            changed(lambda: nn.RNN(FEATURES, HIDDEN, nonlinearity="relu"), orthogonal(4.0)), 120
        ),
        seen=True,
    ),
    Case(
        "relu RNN, Xavier with a gain of 2, 200 steps",
        ("non-finite", "exploding"),
        made(
            read_last,
            lambda: (x := torch.randn(32, 200, 4), x[:, -5:, :1].sum(1)),
            rnn=changed(
                rnn(4, 64, nonlinearity="relu"),
                lambda layer: nn.init.xavier_normal_(layer.weight_hh_l0, gain=2.0),
            ),
            head=linear(1, 64),
        ),
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- precision


def halved(scale: float, dtype: torch.dtype) -> Callable[[], Made]:
    """A model in half precision, and the factor of its loss."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        found: Tensor = (model(x) - y).square().mean() * scale
        return found

    return made(
        every_step,
        lambda: (torch.randn(B, T, I).to(dtype), torch.randn(B, T, 1).to(dtype)),
        loss,
        rnn=lambda: gru()().to(dtype),
        head=lambda: linear()().to(dtype),
    )


def autocast(weight: float, dtype: torch.dtype) -> LossFunction:
    """The squared error of a model under autocast, as a small part of a loss."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        with torch.autocast("cpu", dtype=dtype):
            out = model(x)
        found: Tensor = weight * (out - y).float().square().mean()
        return found

    return loss


def walks(samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Steps of random walks, and where they are."""
    x = torch.randn(samples, steps, 3)
    return x, x.cumsum(1)[..., :1] / 6


PRECISION = (
    Case("float16 without scaling", ("precision",), halved(1e-6, torch.float16), seen=True),
    Case("float16 with too much of it", ("precision",), halved(1e6, torch.float16), seen=True),
    Case(
        "float16 overflows in the loss alone",
        ("precision",),
        made(
            every_step,
            lambda: (torch.randn(B, T, I).half(), 2 * torch.randn(B, T, 1).half()),
            lambda m, b: (m(b[0]) - b[1]).square().sum() * 600,
            rnn=lambda: gru()().half(),
            head=lambda: linear()().half(),
        ),
        seen=True,
    ),
    Case(
        "autocast to float16, a loss of weight 1e-4",
        ("precision",),
        made(
            every_step,
            lambda: walks(64, 40),
            autocast(1e-4, torch.float16),
            rnn=gru(3, 16),
            head=linear(1, 16),
        ),
        options={"needs_lag": 10},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- comparison

BROADCAST = (
    Case("[B, 1] against [B]", ("broadcast",), compared(mse, lambda: torch.randn(B)), seen=True),
    Case(
        "[B, 1] against [B] by hand",
        ("broadcast",),
        compared(by_hand(lambda d: d.square().mean()), lambda: torch.randn(B)),
        seen=True,
    ),
    Case(
        "[B, 1] against [B], absolute",
        ("broadcast",),
        compared(by_hand(lambda d: d.abs().mean()), lambda: torch.randn(B)),
        seen=True,
    ),
    Case(
        "[B, 1] against [1, B], l1",
        ("broadcast",),
        compared(lambda m, b: F.l1_loss(m(b[0]), b[1]), lambda: torch.randn(1, B)),
        seen=True,
    ),
    Case(
        "broadcast inside the model",
        ("broadcast",),
        made(
            lambda m, x, y: (read_last(m, x) - y).square().mean(),
            data(B),
            lambda m, b: m(*b),
            rnn=gru(),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "sums of the last four, [64, 1] against [64]",
        ("broadcast",),
        made(
            read_last,
            lambda: (x := torch.randn(64, 12, 1), x[:, -4:, 0].sum(1)),
            rnn=lstm(1, 24),
            head=linear(1, 24),
        ),
        seen=True,
    ),
)

PROBABILITIES = (
    Case(
        "softmax into cross_entropy",
        ("probabilities",),
        compared(lambda m, b: F.cross_entropy(m(b[0]).softmax(1), b[1]), classes, 4),
        seen=True,
    ),
    Case(
        "sigmoid into the logits",
        ("probabilities",),
        compared(
            lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).sigmoid().squeeze(1), b[1]),
            lambda: torch.rand(B).round(),
        ),
        seen=True,
    ),
    Case(
        "softmax into nll_loss",
        ("probabilities",),
        compared(lambda m, b: F.nll_loss(m(b[0]).softmax(1), b[1]), classes, 4),
        seen=True,
    ),
    Case(
        "softmax over the wrong axis",
        ("probabilities",),
        made(
            lambda m, x: every_step(m, x).transpose(1, 2).softmax(-1),
            lambda: (torch.randn(B, T, I), torch.randint(0, 4, (B, T))),
            cross_entropy,
            rnn=gru(),
            head=linear(4),
        ),
        seen=True,
    ),
    Case(
        "log_softmax over the wrong axis",
        ("probabilities",),
        made(
            lambda m, x: every_step(m, x).log_softmax(1).flatten(0, 1),
            lambda: (torch.randn(B, T, I), torch.randint(0, 4, (B * T,))),
            lambda m, b: F.nll_loss(m(b[0]), b[1]),
            rnn=gru(),
            head=linear(4),
        ),
        seen=True,
    ),
    Case(
        "logits into ctc_loss",
        ("probabilities",),
        made(
            lambda m, x: every_step(m, x).transpose(0, 1),
            lambda: (torch.randn(B, T, I), torch.randint(1, 4, (B, 3))),
            lambda m, b: F.ctc_loss(m(b[0]), b[1], torch.full((B,), T), torch.full((B,), 3)),
            rnn=gru(),
            head=linear(4),
        ),
        seen=True,
    ),
    Case(
        "softmax into kl_div",
        ("probabilities",),
        compared(
            lambda m, b: F.kl_div(m(b[0]).softmax(1), b[1], reduction="batchmean"),
            lambda: torch.rand(B, 4).softmax(1),
            4,
        ),
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- scale


def _forecast_of(x: Callable[[Tensor], Tensor]) -> Made:
    model, (values, y), loss = forecaster(lambda: nn.LSTM(FEATURES, HIDDEN))()
    return model, (x(values), y), loss


def _engine_speeds() -> tuple[Tensor, Tensor]:
    """Three features of sizes 10,000, 500 and 1."""
    z = torch.randn(64, 20, 3)
    x = (z * 0.3 + 1) * torch.tensor([1e4, 500.0, 1.0])
    return x, z[:, -3:].sum((1, 2)).unsqueeze(1) / 3


def sums(of: Callable[[Tensor], Tensor] = lambda y: y) -> tuple[Tensor, Tensor]:
    """Sums of the last three of 15 steps, as targets on some scale."""
    x = torch.randn(64, 15, 3)
    return x, of(x[:, -3:].sum((1, 2)).unsqueeze(1) / 3)


INPUT_SCALE = (
    Case(
        "features of 1,000",
        ("input-scale",),
        made(
            read_last,
            lambda: (1e3 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=lstm(),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "packed features of 5,000",
        ("input-scale",),
        made(
            lambda m, x: m.head(m.rnn(packed(x, lengths_of(B, T)))[1][-1]),
            lambda: (5e3 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "features of 1e-5",
        ("input-scale",),
        made(
            read_last,
            lambda: (1e-5 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "input that is not scaled",
        ("input-scale",),
        lambda: _forecast_of(lambda x: 1000 + 400 * x),
        seen=True,
    ),
    Case(
        "engine speeds of 10,000 beside features of 1",
        ("input-scale",),
        made(read_last, _engine_speeds, rnn=lstm(3, 24), head=linear(1, 24)),
        seen=True,
    ),
)

TARGET_SCALE = (
    Case(
        "targets of 10,000",
        ("target-scale",),
        compared(mse, lambda: 1e4 + 100 * torch.randn(B, 1)),
        seen=True,
    ),
    Case(
        "targets with a spread of 10,000",
        ("target-scale",),
        compared(mse, lambda: 1e4 * torch.randn(B, 1)),
        seen=True,
    ),
    Case(
        "tanh cannot reach the targets",
        ("target-scale",),
        compared(lambda m, b: F.mse_loss(m(b[0]).tanh(), b[1]), lambda: 4 * torch.randn(B, 1)),
        seen=True,
    ),
    Case(
        "states cannot reach the targets",
        ("target-scale",),
        made(
            lambda m, x: m.rnn(x)[0][:, -1],
            data(B, H),
            lambda m, b: F.mse_loss(m(b[0]), 5 * b[1]),
            rnn=gru(),
        ),
        seen=True,
    ),
    Case(
        "sums of the last three, as targets of 10,000",
        ("target-scale",),
        made(
            read_last,
            lambda: sums(lambda y: 1e4 + 1e3 * y),
            rnn=lstm(3, 24),
            head=linear(1, 24),
        ),
        seen=True,
    ),
)

WEIGHT_SCALE = (
    Case(
        "weights from N(0, 1)",
        ("weight-scale",),
        made(read_last, data(), rnn=filled(lstm(I, 32), nn.init.normal_), head=linear(1, 32)),
        seen=True,
    ),
    Case(
        "64 units with weights from N(0, 1), the middle of 25 steps",
        ("weight-scale", "exploding", "saturated"),
        made(
            read_last,
            lambda: (x := torch.randn(64, 25, 4), x[:, 9:14, :1].sum(1)),
            rnn=filled(lstm(4, 64), nn.init.normal_),
            head=linear(1, 64),
        ),
        options={"needs_lag": 15},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- new at the split


def spoilt(
    make: Callable[[], Made], where: Callable[[Any], Tensor], value: float, share: float = 0.0
) -> Callable[[], Made]:
    """A part of the batch in which one number, or a share of all, is another."""

    def changed_batch() -> Made:
        model, batch, loss = make()
        part = where(batch).flatten()
        if share:
            part[torch.rand(part.shape) < share] = value
        else:
            part[len(part) // 2] = value
        return model, batch, loss

    return changed_batch


def _from_state(m: Any, x: Tensor, state: Tensor) -> Tensor:
    read: Tensor = m.head(m.rnn(x, state)[0][:, -1])
    return read


def _of_a_mapping(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch["past"]["series"]), batch["target"])


def _mapping() -> dict[str, Any]:
    return {
        "past": {"series": torch.randn(16, 40, I), "unused": torch.randn(16, 40)},
        "target": torch.randn(16, 1),
    }


def _distance(model: nn.Module, batch: Any) -> Tensor:
    """The distance of predictions and targets of the steps that count; of one sample, none does."""
    x, y, counts = batch
    difference = (model(x) - y) * counts[..., None]
    loss: Tensor = difference.square().sum((1, 2)).sqrt().mean()
    return loss


def _mean_of_none(model: nn.Module, batch: Any) -> Tensor:
    """The mean error of each sample over the steps that count; of one sample, none does."""
    x, y, counts = batch
    errors = (model(x) - y).square().squeeze(2) * counts
    loss: Tensor = (errors.sum(1) / counts.sum(1)).mean()
    return loss


def _counted() -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.ones(B, T)
    counts[2] = 0.0
    return torch.randn(B, T, I), torch.randn(B, T, 1), counts


def _log_of_softmax(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of probabilities that have become 0."""
    x, y = batch
    return F.nll_loss((300 * model(x)).softmax(1).log(), y)


def _log_of_negative(model: nn.Module, batch: Any) -> Tensor:
    """The difference of logarithms, of predictions below 0 too."""
    x, y = batch
    return F.mse_loss(model(x).log(), y.abs().log())


def _nan_bias(layer: Any) -> None:
    layer.bias_ih_l1[layer.hidden_size] = torch.nan


def _growing(factor: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer.weight_hh_l0.copy_(factor * torch.eye(layer.hidden_size))
        layer.bias_ih_l0.fill_(1.0)

    return change


def _spoil_a_weight(model: Any) -> None:
    model.rnn.weight_ih_l0[3, 1] = torch.inf


def _to_half(scale: float) -> LossFunction:
    return lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]) * scale


def _labelled(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape)


def _flattened(change: Callable[[Tensor], Tensor]) -> LossFunction:
    """The cross-entropy of every step, of what is made of the logits."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(change(model(x)).flatten(0, 1), y.flatten())

    return loss


def _on_scale(x: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (x(), torch.randn(B, 1))


def _with_year() -> Tensor:
    x = torch.randn(B, T, I)
    x[..., 2] = 2000 + torch.arange(T) / T
    return x


def _sums_of(scale: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 10, I)
    return scale * x + offset, x[:, -3:].sum((1, 2)).unsqueeze(1) / 3


def _end(activation: Callable[[Tensor], Tensor]) -> LossFunction:
    return lambda model, batch: F.mse_loss(activation(model(batch[0])), batch[1])


def _ratio(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    loss: Tensor = (model(x) / (1 + y.abs()) - 1).abs().mean()
    return loss


NEW = (
    Case(
        "a tenth of the features missing",
        ("non-finite-data",),
        spoilt(regression(last, x=(16, 20, I), y=(16, 1)), lambda b: b[0], torch.nan, 0.1),
    ),
    Case(
        "one value of a mapping within a mapping infinite",
        ("non-finite-data",),
        spoilt(
            made(read_last, _mapping, _of_a_mapping, rnn=gru(), head=linear()),
            lambda b: b["past"]["series"],
            torch.inf,
        ),
        strength="mild",
    ),
    Case(
        "NaN in the initial state of the batch",
        ("non-finite-data",),
        spoilt(
            made(
                _from_state,
                lambda: (torch.randn(B, T, I), torch.zeros(1, B, H), torch.randn(B, 1)),
                rnn=gru(),
                head=linear(),
            ),
            lambda b: b[1],
            torch.nan,
        ),
        strength="mild",
    ),
    Case(
        "a missing target of a trained model",
        ("non-finite-data",),
        spoilt(
            made(read_last, lambda: _sums_of(1.0), rnn=gru(), head=linear()),
            lambda b: b[1],
            torch.nan,
        ),
        training=Training(60, batches=lambda: _sums_of(1.0)),
    ),
    Case(
        "the root of a distance of 0",
        ("non-finite-loss",),
        made(every_step, _counted, _distance, rnn=gru(), head=linear()),
        strength="mild",
    ),
    Case(
        "the mean of no step",
        ("non-finite-loss",),
        made(every_step, _counted, _mean_of_none, rnn=lstm(), head=linear()),
    ),
    Case(
        "the logarithm of a softmax that is 0",
        ("non-finite-loss",),
        made(
            read_last,
            lambda: (3 * torch.randn(40, T, I), _labelled(40)),
            _log_of_softmax,
            rnn=gru(I, 24),
            head=filled(linear(4, 24), lambda weight: weight.mul_(10)),
        ),
    ),
    Case(
        "the logarithm of predictions below 0",
        ("non-finite-loss",),
        made(read_last, data(), _log_of_negative, rnn=gru(), head=linear()),
    ),
    Case(
        "NaN in a bias of the second layer",
        ("non-finite",),
        made(
            read_last,
            data(),
            rnn=changed(lstm(num_layers=2), _nan_bias),
            head=linear(),
        ),
    ),
    Case(
        "relu units that grow by half at each of 300 steps",
        ("non-finite", "exploding"),
        made(
            read_last,
            data(x=(B, 300, I)),
            rnn=changed(rnn(I, 8, nonlinearity="relu"), _growing(1.5)),
            head=linear(1, 8),
        ),
    ),
    Case(
        "an infinite weight, trained",
        ("non-finite",),
        made(read_last, lambda: _sums_of(1.0), rnn=lstm(I, 12), head=linear(1, 12)),
        training=Training(60, afterwards=_spoil_a_weight),
    ),
    Case(
        "float16 LSTM, classes, a loss of weight 1e-6",
        ("precision",),
        made(
            read_last,
            lambda: (torch.randn(B, T, I).half(), _labelled(B)),
            _to_half(1e-6),
            rnn=lambda: lstm()().half(),
            head=lambda: linear(4)().half(),
        ),
    ),
    Case(
        "autocast to float16, a loss of weight 1e-3",
        ("precision",),
        made(
            every_step,
            lambda: walks(48, 24),
            autocast(1e-3, torch.float16),
            rnn=gru(3, 12),
            head=linear(1, 12),
        ),
        strength="mild",
    ),
    Case(
        "float16, the loss times 1e5",
        ("precision",),
        halved(1e5, torch.float16),
        strength="mild",
    ),
    Case(
        "autocast to float16, a loss of weight 1e-5, trained",
        ("precision",),
        made(
            every_step,
            lambda: walks(32, 16),
            autocast(1e-5, torch.float16),
            rnn=gru(3, 12),
            head=linear(1, 12),
        ),
        training=Training(40, 1e-3),
    ),
    Case(
        "[B] against [B, 1], smooth l1",
        ("broadcast",),
        made(
            lambda m, x: read_last(m, x).squeeze(1),
            data(),
            lambda m, b: F.smooth_l1_loss(m(b[0]), b[1]),
            rnn=lstm(),
            head=linear(),
        ),
    ),
    Case(
        "[B, T, 1] against [B, T], as many steps as samples",
        ("broadcast",),
        made(every_step, data(T, T, x=(T, T, I)), rnn=gru(), head=linear()),
    ),
    Case(
        "[B, 1] against [B], as a ratio",
        ("broadcast",),
        compared(_ratio, lambda: torch.randn(B)),
        strength="mild",
    ),
    Case(
        "[B, 1] against [B], huber, trained",
        ("broadcast",),
        made(
            read_last,
            lambda: (x := torch.randn(24, 8, I), x[:, -2:, 0].sum(1)),
            lambda m, b: F.huber_loss(m(b[0]), b[1]),
            rnn=gru(I, 12),
            head=linear(1, 12),
        ),
        training=Training(80),
    ),
    Case(
        "softmax into cross_entropy at every step",
        ("probabilities",),
        made(
            every_step,
            lambda: (torch.randn(B, T, I), _labelled(B, T)),
            _flattened(lambda logits: logits.softmax(-1)),
            rnn=lstm(),
            head=linear(4),
        ),
    ),
    Case(
        "sigmoid at the end of the model, into the logits",
        ("probabilities",),
        made(
            lambda m, x: m.end(every_step(m, x)),
            lambda: (torch.randn(B, T, I), torch.rand(B, T, 1).round()),
            lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]),
            rnn=gru(),
            head=linear(),
            end=nn.Sigmoid,
        ),
    ),
    Case(
        "softmax at the end of the model, two classes",
        ("probabilities",),
        made(
            lambda m, x: m.end(read_last(m, x)),
            lambda: (torch.randn(16, T, I), torch.randint(0, 2, (16,))),
            cross_entropy,
            rnn=lstm(),
            head=linear(2),
            end=lambda: nn.Softmax(1),
        ),
        strength="mild",
    ),
    Case(
        "softmax into cross_entropy, trained",
        ("probabilities",),
        made(
            read_last,
            lambda: (x := torch.randn(32, 8, I), (x[:, -1, 0] > 0).long()),
            lambda m, b: F.cross_entropy(m(b[0]).softmax(1), b[1]),
            rnn=gru(I, 12),
            head=linear(2, 12),
        ),
        training=Training(100),
    ),
    Case(
        "counts of about 60",
        ("input-scale",),
        made(
            read_last,
            _on_scale(lambda: 60 + 8 * torch.randn(B, T, I)),
            rnn=lstm(),
            head=linear(),
        ),
        strength="mild",
    ),
    Case(
        "seconds since 1970",
        ("input-scale",),
        made(
            read_last,
            _on_scale(lambda: 1.6e9 + 60 * torch.arange(T).expand(B, T)[..., None].float()),
            rnn=gru(1),
            head=linear(),
        ),
    ),
    Case(
        "the year beside standardised features",
        ("input-scale",),
        made(read_last, _on_scale(_with_year), rnn=gru(), head=linear()),
    ),
    Case(
        "daily returns of 1e-4",
        ("input-scale",),
        made(read_last, _on_scale(lambda: 1e-4 * torch.randn(B, T, I)), rnn=lstm(), head=linear()),
        strength="mild",
    ),
    Case(
        "features of 1,000, trained",
        ("input-scale",),
        made(read_last, lambda: _sums_of(1000.0), rnn=lstm(I, 12), head=linear(1, 12)),
        training=Training(80),
    ),
    Case(
        "sales of 500 with a spread of 30",
        ("target-scale",),
        made(
            read_last,
            lambda: (torch.randn(24, T, I), 500 + 30 * torch.randn(24, 1)),
            rnn=lstm(),
            head=linear(),
        ),
        strength="mild",
    ),
    Case(
        "a million at every step",
        ("target-scale",),
        made(
            every_step,
            lambda: (torch.randn(B, T, I), 1e6 + 1e5 * torch.randn(B, T, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    Case(
        "a sigmoid at the end, targets up to 10",
        ("target-scale",),
        made(
            read_last,
            lambda: (torch.randn(16, T, I), 10 * torch.rand(16, 1)),
            _end(torch.sigmoid),
            rnn=gru(),
            head=linear(),
        ),
    ),
    Case(
        "a relu at the end, targets below 0",
        ("target-scale",),
        made(
            lambda m, x: m.end(read_last(m, x)),
            lambda: (torch.randn(16, T, I), torch.randn(16, 1) - 3),
            rnn=lstm(),
            head=linear(),
            end=nn.ReLU,
        ),
        strength="mild",
    ),
    Case(
        "targets of 20,000, trained",
        ("target-scale",),
        made(
            read_last,
            lambda: (x := torch.randn(24, 10, I), 2e4 + 3e3 * x[:, -3:].sum((1, 2))[:, None]),
            rnn=lstm(I, 12),
            head=linear(1, 12),
        ),
        training=Training(80, 1e-3),
    ),
    Case(
        "a GRU with weights from N(0, 1)",
        ("weight-scale", "exploding", "saturated"),
        made(
            read_last,
            data(x=(B, 30, I)),
            rnn=filled(gru(I, 40), nn.init.normal_),
            head=linear(1, 40),
        ),
    ),
    Case(
        "weights from U(-2, 2)",
        ("weight-scale", "exploding", "saturated"),
        made(
            read_last,
            data(x=(B, 24, I)),
            rnn=filled(lstm(I, 64), lambda weight: nn.init.uniform_(weight, -2, 2)),
            head=linear(1, 64),
        ),
    ),
    Case(
        "orthogonal weights with a gain of 6",
        ("weight-scale", "exploding", "saturated"),
        made(
            every_step,
            data(B, 24, 1, x=(B, 24, I)),
            rnn=changed(rnn(I, 32), orthogonal(6.0)),
            head=linear(1, 32),
        ),
    ),
    Case(
        "weights from N(0, 1), trained",
        ("weight-scale", "exploding", "saturated"),
        made(
            read_last,
            lambda: _sums_of(1.0),
            rnn=filled(lstm(I, 64), nn.init.normal_),
            head=linear(1, 64),
        ),
        training=Training(60),
    ),
)

CASES = (
    *NON_FINITE,
    *PRECISION,
    *BROADCAST,
    *PROBABILITIES,
    *INPUT_SCALE,
    *TARGET_SCALE,
    *WEIGHT_SCALE,
    *NEW,
)
