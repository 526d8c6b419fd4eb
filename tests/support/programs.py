"""Programs that hand states from call to call, and what autograd says of them on a plain loop.

A program is data: which recurrent module, its calls, what is done to the state between them, and
what the loss reads. `run` carries it out on a machine: `Module` calls the user's module, `Plain`
is a loop over the cells' equations in which every step has copies of the weights of its own. With
them autograd tells C[t,k], the part of dL/dW that enters at loss step t and uses W at step k:

- steps count calls, and the steps within a call;
- the loss step of a term is the latest step that what it reads was computed from;
- what a layer of a stack that reads both ways hands to the next one enters it as a term.

Nothing here uses the package but to make its modules.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import retrograde

D = torch.float64
INPUTS, H = 2, 3


def numbers(seed, *shape):
    """Numbers of the same seed are the same on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def weighed(seed, *shape):
    """Away from zero, so that no term of a loss is lost beside the others."""
    drawn = numbers(seed, *shape)
    return drawn + drawn.sign() * 0.3


# --- the recurrences, written out ---


def _affine(w, x, h):
    """Pre-activations of all gates: W x + b_ih and R h + b_hh, apart."""
    b_ih, b_hh = w.get("bias_ih", 0.0), w.get("bias_hh", 0.0)
    return x @ w["weight_ih"].T + b_ih, h @ w["weight_hh"].T + b_hh


def elman(activation):
    def step(w, x, s, cut):
        before = s["h"].detach() if cut else s["h"]
        a, b = _affine(w, x, before)
        return {"h": activation(a + b)}

    return step


def gru(w, x, s, cut):
    before = s["h"].detach() if cut else s["h"]
    (a_r, a_z, a_n), (b_r, b_z, b_n) = (v.chunk(3, -1) for v in _affine(w, x, before))
    r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
    return {"h": (1 - z) * torch.tanh(a_n + r * b_n) + z * s["h"]}


def gru_2014(w, x, s, cut):
    """The reset gate before the product with R_n (Cho et al., 2014)."""
    before = s["h"].detach() if cut else s["h"]
    (a_r, a_z, a_n), (b_r, b_z, _) = (v.chunk(3, -1) for v in _affine(w, x, before))
    r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
    bias = w["bias_hh"].chunk(3)[2] if "bias_hh" in w else 0.0
    q = (r * before) @ w["weight_hh"].chunk(3)[2].T + bias
    return {"h": (1 - z) * torch.tanh(a_n + q) + z * s["h"]}


def lstm(gates="ifgo", peepholes="", coupled=False, between=False, g=torch.tanh, squash=torch.tanh):
    """The LSTM of Greff et al. (2017), equations of section II with parts switched off."""

    def step(w, x, s, cut):
        before, c = s["h"].detach() if cut else s["h"], s["c"]
        a = dict(zip(gates, sum(_affine(w, x, before)).chunk(len(gates), -1), strict=True))
        if between:
            seen = torch.cat([s[gate].detach() if cut else s[gate] for gate in "ifo"], -1)
            for gate, part in zip("ifo", (seen @ w["weight_gg"].T).chunk(3, -1), strict=True):
                a[gate] = a[gate] + part
        p = {}
        if peepholes:
            p = dict(zip(peepholes, w["weight_ch"].chunk(len(peepholes)), strict=True))
        i = torch.sigmoid(a["i"] + p.get("i", 0.0) * c) if "i" in gates else 1.0
        f = torch.sigmoid(a["f"] + p.get("f", 0.0) * c) if "f" in gates else 1.0
        f = 1 - i if coupled else f
        new = f * c + i * g(a["g"])
        o = torch.sigmoid(a["o"] + p.get("o", 0.0) * new) if "o" in gates else 1.0
        state = {"h": o * squash(new), "c": new}
        return state | {"i": i, "f": f, "o": o} if between else state

    return step


OLD = {"g": lambda a: 4 * a.sigmoid() - 2, "squash": lambda c: 2 * c.sigmoid() - 1}


def _ours(name, **fixed):
    return lambda *sizes, **options: getattr(retrograde.nn, name)(*sizes, **fixed, **options)


@dataclass(frozen=True)
class Kind:
    """A recurrent module, and its equations."""

    make: Callable
    step: Callable
    letters: str
    stepped: bool = False


