"""What a recording holds: layers by name, taken from one or several backward passes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retrograde import _checks
from retrograde._notebook import card
from retrograde.cells import AbstractCell
from retrograde.engine import Boundary, Unrolled
from retrograde.errors import ArgumentError, RecordingError, RetrogradeError

MOST_SHOWN = 8
"""Layers that a notebook lists of a recording."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """One backward pass through one recurrent layer or stack.

    Steps count in the order in which a direction reads its input, so that those of a reverse
    direction run backwards.
    Calls that continue a state follow each other in time; others (a layer used twice) lie side by
    side as further samples.

    Attributes:
        name: the layer's name in its model.
        cell: its weights, copied, as a cell.
        x: the layer's input, shape [T, B, I], in the order in which it was given.
        initial: its initial state (h of each layer, and c), shape [B, S].
        direct: dL/ds_t as the loss gives it, without what comes back through later steps,
            shape [T, B, S].
        gradients: autograd's own gradient of each parameter in this pass, as far as it came
            through this layer.
        reads: what the cell reads at each step, if that is not x alone: x in both directions, the
            layers below, the masks of a dropout.
        boundaries: the steps before which a state was detached, reset or replaced.
        lengths: the number of steps of each sample, None if all run to the end.
        notes: what a reader must know about this pass.
        lags_end: the steps before which the state was computed from the one before by something
            that the recursion does not pass: a linear map, a norm, a network; and those whose
            input was computed from the layer's own outputs. Lags end there.
        rounding: the relative rounding error (machine epsilon) of the arithmetic that the pass ran
            in; None for that of its gradients' data type.
        final: the state after the last step as the pass itself left it, shape [B, S], for the
            replayed one to be compared with; None where that is not known.
        against: what `gradients` are, if they are not autograd's of the pass that ran.
        samples: the numbers of these samples in the batch that ran, None for all of it.
        ran: this very cell run over these very inputs, where putting the pass together took that;
            None elsewhere.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(lstm) as recording:
        ...     lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> recorded = recording["LSTM"]
        >>> recorded.x.shape, recorded.h0.shape, recorded.direct.shape  # the state is (h, c)
        (torch.Size([5, 4, 2]), torch.Size([1, 4, 3]), torch.Size([5, 4, 6]))
        >>> recorded.gradients["weight_hh_l0"].shape  # autograd's, four gates
        torch.Size([12, 3])
    """

    name: str
    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    initial: Float[Tensor, "B S"]
    direct: Float[Tensor, "T B S"]
    gradients: Mapping[str, Tensor]
    reads: Float[Tensor, "T B R"] | None = None
    boundaries: Mapping[int, Boundary] = field(default_factory=dict)
    lengths: Int[Tensor, "B"] | None = None
    notes: tuple[str, ...] = ()
    lags_end: tuple[int, ...] = ()
    rounding: float | None = None
    final: Float[Tensor, "B S"] | None = None
    against: str = ""
    samples: tuple[int, ...] | None = None
    ran: Unrolled | None = field(default=None, init=False, repr=False)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name."""
        return self.cell.parameters

    @property
    def inputs(self) -> Float[Tensor, "T B R"]:
        """What the cell reads at each step."""
        return self.x if self.reads is None else self.reads

    def part(self, samples: int | Sequence[int]) -> "Recorded":
        """Some samples alone, without gradients: autograd only gives those of the whole batch.

        All of them where samples read each other's states (a batch in another order).

        Args:
            samples: the numbers of those samples; or how many of the first ones.

        Raises:
            ArgumentError: if `samples` is neither a positive integer nor numbers of samples.
        """
        batch = self.x.shape[1]
        if not isinstance(samples, list | tuple | range):
            samples = range(min(batch, _checks.whole("samples", samples)))
        elif not samples or not all(isinstance(n, int) and 0 <= n < batch for n in samples):
            raise ArgumentError(
                f"samples must be numbers of samples, each from 0 to {batch - 1}; "
                f"got {_checks.shown(samples)}"
            )
        if any(boundary.mixes_samples for boundary in self.boundaries.values()):
            return replace(self, gradients={})
        some = torch.tensor(samples, device=self.x.device)
        boundaries = {k: boundary.part(some) for k, boundary in self.boundaries.items()}
        before = range(batch) if self.samples is None else self.samples
        return replace(
            self,
            x=self.x[:, some],
            initial=self.initial[some],
            direct=self.direct[:, some],
            gradients={},
            reads=None if self.reads is None else self.reads[:, some],
            boundaries=boundaries,
            lengths=None if self.lengths is None else self.lengths[some],
            final=None if self.final is None else self.final[some],
            samples=tuple(before[sample] for sample in samples),
        )

    def of_loss(self, direct: Float[Tensor, "T B S"]) -> "Recorded":
        """The same pass of another loss, which gives `direct` to each state; without gradients."""
        return replace(self, direct=direct, gradients={}).with_run(self.ran)

    def with_run(self, ran: Unrolled | None) -> "Recorded":
        """The same with its cell run over its inputs. No copy or part has that."""
        found = copy(self)
        object.__setattr__(found, "ran", ran)
        return found

    def sample(self, count: int) -> "Recorded":
        """A part of so many samples, evenly spread over the batch.

        Where one of these has no loss, they are spread over those that have one; with fewer that
        have one it is all of them. Which ones were taken is in `samples` of the part; they are the
        same for the same pass.

        Raises:
            ArgumentError: if `count` is not a positive integer.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.RNN(1, 2)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(4, 9, 1))[0][:, 3:].sum().backward()  # 6 of 9 samples
            >>> recording["RNN"].sample(2).samples
            (4, 7)
        """
        return self.part(spread([self.direct], count))

    def __repr__(self) -> str:
        return f"Recorded {self.size_in_words}"

    def _repr_html_(self) -> str:
        return card(repr(self))

    @property
    def size_in_words(self) -> str:
        """Its name, and how large everything is."""
        steps, batch = self.x.shape[:2]
        enters = int(self.direct.flatten(1).any(1).sum())
        return (
            f"{self.name!r}: {steps} steps, batch of {batch}, state of {self.cell.state_size}; "
            f"the loss enters at {enters} step{'s' * (enters != 1)}"
        )

    @property
    def borders(self) -> Mapping[int, Boundary]:
        """`boundaries` under its earlier name, until 0.2."""
        return self.boundaries

    @property
    def output_adjoint(self) -> Float[Tensor, "T B H"]:
        """dL/dh_t of the layer's output, of both directions side by side, as the loss gives it."""
        return self.direct[..., self.cell.output]

    @property
    def h0(self) -> Float[Tensor, "layers B H"]:
        """The initial hidden states, as torch.nn takes them."""
        return self._initial("h")

    @property
    def c0(self) -> Float[Tensor, "layers B H"] | None:
        """The initial cell states, or None for a cell without them."""
        return self._initial("c") if any(name[0] == "c" for name in self.cell.slots) else None

    def _initial(self, letter: str) -> Tensor:
        slots = self.cell.slots.items()
        return torch.stack([self.initial[:, slot] for name, slot in slots if name[0] == letter])


