"""Small models with one known trouble each, and healthy ones beside them, for the experiments.

`SICK[name]` gives (model, batch, loss_fn, needs_lag) and the rule that must name the trouble;
`HEALTHY[name]` the same without one. Sizes differ in every axis where the trouble allows it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import retrograde

B, T, I, H = 7, 11, 3, 5  # noqa: E741


class Net(nn.Module):
    """A recurrent layer, what is done with it, and a linear read-out."""

    def __init__(self, layer, read, outputs=1, features=None):
        super().__init__()
        self.rnn, self.read = layer, read
        self.head = nn.Linear(features or layer.hidden_size, outputs)

    def forward(self, *inputs):
        return self.head(self.read(self.rnn, *inputs))


def mse(model, batch):
    *x, y = batch
    return F.mse_loss(model(*x), y)


def cross_entropy(model, batch):
    *x, y = batch
    return F.cross_entropy(model(*x), y)


def regression(read, layer=None, features=None, x=(B, T, I), y=(B, 1), loss=mse, lag=None):
    def build():
        torch.manual_seed(1)
        made = layer() if layer else nn.LSTM(I, H, batch_first=True)
        return Net(made, read, y[-1], features), (torch.randn(x), torch.randn(y)), loss, lag

    return build


def loop(step, cell=None, lag=None, steps=T):
    """A loop over a cell, [T, B, I]; `step` is what becomes of the state before each call."""

    def read(cell, x):
        state = None
        for each in x:
            state = step(cell, each, state)
        return state if isinstance(state, torch.Tensor) else state[0]

    def build():
        torch.manual_seed(2)
        made = cell() if cell else nn.GRUCell(I, H)
        return Net(made, read), (torch.randn(steps, B, I), torch.randn(B, 1)), mse, lag

    return build


def lengths_of(samples, longest):
    lengths = torch.randint(2, longest, (samples,), generator=torch.Generator().manual_seed(3))
    lengths[0] = longest
    return lengths


def padded(read, samples=16, longest=T, value=0.0, make=nn.GRU):
    def build():
        torch.manual_seed(4)
        lengths = lengths_of(samples, longest)
        x = torch.randn(samples, longest, I)
        x[torch.arange(longest)[None] >= lengths[:, None]] = value
        net = Net(make(I, H, batch_first=True), read)
        return net, (x, lengths, torch.randn(samples, 1)), mse, None

    return build


def packed_out(rnn, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]


def at_lengths(out, lengths):
    return out[torch.arange(len(out)), lengths - 1]


class Seq2Seq(nn.Module):
    def __init__(self, cut=False, steps=6):
        super().__init__()
        self.encoder = nn.GRU(I, H, batch_first=True)
        self.decoder = nn.GRU(I, H, batch_first=True)
        self.head, self.cut, self.steps = nn.Linear(H, 1), cut, steps

    def forward(self, x):
        state = self.encoder(x)[1]
        state = state.data if self.cut else state
        return self.head(self.decoder(x[:, : self.steps], state)[0])


def seq2seq(cut, lag=None):
    def build():
        torch.manual_seed(5)
        return Seq2Seq(cut), (torch.randn(B, T, I), torch.randn(B, 6, 1)), mse, lag

    return build


def constant(layer, value):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


class Noisy(nn.Module):
    """An initial state that is drawn, carried in, or learnt."""

    def __init__(self, how):
        super().__init__()
        self.rnn, self.head, self.how = nn.LSTM(I, H), nn.Linear(H, 1), how
        self.start = nn.Parameter(torch.randn(1, 1, H))
        self.kept = torch.ones(1, B, H)

    def forward(self, x):
        make = {
            "drawn": lambda: torch.randn(1, B, H),
            "learnt": lambda: self.start.expand(1, B, H).contiguous(),
            "zero": lambda: torch.zeros(1, B, H),
            "kept": lambda: self.kept,
        }[self.how]
        return self.head(self.rnn(x, (make(), make()))[0][-1])


def started(how):
    def build():
        torch.manual_seed(6)
        return Noisy(how), (torch.randn(T, B, I), torch.randn(B, 1)), mse, None

    return build


def compared(loss, y, outputs=1, x=(B, T, I), change=lambda y: y):
    def build():
        torch.manual_seed(7)
        net = Net(nn.GRU(I, H, batch_first=True), lambda rnn, x: rnn(x)[0][:, -1], outputs)
        return net, (torch.randn(x), change(y())), loss, None

    return build


def by_hand(reduce):
    return lambda model, batch: reduce(model(batch[0]) - batch[1])


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.norm = nn.GRU(I, H, batch_first=True), nn.BatchNorm1d(H)
        self.head = nn.Linear(H, 1)

    def forward(self, x):
        return self.head(self.norm(self.rnn(x)[0][:, -1]))


def normalised():
    torch.manual_seed(8)
    return Normalised(), (torch.randn(B, T, I), torch.randn(B, 1)), mse, None


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(9, I), nn.LSTM(I, H, batch_first=True)
        self.head = nn.Linear(H, 9)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


def tokens(flat):
    def loss(model, batch):
        logits = model(batch[:, :-1])
        if flat:
            return F.cross_entropy(logits.reshape(-1, 9), batch[:, 1:].reshape(-1))
        return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:])

    def build():
        torch.manual_seed(9)
        return Tokens(), torch.randint(0, 9, (B, T)), loss, None

    return build


def with_nan(where, loss=mse):
    def build():
        model, (x, y), _, lag = regression(lambda rnn, x: rnn(x)[0][:, -1])()
        (x if where == "x" else y).flatten()[4] = torch.nan
        return model, (x, y), loss, lag

    return build


def masked(model, batch):
    x, y = batch
    known = y.isfinite()
    return (model(x)[known] - y[known]).square().mean()


def log_loss(model, batch):
    x, y = batch
    return ((0 * model(x)).mean(1).log() - y[:, 0]).square().mean()


class Ctc(nn.Module):
    def __init__(self, zero):
        super().__init__()
        self.rnn, self.head, self.zero = nn.GRU(I, H), nn.Linear(H, 4), zero

    def forward(self, x):
        return self.head(self.rnn(x)[0]).log_softmax(-1)


def ctc(short, zero=False):
    def loss(model, batch):
        x, labels, steps, counts = batch
        return F.ctc_loss(model(x), labels, steps, counts, zero_infinity=model.zero)

    def build():
        torch.manual_seed(10)
        steps = torch.full((B,), T)
        steps[2] = 3 if short else 9
        labels = torch.tensor([[1, 2, 1, 3]]).expand(B, 4).contiguous()
        return Ctc(zero), (torch.randn(T, B, I), labels, steps, torch.full((B,), 4)), loss, None

    return build


def halved(scale, dtype):
    def loss(model, batch):
        x, y = batch
        return (model(x) - y).square().mean() * scale

    def build():
        torch.manual_seed(11)
        net = Net(nn.GRU(I, H, batch_first=True), lambda rnn, x: rnn(x)[0]).to(dtype)
        x, y = torch.randn(B, T, I), torch.randn(B, T, 1)
        return net, (x.to(dtype), y.to(dtype)), loss, None

    return build


class Deep(nn.Module):
    def __init__(self, depth, residual):
        super().__init__()
        self.first = nn.Linear(I, H)
        self.layers = nn.ModuleList(nn.LSTM(H, H, batch_first=True) for _ in range(depth))
        self.head, self.residual = nn.Linear(H, 1), residual

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            y = layer(x)[0]
            x = x + y if self.residual else y
        return self.head(x[:, -1])


def deep(depth, residual=False):
    def build():
        torch.manual_seed(12)
        return Deep(depth, residual), (torch.randn(B, T, I), torch.randn(B, 1)), mse, None

    return build


def both_ways(read, layer=nn.LSTM, depth=1, features=2 * H):
    make = lambda: layer(I, H, depth, batch_first=True, bidirectional=True)  # noqa: E731
    return regression(read, make, features)


def last_states(rnn, x):
    h = rnn(x)[1]
    return h[0] if isinstance(h, tuple) else h


def cut_every(k):
    def step(cell, x, state):
        step.calls = 0 if state is None else step.calls + 1
        return cell(x, state.detach() if state is not None and step.calls % k == 0 else state)

    return step


last = lambda rnn, x: rnn(x)[0][:, -1]  # noqa: E731


class Made(nn.Module):
    """A model of some modules and a function of them."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, *inputs):
        return self._forward(self, *inputs)