KINDS = {
    "nn.LSTMCell": Kind(nn.LSTMCell, lstm(), "hc", True),
    "nn.GRUCell": Kind(nn.GRUCell, gru, "h", True),
    "nn.RNNCell": Kind(nn.RNNCell, elman(torch.tanh), "h", True),
    "nn.RNNCell(relu)": Kind(
        lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k), elman(torch.relu), "h", True
    ),
    "nn.LSTM": Kind(nn.LSTM, lstm(), "hc"),
    "nn.GRU": Kind(nn.GRU, gru, "h"),
    "nn.RNN": Kind(nn.RNN, elman(torch.tanh), "h"),
    "nn.RNN(relu)": Kind(
        lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k), elman(torch.relu), "h"
    ),
    "ours.LSTM": Kind(_ours("LSTM"), lstm(), "hc"),
    "ours.LSTM(peephole)": Kind(_ours("LSTM", generation="peephole"), lstm("ifgo", "ifo"), "hc"),
    "ours.LSTM(lstm-1997)": Kind(_ours("LSTM", generation="lstm-1997"), lstm("igo", **OLD), "hc"),
    "ours.LSTM(cec)": Kind(_ours("LSTM", generation="cec"), lstm("g", **OLD), "hc"),
    "ours.LSTM(cifg)": Kind(
        _ours("LSTM", generation="cifg"), lstm("igo", "io", coupled=True), "hc"
    ),
    "ours.LSTM(nog)": Kind(_ours("LSTM", generation="nog"), lstm("ifg", "if"), "hc"),
    "ours.LSTM(fgr)": Kind(
        _ours("LSTM", generation="fgr"), lstm("ifgo", "ifo", between=True), "hcifo"
    ),
    "ours.GRU": Kind(_ours("GRU"), gru, "h"),
    "ours.GRU(gru-2014)": Kind(_ours("GRU", generation="gru-2014"), gru_2014, "h"),
    "ours.RNN(sigmoid)": Kind(_ours("RNN", nonlinearity="sigmoid"), elman(torch.sigmoid), "h"),
}


# --- programs ---


@dataclass(frozen=True)
class Op:
    """What is done to some parts of the state, and whether the loss reads what comes of it."""

    name: str
    on: str
    seed: int = 0
    read: bool = False

    def __repr__(self):
        return f"{self.name}({self.on}{', read' * self.read}, seed={self.seed})"


@dataclass(frozen=True)
class Call:
    """Some steps, what the loss reads of their results, and what is done before the next call."""

    steps: int = 1
    reads: str = ""  # letters of the last state, "y" for the output
    ops: tuple[Op, ...] = ()
    lengths: tuple[int, ...] = ()  # of a packed batch, over and over for more samples

    def lengths_of(self, batch):
        """The length of each sample, None if nothing is packed."""
        several = self.lengths * batch
        return list(several[:batch]) if self.lengths else None


@dataclass(frozen=True)
class Program:
    """A module and its calls."""

    kind: str
    calls: tuple[Call, ...]
    batch: int = 2
    layers: int = 1
    directions: int = 1
    batch_first: bool = False
    initial: str = "none"  # none, given, learned
    way: str = "call"  # call, checkpoint, forward, hooks
    together: bool = False  # the loss reads one tensor of all that it reads, made at the end
    seed: int = 0

    @property
    def stepped(self):
        return KINDS[self.kind].stepped

    def module(self):
        """The module, its weights drawn large enough for lags to matter."""
        options = {"dtype": D}
        if not self.stepped:
            options |= {
                "num_layers": self.layers,
                "bidirectional": self.directions == 2,
                "batch_first": self.batch_first,
            }
        module = KINDS[self.kind].make(INPUTS, H, **options)
        with torch.no_grad():
            for number, weight in enumerate(module.parameters()):
                weight.copy_(0.6 * numbers(1000 * self.seed + number, *weight.shape))
        if self.way == "hooks":
            module.register_full_backward_hook(lambda *_: None)
        return module


# --- what is done to states ---


@dataclass
class Around:
    """What an operation may use beside the tensor: numbers, and older tensors.

    Attributes:
        seed: of the numbers.
        old: the state that the call was given.
        learned: a state that is trained.
        earlier: what earlier calls returned, the latest first.
    """

    seed: int
    old: Tensor | None
    learned: Tensor
    earlier: tuple[Tensor, ...] = ()

    def like(self, t, *shape):
        return numbers(self.seed, *(shape or t.shape))

    def mask(self, *shape):
        """Never all on, never all off where there are several."""
        drawn = numbers(self.seed, *shape)
        return drawn > (drawn.median() if drawn.numel() > 1 else 0.0)

    def samples(self, t):
        return self.mask(t.shape[-2], 1)

    def order(self, size):
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))

    def drawn(self, size, among):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(among, (size,), generator=generator)


