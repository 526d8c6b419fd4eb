"""Small networks that are trained for a claim, and what their gradients say of it.

The tasks but the first two are those of docs/what-each-generation-fixed.md, where they are told,
and so is the training: 200 updates with Adam. Half of them tell enough of the first two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from retrograde.decomposition import decompose
from retrograde.nn import LSTM, initialise
from retrograde.recording import record
from retrograde.tasks.reber import EmbeddedReber
from retrograde.tasks.two_sequences import TwoSequences

UPDATES, BATCH = 200, 32
SHUT = -8.0
"""A bias of the output gate that shuts it."""

Draw = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Trained:
    """A layer and its readout.

    Attributes:
        layer: the LSTM.
        readout: linear.
    """

    layer: LSTM
    readout: nn.Linear

    def __call__(self, x: Tensor) -> Tensor:
        answer: Tensor = self.readout(self.layer(x)[0])
        return answer

    @torch.no_grad()
    def inside(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The answers, and gates and states at every step."""
        h, _, (found,) = self.layer(x, return_activations=True)
        return self.readout(h), found


def _fit(
    layer: LSTM,
    outputs: int,
    loss: Callable[[Trained], Tensor],
    rate: float,
    updates: int = UPDATES,
) -> Trained:
    trained = Trained(layer, nn.Linear(layer.hidden_size, outputs).double())
    weights = [*layer.parameters(), *trained.readout.parameters()]
    optimiser = torch.optim.Adam(weights, lr=rate, fused=True)
    for _ in range(updates):
        found = loss(trained)
        optimiser.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return trained


def _squared(draw: Draw) -> Callable[[Trained], Tensor]:
    def loss(trained: Trained) -> Tensor:
        x, wanted = draw()
        return (trained(x).squeeze(-1) - wanted).square().mean()

    return loss


# Experiment 1 of 1997: the symbol at step 1 is asked for at the last step but one.


