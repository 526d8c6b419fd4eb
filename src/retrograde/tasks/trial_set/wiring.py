"""Is the recurrence wired as its user thinks? Models in which it is not."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrograde.nn import LSTM
from retrograde.tasks.trial_set.case import Case, Made, Training
from retrograde.tasks.trial_set.models import (
    FEATURES,
    B,
    Forecaster,
    H,
    I,
    T,
    beyond,
    changed,
    constant,
    cross_entropy,
    data,
    every_step,
    filled,
    gru,
    keeping_bias,
    last,
    last_states,
    lengths_of,
    linear,
    lstm,
    made,
    mse,
    packed_out,
    read_last,
    regression,
    rnn,
    squared,
)

# ------------------------------------------------------------------------------- reads and views


def both_ways(
    read: Callable[..., Tensor],
    layer: Callable[..., nn.Module] = nn.LSTM,
    depth: int = 1,
    features: int = 2 * H,
) -> Callable[[], Made]:
    """A bidirectional layer."""
    return regression(
        read, lambda: layer(I, H, depth, batch_first=True, bidirectional=True), features
    )


def documents(
    wrong: bool = False,
    sentences: int = 4,
    above: Callable[[], nn.Module] = gru(H),  # noqa: B008
) -> Callable[[], Made]:
    """Words of sentences of documents, [B, S, W, I]; sentences are the steps of a layer above."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, s, w, i = x.shape
        ends = m.words(x.reshape(b * s, w, i))[1][-1]
        read: Tensor
        if wrong:
            read = m.head(m.sentences(ends.view(s, b, -1).transpose(0, 1))[1][-1])
        else:
            read = m.head(m.sentences(ends.view(b, s, -1))[0])
        return read

    batch = data(*((B, 1) if wrong else (B, sentences, 1)), x=(B, sentences, 5, I))
    return made(forward, batch, words=gru(), sentences=above, head=linear())


