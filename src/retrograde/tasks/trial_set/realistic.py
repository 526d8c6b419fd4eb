"""Healthy models of the forms and sizes that people train, fresh and trained."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrograde.tasks.trial_set.case import Case, Made, Training
from retrograde.tasks.trial_set.memory import chrono, past_each
from retrograde.tasks.trial_set.models import (
    at_lengths,
    changed,
    cross_entropy,
    each_step,
    every_step,
    gru,
    keeping_bias,
    last_states,
    lengths_of,
    linear,
    lstm,
    made,
    orthogonal,
    packed,
    packed_out,
    read_last,
    rnn,
)

SAMPLES, STEPS, FEATURES, UNITS = 24, 40, 6, 48
"""Where nothing else is said."""


def _batch(*y: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(SAMPLES, STEPS, FEATURES), torch.randn(y or (SAMPLES, 1)))


# ------------------------------------------------------------------------------- text and speech


def _words(longest: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of sentences, padded with 0, their lengths, and a class for each."""
    lengths = lengths_of(SAMPLES, longest, 5)
    words = torch.randint(1, 200, (SAMPLES, longest))
    words[torch.arange(longest) >= lengths[:, None]] = 0
    return words, lengths, torch.randint(0, 5, (SAMPLES,))


def _tags() -> tuple[Tensor, Tensor, Tensor]:
    """A tag for each word, -100 where there is none."""
    words, lengths, _ = _words()
    return words, lengths, torch.randint(0, 7, words.shape).masked_fill(words == 0, -100)


def _classified(m: Any, words: Tensor, lengths: Tensor) -> Tensor:
    state = m.rnn(packed(m.embed(words), lengths))
    h = state[1][0] if isinstance(state[1], tuple) else state[1]
    read: Tensor = m.head(m.drop(torch.cat((h[-2], h[-1]), 1)))
    return read


def _tagged(m: Any, words: Tensor, lengths: Tensor) -> Tensor:
    read: Tensor = m.head(packed_out(m.rnn, m.embed(words), lengths))
    return read


def _tag_loss(model: nn.Module, batch: Any) -> Tensor:
    words, lengths, tags = batch
    logits = model(words, lengths)
    return F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=-100)


