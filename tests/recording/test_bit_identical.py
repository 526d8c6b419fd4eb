"""Training ends in the very same weights whether its passes are recorded or not, to the last bit.

Each way here hands states on between the calls of a layer, or of a cell, in a form of its own. What
a recording must not do is to change the order in which autograd adds gradients up, to hold on to
what is then written over, or to draw random numbers.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import retrograde

T, B, INPUTS, H = 3, 4, 2, 3
LENGTHS = (3, 2, 2, 1)
UPDATES = 25


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, ON = numbers(T, B, INPUTS), numbers(T, B, 1, seed=1) > -0.7


class Way(nn.Module):
    """A layer and a head; `forward` is the loss of one batch."""

    layer: nn.Module

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(H, 1)
        self.register_buffer("x", X)

    def cost(self, *outputs):
        """Each output is used twice, so that its gradient is a sum of several."""
        return sum(self.head(h).square().mean() + (h.abs() * 0.3).mean() for h in outputs)


class Stepped(Way):
    """A cell in a loop; `between` is what happens to the state between two steps."""

    kind = nn.LSTMCell

    def __init__(self):
        super().__init__()
        self.layer = self.kind(INPUTS, H)

    def between(self, t, new, old):
        return new

    def forward(self):
        parts = 2 if isinstance(self.layer, nn.LSTMCell) else 1
        state, outputs = (self.x.new_zeros(B, H),) * parts, []
        for t in range(T):
            new = self.layer(self.x[t], state if parts == 2 else state[0])
            new = new if parts == 2 else (new,)
            state = self.between(t, new, state)
            outputs.append(state[0])
        return self.cost(*outputs)


class MaskedUpdate(Stepped):
    def between(self, t, new, old):
        return tuple(torch.where(ON[t], n, o) for n, o in zip(new, old, strict=True))


class MixedUpdate(Stepped):
    kind = nn.GRUCell

    def between(self, t, new, old):
        m = ON[t].to(self.x)
        return tuple(m * n + (1 - m) * o for n, o in zip(new, old, strict=True))


class DropoutOnH(Stepped):
    """As in Tacotron 2: c is handed on as the very tensor."""

    def between(self, t, new, old):
        return (dropout(new[0], 0.3, self.training), *new[1:])


class Zoneout(Stepped):
    kind = nn.GRUCell

    def between(self, t, new, old):
        return tuple(
            o + dropout(n - o, 0.3, self.training) * 0.7 for n, o in zip(new, old, strict=True)
        )


class ScaledInPlace(Stepped):
    """The loss and the next step read what was written over in place."""

    def between(self, t, new, old):
        return tuple((part * 1).mul_(0.9) for part in new)


class LinearMap(Stepped):
    """Here the lags end, with or without a state that goes through; the training is the same."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(H, H)

    def between(self, t, new, old):
        return (self.map(new[0]), *new[1:])


class BeamReordering(Stepped):
    """Every step goes on from rows that the scores of this step choose, some twice, some never."""

    def between(self, t, new, old):
        chosen = self.head(new[0]).detach().flatten().argsort()[[0, 1, 1, 3]]
        return tuple(part[chosen] for part in new)


class ShrinkingBatch(Stepped):
    def forward(self):
        state, outputs = (self.x.new_zeros(B, H),) * 2, []
        for t in range(T):
            size = sum(n > t for n in LENGTHS)
            state = self.layer(self.x[t, :size], tuple(part[:size] for part in state))
            outputs.append(state[0])
        return self.cost(*outputs)


class GrowingBatch(Stepped):
    def forward(self):
        zeros, outputs = self.x.new_zeros(B, H), []
        state = (zeros[:0],) * 2
        for t in reversed(range(T)):
            size = sum(n > t for n in LENGTHS)
            state = tuple(torch.cat((part, zeros[len(part) : size])) for part in state)
            state = self.layer(self.x[t, :size], state)
            outputs.append(state[0])
        return self.cost(*outputs)