SAMPLES_MIXED = (
    Case(
        "batch first not said",
        ("samples-mixed",),
        regression(last, lambda: nn.LSTM(I, H)),
        seen=True,
    ),
    Case(
        "batch first not said, GRU with two layers",
        ("samples-mixed",),
        regression(last, lambda: nn.GRU(I, H, 2)),
        seen=True,
    ),
    Case(
        "batch first not said, ours",
        ("samples-mixed",),
        regression(last, lambda: LSTM(I, H)),
        seen=True,
    ),
    Case(
        "batch first not said, classes",
        ("samples-mixed",),
        made(
            read_last,
            lambda: (torch.randn(B, T, I), torch.randint(0, 4, (B,))),
            cross_entropy,
            rnn=lambda: nn.RNN(I, H),
            head=linear(4),
        ),
        seen=True,
    ),
    Case(
        "as many steps as samples, batch first not said",
        ("samples-mixed",),
        regression(last, lambda: nn.LSTM(I, H), x=(B, B, I)),
        seen=True,
    ),
    Case(
        "h_n viewed as [B, -1]",
        ("samples-mixed",),
        regression(
            lambda layer, x: layer(x)[1].view(B, -1),
            lambda: nn.GRU(I, H, 2, batch_first=True),
            features=2 * H,
        ),
        seen=True,
    ),
    Case(
        "output viewed with the axes swapped",
        ("samples-mixed",),
        regression(
            lambda layer, x: layer(x)[0].reshape(B, T, H)[:, -1],
            lambda: nn.LSTM(I, H),
            x=(T, B, I),
        ),
        seen=True,
    ),
    Case(
        "input viewed with the axes swapped",
        ("samples-mixed",),
        made(
            lambda m, x: m.head(m.rnn(x.view(T, B, I))[0][-1]),
            data(),
            rnn=gru(batch_first=False),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "embedded tokens viewed with the axes swapped",
        ("samples-mixed",),
        made(
            lambda m, x: m.head(m.rnn(m.embed(x).view(T, B, I))[0][-1]),
            lambda: (torch.randint(0, 9, (B, T)), torch.randn(B, 1)),
            embed=lambda: nn.Embedding(9, I),
            rnn=gru(batch_first=False),
            head=linear(),
        ),
        seen=True,
    ),
    Case("sentences viewed with the axes swapped", ("samples-mixed",), documents(True), seen=True),
    Case(
        "classes of the means of sequences, batch first not said",
        ("samples-mixed",),
        made(
            read_last,
            lambda: _classes_of_means(100, 28),
            cross_entropy,
            rnn=lambda: nn.LSTM(4, 32),
            head=linear(2, 32),
        ),
        options={"needs_lag": 15},
        seen=True,
    ),
)


def _classes_of_means(samples: int, steps: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, steps, 4)
    return x, (x[:, : steps * 2 // 3, 0].mean(1) > 0).long()


# ------------------------------------------------------------------------------- unreached


class Translator(nn.Module):
    """An encoder whose last state is where a decoder starts; `cut` takes its graph away."""

    def __init__(self, cut: bool, layer: Callable[[], nn.Module], steps: int = 6):
        super().__init__()
        self.encoder, self.decoder = layer(), layer()
        self.head, self.cut, self.steps = nn.Linear(H, 1), cut, steps

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, I] to [B, steps, 1]."""
        state = self.encoder(x)[1]
        state = state.data if self.cut else state
        read: Tensor = self.head(self.decoder(x[:, : self.steps], state)[0])
        return read


def translation(
    cut: bool,
    layer: Callable[[], nn.Module] = gru(),  # noqa: B008
) -> Callable[[], Made]:
    """An encoder and a decoder."""
    return lambda: (Translator(cut, layer), (torch.randn(B, T, I), torch.randn(B, 6, 1)), mse)


def padded(
    read: Callable[..., Tensor],
    samples: int = 16,
    longest: int = T,
    value: float = 0.0,
    layer: Callable[[], nn.Module] = gru(),  # noqa: B008
) -> Callable[[], Made]:
    """Sequences of some lengths, padded at the end."""

    def make() -> Made:
        lengths = lengths_of(samples, longest)
        x = torch.randn(samples, longest, I)
        x[beyond(lengths, longest)] = value
        model, _, _ = regression(read, layer)()
        return model, (x, lengths, torch.randn(samples, 1)), mse

    return make


UNREACHED = (
    Case(
        "h_n[-1] of both directions",
        ("unreached",),
        both_ways(lambda layer, x: last_states(layer, x)[-1], features=H),
        seen=True,
    ),
    Case(
        "h_n[-2] of both directions",
        ("unreached",),
        both_ways(lambda layer, x: last_states(layer, x)[-2], nn.GRU, features=H),
        seen=True,
    ),
    Case(
        "last output of both directions",
        ("unreached",),
        both_ways(lambda layer, x: layer(x)[0][:, -1]),
        seen=True,
    ),
    Case(
        "first output of both directions",
        ("unreached",),
        both_ways(lambda layer, x: layer(x)[0][:, 0], nn.GRU),
        seen=True,
    ),
    Case(
        "h_n[0] of two layers",
        ("unreached",),
        regression(lambda layer, x: layer(x)[1][0], gru(num_layers=2)),
        seen=True,
    ),
    Case("encoder cut off by .data", ("unreached",), translation(True), seen=True),
    Case(
        "packed, then the last column",
        ("unreached",),
        padded(lambda layer, x, n: packed_out(layer, x, n)[:, -1]),
        seen=True,
    ),
    Case(
        "loss on one sample",
        ("unreached",),
        regression(last, loss=lambda m, b: F.mse_loss(m(b[0])[:1], b[1][:1])),
        seen=True,
    ),
    Case(
        "sums of the ends of sequences, from h_n[-1] of both directions",
        ("unreached",),
        made(
            lambda m, x: m.head(m.rnn(x)[1][-1]),
            lambda: (x := torch.randn(64, 30, 4), x[:, -3:, :1].sum(1)),
            rnn=gru(4, 16, bidirectional=True),
            head=linear(1, 16),
        ),
        seen=True,
    ),
    Case(
        "63 of 64 packed samples read from their padding",
        ("unreached",),
        made(
            lambda m, x, n: m.head(packed_out(m.rnn, x, n)[:, -1]),
            lambda: (torch.randn(64, 30, 4), lengths_of(64, 30, 4), torch.randint(0, 2, (64,))),
            cross_entropy,
            rnn=lstm(4, 24),
            head=linear(2, 24),
        ),
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- no time

Step = Callable[[Any, Tensor, Any], Any]


def loop(
    step: Step, cell: Callable[[], nn.Module] = lambda: nn.GRUCell(I, H), steps: int = T
) -> Callable[[], Made]:
    """A loop over a cell, [T, B, I]; `step` gives the next state from cell, input and state."""

    def read(cell: Any, x: Tensor) -> Tensor:
        state = None
        for each in x:
            state = step(cell, each, state)
        found: Tensor = state if isinstance(state, Tensor) else state[0]  # type: ignore[index]
        return found

    return regression(read, cell, x=(steps, B, I))


def cut_every(k: int) -> Step:
    """A step that detaches the state of every k-th call."""
    numbers: Any = None

    def step(cell: Any, x: Tensor, state: Any) -> Any:
        nonlocal numbers
        if state is None:
            numbers = count()
        number = next(numbers)
        return cell(x, state.detach() if number and number % k == 0 else state)

    return step


def learnt_each_step(m: Any, x: Tensor) -> Tensor:
    """Every step starts from the state that is learned."""
    start = m.start.weight.expand(B, H)
    read: Tensor = m.head(torch.stack([m.cell(step, start) for step in x.unbind(1)], 1))
    return read


class Detaching(nn.Module):
    """A layer whose state is detached every few steps."""

    def __init__(self, layer: nn.Module, every: int):
        super().__init__()
        self.layer, self.every = layer, every

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """The outputs of the last part, and its state."""
        state: Any = None
        for part in torch.split(x, self.every):
            h, state = self.layer(part, state)
            state = tuple(piece.detach() for piece in state)
        return h, state


def _detached() -> Made:
    model = Forecaster(changed(lambda: nn.LSTM(FEATURES, 16), keeping_bias(4.0))())
    model.recurrent = Detaching(model.recurrent, 10)
    return model, (torch.randn(40, 8, FEATURES), torch.randn(8, 1)), squared


def _detached_cell(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 24)
    for step in x.unbind(1):
        h = m.cell(step, h.detach())
    read: Tensor = m.head(h)
    return read


NO_TIME = (
    Case(
        "detached at every step",
        ("no-time",),
        loop(lambda cell, x, h: cell(x, None if h is None else h.detach())),
        seen=True,
    ),
    Case(
        "detached at every step, LSTM",
        ("no-time",),
        loop(
            lambda cell, x, s: cell(x, None if s is None else tuple(p.detach() for p in s)),
            lambda: nn.LSTMCell(I, H),
        ),
        seen=True,
    ),
    Case(
        "detached every three steps, lag 5",
        ("no-time",),
        loop(cut_every(3)),
        strength="mild",
        options={"needs_lag": 5},
        seen=True,
    ),
    Case(
        "state detached every 10 steps",
        ("no-time",),
        _detached,
        strength="mild",
        options={"needs_lag": 20},
        seen=True,
    ),
    Case("state never handed on", ("no-time",), loop(lambda cell, x, h: cell(x)), seen=True),
    Case(
        "the same learnt state for every step",
        ("no-time",),
        made(
            learnt_each_step,
            data(B, T, 1),
            cell=lambda: nn.GRUCell(I, H),
            start=lambda: nn.Linear(H, 1, bias=False),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "layer called with one step at a time",
        ("no-time",),
        regression(
            lambda layer, x: torch.stack([layer(x[:, t : t + 1])[0][:, 0] for t in range(T)], 1),
            y=(B, T, 1),
        ),
        seen=True,
    ),
    Case("sequences of one step", ("no-time",), regression(last, x=(B, 1, I)), seen=True),
    Case(
        "lag longer than the window",
        ("no-time",),
        regression(last),
        options={"needs_lag": 2 * T},
        seen=True,
    ),
    Case(
        "lag longer than encoder and decoder",
        ("no-time",),
        translation(False),
        strength="mild",
        options={"needs_lag": T + 6},
        seen=True,
    ),
    Case(
        "the tenth step to be told, detached at every step",
        ("no-time",),
        made(
            _detached_cell,
            lambda: (x := torch.randn(64, 20, 2), x[:, 9, :1]),
            cell=lambda: nn.GRUCell(2, 24),
            head=linear(1, 24),
        ),
        options={"needs_lag": 10},
        seen=True,
    ),
    Case(
        "five steps, lag 10, no output layer",
        ("no-time",),
        lambda: (
            nn.LSTM(2, 16, batch_first=True),
            torch.randn(8, 5, 2),
            lambda m, x: m(x)[0][:, -1].square().mean(),
        ),
        options={"needs_lag": 10},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- padding


def padded_batch() -> tuple[Tensor, Tensor]:
    """Padded with 0 at the end; the lengths are not in the batch."""
    x = torch.randn(32, T, I)
    x[beyond(lengths_of(32, T), T)] = 0.0
    return x, torch.randn(32, 1)


def token_batch() -> tuple[Tensor, Tensor]:
    """Tokens, padded with 0 at the end."""
    x = torch.randint(1, 20, (32, T))
    x[beyond(lengths_of(32, T), T)] = 0
    return x, torch.randn(32, 1)


def _last_two(samples: int = 64, longest: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Classes by the sum of the last two steps of samples of 4 to 60 steps, padded with 0."""
    lengths = torch.randint(4, longest + 1, (samples,))
    lengths[0] = longest
    x, rows = torch.randn(samples, longest, 4), torch.arange(samples)
    y = (x[rows, lengths - 1, 0] + x[rows, lengths - 2, 0] > 0).long()
    x[beyond(lengths, longest)] = 0.0
    return x, lengths, y


READS_PADDING = (
    Case(
        "padded, read at the last step",
        ("reads-padding",),
        padded(lambda layer, x, n: layer(x)[0][:, -1]),
        seen=True,
    ),
    Case(
        "padded with -1, last state",
        ("reads-padding",),
        padded(lambda layer, x, n: layer(x)[1][-1], value=-1.0),
        seen=True,
    ),
    Case(
        "padded tokens, last state",
        ("reads-padding",),
        made(
            lambda m, x: m.head(m.rnn(m.embed(x))[1][-1]),
            token_batch,
            embed=lambda: nn.Embedding(20, I, padding_idx=0),
            rnn=gru(),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "padded, two layers",
        ("reads-padding",),
        made(
            lambda m, x: m.head(m.above(m.below(x)[0])[0][:, -1]),
            padded_batch,
            below=gru(),
            above=gru(H),
            head=linear(),
        ),
        seen=True,
    ),
    Case(
        "classes of the last two of up to 60 steps, read after the padding",
        ("reads-padding",),
        made(
            lambda m, x, lengths: m.head(m.rnn(x)[0][:, -1]),
            _last_two,
            cross_entropy,
            rnn=lstm(4, 24),
            head=linear(2, 24),
        ),
        options={"needs_lag": 55},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- units, states

UNITS_ALIKE = (
    Case(
        "zeros everywhere",
        ("units-alike",),
        regression(last, lambda: constant(nn.GRU(I, H, batch_first=True), 0.0)),
        seen=True,
    ),
    Case(
        "ones everywhere",
        ("units-alike",),
        regression(last, lambda: constant(nn.LSTM(I, H, batch_first=True), 0.1)),
        seen=True,
    ),
    Case(
        "32 units and their output layer of one constant",
        ("units-alike",),
        made(
            read_last,
            lambda: (x := torch.randn(64, 12, 3), x[:, -1, :1] * x[:, -2, 1:2] + x[:, -3, 2:3]),
            rnn=filled(lstm(3, 32), lambda weight: nn.init.constant_(weight, 0.05)),
            head=filled(linear(1, 32), lambda weight: nn.init.constant_(weight, 0.05)),
        ),
        seen=True,
    ),
)


class Started(nn.Module):
    """A layer whose initial state is drawn, kept, learned or zero."""

    def __init__(self, how: str):
        super().__init__()
        self.rnn, self.head, self.how = nn.LSTM(I, H), nn.Linear(H, 1), how
        self.start = nn.Parameter(torch.randn(1, 1, H))
        self.kept = torch.ones(1, B, H)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, I] to [B, 1]."""
        state = {
            "drawn": lambda: (torch.randn(1, B, H), torch.randn(1, B, H)),
            "learnt": lambda: 2 * (self.start.expand(1, B, H).contiguous(),),
            "zero": lambda: 2 * (torch.zeros(1, B, H),),
            "kept": lambda: 2 * (self.kept,),
        }[self.how]()
        read: Tensor = self.head(self.rnn(x, state)[0][-1])
        return read


def started(how: str) -> Callable[[], Made]:
    """A layer that is given its initial state."""
    return lambda: (Started(how), (torch.randn(T, B, I), torch.randn(B, 1)), mse)


class Stateful(nn.Module):
    """It goes on where the batch before ended."""

    state: Any

    def __init__(self, detach: bool, layer: Callable[[], nn.Module], every: bool = True):
        super().__init__()
        made: Any = layer()
        self.rnn, self.head = made, nn.Linear(made.hidden_size, 1)
        self.state, self.detach, self.every = None, detach, every

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, I] to [B, T, 1], or [B, 1]."""
        out, state = self.rnn(x, self.state)
        if self.detach:
            lstm = isinstance(state, tuple)
            state = tuple(s.detach() for s in state) if lstm else state.detach()
        self.state = state
        read: Tensor = self.head(out if self.every else out[:, -1])
        return read


def stateful(detach: bool) -> Callable[[], Made]:
    """A model that has seen no batch yet."""
    return lambda: (Stateful(detach, gru()), data(B, T, 1)(), mse)


def carried_in() -> Made:
    """The state of other samples is carried into those of the batch."""
    model = Stateful(True, lstm(2, 24), every=False)
    with torch.no_grad():
        model(torch.randn(32, 6, 2))
    x = torch.randn(32, 6, 2)
    return model, (x, x.sum((1, 2)).unsqueeze(1)), mse


INITIAL_STATE = (
    Case("initial state drawn", ("initial-state",), started("drawn"), seen=True),
    Case(
        "the state of other samples carried in",
        ("initial-state",),
        carried_in,
        least="info",
        seen=True,
    ),
)

KEPT_GRAPH = (Case("graph kept by a fresh model", ("kept-graph",), stateful(False), seen=True),)

# ------------------------------------------------------------------------------- new at the split


def _one_after_another(m: Any, x: Tensor) -> Tensor:
    """A loop over the samples that hands the state of one to the next."""
    state, out = None, []
    for sample in torch.split(x, 1):
        h, state = m.rnn(sample, state)
        out.append(h[:, -1])
    read: Tensor = m.head(torch.cat(out))
    return read


def _softmax_over(axis: int) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.rnn(x)[0]
        read: Tensor = m.head((m.score(h).softmax(axis) * h).sum(1))
        return read

    return forward


def _filtered_along_the_samples(m: Any, x: Tensor) -> Tensor:
    """[B, T, I] as if it were [T, B, I]: the convolution runs along the samples."""
    return read_last(m, m.filter(x.permute(1, 2, 0)).permute(2, 0, 1))


def _tokens_of_tokens(m: Any, x: Tensor) -> Tensor:
    """A second layer reads the likeliest tokens of a first one."""
    likeliest = m.head(m.rnn(m.embed(x))[0]).argmax(-1)
    read: Tensor = m.head(m.above(m.embed(likeliest))[0])
    return read


def _through_numpy(m: Any, x: Tensor) -> Tensor:
    """The features of an encoder go through NumPy."""
    features = torch.from_numpy(m.encoder(x)[0].detach().numpy())
    read: Tensor = m.head(m.rnn(features)[0][:, -1])
    return read


def _without_gradient(m: Any, x: Tensor) -> Tensor:
    """The encoder was frozen for a while by no_grad(), and still is."""
    with torch.no_grad():
        state = m.encoder(x)[1]
    read: Tensor = m.head(m.rnn(x[:, -4:], state)[0][:, -1])
    return read


def _one_direction_of_the_upper_layer(m: Any, x: Tensor) -> Tensor:
    """Of two bidirectional layers, the reverse direction at each step."""
    read: Tensor = m.head(m.rnn(x)[0][..., H:])
    return read


def _first_half(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    half = len(x) // 2
    return F.mse_loss(model(x)[:half], y[:half])


def _zero_state_each_step(m: Any, x: Tensor) -> Tensor:
    """The state is made anew in the loop."""
    out = []
    for step in x.unbind(1):
        state = x.new_zeros(2, len(x), H)
        h, _ = m.cell(step, (state[0], state[1]))
        out.append(h)
    read: Tensor = m.head(torch.stack(out, 1))
    return read


def _warmed_up(m: Any, x: Tensor) -> Tensor:
    """All steps but the last two are run without a graph."""
    with torch.no_grad():
        _, state = m.rnn(x[:, :-2])
    read: Tensor = m.head(m.rnn(x[:, -2:], state)[0][:, -1])
    return read


def _in_windows(steps: int) -> Callable[[Any, Tensor], Tensor]:
    """The state is detached between windows of some steps."""

    def forward(m: Any, x: Tensor) -> Tensor:
        state: Any = None
        out = x
        for part in torch.split(x, steps, 1):
            out, state = m.rnn(part, state)
            state = tuple(each.detach() for each in state)
        read: Tensor = m.head(out[:, -1])
        return read

    return forward


def _sums(samples: int, steps: int, last_ones: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, steps, I)
    return x, x[:, -last_ones:].sum((1, 2)).unsqueeze(1) / 3


def _padded(samples: int, steps: int, shortest: int, value: float | None = 0.0) -> Any:
    """Samples of some lengths; a value of None repeats the last step of each."""
    lengths = lengths_of(samples, steps, shortest)
    x = torch.randn(samples, steps, I)
    end = x[torch.arange(samples), lengths - 1][:, None]
    y = end.sum(2)
    x = torch.where(beyond(lengths, steps)[..., None], end if value is None else value, x)
    return x, y


def _a_few_short_ones() -> tuple[Tensor, Tensor]:
    """Five of 32 samples end up to four steps early."""
    x = torch.randn(32, 20, I)
    for row, short in enumerate((1, 2, 3, 4, 4)):
        x[row, -short:] = 0.0
    return x, torch.randn(32, 1)


def _padded_words() -> tuple[Tensor, Tensor]:
    x = torch.randint(1, 30, (24, 18))
    x[beyond(lengths_of(24, 18), 18)] = 0
    return x, torch.randint(0, 3, (24,))


def _pairs(layer: nn.Module) -> None:
    """Every second unit is a copy of the one before it."""
    for name, weight in layer.named_parameters():
        gates = weight.view(-1, H + 1, *weight.shape[1:])
        gates[:, 1::2] = gates[:, ::2]
        if name.startswith("weight_hh"):
            weight[:, 1::2] = weight[:, ::2]


def _drawn(size: float, cell_alone: bool = False) -> Callable[[Any, Tensor], Tensor]:
    """An LSTM whose initial state is drawn in every pass."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(1, len(x), H) if cell_alone else size * torch.randn(1, len(x), H)
        c = size * torch.rand(1, len(x), H)
        read: Tensor = m.head(m.rnn(x, (h, c))[0][:, -1])
        return read

    return forward


class Averaging(nn.Module):
    """It adds a running average of its states to what it reads, with the graph of all passes."""

    mean: Tensor | None = None

    def __init__(self, detach: bool = False):
        super().__init__()
        self.rnn, self.head, self.detach = nn.GRU(I, H, batch_first=True), nn.Linear(H, 1), detach

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, I] to [B, 1]."""
        h = self.rnn(x)[0][:, -1]
        now = h.mean(0)
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        if self.detach:
            self.mean = self.mean.detach()
        read: Tensor = self.head(h - self.mean)
        return read


class Remembering(nn.Module):
    """Attention to the last states of all passes before."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(I, H, batch_first=True), nn.Linear(H, 1)
        self.memory: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, I] to [B, 1]."""
        h = self.rnn(x)[0][:, -1]
        self.memory.append(h)
        keys = torch.stack(self.memory, 1)
        weights = (keys * h[:, None]).sum(2, keepdim=True).softmax(1)
        read: Tensor = self.head((weights * keys).sum(1))
        return read


def _after_a_pass(model: Callable[[], nn.Module], *y: int) -> Callable[[], Made]:
    """The model has seen one batch before."""

    def make() -> Made:
        made = model()
        made(torch.randn(B, T, I))
        return made, data(*y)(), mse

    return make


NEW = (
    Case(
        "batch first not said, both directions",
        ("samples-mixed",),
        regression(
            last, lambda: nn.GRU(I, H, bidirectional=True), features=2 * H, x=(9, 14, I), y=(9, 1)
        ),
    ),
    Case(
        "the state of one sample handed to the next",
        ("samples-mixed",),
        made(_one_after_another, data(), rnn=gru(), head=linear()),
    ),
    Case(
        "attention that is normalised over the samples",
        ("samples-mixed",),
        made(_softmax_over(0), data(), rnn=lstm(), score=linear(), head=linear()),
        strength="mild",
    ),
    Case(
        "a convolution along the samples",
        ("samples-mixed",),
        made(
            _filtered_along_the_samples,
            data(),
            filter=lambda: nn.Conv1d(I, I, 3, padding=1),
            rnn=gru(),
            head=linear(),
        ),
        strength="mild",
    ),
    Case(
        "batch first not said, trained",
        ("samples-mixed",),
        made(read_last, lambda: _sums(24, 10), rnn=lambda: nn.LSTM(I, 16), head=linear(1, 16)),
        training=Training(150),
    ),
    Case(
        "tokens of tokens, by argmax",
        ("unreached",),
        made(
            _tokens_of_tokens,
            lambda: (torch.randint(0, 9, (B, T)), torch.randint(0, 9, (B, T))),
            lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()),
            embed=lambda: nn.Embedding(9, I),
            rnn=gru(),
            above=gru(),
            head=linear(9),
        ),
    ),
    Case(
        "features of an encoder through NumPy",
        ("unreached",),
        made(_through_numpy, data(), encoder=lstm(), rnn=gru(H), head=linear()),
    ),
    Case(
        "an encoder under no_grad(), trained",
        ("unreached",),
        made(_without_gradient, lambda: _sums(24, 10, 8), encoder=gru(), rnn=gru(), head=linear()),
        training=Training(120),
    ),
    Case(
        "the reverse direction of two layers at every step",
        ("unreached",),
        made(
            _one_direction_of_the_upper_layer,
            data(B, T, 1),
            rnn=lstm(num_layers=2, bidirectional=True),
            head=linear(),
        ),
        strength="mild",
    ),
    Case(
        "a loss of the first half of the samples",
        ("unreached",),
        regression(last, gru(), x=(12, T, I), y=(12, 1), loss=_first_half),
        strength="mild",
        least="info",
    ),
    Case(
        "a state of zeros made in the loop",
        ("no-time",),
        made(_zero_state_each_step, data(B, T, 1), cell=lambda: nn.LSTMCell(I, H), head=linear()),
    ),
    Case(
        "steps in the axis of the features",
        ("no-time",),
        made(
            lambda m, x: m.head(m.rnn(x.flatten(1)[:, None])[0][:, -1]),
            data(),
            rnn=gru(T * I),
            head=linear(),
        ),
    ),
    Case(
        "all steps but two without a graph, lag 6",
        ("no-time",),
        made(_warmed_up, data(), rnn=gru(), head=linear()),
        strength="mild",
        options={"needs_lag": 6},
    ),
    Case(
        "windows of 16, a lag of 24, trained",
        ("no-time",),
        made(
            _in_windows(16),
            lambda: (x := torch.randn(24, 48, 2), x[:, 23, :1]),
            rnn=changed(lstm(2, 12), keeping_bias(3.0)),
            head=linear(1, 12),
        ),
        strength="mild",
        training=Training(60),
        options={"needs_lag": 24},
    ),
    Case(
        "windows of eight steps, a lag of eight",
        ("no-time",),
        regression(last, gru(), x=(B, 8, I)),
        strength="mild",
        options={"needs_lag": 8},
    ),
    Case(
        "five of 32 samples padded by a few steps",
        ("reads-padding",),
        made(read_last, _a_few_short_ones, rnn=lstm(), head=linear()),
        strength="mild",
    ),
    Case(
        "padded with the last step of each sample",
        ("reads-padding",),
        made(read_last, lambda: _padded(32, 16, 4, None), rnn=gru(), head=linear()),
        strength="mild",
    ),
    Case(
        "padded with -100, the last state of two layers",
        ("reads-padding",),
        made(
            lambda m, x: m.head(m.rnn(x)[1][-1]),
            lambda: _padded(32, 16, 4, -100.0),
            rnn=gru(num_layers=2),
            head=linear(),
        ),
    ),
    Case(
        "padded words, classes of the last output",
        ("reads-padding",),
        made(
            lambda m, x: m.head(m.rnn(m.embed(x))[0][:, -1]),
            _padded_words,
            cross_entropy,
            embed=lambda: nn.Embedding(30, 6),
            rnn=lstm(6, 9),
            head=linear(3, 9),
        ),
    ),
    Case(
        "padded with 0, trained",
        ("reads-padding",),
        made(read_last, lambda: _padded(32, 16, 3), rnn=lstm(I, 12), head=linear(1, 12)),
        training=Training(150),
    ),
    Case(
        "one constant in both directions",
        ("units-alike",),
        made(
            every_step,
            data(B, T, 1),
            rnn=filled(gru(bidirectional=True), lambda weight: weight.fill_(0.2)),
            head=linear(1, 2 * H),
        ),
    ),
    Case(
        "every second unit a copy",
        ("units-alike",),
        made(read_last, data(), rnn=changed(lstm(I, H + 1), _pairs), head=linear(1, H + 1)),
        strength="mild",
    ),
    Case(
        "one constant everywhere, trained",
        ("units-alike",),
        made(
            read_last,
            lambda: _sums(24, 8),
            rnn=filled(gru(I, 12), lambda weight: weight.fill_(0.1)),
            head=filled(linear(1, 12), lambda weight: weight.fill_(0.1)),
        ),
        training=Training(80),
    ),
    Case(
        "biases alone, weights of zero",
        ("units-alike",),
        made(
            every_step,
            data(B, T, 1),
            rnn=filled(rnn(), lambda weight: weight.fill_(0.0 if weight.ndim == 2 else 0.3)),
            head=linear(),
        ),
    ),
    Case(
        "initial state drawn from N(0, 0.05)",
        ("initial-state",),
        made(_drawn(0.05), data(), rnn=lstm(), head=linear()),
        strength="mild",
        least="info",
    ),
    Case(
        "a cell state drawn from U(0, 1)",
        ("initial-state",),
        made(_drawn(1.0, cell_alone=True), data(), rnn=lstm(), head=linear()),
    ),
    Case(
        "initial state drawn from N(0, 1), trained",
        ("initial-state",),
        made(_drawn(1.0), lambda: _sums(24, 10), rnn=lstm(), head=linear()),
        training=Training(100),
    ),
    Case(
        "initial state drawn, a GRU of two layers at every step",
        ("initial-state",),
        made(
            lambda m, x: m.head(m.rnn(x, torch.randn(2, len(x), H))[0]),
            data(B, T, 1),
            rnn=gru(num_layers=2),
            head=linear(),
        ),
    ),
    Case(
        "the state of a batch before, an LSTM that has run",
        ("kept-graph",),
        _after_a_pass(lambda: Stateful(False, lstm()), B, T, 1),
    ),
    Case(
        "a running average of states with its graph",
        ("kept-graph",),
        _after_a_pass(Averaging),
        strength="mild",
    ),
    Case("a memory of the states of all passes", ("kept-graph",), _after_a_pass(Remembering)),
    Case(
        "a running average of states, before its first pass",
        ("kept-graph",),
        lambda: (Averaging(), data()(), mse),
        strength="mild",
    ),
)

CASES = (
    *SAMPLES_MIXED,
    *UNREACHED,
    *NO_TIME,
    *READS_PADDING,
    *UNITS_ALIKE,
    *INITIAL_STATE,
    *KEPT_GRAPH,
    *NEW,
)
