"""What a plain loop with its own copy of the weights at every step would say of a foreign model.

Nothing of Retrograde has a part in it. The model runs as it is; only the `forward` of torch's own
class is replaced, for one layer, so that every step is a call of its own and the graph is cut
before and after it. What is left are short pieces (the step itself, what the model makes of its
state before the next step, what it makes of it for the loss), and autograd pulls an adjoint back
through each:

    entry e, sample i  --step e-->  weights used at e (lag 0), and the state given to e
                       --model-->   the states that step s < e left
                       --step s-->  weights used at s (lag e - s), ...

That is T^2 B small backward passes, so it is for small models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import retrograde
from support.type_checks import unchecked

EXACT = 1e-11  # float64: sums of up to a few hundred products, some of which nearly cancel
FLOAT32 = 1e-5  # the same in float32, where autograd itself is as far off

Offsets = Callable[[int, int], Tensor]
"""Of a call, by number and batch size: the position of each sample's first step."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the layer: the tensors that the model gave, and those that it goes on with."""

    given: tuple[Tensor, ...]  # state and input, as the model computed them
    taken: tuple[Tensor, ...]  # the same, cut off
    made: tuple[Tensor, ...]  # output and state, as the layer computed them
    left: tuple[Tensor, ...]  # the same, cut off
    position: Tensor  # of each sample in its own sequence


@dataclass(frozen=True, eq=False)
class PlainLoop:
    """Parts of the gradient by lag, and what the loop as a whole says.

    Attributes:
        by_lag: of each parameter the part at each lag from 0, [lags, ...].
        gradient: autograd's own gradient of each parameter, in a pass that nobody touched.
        reach: the largest lag at which the mean norm of C[t,k] is still 1 % of that at lag 0. None
            where samples are at different positions, so that there is no one t.
    """

    by_lag: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    reach: int | None


def plain_loop(
    layer: nn.Module, run: Callable[[], Tensor], offsets: Offsets | None = None
) -> PlainLoop:
    """The parts by lag of what `run`, which returns a loss and starts from a seed, uses of `layer`.

    Args:
        offsets: where the samples of a call begin; by default where the call before it ended.
    """
    weights = dict(layer.named_parameters())
    whole = torch.autograd.grad(run(), list(weights.values()))
    steps = _cut(layer, run, offsets)
    direct = _direct(*steps)
    parts = _rows(steps[1], direct, weights)
    lags = 1 + max(lag for _, _, lag in parts)
    by_lag = {n: torch.zeros(lags, *w.shape, dtype=w.dtype) for n, w in weights.items()}
    for (*_, lag), row in parts.items():
        for name, part in row.items():
            by_lag[name][lag] += part
    for name, gradient in zip(weights, whole, strict=True):
        torch.testing.assert_close(by_lag[name].sum(0), gradient, rtol=EXACT, atol=EXACT)
    alike = all(bool((step.position == step.position[0]).all()) for step in steps[1])
    gradients = dict(zip(weights, whole, strict=True))
    return PlainLoop(by_lag, gradients, _reach(parts) if alike else None)


def agrees(flow: "retrograde.Flow", plain: PlainLoop, tolerance: float = 1e-10) -> None:
    """The decomposition has the same part at every lag, and so the same reach."""
    assert flow.residual < EXACT
    for name, expected in plain.by_lag.items():
        found = flow.by_lag(name, bins="every").parts()
        # A layer may lie in more steps than any sample has; at the lags beyond there is nothing.
        lags = max(len(found), len(expected))
        found, expected = (_padded(parts, lags) for parts in (found, expected))
        scale = float(expected.abs().max())
        sizes = [(p.flatten(1).norm(dim=1) / scale).tolist() for p in (found, expected)]
        torch.testing.assert_close(
            found,
            expected,
            rtol=0,
            atol=tolerance * scale,
            msg=f"{name}: of the largest at each lag there is {sizes[0]}, expected {sizes[1]}",
        )
    if plain.reach is not None:
        assert flow.reach == plain.reach


def agrees_or_is_said_to_end(flow: "retrograde.Flow", plain: PlainLoop) -> None:
    """The parts are a plain loop's, or their sum is exact and a note says where lags end."""
    assert flow.residual < EXACT
    if any("lags end there" in note for note in flow.recorded.notes):
        assert flow.reach <= (plain.reach if plain.reach is not None else flow.steps)
    else:
        agrees(flow, plain)