def _next_word(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _tied(m: Any, words: Tensor) -> Tensor:
    """A language model whose output layer is its embedding."""
    read: Tensor = m.down(m.drop(m.rnn(m.embed(words))[0])) @ m.embed.weight.T
    return read


def _attended(m: Any, words: Tensor, lengths: Tensor) -> Tensor:
    """A weighted sum of all outputs, without those of padding."""
    h = packed_out(m.rnn, m.embed(words), lengths)
    scores = m.score(h).squeeze(2).masked_fill(words == 0, -math.inf)
    read: Tensor = m.head((scores.softmax(1)[..., None] * h).sum(1))
    return read


def _spoken(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    read: Tensor = m.head(packed_out(m.rnn, m.filter(x.transpose(1, 2)).relu().mT, lengths))
    return read.log_softmax(2)


def _speech() -> tuple[Tensor, ...]:
    lengths = lengths_of(8, 50, 30)
    labels = torch.randint(1, 12, (8, 10))
    return torch.randn(8, 50, 13), lengths, labels, torch.full((8,), 10)


def _speech_loss(model: nn.Module, batch: Any) -> Tensor:
    x, lengths, labels, counts = batch
    return F.ctc_loss(model(x, lengths).transpose(0, 1), labels, lengths, counts)


class Translator(nn.Module):
    """An encoder, attention to its outputs, and a decoder that is taught."""

    def __init__(self, attention: bool, words: int = 60, units: int = 32):
        super().__init__()
        self.source, self.target = nn.Embedding(words, units), nn.Embedding(words, units)
        self.encoder = nn.GRU(units, units, batch_first=True)
        self.decoder = nn.GRU(units, units, batch_first=True)
        self.query = nn.Linear(units, units)
        self.head, self.attention = nn.Linear(2 * units, words), attention

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Tokens [B, T] and [B, S] to logits [B, S, words]."""
        keys, state = self.encoder(self.source(source))
        h = self.decoder(self.target(target), state)[0]
        seen = (self.query(h) @ keys.mT).softmax(2) @ keys if self.attention else h
        read: Tensor = self.head(torch.cat((h, seen), 2))
        return read


def _translations(samples: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(1, 60, (samples, 13))
    return torch.randint(1, 60, (samples, 18)), target[:, :-1], target[:, 1:]


def _copies() -> tuple[Tensor, Tensor, Tensor]:
    """The target is the source."""
    source = torch.randint(1, 6, (32, 4))
    return source, torch.cat((torch.zeros_like(source[:, :1]), source[:, :-1]), 1), source


# ------------------------------------------------------------------------------- forecasts


def _catchment() -> tuple[Tensor, Tensor, Tensor]:
    """Weather of days, features of the place, and the runoff of the last day."""
    rain = (torch.rand(SAMPLES, 60, 1) < 0.3) * torch.rand(SAMPLES, 60, 1).mul(-1).log1p().neg()
    weather = torch.cat((rain, torch.randn(SAMPLES, 60, 4)), 2)
    return weather, torch.randn(SAMPLES, 5), torch.randn(SAMPLES, 1)


def _runoff(m: Any, weather: Tensor, place: Tensor) -> Tensor:
    x = torch.cat((weather, place[:, None].expand(-1, weather.shape[1], -1)), 2)
    read: Tensor = m.head(m.drop(m.rnn(x)[0][:, -1]))
    return read


def _quantiles(model: nn.Module, batch: Any) -> Tensor:
    """The pinball loss of three quantiles of twelve horizons."""
    x, y = batch
    q = torch.tensor([0.1, 0.5, 0.9])
    error = y[..., None] - model(x).unflatten(1, (12, 3))
    return torch.maximum(q * error, (q - 1) * error).mean()


def _likelihood(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    mean, raw = model(x).chunk(2, -1)
    return F.gaussian_nll_loss(mean, y, F.softplus(raw) + 1e-3)


def _counts(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.poisson_nll_loss(model(x), y)


def _rolled_out(m: Any, x: Tensor, horizon: int = 6) -> Tensor:
    """Each forecast is what the next one is made from."""
    out, state = m.rnn(x)
    step, found = m.head(out[:, -1:]), []
    for _ in range(horizon):
        found.append(step)
        out, state = m.rnn(step, state)
        step = m.head(out)
    return torch.cat(found, 1)


def _normalised_by_sample(m: Any, x: Tensor) -> Tensor:
    """Reversible instance normalisation."""
    mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    read: Tensor = m.head(m.rnn((x - mean) / spread)[0][:, -1]) * spread[:, 0] + mean[:, 0]
    return read


def _residual(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    for layer, norm in zip(m.layers, m.norms, strict=True):
        x = x + m.drop(layer(norm(x))[0])
    read: Tensor = m.head(x[:, -1])
    return read


def _in_a_mapping(m: Any, inputs: Any) -> Tensor:
    x = torch.cat((inputs["numbers"], m.embed(inputs["kinds"])), 2)
    read: Tensor = m.head(torch.cat((m.rnn(x)[0][:, -1], inputs["still"]), 1))
    return read


def _mapping() -> tuple[dict[str, Tensor], Tensor]:
    numbers = torch.randn(SAMPLES, STEPS, FEATURES)
    kinds = torch.randint(0, 9, (SAMPLES, STEPS))
    inputs = {"numbers": numbers, "kinds": kinds, "still": torch.randn(SAMPLES, 3)}
    return inputs, torch.randn(SAMPLES, 1)


# ------------------------------------------------------------------------------- agents


def _agent(m: Any, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of an agent that is handed its state: logits, value and the next state."""
    state = m.cell(m.eyes(seen).relu(), state)
    return m.policy(state), m.value(state).squeeze(1), state


class Agent(nn.Module):
    """Eyes, a memory, a policy and a value."""

    def __init__(self, small_heads: bool = False):
        super().__init__()
        self.eyes, self.cell = nn.Linear(8, 32), nn.GRUCell(32, 32)
        self.policy, self.value = nn.Linear(32, 4), nn.Linear(32, 1)
        if small_heads:
            nn.init.orthogonal_(self.policy.weight, 0.01)

    def forward(self, seen: Tensor, state: Tensor, ended: Tensor | None = None) -> Any:
        """Observations of one step [B, 8], or of an episode [T, B, 8] with the ends of episodes."""
        if ended is None:
            return _agent(self, seen, state)
        logits, values = [], []
        for now, end in zip(seen, ended, strict=True):
            state = state * (1 - end)[:, None]
            one, value, state = _agent(self, now, state)
            logits.append(one)
            values.append(value)
        return torch.stack(logits), torch.stack(values), state


def _actor_critic(model: nn.Module, batch: Any) -> Tensor:
    *inputs, actions, returns = batch
    logits, values, _ = model(*inputs)
    chances = logits.log_softmax(-1)
    chosen = chances.gather(-1, actions[..., None]).squeeze(-1)
    advantage = (returns - values).detach()
    entropy = -(chances.exp() * chances).sum(-1).mean()
    loss: Tensor = 0.5 * F.mse_loss(values, returns) - (chosen * advantage).mean() - 0.01 * entropy
    return loss


def _one_step() -> tuple[Tensor, ...]:
    state = torch.randn(16, 32).tanh()
    return torch.randn(16, 8), state, torch.randint(0, 4, (16,)), torch.randn(16)


def _episodes() -> tuple[Tensor, ...]:
    ended = (torch.rand(20, 16) < 0.05).float()
    seen, state = torch.randn(20, 16, 8), torch.zeros(16, 32)
    return seen, state, ended, torch.randint(0, 4, (20, 16)), torch.randn(20, 16)


# ------------------------------------------------------------------------------- others


def _encoded(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A variational autoencoder of sequences."""
    mean, spread = m.bottleneck(m.encoder(x)[1][-1]).chunk(2, 1)
    code = mean + (0.5 * spread).exp() * torch.randn_like(mean)
    shown = code[:, None].expand(-1, x.shape[1], -1)
    return m.head(m.decoder(shown)[0]), mean, spread


def _evidence_bound(model: nn.Module, batch: Any) -> Tensor:
    shown, mean, spread = model(batch)
    divergence: Tensor = -0.5 * (1 + spread - mean.square() - spread.exp()).sum(1).mean()
    return F.mse_loss(shown, batch) + 0.01 * divergence


def _triplet(model: nn.Module, batch: Any) -> Tensor:
    anchor, alike, other = (model(part) for part in batch)
    return F.triplet_margin_loss(anchor, alike, other)


def _weighted(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    weights = torch.tensor([1.0, 4.0, 2.0])
    return F.cross_entropy(model(x), y, weight=weights, label_smoothing=0.1)


def _labels(count: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (
        torch.randn(SAMPLES, STEPS, FEATURES),
        torch.randint(0, count, (SAMPLES,)),
    )


def _in_bfloat16(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    return F.mse_loss(out.float(), y)


def _scaled_float16(model: nn.Module, batch: Any) -> Tensor:
    """What GradScaler makes of a loss."""
    x, y = batch
    with torch.autocast("cpu", dtype=torch.float16):
        out = model(x)
    return 1024 * F.mse_loss(out.float(), y)


def _zero_head(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _whole_in_float64(make: Callable[[], Made]) -> Callable[[], Made]:
    def wider() -> Made:
        model, (x, y), loss = make()
        return model.double(), (x.double(), y.double()), loss

    return wider


def well(
    name: str,
    make: Callable[[], Made],
    training: Training | None = None,
    seen: bool = False,
    **options: Any,
) -> Case:
    """A healthy case."""
    return Case(name, (), make, training=training, options=options, seen=seen)


FRESH = (
    well(
        "sentences classified by both directions, packed",
        made(
            _classified,
            _words,
            cross_entropy,
            embed=lambda: nn.Embedding(200, 32, padding_idx=0),
            rnn=lstm(32, UNITS, bidirectional=True),
            drop=lambda: nn.Dropout(0.3),
            head=linear(5, 2 * UNITS),
        ),
    ),
    well(
        "words tagged by two bidirectional layers, packed",
        made(
            _tagged,
            _tags,
            _tag_loss,
            embed=lambda: nn.Embedding(200, 32, padding_idx=0),
            rnn=gru(32, 32, num_layers=2, bidirectional=True, dropout=0.2),
            head=linear(7, 64),
        ),
    ),
    well(
        "sentences classified by attention",
        made(
            _attended,
            _words,
            cross_entropy,
            embed=lambda: nn.Embedding(200, 32),
            rnn=gru(32, UNITS),
            score=linear(1, UNITS),
            head=linear(5, UNITS),
        ),
    ),
    well(
        "a language model with tied weights",
        made(
            _tied,
            lambda: torch.randint(0, 100, (16, 36)),
            _next_word,
            embed=lambda: nn.Embedding(100, 32),
            rnn=lstm(32, 64, num_layers=2),
            down=linear(32, 64),
            drop=lambda: nn.Dropout(0.2),
        ),
    ),
    well(
        "speech with a convolution, both directions, CTC",
        made(
            _spoken,
            _speech,
            _speech_loss,
            filter=lambda: nn.Conv1d(13, 24, 3, padding=1),
            rnn=lstm(24, 32, bidirectional=True),
            head=linear(12, 64),
        ),
    ),
    well(
        "a translator with attention",
        lambda: (Translator(True), _translations(), each_step),
    ),
    well(
        "a translator without attention",
        lambda: (Translator(False), _translations(), each_step),
    ),
    well(
        "runoff of a catchment, forget bias 3",
        made(
            _runoff,
            _catchment,
            rnn=changed(lstm(10, 64), keeping_bias(3.0)),
            drop=lambda: nn.Dropout(0.4),
            head=linear(1, 64),
        ),
    ),
    well(
        "quantiles of twelve horizons",
        made(
            read_last,
            lambda: (torch.randn(SAMPLES, STEPS, FEATURES), torch.randn(SAMPLES, 12)),
            _quantiles,
            rnn=lstm(FEATURES, UNITS),
            head=linear(36, UNITS),
        ),
    ),
    well(
        "a normal distribution at every step",
        made(
            every_step,
            _batch(SAMPLES, STEPS, 1),
            _likelihood,
            rnn=gru(FEATURES, UNITS, num_layers=2),
            head=linear(2, UNITS),
        ),
    ),
    well(
        "counts with a Poisson loss",
        made(
            read_last,
            lambda: (
                torch.randn(SAMPLES, STEPS, FEATURES),
                torch.randint(0, 9, (SAMPLES, 1)) * 1.0,
            ),
            _counts,
            rnn=gru(FEATURES, UNITS),
            head=linear(1, UNITS),
        ),
    ),
    well(
        "forecasts made from forecasts",
        made(
            _rolled_out,
            lambda: (torch.randn(SAMPLES, 24, 1), torch.randn(SAMPLES, 6, 1)),
            rnn=lstm(1, 32),
            head=linear(1, 32),
        ),
    ),
    well(
        "prices that the model normalises sample by sample",
        made(
            _normalised_by_sample,
            lambda: (
                300 + 20 * torch.randn(SAMPLES, 30, 1).cumsum(1),
                300 + 80 * torch.randn(SAMPLES, 1),
            ),
            rnn=gru(1, 32),
            head=linear(1, 32),
        ),
    ),
    well(
        "four layers with ways past them, normalised, dropout",
        made(
            _residual,
            _batch(),
            first=linear(32, FEATURES),
            layers=lambda: nn.ModuleList(lstm(32, 32)() for _ in range(4)),
            norms=lambda: nn.ModuleList(nn.LayerNorm(32) for _ in range(4)),
            drop=lambda: nn.Dropout(0.1),
            head=linear(1, 32),
        ),
    ),
    well(
        "numbers, kinds and what stays still, in a mapping",
        made(
            _in_a_mapping,
            _mapping,
            embed=lambda: nn.Embedding(9, 4),
            rnn=lstm(FEATURES + 4, UNITS),
            head=linear(1, UNITS + 3),
        ),
    ),
    well(
        "one step of an agent that is handed its state",
        lambda: (Agent(), _one_step(), _actor_critic),
    ),
    well(
        "episodes of an agent, states reset where they end",
        lambda: (Agent(), _episodes(), _actor_critic),
    ),
    well(
        "an agent with a small policy head",
        lambda: (Agent(small_heads=True), _episodes(), _actor_critic),
    ),
    well(
        "an output layer of zeros, as residual forecasts start",
        made(
            lambda m, x: x[:, -1, :1] + read_last(m, x),
            _batch(),
            rnn=gru(FEATURES, UNITS),
            head=changed(linear(1, UNITS), _zero_head),
        ),
    ),
    well(
        "a variational autoencoder of sequences",
        made(
            _encoded,  # type: ignore[arg-type]
            lambda: torch.randn(SAMPLES, 20, FEATURES),
            _evidence_bound,
            encoder=gru(FEATURES, 32),
            bottleneck=linear(8, 32),
            decoder=gru(4, 32),
            head=linear(FEATURES, 32),
        ),
    ),
    well(
        "triplets of sequences",
        made(
            lambda m, x: F.normalize(m.head(m.rnn(x)[0].mean(1))),
            lambda: tuple(torch.randn(SAMPLES, 20, FEATURES) for _ in range(3)),
            _triplet,
            rnn=gru(FEATURES, 32),
            head=linear(16, 32),
        ),
    ),
    well(
        "classes with weights and smoothed labels",
        made(
            read_last,
            _labels(3),
            _weighted,
            rnn=lstm(FEATURES, UNITS),
            head=linear(3, UNITS),
        ),
    ),
    well(
        "log-softmax into cross_entropy, which changes nothing",
        made(
            lambda m, x: read_last(m, x).log_softmax(1),
            _labels(4),
            cross_entropy,
            rnn=gru(FEATURES, UNITS),
            head=linear(4, UNITS),
        ),
    ),
    well(
        "autocast to bfloat16",
        made(
            every_step,
            _batch(SAMPLES, STEPS, 1),
            _in_bfloat16,
            rnn=lstm(FEATURES, UNITS),
            head=linear(1, UNITS),
        ),
    ),
    well(
        "autocast to float16 with a scaled loss",
        made(
            every_step,
            _batch(SAMPLES, STEPS, 1),
            _scaled_float16,
            rnn=gru(FEATURES, UNITS),
            head=linear(1, UNITS),
        ),
    ),
    well(
        "a model in float64",
        _whole_in_float64(
            made(read_last, _batch(), rnn=lstm(FEATURES, UNITS), head=linear(1, UNITS))
        ),
    ),
    well(
        "an orthogonal plain RNN, lag 20 of 40",
        made(read_last, _batch(), rnn=changed(rnn(FEATURES, 64), orthogonal()), head=linear(1, 64)),
        needs_lag=20,
    ),
    well(
        "chrono over a hundred steps, lag 60",
        made(
            read_last,
            lambda: (torch.randn(16, 100, FEATURES), torch.randn(16, 1)),
            rnn=changed(lstm(FEATURES, UNITS), chrono(100)),
            head=linear(1, UNITS),
        ),
        needs_lag=60,
    ),
    well(
        "a window of one-hot kinds and a flag that stays",
        made(
            read_last,
            lambda: (
                torch.cat(
                    (
                        F.one_hot(torch.randint(0, 5, (SAMPLES, 25)), 5).float(),
                        torch.randint(0, 2, (SAMPLES, 1, 1)).float().expand(-1, 25, -1),
                    ),
                    2,
                ),
                torch.randn(SAMPLES, 1),
            ),
            rnn=gru(6, UNITS),
            head=linear(1, UNITS),
        ),
    ),
)

# ------------------------------------------------------------------------------- trained


def noisy_sums(samples: int = 32, steps: int = 14) -> tuple[Tensor, Tensor]:
    """Half of what there is to explain is noise."""
    x = torch.randn(samples, steps, 3)
    return x, x[:, -3:].sum((1, 2))[:, None] / 3 + torch.randn(samples, 1)


def signs(samples: int = 32, steps: int = 14) -> tuple[Tensor, Tensor]:
    """Whether the sum of the last four is positive."""
    x = torch.randn(samples, steps, 3)
    return x, (x[:, -4:, 0].sum(1) > 0).long()


def packed_signs() -> tuple[Tensor, Tensor, Tensor]:
    """Whether the last two steps of each sample have a positive sum; padded with 0."""
    lengths = torch.randint(4, 17, (32,))
    lengths[0] = 16
    x, rows = torch.randn(32, 16, 3), torch.arange(32)
    y = (x[rows, lengths - 1, 0] + x[rows, lengths - 2, 0] > 0).long()
    return x * (torch.arange(16) < lengths[:, None])[..., None], lengths, y


def _at_the_lengths(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    read: Tensor = m.head(at_lengths(packed_out(m.rnn, x, lengths), lengths))
    return read


def _stored() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 12, 2)
    return x, x[:, 3, :1]


def _engine() -> tuple[Tensor, Tensor]:
    x, y = noisy_sums()
    return (0.3 * x + 1) * torch.tensor([1e4, 500.0, 1.0]), y


def _standardised(m: Any, x: Tensor) -> Tensor:
    return read_last(m, (x - x.mean((0, 1))) / x.std((0, 1)))


TRAINED = (
    well(
        "noisy sums, half learned by an LSTM",
        made(read_last, noisy_sums, rnn=lstm(3, 24), head=linear(1, 24)),
        Training(60),
    ),
    well(
        "noisy sums, learned by a GRU of two layers",
        made(read_last, noisy_sums, rnn=gru(3, 24, num_layers=2), head=linear(1, 24)),
        Training(150),
    ),
    well(
        "signs, learned by a plain RNN",
        made(read_last, signs, cross_entropy, rnn=rnn(3, 24), head=linear(2, 24)),
        Training(150),
    ),
    well(
        "signs, learned by heart",
        made(read_last, signs, cross_entropy, rnn=lstm(3, 32), head=linear(2, 32)),
        Training(200, 1e-2, by_heart=True),
    ),
    well(
        "packed samples read at their lengths, trained",
        made(_at_the_lengths, packed_signs, cross_entropy, rnn=lstm(3, 24), head=linear(2, 24)),
        Training(150),
    ),
    well(
        "both directions, trained",
        made(
            lambda m, x: m.head(torch.cat(tuple(last_states(m.rnn, x)[-2:]), 1)),
            signs,
            cross_entropy,
            rnn=gru(3, 16, bidirectional=True),
            head=linear(2, 32),
        ),
        Training(150),
    ),
    well(
        "short copies, half learned by an encoder and a decoder",
        lambda: (Translator(False, 8, 24), _copies(), each_step),
        Training(150),
    ),
    well(
        "a number held over eight steps, half learned",
        made(read_last, _stored, rnn=changed(gru(2, 16), keeping_bias(2.0)), head=linear(1, 16)),
        Training(400, 1e-2),
        needs_lag=8,
    ),
    well(
        "engine speeds standardised in the model, trained",
        made(_standardised, _engine, rnn=lstm(3, 24), head=linear(1, 24)),
        Training(120),
    ),
    well(
        "an agent, trained on sixty batches",
        lambda: (Agent(), _episodes(), _actor_critic),
        Training(60, 1e-3),
    ),
    well(
        "noise, from which nothing can be learned",
        made(
            read_last,
            lambda: (torch.randn(32, 12, 3), torch.randn(32, 1)),
            rnn=gru(3, 16),
            head=linear(1, 16),
        ),
        Training(100),
    ),
)

# ------------------------------------------------------------------------------- mended


def _last_four() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 12, 1)
    return x, x[:, -4:, 0].sum(1)


def _means() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 18, 4)
    return x, (x[:, :12, 0].mean(1) > 0).long()


def _ends() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 20, 4)
    return x, x[:, -3:, :1].sum(1)


def _middle() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 18, 4)
    return x, x[:, 6:10, :1].sum(1)


def _products() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 10, 3)
    return x, x[:, -1, :1] * x[:, -2, 1:2] + x[:, -3, 2:3]


def _whole_sums() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 6, 2)
    return x, x.sum((1, 2))[:, None]


def _last_five() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 12, 4)
    return x, (x[:, -5:, 0].sum(1) > 0).long()


MENDED = (
    well(
        "sums of the last four, of one shape, trained",
        made(
            lambda m, x: read_last(m, x).squeeze(1), _last_four, rnn=lstm(1, 24), head=linear(1, 24)
        ),
        Training(150),
        seen=True,
    ),
    well(
        "classes of means, batch first said, trained",
        made(read_last, _means, cross_entropy, rnn=lstm(4, 24), head=linear(2, 24)),
        Training(150),
        seen=True,
        needs_lag=10,
    ),
    well(
        "sums of the ends, from both directions, trained",
        made(
            lambda m, x: m.head(torch.cat(tuple(m.rnn(x)[1]), 1)),
            _ends,
            rnn=gru(4, 16, bidirectional=True),
            head=linear(1, 32),
        ),
        Training(150),
        seen=True,
    ),
    well(
        "the sum of six steps from a state of zeros, trained",
        made(read_last, _whole_sums, rnn=lstm(2, 24), head=linear(1, 24)),
        Training(150),
        seen=True,
    ),
    well(
        "the middle of 18 steps, weights as torch draws them, trained",
        made(read_last, _middle, rnn=lstm(4, 32), head=linear(1, 32)),
        Training(150),
        seen=True,
        needs_lag=10,
    ),
    well(
        "products of the last three, weights as torch draws them, trained",
        made(read_last, _products, rnn=lstm(3, 32), head=linear(1, 32)),
        Training(150),
        seen=True,
    ),
    well(
        "eight layers with ways past them, classes of the last five steps, trained",
        made(
            past_each,
            _last_five,
            cross_entropy,
            first=linear(16, 4),
            layers=lambda: nn.ModuleList(lstm(16, 16)() for _ in range(8)),
            head=linear(2, 16),
        ),
        Training(60),
        seen=True,
        needs_lag=5,
    ),
)

CASES = (*FRESH, *TRAINED, *MENDED)
