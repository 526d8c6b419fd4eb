"""Training over an endless series: windows in bounded memory, and several of them as one sequence.

The oracle is autograd over the windows one after the other, written without any layer: each step
has a copy of the weights of its own, so that C[t,k] is the gradient of loss t by copy k.
"""

import gc
from collections import deque

import pytest
import torch
from torch import nn

import retrograde
from retrograde.errors import ArgumentError, RecordingError
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.states import StateTracker

LENGTHS = (5, 3, 4)
STEPS = sum(LENGTHS)


def stepped(kind, weights, x, state):
    """One step of torch's equations."""
    w_x, w_h, b_x, b_h = weights
    if kind is nn.LSTM:
        h, c = state
        i, f, g, o = (x @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (h,) = state
    of_x, of_h = (x @ w_x.T + b_x).chunk(3, -1), (h @ w_h.T + b_h).chunk(3, -1)
    r, z = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
    return ((1 - z) * (of_x[2] + r * of_h[2]).tanh() + z * h,)


def contributions(layer, x, wanted, state, detached):
    """C[t,k] of the recurrent weights, [T, T, R, H]."""
    copies = [[w.detach().clone().requires_grad_() for w in layer.parameters()] for _ in x]
    edges, losses = [sum(LENGTHS[:n]) for n in (1, 2)], []
    for k, x_k in enumerate(x):
        if detached and k in edges:
            state = tuple(part.detach() for part in state)
        state = stepped(type(layer), copies[k], x_k, state)
        losses.append((state[0] * wanted[k]).sum())
    found = [
        torch.autograd.grad(
            loss, [each[1] for each in copies], retain_graph=True, materialize_grads=True
        )
        for loss in losses
    ]
    return torch.stack([torch.stack(row) for row in found])


def packed(state):
    return state if len(state) == 2 else state[0]


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def windows(kind, detached, keep=None):
    """Three windows with a backward pass each, and what they were made of."""
    torch.manual_seed(1)
    layer = kind(2, 3).double()
    x, wanted = torch.randn(STEPS, 2, 2).double(), torch.randn(STEPS, 2, 3).double()
    start = tuple(torch.randn(2, 3).double() for _ in range(2 if kind is nn.LSTM else 1))
    state = packed(tuple(part.unsqueeze(0) for part in start))
    with retrograde.record(layer, keep=keep) as recording:
        for x_, wanted_ in zip(x.split(LENGTHS), wanted.split(LENGTHS), strict=True):
            output, state = layer(x_, state)
            (output * wanted_).sum().backward(retain_graph=not detached)
            if detached:
                state = packed(tuple(part.detach() for part in parts_of(state)))
    return layer, recording, contributions(layer, x, wanted, start, detached)


def check_joined(kind, detached):
    layer, recording, expected = windows(kind, detached)
    joined = recording.joined()
    flow = retrograde.decompose(joined)
    found = flow.by_time("weight_hh_l0")
    torch.testing.assert_close(found.norm, expected.flatten(2).norm(dim=2), atol=1e-13, rtol=1e-10)
    torch.testing.assert_close(
        sum(flow.by_lag("weight_hh_l0").parts()), layer.weight_hh_l0.grad, atol=1e-13, rtol=1e-10
    )
    assert flow.residual.ok and float(flow.residual) < 1e-12
    assert sorted(joined.boundaries) == ([5, 8] if detached else [])
    if detached:
        assert "the state was detached before steps 5, 8" in " ".join(joined.notes)
        assert not found.norm[5:, :5].any() and not found.norm[8:, :8].any()
    else:
        assert bool((found.norm[-1] > 0).all())
    at_five = expected[5:8, 5:8] if detached else expected[5:8, :8]
    second = retrograde.decompose(recording.passes[1]["LSTM" if kind is nn.LSTM else "GRU"])
    torch.testing.assert_close(
        second.by_time("weight_hh_l0").norm[-3:], at_five.flatten(2).norm(dim=2)
    )


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "carried"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_windows_joined_are_what_autograd_gives_over_all_of_them(kind, detached):
    check_joined(kind, detached)


def test_the_last_windows_alone_can_be_joined():
    layer, recording, expected = windows(nn.LSTM, True, keep=2)
    joined = recording.joined()
    assert len(recording.passes) == 2 and joined.x.shape[0] == 7
    flow = retrograde.decompose(joined)
    torch.testing.assert_close(
        flow.by_time("weight_hh_l0").norm, expected[5:, 5:].flatten(2).norm(dim=2)
    )
    assert not torch.allclose(flow.recorded.gradients["weight_hh_l0"], layer.weight_hh_l0.grad)
    assert any("carried in from a call outside" in note for note in joined.notes)


def test_the_join_rejects_a_forgotten_pass(monkeypatch):
    true = BackwardPass.together
    monkeypatch.setattr(BackwardPass, "together", lambda passes: true(passes[1:]))
    with pytest.raises((AssertionError, RecordingError)):
        check_joined(nn.LSTM, True)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_gradient_that_is_handed_from_window_to_window_ends_lags_and_the_recording_says_so(kind):
    """Each window begins with leaves, whose gradients the window before starts with in its turn."""
    torch.manual_seed(1)
    layer = kind(2, 3).double()
    x, wanted = torch.randn(STEPS, 2, 2).double(), torch.randn(STEPS, 2, 3).double()
    start = tuple(torch.randn(2, 3).double() for _ in range(2 if kind is nn.LSTM else 1))
    given, made, losses = [tuple(part.unsqueeze(0) for part in start)], [], []
    with retrograde.record(layer) as recording:
        for x_, wanted_ in zip(x.split(LENGTHS), wanted.split(LENGTHS), strict=True):
            output, state = layer(x_, packed(given[-1]))
            losses.append((output * wanted_).sum())
            made.append(parts_of(state))
            given.append(tuple(part.detach().requires_grad_() for part in made[-1]))
        back = tuple(torch.zeros_like(part) for part in made[-1])
        for number in reversed(range(len(LENGTHS))):
            later = made[number] if number < len(LENGTHS) - 1 else ()
            roots, gradients = [losses[number], *later], [None, *back[: len(later)]]
            torch.autograd.backward(roots, gradients)
            back = tuple(part.grad for part in given[number])
    expected = contributions(layer, x, wanted, start, detached=False)
    torch.testing.assert_close(layer.weight_hh_l0.grad, expected.sum((0, 1)))
    joined, name = recording.joined(), "LSTM" if kind is nn.LSTM else "GRU"
    assert joined.lags_end == (5, 8) and joined.x.shape == x.shape
    assert "a backward pass started at the state before steps 5, 8" in " ".join(joined.notes)
    flow = retrograde.decompose(joined)
    assert flow.reach_is_lower_bound and flow.residual.ok
    found, edges = flow.by_time("weight_hh_l0").parts(), (0, 5, 8, STEPS)
    torch.testing.assert_close(sum(flow.by_lag("weight_hh_l0").parts()), expected.sum((0, 1)))
    for begin, end in zip(edges, edges[1:], strict=False):  # the last step has what comes later
        here = expected[begin : end - 1, begin:end].sum((0, 1))
        last = expected[end - 1 :, begin:end].sum((0, 1))
        torch.testing.assert_close(found[begin : end - 1].sum((0, 1)), here)
        torch.testing.assert_close(found[end - 1].sum(0), last)
    ends = [alone[name].lags_end for alone in recording.passes]  # the last window came first
    assert ends == [(), (3,), (5,)]


class Stream:
    """Truncated training, a window at a time."""

    def __init__(self, kind):
        torch.manual_seed(0)
        self.kind = kind
        self.layer = nn.LSTMCell(2, 3) if kind == "cell" else nn.LSTM(2, 3)
        if kind == "computed weight":
            nn.utils.parametrizations.weight_norm(self.layer, "weight_hh_l0")
        if kind == "peephole":
            self.layer = retrograde.nn.LSTM(2, 3, generation="peephole")
        self.model = nn.ModuleDict({"layer": self.layer, "head": nn.Linear(3, 1)})
        self.optimiser = torch.optim.SGD(self.model.parameters(), 0.1)
        self.state = None
        self.x = torch.Generator().manual_seed(0)

    def forward(self):
        x = torch.randn(4, 2, 2, generator=self.x)
        if self.kind != "cell":
            output, state = self.layer(x, self.state)
        else:
            state, outputs = self.state, []
            for x_k in x:
                if state is not None and self.kind == "cell":
                    state = tuple(0.9 * part for part in state)
                state = self.layer(x_k, state)
                outputs.append(state[0])
            output = torch.stack(outputs)
        self.state = tuple(part.detach() for part in state)
        return self.model["head"](output).square().mean()

    def step(self):
        loss = self.forward()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def objects_after(kind, *counts):
    """How many objects there are after some windows of one block."""
    stream, found = Stream(kind), []
    with retrograde.record(stream.model, keep=2) as recording:
        for window in range(max(counts)):
            stream.step()
            if window + 1 in counts:
                assert len(recording.passes) == 2
                gc.collect()
                found.append(len(gc.get_objects()))
    return found


KINDS = ("layer", "cell", "computed weight", "peephole")


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_stream(kind):
    objects_after(kind, 12)  # what is made once
    before, after = objects_after(kind, 12, 30)
    assert after - before < 18  # not one for each window


def test_the_count_of_objects_sees_what_is_kept(monkeypatch):
    monkeypatch.setattr(StateTracker, "forget", lambda self, calls, weights: None)
    before, after = objects_after("layer", 12, 30)
    assert after - before >= 18


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_a_stream_is_what_it_is_alone(kind):
    one, other, alone = Stream(kind), Stream(kind), deque(maxlen=2)
    with retrograde.record(one.model, keep=2) as recording:
        for _ in range(4):
            one.step()
            with retrograde.record(other.model) as single:
                other.step()
            alone.append(single["layer"])
            seen = recording.passes[-1]["layer"]
            assert torch.equal(seen.direct, alone[-1].direct) and torch.equal(seen.x, alone[-1].x)
    for kept, single in zip(recording.passes, alone, strict=True):
        mine, own = kept["layer"], single
        assert torch.equal(mine.initial, own.initial)
        assert all(torch.equal(mine.gradients[n], g) for n, g in own.gradients.items())
        assert retrograde.decompose(mine).residual.ok


@pytest.mark.parametrize("keep", [1, 3, 4, 7])
def test_as_many_windows_are_kept_as_there_were_up_to_the_number_asked_for(keep):
    stream, seen = Stream("layer"), []
    with retrograde.record(stream.model, keep=keep) as recording:
        for _ in range(10):
            stream.step()
            seen.append(len(recording.passes))
    assert seen == [min(keep, n) for n in range(1, 11)]


@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("module", [nn.GRU, nn.LSTM])
def test_a_last_batch_of_another_size_is_no_continuation(module, keep):
    """Neither where states are given as zeros, nor where some samples go on from theirs."""
    layer, batches, state = module(2, 3), (4, 4, 3, 5), None
    with retrograde.record(layer, keep=keep) as recording:
        for batch in batches:
            if state is None or batch > state[0].shape[1]:
                state = tuple(torch.zeros(1, batch, 3) for _ in range(1 + (module is nn.LSTM)))
            state = tuple(part[:, :batch].detach().clone() for part in state)
            out, state = layer(torch.randn(6, batch, 2), packed(state))
            state = parts_of(state)
            out.sum().backward()
    for each, batch in zip(recording.passes, batches[-(keep or 4) :], strict=True):
        assert each["GRU" if module is nn.GRU else "LSTM"].x.shape == (6, batch, 2)
        assert retrograde.decompose(each).residual.ok


def test_other_losses_and_late_ones_are_kept_apart():
    stream, other = Stream("layer"), nn.Linear(1, 1)
    with retrograde.record(stream.model, keep=1) as recording:
        first, second = stream.forward(), stream.forward()
        second.backward()
        for _ in range(20):
            other(torch.ones(1)).sum().backward()  # reaches no recorded layer
        assert len(recording.passes) == 1 and recording["layer"].x.shape[0] == 4
        first.backward()
    assert recording["layer"].initial.eq(0).all()


def test_joining_says_why_it_cannot_be(tmp_path):
    stream = Stream("layer")
    with retrograde.record(stream.model) as recording:
        for _ in range(2):
            stream.step()
    with pytest.raises(RecordingError, match="weights changed between these passes"):
        recording.joined()
    _, recording, _ = windows(nn.LSTM, True)
    retrograde.save(recording, tmp_path / "windows.safetensors")
    with pytest.raises(RecordingError, match="cannot be joined any more"):
        retrograde.load(tmp_path / "windows.safetensors").joined()
    both = nn.ModuleDict({"a": nn.GRU(2, 2), "b": nn.GRU(2, 2)})
    with retrograde.record(both) as recording:
        both["b"](both["a"](torch.ones(3, 1, 2))[0])[0].sum().backward()
    with pytest.raises(ArgumentError, match=r"pick one, as in recording.joined\('a'\)"):
        recording.joined()
    assert recording.joined("b") is recording["b"]
    with pytest.raises(ArgumentError, match="keep must be a positive integer"):
        retrograde.record(both, keep=0).__enter__()