def made(forward, batch, loss=mse, lag=None, seed=13, **modules):
    """The modules and the batch are made when they are needed, all from one seed."""

    def build():
        torch.manual_seed(seed)
        net = Made(forward, **{name: module() for name, module in modules.items()})
        return net, batch(), loss, lag

    return build


def gru(inputs=I, **options):
    return lambda: nn.GRU(inputs, H, **{"batch_first": True, **options})


def linear(outputs=1, inputs=H):
    return lambda: nn.Linear(inputs, outputs)


def data(*y, x=(B, T, I)):
    return lambda: (torch.randn(x), torch.randn(*y or (B, 1)))


def read_last(m, x):
    return m.head(m.rnn(x)[0][:, -1])


def every_step(m, x):
    return m.head(m.rnn(x)[0])


def documents(wrong=False):
    """Words of sentences of documents, [B, S, W, I]; sentences are the steps of a layer above."""

    def forward(m, x):
        b, s, w, i = x.shape
        sentences = m.words(x.reshape(b * s, w, i))[1][-1]
        if wrong:
            return m.head(m.sentences(sentences.view(s, b, -1).transpose(0, 1))[1][-1])
        return m.head(m.sentences(sentences.view(b, s, -1))[0])

    y = (B, 1) if wrong else (B, 4, 1)
    return (
        forward,
        data(*y, x=(B, 4, 5, I)),
        {"words": gru(), "sentences": gru(H), "head": linear()},
    )