def _dropout(t, a):
    torch.manual_seed(a.seed)
    return nn.functional.dropout(t, 0.4)


def _in_place(change):
    def op(t, a):
        t = t.clone()
        change(t, a)
        return t

    return op


def _set(t, a):
    t[..., a.samples(t)[:, 0], :] = 0.0


def _set_unit(t, a):
    t[..., 0] = 0.25


ELEMENTWISE = {
    "scale": lambda t, a: t * 1.3,
    "divide": lambda t, a: t / -0.8,
    "negate": lambda t, a: -t,
    "add zero": lambda t, a: t + 0.0,
    "clone": lambda t, a: t.clone(),
    "scale by a tensor": lambda t, a: t * a.like(t),
    "scale samples": lambda t, a: t * a.like(t, t.shape[-2], 1),
    "scale units": lambda t, a: t * a.like(t, t.shape[-1]),
    "mask units": lambda t, a: t * a.mask(*t.shape) * 2,
    "dropout": _dropout,
    "reset samples": lambda t, a: t * a.samples(t),
    "fill with zero": lambda t, a: t.masked_fill(a.samples(t), 0.0),
    "fill with a number": lambda t, a: t.masked_fill(a.mask(*t.shape), 0.3),
    "reset to a learned state": lambda t, a: torch.where(a.samples(t), a.learned, t),
    "mix with a learned state": lambda t, a: a.samples(t) * t + ~a.samples(t) * a.learned,
    "detach samples": lambda t, a: torch.where(a.samples(t), t.detach(), t),
    "add an input": lambda t, a: t + a.like(t),
    "subtract from": lambda t, a: a.like(t) - t,
    "lerp with numbers": lambda t, a: torch.lerp(t, a.like(t), 0.3),
    "relu": lambda t, a: t.relu(),
    "leaky relu": lambda t, a: nn.functional.leaky_relu(t, 0.2),
    "tanh": lambda t, a: t.tanh(),
    "sigmoid": lambda t, a: t.sigmoid(),
    "softplus": lambda t, a: nn.functional.softplus(t),
    "clamp": lambda t, a: t.clamp(-0.3, 0.3),
    "square": lambda t, a: t + 0.4 * t.square(),
    "by itself": lambda t, a: t * t.sigmoid(),
    "softsign": lambda t, a: t / (1 + t.abs()),
    "set samples in a clone": _in_place(_set),
    "set units in a clone": _in_place(_set_unit),
    "scale a clone": _in_place(lambda t, a: t.mul_(0.8)),
    "add to a clone": _in_place(lambda t, a: t.add_(a.like(t))),
    "scale samples of a clone": _in_place(lambda t, a: t[..., :1, :].mul_(0.5)),
}

WITH_OLD = {
    "where on": lambda t, a: torch.where(a.samples(t), t, a.old),
    "zoneout": lambda t, a: torch.where(a.mask(*t.shape), t, a.old),
    "masked update": lambda t, a: a.samples(t) * t + ~a.samples(t) * a.old,
    "gated by numbers": lambda t, a: a.like(t).sigmoid() * t + (1 - a.like(t).sigmoid()) * a.old,
    "lerp with old": lambda t, a: torch.lerp(t, a.old, 0.4),
    "add old": lambda t, a: t + a.old,
    "subtract old": lambda t, a: t - 0.5 * a.old,
    "maximum with old": lambda t, a: torch.maximum(t, a.old),
    "old put into a clone": lambda t, a: t.clone().masked_scatter_(
        a.mask(*t.shape), a.old[a.mask(*t.shape)]
    ),
    "rows of old": lambda t, a: (
        torch.cat([a.old[..., :1, :], t[..., 1:, :]], -2) if t.shape[-2] > 1 else t
    ),
    "times old": lambda t, a: t * a.old,
}

