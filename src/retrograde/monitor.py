"""A few numbers of the backward pass, again and again while a model trains, for any logger.

It looks at one pass in every hundred (or `every`) and leaves all others alone. A failure of its own
is counted and reported once; training goes on.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retrograde import _checks
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.check import check
from retrograde.decomposition.flow import void_in_words
from retrograde.decomposition.summary import summarise
from retrograde.errors import RecordingError, RetrogradeError
from retrograde.recording import Recorded, Recording, record, recurrent_layers

Log = Callable[[dict[str, float], int], object]


class Monitor:
    """Scalars of every 100th backward pass of a model, for a training loop of one's own.

    Put `with monitor:` around a forward and its backward pass. Every `every`-th such block, the
    first included, is recorded and looked at when it ends; the others cost nothing. What was found
    stays until the next block begins. The names are `retrograde/<layer>/<scalar>`:

    | scalar | unit | meaning |
    |---|---|---|
    | `reach` | steps | largest lag whose mean contribution is still 1 % of that at lag 0 |
    | `half_life` | steps | steps in which the adjoint halves; negative: in which it doubles |
    | `share_near` | share | signed share of lags 0 to 10 in the gradient |
    | `share_carousel` | share | signed share of what arrives at its use step along the carousel |
    | `growth` | log2 per step | largest growth of the adjoint from a step to the step before |
    | `gradient_norm` | L2 norm | gradient of the layer's own parameters |
    | `nonfinite` | count | NaN and infinite values in the layer's input, dL/dh and gradients |
    | `lower_bound` | 1 | there where `reach` is a lower bound, since lags end on the way |

    and, of the model as a whole:

    | scalar | unit | meaning |
    |---|---|---|
    | `retrograde/gradient_norm_rest` | L2 norm | gradient of all parameters outside these layers |
    | `retrograde/unrecorded` | count | recurrent layers about which this pass told nothing |

    A number that there is not (no half-life after a single step, no carousel in a plain RNN) or
    that is not finite is left out. Norms and counts are those of this pass alone, before clipping,
    also where gradients accumulate; with a gradient scaler they are those of the scaled loss. The
    first five describe a part of the pass, and are exact for it: the loss of the first `samples`
    samples at `entries` of the steps at which it enters, evenly spaced and the last included. Under
    `torch.distributed` only rank 0 looks, at its own share of the batch, and talks to no other.

    Nothing of ours raises into a training loop. What cannot be recorded or looked at (a layer that
    is refused, a block without a backward pass, a NaN, a mistake of ours), and a layer whose parts,
    over the whole pass, do not add up to its gradient (`flow.residual`), adds to `unrecorded`; the
    first reason is given as a warning, and `problems` has those of the latest block. What the
    model, the loss or `log` raises passes through.

    Args:
        model: any module with recurrent layers inside, also wrapped by DistributedDataParallel or
            torch.compile; the wrappers' prefixes are no part of the names.
        every: how many blocks from one that is recorded to the next.
        log: called with the scalars and the number of the block, as `wandb.log` would take them.
        samples, entries: how much of the pass is looked at; more costs more.

    Attributes:
        scalars: what the latest block told, by name; empty where it was not recorded.
        recording: its `Recording`, for all further questions; empty where it was not recorded.
        problems: what stood in the way, by layer.
        step: the number of the latest block, from 0.

    Raises:
        ArgumentError: for a number that is not a positive integer.

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
        0 retrograde/LSTM/half_life True
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
        samples: int = 4,
        entries: int = 8,
    ):
        self.model = _checks.model("model", model)
        self.every = _checks.whole("every", every)
        self.samples = _checks.whole("samples", samples)
        self.entries = _checks.whole("entries", entries)
        if log is not None:
            _checks.function("log", log, "of the scalars and the step", takes=2)
        self.log = log
        self.step = -1
        self._warned = False
        self._pass: _Pass | None = None
        self._forget()

    def _forget(self) -> None:
        self.scalars: dict[str, float] = {}
        self.recording: Mapping[str, Recorded] = {}
        self.problems: dict[str, str] = {}

    def start(self) -> None:
        """Begin a block, for loops in which a `with` statement has no place."""
        self.cancel()
        self._forget()
        self.step += 1
        if self.step % self.every == 0 and _rank() == 0:
            self._pass = _Pass(self.model)

    def stop(self) -> None:
        """End a block: look at what was recorded, and hand it to `log`."""
        seen, self._pass = self._pass, None
        if seen is None:
            return
        self.recording = seen.close()
        self.problems = seen.problems
        scalars: dict[str, float] = {}
        for name in seen.layers:
            values = self._look(name)
            values["gradient_norm"] = seen.norm(name)
            values["nonfinite"] = seen.nonfinite(name) + self._nonfinite(name)
            scalars |= {f"retrograde/{name}/{scalar}": value for scalar, value in values.items()}
        scalars["retrograde/gradient_norm_rest"] = seen.norm(None)
        scalars["retrograde/unrecorded"] = float(len(self.problems))
        self.scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._warn()
        if self.log is not None:
            self.log(self.scalars, self.step)

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
                + self.problems.get(layer, f"Every {self.every}th block is recorded")
            )
        part = self._part(layer)

        return decompose(part)

    def _look(self, name: str) -> dict[str, float]:
        """The first five scalars of a layer; none where a problem stands in their way."""
        if name not in self.recording:
            return {}
        whole = self.recording[name]
        try:
            residual = check(whole)
            if not residual.ok:
                self.problems[name] = void_in_words(name, residual)
                return {}
            seen = summarise(self._part(name))
        except Exception as error:  # whatever it is, training must not pay for it
            self.problems[name] = _why(name, error)
            return {}
        least = {"lower_bound": 1.0} if whole.lags_end else {}
        return least | {
            "reach": float(seen.reach),
            "half_life": seen.half_life,
            "share_near": seen.near,
            "share_carousel": seen.carousel,
            "growth": seen.growth,
        }

    def _nonfinite(self, name: str) -> int:
        """How many values that model and loss gave to the layer are not finite."""
        layer = self.recording.get(name)
        given = () if layer is None else (layer.inputs, layer.direct)
        # A finite sum needs no second look; an infinite one may still be one of finite numbers.
        spoilt = (values for values in given if not bool(values.sum().isfinite()))
        return sum(int((~values.isfinite()).sum()) for values in spoilt)

    def _part(self, name: str) -> Recorded:
        """The first samples, and some of the steps at which their loss enters, the last included.

        Its gradient is another than that of the whole pass.
        """
        layer = self.recording[name].part(self.samples)
        enters = layer.direct.flatten(1).any(1)
        steps = torch.nonzero(enters).squeeze(1)
        count = min(self.entries, len(steps))
        ends = torch.arange(1, count + 1, device=steps.device) * len(steps) // max(1, count) - 1
        kept = torch.zeros_like(enters).index_fill_(0, steps[ends], True)
        return replace(layer, direct=torch.where(kept.view(-1, 1, 1), layer.direct, 0))

    def _warn(self) -> None:
        if self.problems and not self._warned:
            self._warned = True
            reasons = "; ".join(dict.fromkeys(self.problems.values()))
            warnings.warn(
                f"retrograde.Monitor, block {self.step}: {reasons}. "
                "Training goes on; further cases are counted in 'retrograde/unrecorded' without a "
                "warning",
                stacklevel=4,
            )