def sorted_by_length(m, x, lengths):
    """As it was done before packing could sort."""
    lengths, order = lengths.sort(descending=True)
    state = m.rnn(pack_padded_sequence(x[order], lengths, batch_first=True))[1][-1]
    return m.head(state[order.argsort()])


def decoded(m, x, y):
    """A decoder that looks at the encoder's outputs and is given no state."""
    keys, state, out = m.encoder(x)[0], torch.zeros(len(x), H), []
    for step in y.unbind(1):
        weights = (keys @ m.query(state).unsqueeze(2)).softmax(1)
        state = m.cell(torch.cat(((weights * keys).sum(1), step), 1), state)
        out.append(m.head(state))
    return torch.stack(out, 1)


def contrastive(model, batch):
    similarity = F.normalize(model(batch[0])) @ F.normalize(model(batch[1])).T
    return F.cross_entropy(similarity / 0.1, torch.arange(len(similarity)))


def masked_logits(model, batch):
    x, mask, y = batch
    return F.cross_entropy(model(x) - 1e9 * (1 - mask), y)


def all_pairs(model, batch):
    """A soft distance of whole sequences: each step of the one to each step of the other."""
    difference = model(batch[0]) - batch[1].unsqueeze(1)
    return -(-difference.square()).flatten(1).logsumexp(1).mean()


def taught(model, batch):
    with torch.no_grad():
        target = model.teacher(batch[0])[0]
    return F.mse_loss(model(batch[0]), target)


def events(values):
    """Few values, or one event at some time: what is the same at the end is no padding."""

    def build():
        x = torch.zeros(32, T, 1)
        if values == "event":
            x[torch.arange(32), torch.randint(0, T, (32,)), 0] = torch.randn(32)
        elif values == "bits":
            x = torch.randint(0, 2, (32, T, 1)).float()
        else:  # a level that is held for some steps
            at = torch.arange(T)[None] + torch.randint(0, 4, (32, 1))
            x = torch.randn(32, 8, 1).repeat_interleave(4, 1)[torch.arange(32)[:, None], at]
        return x, torch.randn(32, 1)

    return build