WITH_EARLIER = {  # not what the call was given, but what that was made of, and older ones
    "where on, else the result before": lambda t, a: torch.where(a.samples(t), t, a.earlier[0]),
    "add the result before": lambda t, a: t + 0.6 * a.earlier[0],
    "add the result of two calls ago": lambda t, a: t + 0.6 * a.earlier[1],
    "where on, else that of two calls ago": lambda t, a: torch.where(a.samples(t), t, a.earlier[1]),
}

INDEXING = {
    "permute samples": lambda t, a: t[..., a.order(t.shape[-2]), :],
    "reorder beams": lambda t, a: t.index_select(-2, a.drawn(t.shape[-2], t.shape[-2])),
    "flip samples": lambda t, a: t.flip(-2),
    "roll samples": lambda t, a: t.roll(1, -2),
    "gather samples": lambda t, a: t.gather(
        -2, a.drawn(t.shape[-2], t.shape[-2]).unsqueeze(-1).expand_as(t)
    ),
    "permute units": lambda t, a: t[..., a.order(t.shape[-1])],
    "flip units": lambda t, a: t.flip(-1),
    "roll units": lambda t, a: t.roll(1, -1),
    "swap pieces": lambda t, a: torch.cat([t[..., 1:], t[..., :1]], -1),
    "chunk and stack": lambda t, a: torch.stack(t.unbind(-1), -1),
    "view": lambda t, a: t.reshape(-1).view_as(t),
    "transpose": lambda t, a: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "squeeze": lambda t, a: t.unsqueeze(0).squeeze(0),
    "split samples": lambda t, a: torch.cat(t.split(1, -2), -2),
    "reorder pairs of beams": lambda t, a: (
        t.unflatten(-2, (-1, 2)).flip(-2).flatten(-3, -2) if t.shape[-2] % 2 == 0 else t
    ),
}

