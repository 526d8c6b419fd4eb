"""The monitor: looks at one block in every hundred (or `every`) and leaves all others alone.

A failure of its own is counted and reported once; training goes on.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde.declarations.matching import Declared, checked
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.check import check
from retrograde.decomposition.replay import ends_as_recorded, replay
from retrograde.decomposition.residual import void_in_words
from retrograde.decomposition.summary import summarise
from retrograde.engine.scaling import largest_of
from retrograde.errors import ArgumentError, RecordingError
from retrograde.monitor.history import History, Smoothed
from retrograde.monitor.schedule import Schedule
from retrograde.monitor.trigger import Event, Trigger, norm_of
from retrograde.monitor.watched import WatchedPass, in_words
from retrograde.monitor.window import SAMPLES, learnable, window
from retrograde.recording import Recorded, Recording

Log = Callable[[dict[str, float], int], object]
Limits = tuple[float | None, float | None]
"""The lowest and the highest value that is as it should be; None for no limit on that side."""

AFTER = 3
"""Blocks that are looked at after one that set off the trigger."""

MOST_SAMPLES, MOST_ENTRIES = 4, 8
"""Samples and loss steps that are looked at unless the caller says otherwise, at most."""

PER_SAMPLE, PER_ROW = 16, 4
"""One in this many samples is looked at unless the caller says otherwise, and loss steps times
samples are one in this many samples: a look then takes less than the block itself, whose forward
and backward pass take all of them (benchmarks/MEASURED.md)."""

CHECKED_EVERY = 10
"""Looks from one that holds the whole pass against its gradient, which takes as long as the pass
itself, to the next."""

LEARNABLE_EVERY = 10
"""Looks from one that tells what is learnable to the next; it takes far longer than all else."""

COUNTS = ("nonfinite", "lower_bound", "unrecorded")
"""Scalars that an average says nothing about."""


class Monitor:
    """Scalars of every 100th backward pass of a model, for a training loop of one's own.

    Put `with monitor:` around a forward and its backward pass. Every `every`-th such block, the
    first included, is recorded and looked at when it ends; the others cost nothing. What was found
    stays until the next block begins, and in `history`. Names are `retrograde/<layer>/<scalar>`:

    | scalar | unit | meaning |
    |---|---|---|
    | `reach` | steps | largest lag whose mean contribution is still 1 % of that at lag 0 |
    | `rate` | log2 per step | growth of the adjoint per step back; -1 where it halves |
    | `share_near` | share | signed share of lags 0 to 10 in the gradient |
    | `share_carousel` | share | signed share of what arrives by the carousel in its last hop |
    | `growth` | log2 per step | largest growth of the adjoint from a step to the step before |
    | `needed` | log2 | mean contribution at `needs_lag` over that at lag 0 |
    | `window` | steps | with `delta`: smallest truncation whose bias is at most that |
    | `learnable` | steps | with `delta`: lag beyond which no signal is shown; -1 for none |
    | `gradient_norm` | L2 norm | gradient of the layer's own parameters |
    | `nonfinite` | count | NaN and infinite values in the layer's input, dL/dh and gradients |
    | `lower_bound` | 1 | there where `reach` is a lower bound, since lags end on the way |

    and, of the model as a whole:

    | scalar | unit | meaning |
    |---|---|---|
    | `retrograde/gradient_norm_rest` | L2 norm | gradient of all parameters outside these layers |
    | `retrograde/unrecorded` | count | recurrent layers about which this pass told nothing |
    | `retrograde/loss` | | the loss, if `monitor.loss(value)` told it |

    A number that there is not (no rate after a single step, no carousel in a plain RNN) or
    that is not finite is left out. Norms and counts are those of this pass alone, before clipping,
    also where gradients accumulate; with a gradient scaler they are those of the scaled loss. The
    first six describe a part of the pass, and are exact for it: the loss of `samples` of the
    samples at `entries` of the steps at which it enters, evenly spaced and the last included. (What
    a layer that reads both ways is given by one above it enters at every step, and counts as loss
    there: its numbers then are estimates of what all of these steps give.) The
    samples are evenly spread over the batch, or over those that have a loss where one of these has
    none: always the same ones of a batch, and no end of one that is sorted. `samples_read` has
    their numbers. By default up to 4 samples and 8 steps, fewer of a small batch, so that a look
    takes less than the block itself (benchmarks/MEASURED.md). Under `torch.distributed` only rank 0
    looks, at its own share of the batch, and talks to no other.

    Nothing of ours raises into a training loop. What cannot be recorded or looked at (a layer that
    is refused, a block without a backward pass, a NaN, a mistake of ours), and a layer whose parts,
    over the whole pass, do not add up to its gradient (`flow.residual`), adds to `unrecorded`. That
    sum is taken at the first look and at every tenth, at each while it fails, and where the forward
    pass of the samples, run again, does not end in the state that was recorded. The
    first reason is given as a warning, and `problems` has those of the latest block. An error of
    `log` is given as a warning too: a tracker that is offline, or not installed, ends no training.
    What the model, the loss or `alert` raises passes through.

    Args:
        model: any module with recurrent layers inside, also wrapped by DistributedDataParallel or
            torch.compile; the wrappers' prefixes are no part of the names.
        every: how many blocks from one that is recorded to the next; with a `budget` the least.
        log: called with the scalars and the number of the block, as `wandb.log` would take them.
        samples, entries: how much of the pass is looked at; more costs more. None for 1 to 4
            samples, a sixteenth of the batch, and 2 to 8 of the steps at which the loss enters, as
            many as make a quarter of the batch with the samples.
        needs_lag: a lag that matters, in steps; adds the scalar `needed`.
        delta: the bias that a window may have, as 0.1; adds the scalars `window` and `learnable`.
            `learnable` is there for a model with one recurrent layer that reads one way. It looks
            at 40 samples (or `samples`, if that is more), in ten groups that are told apart as
            `Horizon.learnable` does batches, for 1000 steps of training with batches of the pass's
            size. The loss cannot be computed again here, so it is taken to be quadratic in the
            outputs: where the target follows from the present input alone no lag is named, and
            elsewhere the lag may lie a bin too far; `retrograde.horizon` tells it exactly. It takes
            16 samples at the least; there is no such scalar where they cannot tell. It is asked at
            every tenth look, the first included, which then costs as much as a hundred steps
            (benchmarks/MEASURED.md): give a `budget`.
        budget: the share of the time of training that looks may take, as 0.01. Where a look is dear
            it looks less often: the time of blocks is measured as they pass, and the next look is
            put off until the share is kept. The first look is taken in any case.
        smoothing: adds to each scalar but counts its moving average as `<scalar>_smoothed`, in
            which the average before has this weight: 0.9 is an average over some 10 looks.
        limits: the lowest and the highest value that is as it should be, None for no limit, by
            scalar: `{"reach": (52, None), "gradient_norm": (None, 10)}`, for all layers, or for one
            by its full name.
        alert: called with name, value and number of the block for each scalar outside its limits
            and each event of the trigger; without it warnings say so, once for each scalar.
        trigger: looks closer when a norm jumps or something is not finite. After every block the
            norm of `model`'s gradients is taken, and where it, or the loss that `monitor.loss`
            told, is not finite, or the norm is more than `trigger` times its median of the last 50
            blocks, the next 3 blocks are recorded whatever `every` and `budget` say, and `events`
            has the block and the reason. `last_good` holds the recording of the latest look before
            it. It needs the gradients in `.grad` when the block ends: the optimiser may have
            stepped, but not yet set them to zero. None for no trigger.
        cells: further recurrences inside the model, as `record` takes them.

    Attributes:
        scalars: what the latest block told, by name; empty where it was not recorded.
        recording: its `Recording`, for all further questions; empty where it was not recorded.
        problems: what stood in the way, by layer.
        samples_read: the numbers of the samples in the batch that the scalars describe, by layer.
        step: the number of the latest block, from 0.
        history: the scalars of all looks, as rows; `history.chart()` draws reach and horizon over
            training, `history.to_dataframe()` is a table.
        events: what set off the trigger, in order.
        last_good: with a trigger, the recording of the latest look at which all was as usual.

    Raises:
        ArgumentError: for numbers and limits that can be none; the message says what is expected.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.LSTM(1, 2)
        >>> monitor = retrograde.Monitor(model, every=100)
        >>> for step in range(3):
        ...     with monitor:
        ...         model(torch.ones(5, 3, 1))[0].square().mean().backward()
        ...     for name, value in monitor.scalars.items():  # writer.add_scalar(name, value, step)
        ...         print(step, name, value >= 0)
        0 retrograde/LSTM/reach True
        0 retrograde/LSTM/rate False
        0 retrograde/LSTM/share_near True
        0 retrograde/LSTM/share_carousel True
        0 retrograde/LSTM/growth False
        0 retrograde/LSTM/gradient_norm True
        0 retrograde/LSTM/nonfinite True
        0 retrograde/unrecorded True
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        *,
        log: Log | None = None,
        samples: int | None = None,
        entries: int | None = None,
        needs_lag: int | None = None,
        delta: float | None = None,
        budget: float | None = None,
        smoothing: float | None = None,
        limits: Mapping[str, Limits] | None = None,
        alert: Callable[[str, float, int], object] | None = None,
        trigger: float | None = None,
        cells: Declared | None = None,
    ):
        self.model = _checks.model("model", model)
        self.cells = checked(cells)
        self.every = _checks.whole("every", every)
        self.samples = _checks.optional_whole("samples", samples)
        self.entries = _checks.optional_whole("entries", entries)
        self.needs_lag = _checks.optional_whole("needs_lag", needs_lag)
        if delta is not None:
            words = "a number from 0 on"
            delta = _checks.number("delta", delta, lambda bias: bias >= 0, words)
        self.delta = delta
        if log is not None:
            _checks.function("log", log, "of the scalars and the step", takes=2)
        if alert is not None:
            _checks.function("alert", alert, "of name, value and step", takes=3)
        self.log, self.alert = log, alert
        self.limits = {name: _limits(name, pair) for name, pair in _named(limits).items()}
        if budget is not None:
            budget = _checks.number(
                "budget", budget, lambda share: 0 < share < 1, "a share of time between 0 and 1"
            )
        self._smoothed = None
        if smoothing is not None:
            words = "a weight from 0 to below 1"
            self._smoothed = Smoothed(
                _checks.number("smoothing", smoothing, lambda weight: 0 <= weight < 1, words)
            )
        self._trigger = None
        if trigger is not None:
            factor = _checks.number("trigger", trigger, lambda f: f > 1, "a number above 1")
            self._trigger = Trigger(factor)
        self.step, self.looks = -1, 0
        self.history = History()
        self.events: list[Event] = []
        self.last_good: Mapping[str, Recorded] = {}
        self._schedule = Schedule(self.every, budget)
        self._remaining = 0
        self._said: set[str] = set()
        self._batches: dict[str, int] = {}  # samples of the layers whose parts added up
        self._loss: Tensor | float | None = None
        self._pass: WatchedPass | None = None
        self._forget()

    def _forget(self) -> None:
        self.scalars: dict[str, float] = {}
        self.recording = Recording()
        self.problems: dict[str, str] = {}
        self.samples_read: dict[str, tuple[int, ...]] = {}
        self._loss = None

    def start(self) -> None:
        """Begin a block, for loops in which a `with` statement has no place."""
        self.cancel()
        self._forget()
        self.step += 1
        if not self._schedule.start() and self._remaining:
            self._schedule.look()
        self._remaining = max(0, self._remaining - 1)
        if self._schedule.looks and _rank() == 0:
            self._pass = WatchedPass(self.model, self.cells)

    def loss(self, value: Tensor | float) -> None:
        """Tell the loss of the block: it is logged, and the trigger looks at it.

        Raises:
            ArgumentError: for what is no single number.
        """
        if not isinstance(value, Tensor):
            if not (isinstance(value, float) and math.isnan(value)):  # which the trigger is to see
                value = _checks.number("the loss", value, lambda _: True, "a number")
            self._loss = value
        elif value.numel() == 1:
            self._loss = value.detach()
        else:
            raise ArgumentError(f"the loss must be a single number; got {_checks.shown(value)}")

    def stop(self) -> None:
        """End a block: look at what was recorded, and hand it to `log`."""
        seen, self._pass = self._pass, None
        if seen is not None:
            self._read(seen)
        if self._trigger is not None and _rank() == 0:
            self._check_trigger(self._trigger)
        self._schedule.stop()
        if seen is None:
            return
        self._warn()
        self._check_limits()
        if self.log is not None:
            try:
                self.log(self.scalars, self.step)
            except Exception as error:  # a tracker that is offline must not end a training
                words = f"`log` raised {type(error).__name__}: {error}"
                self._say("log", f"{words}; training goes on, and `history` has the scalars")

    def _read(self, seen: WatchedPass) -> None:
        """Look at a block that was recorded."""
        self.looks += 1
        self.recording = seen.close()
        self.problems = seen.problems
        scalars: dict[str, float] = {}
        for name in seen.layers:
            lost = seen.nonfinite(name)
            values = self._look(name, len(seen.layers) == 1, spoilt=lost > 0)
            values["gradient_norm"] = seen.norm(name)
            values["nonfinite"] = lost + (self._nonfinite(name) if lost else 0)
            scalars |= {f"retrograde/{name}/{scalar}": value for scalar, value in values.items()}
        scalars["retrograde/gradient_norm_rest"] = seen.norm(None)
        scalars["retrograde/unrecorded"] = float(len(self.problems))
        if self._loss is not None:
            scalars["retrograde/loss"] = float(self._loss)
        self.scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if self._smoothed is not None:
            raw = {n: v for n, v in self.scalars.items() if n.rpartition("/")[2] not in COUNTS}
            averages = self._smoothed.add(raw)
            self.scalars |= {f"{name}_smoothed": value for name, value in averages.items()}
        self.history.add(self.step, self.scalars)

    def _check_trigger(self, trigger: Trigger) -> None:
        """See whether this block is as usual; if it is not, look at the next ones."""
        try:
            loss = None if self._loss is None else float(self._loss)
            event = trigger.seen(self.step, loss, norm_of(self.model.parameters()))
        except Exception as error:  # whatever it is, training must not pay for it
            self._say("trigger", in_words("the trigger", error))
            return
        if event is not None:
            self.events.append(event)
            self._remaining = AFTER
            self._tell(
                event.scalar, event.value, f"{event.reason}. The next {AFTER} blocks are recorded"
            )
        elif self.recording and not self.problems and not trigger.going_on:
            self.last_good = self.recording

    def _tell(self, scalar: str, value: float, words: str) -> None:
        """Call back, or warn."""
        if self.alert is not None:
            self.alert(scalar, value, self.step)
        else:
            self._say(scalar, words)

    def _check_limits(self) -> None:
        """Call back, or warn, for scalars that are not as they should be."""
        for name, value in self.scalars.items():
            limits = self.limits.get(name) or self.limits.get(name.rpartition("/")[2])
            low, high = limits or (None, None)
            if (low is None or value >= low) and (high is None or value <= high):
                continue
            bound = f"below {low:g}" if low is not None and value < low else f"above {high:g}"
            self._tell(name, value, f"{name} is {value:.3g}, {bound}")

    def cancel(self) -> None:
        """End a block whose pass failed; nothing is looked at."""
        seen, self._pass = self._pass, None
        if seen is not None:
            seen.discard()

    def __enter__(self) -> "Monitor":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.cancel()

    def flow(self, layer: str) -> Flow:
        """The part of the pass that the scalars of a layer describe, decomposed.

        `monitor.flow("lstm").by_lag().chart()` is the chart that belongs to them. For the whole
        pass, decompose `monitor.recording["lstm"]`.

        Raises:
            RecordingError: if the latest block holds no recording of this layer.
        """
        if layer not in self.recording:
            there = ", ".join(map(repr, self.recording)) or "nothing"
            raise RecordingError(
                f"no recording of {layer!r} in this block; available: {there}. "
                + self.problems.get(layer, f"One block in {self.every} is recorded")
            )
        return decompose(self._part(layer))

    def _look(self, name: str, alone: bool, spoilt: bool) -> dict[str, float]:
        """What a layer's adjoints tell; none where a problem stands in their way.

        Args:
            name: the layer.
            alone: whether it is the only one.
            spoilt: whether its gradients are not finite.
        """
        if name not in self.recording:
            return {}
        try:
            due = self.looks % CHECKED_EVERY == 1 or name not in self._batches
            if spoilt:
                replay(self.recording[name])  # says where, if it began there
            if (due or spoilt) and not self._adds_up(name):
                return {}
            part = self._part(name)
            unrolled = replay(part)
            agrees = ends_as_recorded(part, unrolled, torch.finfo(part.direct.dtype).eps)
            if agrees is False and not self._adds_up(name):
                return {}
            self.samples_read[name] = tuple(part.samples or range(part.x.shape[1]))
            seen = summarise(part, unrolled)
            needed = {} if self.needs_lag is None else {"needed": seen.at(self.needs_lag)}
            if self.delta is not None:
                needed |= window(part, self.delta)
                if alone and self.looks % LEARNABLE_EVERY == 1:
                    more = self._part(name, max(self.samples or 0, SAMPLES))
                    needed |= learnable(more, self._batches[name])
        except Exception as error:  # whatever it is, training must not pay for it
            self.problems[name] = in_words(name, error)
            return {}
        least = {"lower_bound": 1.0} if part.lags_end else {}
        return least | {
            "reach": float(seen.reach),
            "rate": seen.rate,
            "share_near": seen.near,
            "share_carousel": seen.carousel,
            "growth": seen.growth,
            **needed,
        }

    def _nonfinite(self, name: str) -> int:
        """How many values that model and loss gave to the layer are not finite."""
        if name not in self.recording or name in self.recording.refused:
            return 0
        layer = self.recording[name]
        given = layer.inputs, layer.direct
        # A finite sum needs no second look; an infinite one may still be one of finite numbers.
        spoilt = (values for values in given if not bool(values.sum().isfinite()))
        return sum(int((~values.isfinite()).sum()) for values in spoilt)

    def _adds_up(self, name: str) -> bool:
        """Whether the parts of a layer add up to its gradient; a problem if they do not."""
        self._batches.pop(name, None)
        whole = self.recording[name]
        residual = check(whole)
        if residual.ok:
            self._batches[name] = whole.x.shape[1]
        else:
            self.problems[name] = void_in_words(name, residual)
        return residual.ok

    def _part(self, name: str, samples: int | None = None) -> Recorded:
        """Some samples, and some of the steps at which their loss enters, the last included.

        Its gradient is another than that of the whole pass.
        """
        batch = self._batches.get(name) or self.recording[name].x.shape[1]
        samples = samples or self.samples or max(1, min(MOST_SAMPLES, batch // PER_SAMPLE))
        entries = self.entries or max(2, min(MOST_ENTRIES, batch // (PER_ROW * samples)))
        layer = self.recording.sample(name, samples)
        steps = torch.nonzero(largest_of(layer.direct.flatten(1))).squeeze(1).tolist()
        count = min(entries, len(steps))
        kept = [steps[n * len(steps) // count - 1] for n in range(1, count + 1)]
        direct = torch.zeros_like(layer.direct)
        direct[kept] = layer.direct[kept]
        return layer.of_loss(direct)

    def _warn(self) -> None:
        if self.problems:
            reasons = "; ".join(dict.fromkeys(self.problems.values()))
            self._say(
                "problems",
                f"{reasons}. Training goes on; further cases are counted in "
                "'retrograde/unrecorded' without a warning",
            )

    def _say(self, what: str, words: str) -> None:
        """Warn, once for each thing."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"retrograde.Monitor, block {self.step}: {words}", stacklevel=5)


def _named(limits: Mapping[str, Limits] | None) -> Mapping[str, Limits]:
    return _checks.mapping("limits", {} if limits is None else limits, "of scalars to limits")


def _limits(name: str, pair: object) -> Limits:
    """Lowest and highest value, checked.

    Raises:
        ArgumentError: for anything else.
    """
    words = f"the limits of {name!r} must be a pair (lowest, highest), None for no limit"
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ArgumentError(f"{words}; got {_checks.shown(pair)}")
    low, high = (
        None if each is None else _checks.number(f"a limit of {name!r}", each, lambda _: True)
        for each in pair
    )
    if low is not None and high is not None and low > high:
        raise ArgumentError(f"{words}, in this order; got {_checks.shown(pair)}")
    return low, high


def _rank() -> int:
    distributed: Any = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0