def padded_tokens(m, x):
    return m.head(m.rnn(m.embed(x))[1][-1])


def token_batch():
    x = torch.randint(1, 20, (32, T))
    x[torch.arange(T)[None] >= lengths_of(32, T)[:, None]] = 0
    return x, torch.randn(32, 1)


def padded_batch():
    x = torch.randn(32, T, I)
    x[torch.arange(T)[None] >= lengths_of(32, T)[:, None]] = 0.0
    return x, torch.randn(32, 1)


class Stateful(nn.Module):
    """It goes on where the batch before ended."""

    def __init__(self, detach):
        super().__init__()
        self.rnn, self.head = nn.GRU(I, H, batch_first=True), nn.Linear(H, 1)
        self.state, self.detach = None, detach

    def forward(self, x):
        out, state = self.rnn(x, self.state)
        self.state = state.detach() if self.detach else state
        return self.head(out)


def stateful(detach):
    def build():
        torch.manual_seed(14)
        return Stateful(detach), (torch.randn(B, T, I), torch.randn(B, T, 1)), mse, None

    return build


def orthogonal(layer):
    for name, parameter in layer.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.data.chunk(3):
                nn.init.orthogonal_(gate)
    return layer


def drawn(make, draw, steps=30):
    def module():
        layer = make()
        for parameter in layer.parameters():
            draw(parameter)
        return layer

    return made(
        lambda m, x: m.head(m.rnn(x)[0][:, -1]),
        data(x=(B, steps, I)),
        rnn=module,
        head=linear(inputs=32),
    )


def learnt_each_step(m, x):
    return m.head(
        torch.stack([m.cell(step, m.start.weight.expand(B, H)) for step in x.unbind(1)], 1)
    )


