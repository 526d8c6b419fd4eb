"""Recorded layers by name, put together when they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

from retrograde import _checks
from retrograde._notebook import card
from retrograde.errors import ArgumentError, RecordingError, RetrogradeError
from retrograde.recording.recorded import Recorded

MOST_SHOWN = 8
"""Layers that a notebook lists of a recording."""

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