@lru_cache(maxsize=16)
def reber(generation: str, seed: int) -> Trained:
    """Eight units trained on strings of the embedded Reber grammar."""
    task, generator = EmbeddedReber(), torch.Generator().manual_seed(100 + seed)

    def loss(trained: Trained) -> Tensor:
        strings = task.draw(BATCH, generator)
        answers = torch.sigmoid(trained(strings.x.double()))
        return (answers - strings.y)[strings.due].square().mean()

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = LSTM(task.inputs, 8, generation=generation).double()
        return _fit(layer, task.outputs, loss, 0.03, UPDATES // 2)


@dataclass(frozen=True)
class Opposed:
    """Two sides of a gradient.

    Attributes:
        cosine: between them.
        signs: the share of weights on which they have opposite signs.
    """

    cosine: float
    signs: float

    @staticmethod
    def of(a: Tensor, b: Tensor) -> "Opposed":
        a, b = a.flatten(), b.flatten()
        cosine = torch.cosine_similarity(a, b, 0)
        return Opposed(float(cosine), float((a.sign() != b.sign()).double().mean()))


@lru_cache(maxsize=32)
def reber_conflict(generation: str, seed: int) -> Opposed:
    """The sides of the gradient of the readout of T and P.

    The step at which the symbol of the beginning is due, and all other steps.
    """
    trained, task = reber(generation, seed), EmbeddedReber()
    strings = task.draw(64, torch.Generator().manual_seed(7))
    with torch.no_grad():
        h = trained.layer(strings.x.double())[0]
        answers = torch.sigmoid(trained.readout(h))
        delta = (answers - strings.y) * answers * (1 - answers) * strings.due.unsqueeze(2)
        by_step = torch.einsum("tno,tnh->tnoh", delta[..., 1:3], h)
    due = by_step[strings.lengths - 2, torch.arange(64)].sum(0)
    return Opposed.of(due, by_step.sum((0, 1)) - due)


# Experiment 3a of 1997, shortened: the first element tells two classes apart, the rest is noise.

TWO = TwoSequences(length=20, informative=1)


@lru_cache(maxsize=32)
def tells_apart(generation: str, seed: int) -> bool:
    """Whether four units learn to tell all of 200 fresh sequences by their first element."""
    generator = torch.Generator().manual_seed(100 + seed)

    def loss(trained: Trained) -> Tensor:
        sequences = TWO.draw(BATCH, generator)
        answers = torch.sigmoid(trained(sequences.x.double()))
        return (answers - sequences.y)[sequences.due].square().mean()

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = LSTM(1, 4, generation=generation).double()
        trained = _fit(layer, 1, loss, 0.03, UPDATES // 2)
    fresh = TWO.draw(200, generator)
    with torch.no_grad():
        wrong = (trained(fresh.x.double()) > 0) != (fresh.y > 0.5)
    return not bool(wrong[fresh.due].any())


# A value with a store marker is to be put out at the query, 0 at all other steps.

LENGTH, STORES = 10, (0, 3, 6)


def stored_values(stores: Tensor) -> tuple[Tensor, Tensor]:
    """Value, store and query marker; wanted: at the query the value stored, else 0."""
    sample = torch.arange(len(stores))
    x = torch.zeros(LENGTH, len(stores), 3).double()
    x[..., 0] = 2 * torch.rand(LENGTH, len(stores)).double() - 1
    x[stores, sample, 1] = 1
    x[-1, :, 2] = 1
    wanted = torch.zeros(LENGTH, len(stores)).double()
    wanted[-1] = x[stores, sample, 0]
    return x, wanted


@lru_cache(maxsize=16)
def storing(generation: str, seed: int) -> tuple[Opposed, float, dict[str, float]]:
    """Of a network of four units that was trained to store a value.

    Returns:
        The sides of the gradient of its input weights, from the step at which to store and from all
        others; its error at the query, the root of the mean square; and the means of its gates
        where they are needed ("input", "output") and elsewhere ("input_else", "output_else").
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = LSTM(3, 4, generation=generation).double()
        draw: Draw = lambda: stored_values(3 * torch.randint(3, (BATCH,)))  # noqa: E731
        trained = _fit(layer, 1, _squared(draw), 0.03)
        batches = [(step, *stored_values(torch.full((64,), step))) for step in STORES]
    store, other, square, gates = torch.zeros(1), torch.zeros(1), 0.0, dict[str, list[float]]()
    for step, x, wanted in batches:
        with record(layer) as recording:
            error = trained(x).squeeze(-1) - wanted
            (error.square().mean(1).sum() / len(STORES)).backward()  # type: ignore[no-untyped-call]
        flow = decompose(recording)
        uses = flow.by_time("weight_ih_l0").parts().sum(0)
        store, other = store + uses[step], other + uses.sum(0) - uses[step]
        square += float(error[-1].detach().square().mean()) / len(STORES)
        inside = trained.inside(x)[1]
        for gate, at in (("input", step), ("output", LENGTH - 1)):
            if gate in inside:
                value = inside[gate].mean((1, 2))
                rest = (value.sum() - value[at]) / (LENGTH - 1)
                gates.setdefault(gate, []).append(float(value[at]))
                gates.setdefault(f"{gate}_else", []).append(float(rest))
    means = {name: sum(values) / len(values) for name, values in gates.items()}
    return Opposed.of(store, other), square**0.5, means


# At a marker the series changes: the level, or the sum of the values since then.


def changing(steps: int, batch: int, target: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value, and a marker of change; wanted: the level or the sum since then; the segment."""
    value = torch.rand(steps, batch).double()
    change = torch.rand(steps, batch) < 0.1
    change[0] = True
    level, total, wanted = value[0], 0 * value[0], []
    for now, new in zip(value, change, strict=True):
        level = torch.where(new, now, level)
        total = torch.where(new, 0, total) + now / 4
        wanted.append(level if target == "level" else total)
    return torch.stack([value, change.double()], -1), torch.stack(wanted), change.cumsum(0)


@dataclass(frozen=True)
class Following:
    """How a network follows a series that changes, on 200 steps.

    Attributes:
        first, late: its mean error before the first change, and from the tenth segment on.
        constant: that of a constant answer.
        c_early, c_late: the mean |c| at step 19, where training ended, and at step 199.
        forget, forget_else: its mean forget gate at a change and elsewhere; 1 without one.
    """

    first: float
    late: float
    constant: float
    c_early: float
    c_late: float
    forget: float
    forget_else: float


@lru_cache(maxsize=16)
def following(generation: str, target: str, seed: int) -> Following:
    """A network of four units, trained on 20 steps."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = LSTM(2, 4, generation=generation).double()
        trained = _fit(layer, 1, _squared(lambda: changing(20, BATCH, target)[:2]), 0.03)
        torch.manual_seed(9)  # the same test for all
        x, wanted, segment = changing(200, 64, target)
    answer, inside = trained.inside(x)
    error, c = (answer.squeeze(-1) - wanted).abs(), inside["c"].abs().mean((1, 2))
    change = x[1:, :, 1] == 1
    forget = inside.get("forget", torch.ones_like(inside["c"]))[1:]
    return Following(
        float(error[segment == 1].mean()),
        float(error[segment >= 10].mean()),
        float((wanted - wanted.mean()).abs().mean()),
        float(c[19]),
        float(c[199]),
        float(forget[change].mean()),
        float(forget[~change].mean()),
    )


# A pulse at step 0 is answered four steps later, from behind an output gate that starts shut.


def pulse(steps: int) -> tuple[Tensor, Tensor]:
    """A pulse at step 0, and nothing more; wanted: 1 after so many steps, else 0."""
    x, wanted = torch.zeros(steps + 2, 1, 1).double(), torch.zeros(steps + 2, 1).double()
    x[0], wanted[steps] = 1, 1
    return x, wanted


@lru_cache(maxsize=32)
def fires(generation: str, seed: int, steps: int) -> bool:
    """Whether a network of four units learns to answer the pulse in time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = LSTM(1, 4, generation=generation).double()
        shut(layer)
        trained = _fit(layer, 1, _squared(lambda: pulse(steps)), 0.05)
    with torch.no_grad():
        return bool(trained(pulse(steps)[0])[steps] > 0.5)


@torch.no_grad()
def shut(layer: LSTM) -> None:
    """Shut the output gate."""
    for name, value in (("bias_ih_l0", SHUT), ("bias_hh_l0", 0.0)):
        layer.get_parameter(name).chunk(4)[3].fill_(value)  # gates i, f, g, o


# An LSTM under plain gradient descent, whose steps are as large as its gradient.


@lru_cache(maxsize=32)
def ends_finite(rate: float, max_norm: float, seed: int) -> bool:
    """Whether an LSTM survives 200 updates of gradient descent, on the sum of two marked numbers.

    Args:
        rate: of the descent.
        max_norm: what the norm of its gradient is clipped to.
        seed: of its weights and its data.
    """
    steps, sums = 30, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        lstm, readout = nn.LSTM(2, 32), nn.Linear(32, 1)
        initialise(lstm, "forget-bias", value=3.0)
    weights = [*lstm.parameters(), *readout.parameters()]
    optimiser = torch.optim.SGD(weights, lr=rate)
    for _ in range(UPDATES):
        numbers, marks = torch.rand(steps, BATCH, generator=sums), torch.zeros(steps, BATCH)
        for half in marks.chunk(2):
            half.scatter_(0, torch.randint(len(half), (1, BATCH), generator=sums), 1.0)
        answers = readout(lstm(torch.stack((numbers, marks), -1))[0][-1]).squeeze(-1)
        loss = (answers - (numbers * marks).sum(0)).square().mean()
        if not loss.isfinite():
            return False
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, max_norm)
        optimiser.step()
    return True