SICK = {
    "float16 overflows in the loss alone": (
        "precision",
        made(
            every_step,
            lambda: (torch.randn(B, T, I).half(), 2 * torch.randn(B, T, 1).half()),
            lambda m, b: (m(b[0]) - b[1]).square().sum() * 600,
            rnn=lambda: gru()().half(),
            head=lambda: linear()().half(),
        ),
    ),
    "input viewed with the axes swapped": (
        "samples-mixed",
        made(
            lambda m, x: m.head(m.rnn(x.view(T, B, I))[0][-1]),
            data(),
            rnn=gru(batch_first=False),
            head=linear(),
        ),
    ),
    "embedded tokens viewed with the axes swapped": (
        "samples-mixed",
        made(
            lambda m, x: m.head(m.rnn(m.embed(x).view(T, B, I))[0][-1]),
            lambda: (torch.randint(0, 9, (B, T)), torch.randn(B, 1)),
            embed=lambda: nn.Embedding(9, I),
            rnn=gru(batch_first=False),
            head=linear(),
        ),
    ),
    "sentences viewed with the axes swapped": (
        "samples-mixed",
        made(*documents(wrong=True)[:2], **documents(wrong=True)[2]),
    ),
    "as many steps as samples, batch first not said": (
        "samples-mixed",
        regression(last, lambda: nn.LSTM(I, H), x=(B, B, I)),
    ),
    "the same learnt state for every step": (
        "no-time",
        made(
            learnt_each_step,
            data(B, T, 1),
            cell=lambda: nn.GRUCell(I, H),
            start=lambda: nn.Linear(H, 1, bias=False),
            head=linear(),
        ),
    ),
    "padded tokens, last state": (
        "reads-padding",
        made(
            padded_tokens,
            token_batch,
            embed=lambda: nn.Embedding(20, I, padding_idx=0),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "padded, two layers": (
        "reads-padding",
        made(
            lambda m, x: m.head(m.above(m.below(x)[0])[0][:, -1]),
            padded_batch,
            below=gru(),
            above=gru(H),
            head=linear(),
        ),
    ),
    "graph kept by a fresh model": ("kept-graph", stateful(False)),
    "broadcast inside the model": (
        "broadcast",
        made(
            lambda m, x, y: (read_last(m, x) - y).square().mean(),
            data(B),
            lambda m, b: m(*b),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "[B, 1] against [B], absolute": (
        "broadcast",
        compared(by_hand(lambda d: d.abs().mean()), lambda: torch.randn(B)),
    ),
    "softmax over the wrong axis": (
        "probabilities",
        made(
            lambda m, x: every_step(m, x).transpose(1, 2).softmax(-1),
            lambda: (torch.randn(B, T, I), torch.randint(0, 4, (B, T))),
            cross_entropy,
            rnn=gru(),
            head=linear(4),
        ),
    ),
    "logits into ctc_loss": (
        "probabilities",
        made(
            lambda m, x: every_step(m, x).transpose(0, 1),
            lambda: (torch.randn(B, T, I), torch.randint(1, 4, (B, 3))),
            lambda m, b: F.ctc_loss(m(b[0]), b[1], (T,) * B, (3,) * B),
            rnn=gru(),
            head=linear(4),
        ),
    ),
    "softmax into kl_div": (
        "probabilities",
        compared(
            lambda m, b: F.kl_div(m(b[0]).softmax(1), b[1], reduction="batchmean"),
            lambda: torch.rand(B, 4).softmax(1),
            4,
        ),
    ),
    "features of 1e-5": (
        "input-scale",
        made(
            read_last,
            lambda: (1e-5 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "packed features of 5,000": (
        "input-scale",
        made(
            lambda m, x: m.head(
                m.rnn(
                    pack_padded_sequence(
                        x, lengths_of(B, T), batch_first=True, enforce_sorted=False
                    )
                )[1][-1]
            ),
            lambda: (5e3 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "tanh cannot reach the targets": (
        "target-scale",
        compared(lambda m, b: F.mse_loss(m(b[0]).tanh(), b[1]), lambda: 4 * torch.randn(B, 1)),
    ),
    "states cannot reach the targets": (
        "target-scale",
        made(
            lambda m, x: m.rnn(x)[0][:, -1],
            data(B, H),
            lambda m, b: F.mse_loss(m(b[0]), 5 * b[1]),
            rnn=gru(),
        ),
    ),
    "weights from N(0, 1)": (
        "weight-scale",
        drawn(lambda: nn.LSTM(I, 32, batch_first=True), nn.init.normal_, T),
    ),
    "batch first not said": (
        "samples-mixed",
        regression(last, lambda: nn.LSTM(I, H)),
    ),
    "batch first not said, GRU with two layers": (
        "samples-mixed",
        regression(last, lambda: nn.GRU(I, H, 2)),
    ),
    "batch first not said, ours": (
        "samples-mixed",
        regression(last, lambda: retrograde.nn.LSTM(I, H)),
    ),
    "batch first not said, classes": (
        "samples-mixed",
        lambda: (
            Net(nn.RNN(I, H), last, 4),
            (torch.randn(B, T, I), torch.randint(0, 4, (B,))),
            cross_entropy,
            None,
        ),
    ),
    "h_n viewed as [B, -1]": (
        "samples-mixed",
        regression(
            lambda rnn, x: rnn(x)[1].view(B, -1),
            lambda: nn.GRU(I, H, 2, batch_first=True),
            features=2 * H,
        ),
    ),
    "output viewed with the axes swapped": (
        "samples-mixed",
        regression(
            lambda rnn, x: rnn(x)[0].reshape(B, T, H)[:, -1],
            lambda: nn.LSTM(I, H),
            x=(T, B, I),
        ),
    ),
    "h_n[-1] of both directions": (
        "unreached",
        both_ways(lambda rnn, x: last_states(rnn, x)[-1], features=H),
    ),
    "h_n[-2] of both directions": (
        "unreached",
        both_ways(lambda rnn, x: last_states(rnn, x)[-2], nn.GRU, features=H),
    ),
    "last output of both directions": ("unreached", both_ways(lambda rnn, x: rnn(x)[0][:, -1])),
    "first output of both directions": (
        "unreached",
        both_ways(lambda rnn, x: rnn(x)[0][:, 0], nn.GRU),
    ),
    "h_n[0] of two layers": (
        "unreached",
        regression(lambda rnn, x: rnn(x)[1][0], lambda: nn.GRU(I, H, 2, batch_first=True)),
    ),
    "encoder cut off by .data": ("unreached", seq2seq(True)),
    "packed, then the last column": (
        "unreached",
        padded(lambda rnn, x, n: packed_out(rnn, x, n)[:, -1]),
    ),
    "loss on one sample": (
        "unreached",
        regression(last, loss=lambda m, b: F.mse_loss(m(b[0])[:1], b[1][:1])),
    ),
    "detached at every step": (
        "no-time",
        loop(lambda cell, x, h: cell(x, None if h is None else h.detach())),
    ),
    "detached at every step, LSTM": (
        "no-time",
        loop(
            lambda cell, x, s: cell(x, None if s is None else tuple(p.detach() for p in s)),
            lambda: nn.LSTMCell(I, H),
        ),
    ),
    "detached every three steps, lag 5": ("no-time", loop(cut_every(3), lag=5)),
    "state never handed on": ("no-time", loop(lambda cell, x, h: cell(x))),
    "layer called with one step at a time": (
        "no-time",
        regression(
            lambda rnn, x: torch.stack([rnn(x[:, t : t + 1])[0][:, 0] for t in range(T)], 1),
            y=(B, T, 1),
        ),
    ),
    "sequences of one step": ("no-time", regression(last, x=(B, 1, I))),
    "lag longer than the window": ("no-time", regression(last, lag=2 * T)),
    "lag longer than encoder and decoder": ("no-time", seq2seq(False, lag=T + 6)),
    "padded, read at the last step": ("reads-padding", padded(lambda rnn, x, n: rnn(x)[0][:, -1])),
    "padded with -1, last state": (
        "reads-padding",
        padded(lambda rnn, x, n: rnn(x)[1][-1], value=-1.0),
    ),
    "zeros everywhere": (
        "units-alike",
        regression(last, lambda: constant(nn.GRU(I, H, batch_first=True), 0.0)),
    ),
    "ones everywhere": (
        "units-alike",
        regression(last, lambda: constant(nn.LSTM(I, H, batch_first=True), 0.1)),
    ),
    "initial state drawn": ("initial-state", started("drawn")),
    "NaN in the target": ("non-finite-data", with_nan("y")),
    "NaN in the input": ("non-finite-data", with_nan("x")),
    "log of 0": ("non-finite-loss", compared(log_loss, lambda: torch.randn(B, 1), 1)),
    "CTC with too few steps": ("non-finite-loss", ctc(True)),
    "float16 without scaling": ("precision", halved(1e-6, torch.float16)),
    "float16 with too much of it": ("precision", halved(1e6, torch.float16)),
    "[B, 1] against [B]": ("broadcast", compared(mse, lambda: torch.randn(B))),
    "[B, 1] against [B] by hand": (
        "broadcast",
        compared(by_hand(lambda d: d.square().mean()), lambda: torch.randn(B)),
    ),
    "[B, 1] against [1, B], l1": (
        "broadcast",
        compared(lambda m, b: F.l1_loss(m(b[0]), b[1]), lambda: torch.randn(1, B)),
    ),
    "softmax into cross_entropy": (
        "probabilities",
        compared(
            lambda m, b: F.cross_entropy(m(b[0]).softmax(1), b[1]),
            lambda: torch.randint(0, 4, (B,)),
            4,
        ),
    ),
    "sigmoid into the logits": (
        "probabilities",
        compared(
            lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).sigmoid().squeeze(1), b[1]),
            lambda: torch.rand(B).round(),
        ),
    ),
    "softmax into nll_loss": (
        "probabilities",
        compared(
            lambda m, b: F.nll_loss(m(b[0]).softmax(1), b[1]), lambda: torch.randint(0, 4, (B,)), 4
        ),
    ),
    "targets of 10,000": (
        "target-scale",
        compared(mse, lambda: torch.randn(B, 1), change=lambda y: 1e4 + 100 * y),
    ),
    "targets with a spread of 10,000": (
        "target-scale",
        compared(mse, lambda: torch.randn(B, 1), change=lambda y: 1e4 * y),
    ),
    "features of 1,000": (
        "input-scale",
        lambda: (
            Net(nn.LSTM(I, H, batch_first=True), last),
            (1e3 * torch.randn(B, T, I), torch.randn(B, 1)),
            mse,
            None,
        ),
    ),
    "eight layers": ("vanishing-in-depth", deep(8)),
    "twelve layers in one module": (
        "vanishing-in-depth",
        regression(last, lambda: nn.LSTM(I, H, 12, batch_first=True)),
    ),
}
"""The rule that names the trouble, and what has it."""

HEALTHY = {
    "sorted by length and back": made(
        sorted_by_length,
        lambda: (torch.randn(B, T, I), lengths_of(B, T), torch.randn(B, 1)),
        rnn=gru(),
        head=linear(),
    ),
    "samples related by a graph": made(
        lambda m, x, graph: m.head(graph @ m.rnn(x)[0][:, -1]),
        lambda: (torch.randn(B, T, I), torch.rand(B, B), torch.randn(B, 1)),
        rnn=gru(),
        head=linear(),
    ),
    "padded on the left": made(
        read_last,
        lambda: (padded_batch()[0].flip(1), torch.randn(32, 1)),
        rnn=gru(),
        head=linear(),
    ),
    "contrastive": made(lambda m, x: m.rnn(x)[1][-1], data(B, T, I), contrastive, rnn=gru()),
    "sentences of documents, each with a target": made(*documents()[:2], **documents()[2]),
    "lag in the steps of one layer": made(
        documents()[0],
        data(B, 9, 1, x=(B, 9, 5, I)),
        lag=8,
        **documents()[2],
    ),
    "attention bridges the lag": made(
        decoded,
        lambda: (torch.randn(B, T, I), torch.randn(B, 4, 1), torch.randn(B, 4, 1)),
        lag=T - 2,
        encoder=gru(),
        query=linear(H),
        cell=lambda: nn.GRUCell(H + 1, H),
        head=linear(),
    ),
    "logits masked with -1e9": made(
        read_last,
        lambda: (torch.randn(B, T, I), (torch.arange(5) < 4).float(), torch.randint(0, 4, (B,))),
        masked_logits,
        rnn=gru(),
        head=linear(5),
    ),
    "distances of all pairs of steps": made(
        every_step, data(B, T), all_pairs, rnn=gru(), head=linear()
    ),
    "frozen encoder": made(
        lambda m, x: read_last(m, m.frozen(x)[0]),
        data(),
        frozen=lambda: gru()().requires_grad_(False),
        rnn=gru(H),
        head=linear(),
    ),
    "teacher": made(lambda m, x: m.rnn(x)[0], data(), taught, rnn=gru(), teacher=gru()),
    "an event, then nothing": made(read_last, events("event"), rnn=gru(1), head=linear()),
    "bits": made(read_last, events("bits"), rnn=gru(1), head=linear()),
    "levels that are held": made(read_last, events("levels"), rnn=gru(1), head=linear()),
    "state carried on, detached": stateful(True),
    "normalised over the batch in the loss": made(
        read_last,
        data(),
        lambda m, b: F.mse_loss((m(b[0]) - m(b[0]).mean(0)) / m(b[0]).std(0), b[1]),
        rnn=gru(),
        head=linear(),
    ),
    "orthogonal weights": made(
        read_last,
        data(),
        rnn=lambda: orthogonal(nn.GRU(I, H, batch_first=True)),
        head=linear(),
    ),
    "batch first": regression(last),
    "windows that share their memory": lambda: (
        Net(nn.LSTM(I, H, batch_first=True), last),
        (torch.randn(B + T - 1, I).unfold(0, T, 1).transpose(1, 2), torch.randn(B, 1)),
        mse,
        None,
    ),
    "features standardised over the batch": regression(
        lambda rnn, x: last(rnn, (x - x.mean((0, 1))) / x.std((0, 1)))
    ),
    "features standardised in the loss": regression(
        last,
        loss=lambda m, b: mse(m, ((b[0] - b[0].mean((0, 1))) / b[0].std((0, 1)), b[1])),
    ),
    "time first": regression(lambda rnn, x: rnn(x)[0][-1], lambda: nn.LSTM(I, H), x=(T, B, I)),
    "as many steps as samples": regression(last, x=(B, B, I)),
    "a loss at every step": regression(lambda rnn, x: rnn(x)[0], y=(B, T, 1)),
    "a loss at every step, time first": regression(
        lambda rnn, x: rnn(x)[0], lambda: nn.GRU(I, H), x=(T, B, I), y=(T, B, 1)
    ),
    "h_n side by side": regression(
        lambda rnn, x: rnn(x)[1].transpose(0, 1).reshape(B, -1),
        lambda: nn.GRU(I, H, 2, batch_first=True),
        features=2 * H,
    ),
    "batch normalisation": normalised,
    "tokens": tokens(False),
    "tokens, flat": tokens(True),
    "both directions": both_ways(
        lambda rnn, x: torch.cat((last_states(rnn, x)[-2], last_states(rnn, x)[-1]), 1)
    ),
    "both directions, every step": both_ways(lambda rnn, x: rnn(x)[0].mean(1)),
    "both directions, two layers": both_ways(lambda rnn, x: rnn(x)[0].mean(1), nn.GRU, depth=2),
    "encoder and decoder": seq2seq(False),
    "encoder and decoder, lag through both": seq2seq(False, lag=T + 2),
    "padded, read at the lengths": padded(lambda rnn, x, n: at_lengths(rnn(x)[0], n)),
    "packed, read at the lengths": padded(lambda rnn, x, n: at_lengths(packed_out(rnn, x, n), n)),
    "packed, last state": padded(
        lambda rnn, x, n: rnn(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[
            1
        ][-1]
    ),
    "silence at the end of all": regression(
        lambda rnn, x: rnn(torch.cat((x[:, :5], 0 * x[:, 5:]), 1))[0][:, -1]
    ),
    "a loop over a cell": loop(lambda cell, x, h: cell(x, h)),
    "a loop over a cell, LSTM": loop(lambda cell, x, s: cell(x, s), lambda: nn.LSTMCell(I, H)),
    "a masked loop": loop(
        lambda cell, x, h: cell(x) if h is None else torch.where(x[:, :1] > 0, cell(x, h), h)
    ),
    "detached every five steps": loop(cut_every(5)),
    "initial state zero": started("zero"),
    "initial state learnt": started("learnt"),
    "carried in": started("kept"),
    "NaN left out of the loss": with_nan("y", masked),
    "CTC": ctc(False),
    "CTC that leaves out what is short": ctc(True, zero=True),
    "bfloat16": halved(1.0, torch.bfloat16),
    "float16": halved(64.0, torch.float16),
    "logits": compared(cross_entropy, lambda: torch.randint(0, 4, (B,)), 4),
    "log-probabilities": compared(
        lambda m, b: F.nll_loss(m(b[0]).log_softmax(1), b[1]),
        lambda: torch.randint(0, 4, (B,)),
        4,
    ),
    "one row of outputs for all": compared(
        by_hand(lambda d: d.square().mean()), lambda: torch.randn(1, 1)
    ),
    "three layers": deep(3),
    "eight layers with a way past them": deep(8, residual=True),
}