class _Pass:
    """Hooks for one forward and one backward pass, and what they saw.

    Attributes:
        layers: the recurrent layers by name.
        problems: why some of them tell nothing, by name.
    """

    def __init__(self, model: nn.Module):
        self.layers = recurrent_layers(model)
        self.problems: dict[str, str] = {}
        self._grads: dict[str | None, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[RemovableHandle] = []
        self._block = record(model)
        self._recording: Recording | None = None
        try:
            self._recording = self._block.__enter__()
        except Exception as error:  # the model as a whole is refused
            for name in self.layers or [type(model).__name__]:
                self._fail(name, error)
        owner = {id(p): name for name, layer in self.layers.items() for p in layer.parameters()}
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._watch(parameter, owner.get(id(parameter)))

    def close(self) -> Mapping[str, Recorded]:
        """Take all hooks away, and give what was recorded."""
        self._unhook()
        if self._recording is None:
            return {}
        try:
            self._block.__exit__(None, None, None)
        except Exception as error:
            if not self._recording.refused:
                self._fail("recording", error)
        self.problems |= self._recording.refused
        found: dict[str, Recorded] = {}
        for name, of_pass in ((n, p) for p in self._recording.passes for n in p):
            try:
                found[name] = of_pass[name]  # of several passes in a block, the last one
                self.problems.pop(name, None)
            except Exception as error:  # whatever it is, training must not pay for it
                self._fail(name, error)
        return found

    def discard(self) -> None:
        """Take all hooks away, and forget what they saw."""
        self._unhook()
        if self._recording is not None:
            error = RecordingError("the pass was given up")
            self._block.__exit__(type(error), error, None)

    def norm(self, layer: str | None) -> float:
        """L2 norm of the gradient of a layer, or of all outside the layers; NaN if none came."""
        squares = [float(norm) ** 2 for norm, _ in self._grads.get(layer, ())]
        return math.sqrt(sum(squares)) if squares else math.nan

    def nonfinite(self, layer: str) -> float:
        """How many values in the gradient of a layer's parameters are not finite."""
        return float(sum(int(count) for _, count in self._grads.get(layer, ())))

    def _watch(self, parameter: nn.Parameter, layer: str | None) -> None:
        def look(grad: Tensor) -> None:
            try:
                values = grad.detach().coalesce().values() if grad.is_sparse else grad.detach()
                norm = torch.linalg.vector_norm(values, dtype=torch.float64)
                self._grads.setdefault(layer, []).append((norm, (~values.isfinite()).sum()))
            except Exception as error:  # not into the user's backward pass
                self._fail(layer or "gradient_norm_rest", error)

        self._handles.append(parameter.register_hook(look))  # type: ignore[no-untyped-call]

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _fail(self, name: str, error: Exception) -> None:
        self.problems[name] = _why(name, error)


def _why(name: str, error: Exception) -> str:
    """A reason as it is, or what went wrong where no one expected it."""
    if isinstance(error, RetrogradeError):
        return str(error)
    return f"{name!r}: {type(error).__name__}: {error}"


def _rank() -> int:
    distributed: Any = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0