def same_training(
    make: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Tensor],
    watch: Callable[[nn.Module], object] = retrograde.record,
    steps: int = 200,
) -> None:
    """Training with every pass recorded ends in the very same weights as without."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = make()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimiser.zero_grad()
            if watched:
                with unchecked(), watch(model):
                    loss(model).backward()
            else:
                loss(model).backward()
            optimiser.step()
        ends.append(
            [*(p.detach() for p in model.parameters()), torch.rand(1)]
        )  # and the same draws
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def _padded(parts: Tensor, lags: int) -> Tensor:
    return torch.cat([parts, parts.new_zeros(lags - len(parts), *parts.shape[1:])])


def _cut(layer: nn.Module, run: Callable[[], Tensor], offsets: Offsets | None):
    """The loss of a pass that is cut around every step, and these steps."""
    torchs = next(c for c in type(layer).mro() if c.__module__ == nn.LSTM.__module__)
    original = torchs.forward
    assert not getattr(layer, "bidirectional", False), "a direction of its own is another loop"
    assert not getattr(layer, "dropout", 0) or not layer.training, "its masks would be drawn anew"
    steps: list[Step] = []
    calls: list[int] = [0]

    def step(x: Tensor, state: tuple[Tensor, ...], position: Tensor) -> tuple[Tensor, ...]:
        given = (*state, x)
        taken = tuple(t.detach().requires_grad_() for t in given)
        *parts, x = taken
        hx = tuple(parts) if len(parts) == 2 else parts[0]
        if isinstance(layer, nn.RNNCellBase):
            h = original(layer, x, hx)
            made = (h,) if isinstance(h, Tensor) else tuple(h)
        else:
            time = 1 if layer.batch_first else 0
            output, h = original(layer, x.unsqueeze(time), hx)
            made = (output.squeeze(time), *((h,) if isinstance(h, Tensor) else h))
        left = tuple(t.detach().requires_grad_() for t in made)
        steps.append(Step(given, taken, made, left, position))
        return tuple(t.clone() for t in left)  # which the model may change in place

    def begin(batch: int, length: int) -> Tensor:
        start = offsets(calls[0], batch) if offsets else torch.full((batch,), sum(calls[1:]))
        calls[0] += 1
        calls.append(length)
        return start

    def forward(self: nn.Module, input: Tensor | PackedSequence, hx=None):
        if self is not layer:
            return original(self, input, hx)
        if isinstance(self, nn.RNNCellBase):
            hx = hx if hx is not None else _zeros(self, (len(input),), input)
            made = step(input, _tuple(hx), begin(len(input), 1))
            return made if len(made) == 2 else made[0]
        if isinstance(input, PackedSequence):
            sizes, order = input.batch_sizes.tolist(), input.sorted_indices
            hx = _tuple(hx if hx is not None else _zeros(self, (sizes[0],), input.data))
            first = begin(sizes[0], len(sizes))
            if order is not None:
                hx, first = [part[:, order] for part in hx], first[order]
            xs = input.data.split(sizes)
        else:
            time = 1 if self.batch_first else 0
            xs = input.unbind(time)
            sizes = [len(xs[0])] * len(xs)
            hx = _tuple(hx if hx is not None else _zeros(self, (sizes[0],), input))
            first = begin(sizes[0], len(xs))
        ended: list[list[Tensor]] = [[] for _ in hx]
        outputs = []
        for t, (x, size) in enumerate(zip(xs, sizes, strict=True)):
            for part, rest in zip(hx, ended, strict=True):
                rest.append(part[:, size:])
            output, *hx = step(x, tuple(part[:, :size] for part in hx), first[:size] + t)
            outputs.append(output)
        last = [torch.cat([p, *reversed(rest)], 1) for p, rest in zip(hx, ended, strict=True)]
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                last = [part[:, input.unsorted_indices] for part in last]
            result = input._replace(data=torch.cat(outputs))
        else:
            result = torch.stack(outputs, time)
        return result, (tuple(last) if len(last) == 2 else last[0])

    with mock.patch.object(torchs, "forward", forward):
        loss = run()
    return loss, steps


def _tuple(state: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _zeros(layer: nn.Module, batch: tuple[int], like: Tensor) -> tuple[Tensor, ...]:
    layers = () if isinstance(layer, nn.RNNCellBase) else (layer.num_layers,)
    zeros = like.new_zeros(*layers, *batch, layer.hidden_size)
    return (zeros,) * (2 if isinstance(layer, nn.LSTM | nn.LSTMCell) else 1)


def _pull(outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Sequence[Tensor]):
    """The adjoints of some inputs; zero where there is no way to them."""
    live = [(o, a) for o, a in zip(outputs, adjoints, strict=True) if o.requires_grad]
    if not live or not inputs:
        return [torch.zeros_like(i) for i in inputs]
    return torch.autograd.grad(
        [o for o, _ in live],
        list(inputs),
        [a for _, a in live],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _back(steps: list[Step], given: Sequence[Tensor], adjoints: Sequence[Tensor], upto: int):
    """The adjoints of what each earlier step left, through what the model made of it."""
    leaves = [leaf for step in steps[:upto] for leaf in step.left]
    found = list(_pull(given, adjoints, leaves))
    ends = list(accumulate(len(step.left) for step in steps[:upto]))
    return [found[end - len(step.left) : end] for step, end in zip(steps[:upto], ends, strict=True)]


def _direct(loss: Tensor, steps: list[Step]) -> list[list[Tensor]]:
    """What the loss gives to each step's output and state, without what came back as a state.

    What the model computes from a state and gives to a later step as its input is the loss's.
    """
    direct = _back(steps, [loss], [torch.ones_like(loss)], len(steps))
    total = [list(adjoints) for adjoints in direct]
    for number in reversed(range(len(steps))):
        step = steps[number]
        *states, x = _pull(step.made, total[number], step.taken)
        as_input = _back(steps, step.given[-1:], [x], number)
        as_state = _back(steps, step.given[:-1], states, number)
        for n in range(number):
            direct[n] = [d + i for d, i in zip(direct[n], as_input[n], strict=True)]
            added = zip(total[n], as_input[n], as_state[n], strict=True)
            total[n] = [t + i + s for t, i, s in added]
    return direct


def _rows(steps: list[Step], direct: list[list[Tensor]], weights: Mapping[str, Tensor]):
    """C by entry step, use step and lag, summed over the samples at that lag."""
    parts: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for entry, step in enumerate(steps):
        for sample in range(len(step.position)):
            only = torch.zeros(len(step.position), 1, dtype=step.left[0].dtype)
            only[sample] = 1
            adjoints = {entry: [d * only for d in direct[entry]]}  # the batch is last but one
            for use in reversed(range(entry + 1)):
                here = adjoints.pop(use, None)
                if here is None or not any(bool(a.any()) for a in here):
                    continue
                at = steps[use]
                inputs = [*weights.values(), *at.taken[:-1]]
                found = _pull(at.made, here, inputs)
                position = at.position[_touched(here)].unique()
                assert len(position) == 1, "samples of one row at different positions"
                key = (entry, use, int(step.position[sample] - position))
                row = parts.setdefault(key, {n: torch.zeros_like(w) for n, w in weights.items()})
                for name, part in zip(weights, found, strict=False):
                    row[name] += part
                back = _back(steps, at.given[:-1], found[len(weights) :], use)
                for earlier, more in enumerate(back):
                    before = adjoints.get(earlier)
                    adjoints[earlier] = (
                        [b + m for b, m in zip(before, more, strict=True)] if before else list(more)
                    )
    return parts


def _touched(adjoints: Sequence[Tensor]) -> Tensor:
    """Which samples have an adjoint that is not zero."""
    return sum((a.transpose(-2, 0).flatten(1).abs().sum(1) for a in adjoints), torch.zeros(1)) > 0


def _reach(parts: Mapping[tuple[int, int, int], Mapping[str, Tensor]]) -> int:
    """From the norms of all parameters' parts together; a pair without a way between has none."""
    entries = {entry for entry, _, _ in parts}
    sums: dict[int, float] = {}
    pairs: dict[int, int] = {}
    for entry in entries:
        for use in range(entry + 1):
            pairs[entry - use] = pairs.get(entry - use, 0) + 1
    for (_, _, lag), row in parts.items():
        norm = torch.cat([part.flatten() for part in row.values()]).norm()
        sums[lag] = sums.get(lag, 0.0) + float(norm)
    means = {lag: total / pairs[lag] for lag, total in sums.items()}
    return max(lag for lag, mean in means.items() if mean >= 0.01 * means[0])