COUNT = {
    "shrink": lambda t, a: t[..., : -(-t.shape[-2] // 2), :],
    "drop the first": lambda t, a: t[..., 1:, :] if t.shape[-2] > 1 else t[..., :1, :],
    "select": lambda t, a: t[..., a.drawn(1 + a.seed % 3, t.shape[-2]), :],
    "repeat": lambda t, a: t.repeat_interleave(2, -2) if t.shape[-2] < 3 else t,
    "expand": lambda t, a: (
        t.unsqueeze(-2).expand(*t.shape[:-1], 2, t.shape[-1]).flatten(-3, -2)
        if t.shape[-2] < 3
        else t
    ),
    "add a sample": lambda t, a: torch.cat([t, t[..., :1, :]], -2) if t.shape[-2] < 4 else t,
    "add a fresh sample": lambda t, a: (
        torch.cat([t, a.learned.expand_as(t)[..., :1, :]], -2) if t.shape[-2] < 4 else t
    ),
}

LAYERS = {  # of a state [layers, B, H]
    "scale a layer": lambda t, a: torch.cat([t[:1] * 0.7, t[1:]]),
    "scale the last layer in a clone": _in_place(lambda t, a: t[-1].mul_(0.7)),
    "replace a layer": lambda t, a: torch.stack([a.like(t[0]), *t[1:].unbind()]),
    "detach a layer": lambda t, a: torch.cat([t[:-1], t[-1:].detach()]),
    "unbind layers": lambda t, a: torch.stack(t.unbind()),
    "by samples": lambda t, a: (
        (t.transpose(0, 1).reshape(t.shape[1], -1) * 1.1)
        .view(t.shape[1], t.shape[0], -1)
        .transpose(0, 1)
    ),
}


def _softmax(t, a):
    return t.softmax(-1)


HARD = {  # no recursion row by row passes through these
    "linear": lambda t, a: t @ numbers(a.seed, H, H),
    "linear residual": lambda t, a: t + t @ numbers(a.seed, H, H),
    "norm": lambda t, a: nn.functional.layer_norm(t, (H,)),
    "network": lambda t, a: (t @ numbers(a.seed, H, 4)).tanh() @ numbers(a.seed + 1, 4, H),
    "softmax": _softmax,
    "centre": lambda t, a: t - t.mean(-1, keepdim=True),
    "sum of samples": lambda t, a: t + 0.3 * t.sum(-2, keepdim=True),
    "running sum": lambda t, a: t.cumsum(-1),
}

WHOLE = {  # all parts at once, through a larger tensor, which the loss may read
    "stack parts": lambda parts: torch.stack(parts),
    "cat parts": lambda parts: torch.cat(parts, -1),
    "cat parts by samples": lambda parts: torch.cat(parts, -2),
}

UNPACK = {
    "stack parts": lambda big, count: big.unbind(0),
    "cat parts": lambda big, count: big.chunk(count, -1),
    "cat parts by samples": lambda big, count: big.split(big.shape[-2] // count, -2),
}

MIXED = {  # parts of the state that stand in for each other
    "swap parts": lambda parts: parts[::-1],
    "gate h by c": lambda parts: [parts[0] * parts[1].sigmoid(), *parts[1:]],
    "add c to h": lambda parts: [parts[0] + 0.5 * parts[1], *parts[1:]],
}

EACH = ELEMENTWISE | WITH_OLD | WITH_EARLIER | INDEXING | COUNT | LAYERS | HARD


# --- machines ---


@dataclass
class Part:
    """A part of the state, with the latest step that each sample was computed from.

    -1 if from none. `lost` if something on the way lets no row pass.
    """

    tensor: Tensor
    times: Tensor
    lost: bool = False


class Module:
    """Runs a program on the module itself; the loss is one sum."""

    def __init__(self, program, module):
        self.program, self.module = program, module
        self.terms, self._kept = [], []

    def call(self, x, state, starts, lengths):
        program, letters = self.program, KINDS[self.program.kind].letters
        hx = None
        if state is not None:
            hx = tuple(state[n] for n in letters) if len(letters) > 1 else state["h"]
        if program.stepped:
            output, returned = None, self._through(x[0], hx)
        elif lengths is not None:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, returned = self._through(packed, hx)
            output = pad_packed_sequence(output)[0]
        else:
            output, returned = self._through(x.transpose(0, 1) if program.batch_first else x, hx)
            output = output.transpose(0, 1) if program.batch_first else output
        parts = returned if isinstance(returned, tuple) else (returned,)
        return output, dict(zip(letters, parts, strict=True))

    def _through(self, x, hx):
        if self.program.way == "checkpoint":
            return checkpoint(self.module, x, hx, use_reentrant=False)
        return self.module.forward(x, hx) if self.program.way == "forward" else self.module(x, hx)

    def read_output(self, output, starts, lengths, seed):
        self.terms.append(_term(output, weighed(seed, *output.shape)))

    def read(self, tensor, times, seed):
        if self.program.together:
            self._kept.append((tensor, seed))
        else:
            self.terms.append(_term(tensor, weighed(seed, *tensor.shape)))

    def loss(self):
        """The sum of all that the loss reads."""
        for shape in sorted({tensor.shape for tensor, _ in self._kept}):
            kept = [(tensor, seed) for tensor, seed in self._kept if tensor.shape == shape]
            everything = torch.stack([tensor for tensor, _ in kept])
            for tensor, (_, seed) in zip(everything, kept, strict=True):
                self.terms.append(_term(tensor, weighed(seed, *shape)))
        return sum(self.terms)


def _term(tensor, weight, square=None):
    square = weight.flip(-1) if square is None else square
    return (tensor * weight).sum() + (tensor * square).square().sum() / 2


class Plain:
    """A plain loop in which each step has its own copies of the weights.

    `whole`: the same loop uncut. With it nothing comes back through recurrent weights here, and
    what is left is the part of the gradient without a crossing.
    """

    def __init__(self, program, module, whole=None):
        self.program, self.cut = program, whole is not None
        self.weights = {n: p.detach() for n, p in module.named_parameters()}
        self.copies = []
        self.terms = defaultdict(list)
        self._handed_down = []
        self._came_down = list(whole._came_down) if whole else []

    def call(self, x, state, starts, lengths):
        kind, longest = KINDS[self.program.kind], len(x)
        if state is None:
            shape = (x.shape[1], H)
            if not self.program.stepped:
                shape = (self.program.layers * self.program.directions, *shape)
            state = {n: torch.zeros(shape, dtype=D) for n in kind.letters}
        each = [longest] * x.shape[1] if lengths is None else lengths
        for _ in range(len(self.copies), max(s + n for s, n in zip(starts, each, strict=True))):
            self.copies.append({n: w.clone().requires_grad_() for n, w in self.weights.items()})
        if len(set(starts)) == 1 and len(set(each)) == 1:
            return self._together(x, state, starts[0])
        alone = []  # each sample in a time of its own
        for b, (start, steps) in enumerate(zip(starts, each, strict=True)):
            own = {n: part[..., b : b + 1, :] for n, part in state.items()}
            output, last = self._together(x[:steps, b : b + 1], own, start)
            alone.append((nn.functional.pad(output, (0, 0, 0, 0, 0, longest - steps)), last))
        return torch.cat([output for output, _ in alone], 1), {
            n: torch.cat([last[n] for _, last in alone], -2) for n in kind.letters
        }

    def _together(self, x, state, start):
        program, kind = self.program, KINDS[self.program.kind]
        if program.stepped:
            return None, kind.step(self.copies[start], x[0], state, self.cut)
        last = {letter: [] for letter in kind.letters}
        for layer in range(program.layers):
            sides = []
            for side in range(program.directions):
                suffix = f"_l{layer}" + "_reverse" * side
                each = {n: part[layer * program.directions + side] for n, part in state.items()}
                hidden = []
                for step, x_k in enumerate(x.flip(0) if side else x):
                    own = {
                        n.removesuffix(suffix): w
                        for n, w in self.copies[start + step].items()
                        if n.endswith(suffix)
                    }
                    each = kind.step(own, x_k, each, self.cut)
                    hidden.append(each["h"])
                sides.append(torch.stack(hidden[::-1] if side else hidden))
                for letter in kind.letters:
                    last[letter].append(each[letter])
            x = torch.cat(sides, -1)
            if program.directions == 2 and layer + 1 < program.layers:
                leaf = x.detach().requires_grad_()
                self._handed_down.append((leaf, x, start))
                x = leaf
        return x, {letter: torch.stack(parts) for letter, parts in last.items()}

    def read_output(self, output, starts, lengths, seed):
        weight = weighed(seed, *output.shape)
        square = weight.flip(-1)
        if lengths is None and len(set(starts)) == 1:
            self._at_own_steps(_term, output, starts[0], weight, square)
            return
        for b, start in enumerate(starts):
            own = (slice(lengths[b] if lengths else None), slice(b, b + 1))
            self._at_own_steps(_term, output[own], start, weight[own], square[own])

    def _at_own_steps(self, term, output, start, *weights):
        """A term for every step and direction, at its step in the time of that direction."""
        for position, row in enumerate(output):
            for side in range(self.program.directions):
                own = (..., slice(side * H, (side + 1) * H))
                step = len(output) - 1 - position if side else position
                value = term(row[own], *(weight[position][own] for weight in weights))
                self.terms[start + step].append(value)

    def read(self, tensor, times, seed):
        weight = weighed(seed, *tensor.shape)
        square = weight.flip(-1)
        for time in sorted(set(times.tolist())):
            own = (..., times == time, slice(None))
            self.terms[time].append(_term(tensor[own], weight[own], square[own]))

    def contributions(self):
        """C[t,k] of every parameter, [T, T, ...]."""
        for number, (leaf, output, start) in enumerate(reversed(self._handed_down)):
            if not self.cut:
                total = sum(sum(terms) for terms in self.terms.values())
                self._came_down += torch.autograd.grad(
                    total, [leaf], retain_graph=True, materialize_grads=True
                )
            came = self._came_down[number]
            self._at_own_steps(lambda row, g: (row * g).sum(), output, start, came)
        steps = len(self.copies)
        tables = {n: torch.zeros(steps, steps, *w.shape, dtype=D) for n, w in self.weights.items()}
        wanted = [w for copies in self.copies for w in copies.values()]
        for t, terms in self.terms.items():
            total = sum(terms)
            if t < 0 or not total.requires_grad:
                continue
            found = iter(
                torch.autograd.grad(total, wanted, retain_graph=True, materialize_grads=True)
            )
            for k in range(steps):
                for name in self.weights:
                    tables[name][t, k] = next(found)
        return tables


def run(program, machine):
    """Carry out a program; gives the steps before which something lets no row pass."""
    letters, seed = KINDS[program.kind].letters, 1000 * program.seed + 500
    ends = []
    shape = (program.batch, H)
    if not program.stepped:
        shape = (program.layers * program.directions, *shape)
    learned = (0.3 * numbers(seed, H)).requires_grad_()
    given, fresh = None, torch.full((program.batch,), -1)
    if program.initial != "none":
        first = [0.5 * numbers(seed + 1 + i, *shape) for i in range(len(letters))]
        for tensor in first if program.initial == "learned" else ():
            tensor.requires_grad_()
        given = {n: Part(tensor, fresh) for n, tensor in zip(letters, first, strict=True)}
    stops = torch.zeros(program.batch, dtype=torch.int64)
    earlier: list[dict[str, Part]] = []
    for number, call in enumerate(program.calls):
        seed += 20
        batch, starts = len(stops), stops.tolist()
        lengths = call.lengths_of(batch)
        x = numbers(seed, max(lengths) if lengths else call.steps, batch, INPUTS)
        state = None if given is None else {n: part.tensor for n, part in given.items()}
        output, results = machine.call(x, state, starts, lengths)
        stops = stops + (torch.tensor(lengths) if lengths else call.steps)
        if "y" in call.reads and output is not None:
            machine.read_output(output, starts, lengths, seed + 1)
        for letter in letters:
            if letter in call.reads:
                machine.read(results[letter], stops - 1, seed + 2)
        results_of_call = {n: Part(tensor, stops - 1) for n, tensor in results.items()}
        old, given = given, results_of_call
        for place, op in enumerate(call.ops):
            if op.name in WITH_EARLIER and len(earlier) < 2:
                continue
            around = _Surroundings(machine, output, learned, old, earlier)
            given = _done(op, given, around, seed + 3 + place)
            if op.name in COUNT:
                stops = _moved(op, stops, fresh=int(stops.max()))
                old, earlier = None, []
        if len(stops) == batch:
            earlier = [results_of_call, *earlier]
        if number + 1 < len(program.calls) and any(part.lost for part in given.values()):
            ends.append(int(stops.max()))
    return ends


def _moved(op, times, fresh):
    """Where the samples went: numbers of theirs, through the same operation."""
    numbers_of_theirs = times.to(D).unsqueeze(-1).expand(-1, H)
    around = Around(op.seed, None, torch.full((H,), float(fresh), dtype=D))
    return EACH[op.name](numbers_of_theirs, around)[:, 0].to(torch.int64)


@dataclass(frozen=True)
class _Surroundings:
    """What is at hand after a call."""

    machine: Module | Plain
    output: Tensor | None
    learned: Tensor
    old: dict[str, Part] | None
    earlier: list[dict[str, Part]]


def _done(op, parts, at, seed):
    old, machine = at.old, at.machine
    if op.name in WHOLE:
        big = WHOLE[op.name]([part.tensor for part in parts.values()])
        times = torch.stack([part.times for part in parts.values()])
        if op.read:
            latest = times.amax(0)
            by_samples = op.name == "cat parts by samples"
            machine.read(big, latest.repeat(len(parts)) if by_samples else latest, seed)
        pieces = UNPACK[op.name](big, len(parts))
        each = zip(parts.items(), pieces, strict=True)
        return {n: Part(piece, part.times, part.lost) for (n, part), piece in each}
    if op.name in MIXED:
        mixed = MIXED[op.name]([part.tensor for part in parts.values()])
        times = torch.stack([part.times for part in parts.values()]).amax(0)
        lost = any(part.lost for part in parts.values())
        return {n: Part(t, times, lost) for n, t in zip(parts, mixed, strict=True)}
    if op.name in WITH_OLD and old is None:
        return parts
    parts = dict(parts)
    for place, letter in enumerate(n for n in parts if n in op.on):
        part = parts[letter]
        tensor, times, lost = part.tensor, part.times, part.lost
        if op.name == "detach":
            tensor, times, lost = tensor.detach(), torch.full_like(times, -1), False
        elif op.name == "from the output":
            top = at.output[-1]
            tensor = torch.cat([tensor[:-1], top.unsqueeze(0)]) if tensor.ndim == 3 else top
        else:
            before = old[letter] if old is not None else None
            earlier = tuple(results[letter].tensor for results in at.earlier)
            around = Around(op.seed, before and before.tensor, at.learned, earlier)
            tensor = EACH[op.name](tensor, around)
            if op.name in WITH_OLD:
                times, lost = torch.maximum(times, before.times), lost or before.lost
            if op.name in COUNT:
                times = _moved(op, times, fresh=int(times.max()))
            lost = lost or (op.name in HARD and int(times.max()) >= 0)
        parts[letter] = Part(tensor, times, lost)
        if op.read and tensor.requires_grad and int(times.max()) >= 0:
            machine.read(tensor, times, seed + 5 * place)
    return parts