def spread(given: Sequence[Float[Tensor, "_ B M"]], count: int) -> list[int]:
    """The numbers of samples evenly spread over a batch; where one of them has nothing, over those
    that have something, if any has.

    Of N samples the i-th of n is number (2 i + 1) N / (2 n), rounded down: from the middle of the
    i-th of n equal parts.

    Args:
        given: what the loss gives to the samples.
        count: how many there are to be.

    Raises:
        ArgumentError: if `count` is not a positive integer.
    """
    count, every = _checks.whole("count", count), range(given[0].shape[1])

    def have(samples: Sequence[int]) -> list[int]:
        some, found = list(samples), list[bool]()
        for steps in (slice(-1, None), slice(None)):  # most often the last step has a loss
            parts = [(one[steps, some] != 0).any(2).any(0) for one in given]
            found = torch.stack(parts).any(0).tolist()
            if all(found):
                break
        return [sample for sample, has in zip(some, found, strict=True) if has]

    first = _evenly(every, count)
    return first if have(first) == first else _evenly(have(every) or every, count)


def _evenly(samples: Sequence[int], count: int) -> list[int]:
    count = min(count, len(samples))
    return [samples[(2 * i + 1) * len(samples) // (2 * count)] for i in range(count)]


def the_one(recording: object) -> Recorded:
    """The recorded layer that a function was given, itself or as the only one of its recording.

    Raises:
        RecordingError: if nothing is recorded yet.
        ArgumentError: if there are several, and for anything that is no recording.
    """
    if isinstance(recording, Recorded):
        return recording
    if isinstance(recording, Recording):
        return recording.only()
    arrived = _checks.shown(recording)
    if isinstance(recording, nn.Module):
        arrived += ", which has to run first: with retrograde.record(model) as recording: ..."
    elif isinstance(recording, Mapping):
        arrived += "; give one of its values"
    raise ArgumentError(
        "recording must be what retrograde.record or record_cell recorded, or one layer of it; "
        f"got {arrived}"
    )


if TYPE_CHECKING:
    Layers = Mapping[str, Recorded]
else:  # a type check at run time would look inside, and so put a layer together
    Layers = Mapping


class Recording(Layers):
    """Recorded layers by name; filled when the `with` block of `record` ends.

    Asking for a layer that could not be recorded raises an error that says why. Where several
    backward passes ran in the block, `passes` holds a recording of each.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.ModuleDict({"a": torch.nn.RNN(2, 3), "b": torch.nn.GRU(3, 4)})
        >>> with retrograde.record(model) as recording:
        ...     model["b"](model["a"](torch.ones(5, 4, 2))[0])[0].sum().backward()
        >>> list(recording), recording["b"].x.shape
        (['a', 'b'], torch.Size([5, 4, 3]))
    """

    def __init__(self) -> None:
        self.passes: tuple[Recording, ...] = ()
        self._makers: dict[str, Callable[[], Recorded]] = {}
        self._samples: dict[str, Callable[[int], Recorded]] = {}
        self._made: dict[str, Recorded] = {}
        self._refused: dict[str, RetrogradeError] = {}
        self._joined: dict[str, Callable[[], Recorded]] = {}

    def __getitem__(self, name: str) -> Recorded:
        if name in self._refused:
            raise self._refused[name]
        if name not in self._makers:
            near = _checks.closest(name, self)
            raise KeyError(f"there is no layer {name!r}{near} in {self!r}")
        if name not in self._made:
            try:
                self._made[name] = self._makers[name]()
            except RetrogradeError as error:
                self._refused[name] = error
                raise
            self._makers[name] = partial(self._made.__getitem__, name)  # lets go of the calls
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self))
        if not layers and self.passes:
            layers = f"{len(self.passes)} backward passes, see .passes"
        return f"Recording({layers or 'nothing yet'})"

    def _repr_html_(self) -> str:
        layers = [self._in_words(name) for name in islice(self, MOST_SHOWN)]
        more = [f"and {len(self) - MOST_SHOWN} more"] * (len(self) > MOST_SHOWN)
        return card("\n".join(["Recording of", *layers, *more]) if self else repr(self))

    def _in_words(self, name: str) -> str:
        """A layer and how large it is, or why there is none to be had."""
        try:
            return self[name].size_in_words
        except RetrogradeError as error:
            return f"{name!r}: {error}"

    @property
    def refused(self) -> Mapping[str, str]:
        """Layers that were found but not recorded, and why."""
        return {name: str(error) for name, error in self._refused.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Layers put together and reasons, for copies and pickles: no hooks, no graph, no calls."""
        for name in self:
            with suppress(RetrogradeError):  # kept as its reason
                self[name]
        return {
            "names": tuple(self),
            "made": dict(self._made),
            "refused": dict(self._refused),
            "passes": self.passes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.passes, self._made, self._refused = state["passes"], state["made"], state["refused"]
        self._joined = {}
        self._makers = {name: partial(self._made.__getitem__, name) for name in state["names"]}
        self._samples = {}

    def only(self) -> Recorded:
        """The one recorded layer.

        Raises:
            RecordingError: if nothing is recorded yet.
            ArgumentError: if there are several; the message lists them.
        """
        if not self and self.refused:
            raise RecordingError("; ".join(self.refused.values()))
        if not self:
            raise RecordingError(
                "nothing is recorded yet: leave the `with record(...)` block first"
            )
        if len(self) > 1:
            raise ArgumentError(
                f"{len(self)} recurrent layers were recorded; pick one, as in "
                f"recording[{next(iter(self))!r}]. There are: " + ", ".join(self)
            )
        return next(iter(self.values()))

    def joined(self, name: str | None = None) -> Recorded:
        """All recorded passes through a layer as one: what the sum of their losses would give.

        Windows of a stream, whose state was carried from one to the next, become one sequence; its
        notes and boundaries tell where the state was detached. Others lie side by side as samples.
        `record(model, keep=3)` leaves the last three windows to be joined.

        Args:
            name: the layer; None if only one was recorded.

        Raises:
            RecordingError: if the weights changed between the passes: then there is no single
                gradient. An optimiser has to wait until the last of them.
            ArgumentError: if there are several layers and none is named.

        Example:
            >>> import torch, retrograde
            >>> lstm, state = torch.nn.LSTM(2, 3), None
            >>> with retrograde.record(lstm) as recording:
            ...     for x in torch.ones(12, 1, 2).split(4):
            ...         output, state = lstm(x, state)
            ...         output.sum().backward()
            ...         state = tuple(part.detach() for part in state)
            >>> joined = recording.joined()
            >>> joined.x.shape, sorted(joined.boundaries)
            (torch.Size([12, 1, 2]), [4, 8])
            >>> retrograde.decompose(joined).residual.ok
            True
        """
        names = dict.fromkeys((*self._joined, *self, *(n for one in self.passes for n in one)))
        if name is None and len(names) > 1:
            raise ArgumentError(
                f"{len(names)} recurrent layers were recorded; pick one, as in "
                f"recording.joined({next(iter(names))!r}). There are: {', '.join(names)}"
            )
        name = next(iter(names), None) if name is None else name
        if name is None:
            return self.only()
        if name not in self._joined and sum(name in one for one in self.passes) > 1:
            raise RecordingError(
                f"{name!r}: passes that were read from a file or copied cannot be joined any more; "
                "join them before, and keep what joined() gave"
            )
        return self._joined[name]() if name in self._joined else self[name]

    def become(self, other: "Recording") -> None:
        """Hold what another recording holds."""
        self.__dict__.update(other.__dict__)

    @property
    def reasons(self) -> Mapping[str, RetrogradeError]:
        """`refused` as the errors themselves."""
        return dict(self._refused)

    def fill_joined(self, name: str, maker: Callable[[], Recorded]) -> None:
        """A layer of several passes; they are joined when that is asked for."""
        self._joined[name] = maker

    def fill(
        self,
        name: str,
        maker: Callable[[], Recorded],
        sample: Callable[[int], Recorded] | None = None,
    ) -> None:
        """A layer that was recorded; it is put together when it is asked for.

        Args:
            name: its name.
            maker: puts it together.
            sample: puts a number of its samples together, where that takes less.
        """
        self._makers[name] = maker
        if sample is not None:
            self._samples[name] = sample

    def sample(self, name: str, count: int) -> Recorded:
        """Some samples of a layer, as `recording[name].sample(count)`.

        Only these are put together, where the layer itself was not asked for yet.

        Raises:
            ArgumentError: if `count` is not a positive integer.
        """
        count = _checks.whole("count", count)
        if name in self._made or name in self._refused or name not in self._samples:
            return self[name].sample(count)
        try:
            return self._samples[name](count)
        except RetrogradeError as error:
            self._refused[name] = error
            raise

    def refuse(self, name: str, error: RetrogradeError) -> None:
        """A layer that was not recorded."""
        self._refused[name] = error