class StackedStates(Way):
    """Two cells whose states lie in one tensor, which the loss reads as well."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.GRUCell(INPUTS, H), nn.GRUCell(H, H)])

    def forward(self):
        states, outputs = self.x.new_zeros(2, B, H), []
        for t in range(T):
            below = self.layers[0](self.x[t], states[0])
            states = torch.stack([below, self.layers[1](below, states[1])])
            outputs.append(states.mean(0))
        return self.cost(*outputs, states.flatten(0, 1))


class OneTensorForBoth(Stepped):
    """h and c side by side in one tensor, taken apart again by `chunk`."""

    def forward(self):
        state, outputs = self.x.new_zeros(B, 2 * H), []
        for t in range(T):
            state = torch.cat(self.layer(self.x[t], state.chunk(2, 1)), 1)
            outputs.append(state[:, :H])
        return self.cost(*outputs, state.view(2 * B, H))


class PackedThenHandedOn(Way):
    """The past and the future of each sample, each at its own length."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(INPUTS, H)

    def forward(self):
        past, state = self.layer(pack_padded_sequence(self.x, LENGTHS))
        again = pack_padded_sequence(self.x, (3, 2, 3, 1), enforce_sorted=False)
        future, _ = self.layer(again, state)
        return self.cost(past.data, pad_packed_sequence(future)[0])


class InChunks(Way):
    """A layer of two, called twice; in between, h of one is masked and the batch is permuted."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(INPUTS, H, 2)

    def forward(self):
        first, (h, c) = self.layer(self.x)
        h = torch.stack([h[0] * ON[0], h[1]])
        second, _ = self.layer(self.x, (h[:, [1, 0, 3, 2]], c[:, [1, 0, 3, 2]]))
        return self.cost(first, second)


WAYS = {
    way.__name__: way
    for way in (
        MaskedUpdate,
        MixedUpdate,
        DropoutOnH,
        Zoneout,
        ScaledInPlace,
        LinearMap,
        BeamReordering,
        ShrinkingBatch,
        GrowingBatch,
        StackedStates,
        OneTensorForBoth,
        PackedThenHandedOn,
        InChunks,
    )
}
STEPS = {"PackedThenHandedOn": LENGTHS[0] + T, "InChunks": 2 * T}


def trained(way, watch, updates=UPDATES):
    """Everything that a training leaves: weights, their last gradients, and the random state."""
    torch.manual_seed(0)
    model = way()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(updates):
        optimiser.zero_grad()
        watch(model)
        optimiser.step()
    named = dict(model.named_parameters())
    left = {name: p.detach().clone() for name, p in named.items()}
    return left | {f"{n}.grad": p.grad for n, p in named.items()} | {"random": torch.rand(1)}


def plainly(model):
    model().backward()


def recorded(model):
    with retrograde.record(model):
        model().backward()


def disturbed(model):
    """A weight off by its last bit, at every step; that of a gradient is lost in the update."""
    recorded(model)
    with torch.no_grad():
        model.head.bias.copy_(torch.nextafter(model.head.bias, model.head.bias + 1))


def different(name, watch=recorded):
    """The tensors that a training leaves otherwise than one that nobody looks at."""
    plain, watched = (trained(WAYS[name], how) for how in (plainly, watch))
    assert plain.keys() == watched.keys()
    return [tensor for tensor in plain if not torch.equal(plain[tensor], watched[tensor])]


@pytest.mark.parametrize("name", WAYS)
def test_training_is_the_same_to_the_last_bit(name):
    assert different(name) == []


def test_it_would_be_noticed():
    assert "head.bias" in different("LinearMap", disturbed)


@pytest.mark.parametrize("name", WAYS)
def test_and_what_was_recorded_is_exact(name):
    """To leave a training alone by not looking at it would be no feat."""
    torch.manual_seed(0)
    model = WAYS[name]().double()
    with retrograde.record(model) as recording:
        model().backward()
    for layer in recording.values():
        flow = retrograde.decompose(layer)
        assert flow.residual < 1e-12  # float64, sums of a few dozen products
        assert flow.steps == STEPS.get(name, T)
