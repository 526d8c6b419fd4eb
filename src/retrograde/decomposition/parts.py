"""Parts of a gradient: the one result of every decomposition.

A decomposition labels its parts along axes: by loss step and use step, by lag, by route and lag, by
unit and lag, by parameter and gate. What can be asked of parts does not depend on the labels, so it
stands here once; a decomposition is a file beside this one that says which rows belong to a label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks, charts, plots
from retrograde._notebook import card
from retrograde._optional import optional
from retrograde.decomposition.axes import (
    Axis,
    borders,
    ends,
    merged,
    places_of,
    size_of,
    table_columns,
)
from retrograde.decomposition.formed import Formed, Former, Measured
from retrograde.decomposition.lags import POOLED, mean_by_lag, reach_of
from retrograde.decomposition.rows import WIDTH, joined, log2_of_sum
from retrograde.engine.scaling import Scaled
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Parts:
    """The gradient of one parameter (or, as one vector, of all of them) in labelled parts.

    Parts add up to the gradient exactly. Every decomposition of a `Flow` returns them:

    | made by | axes |
    |---|---|
    | `by_time` | `loss_step`, `use_step` |
    | `by_lag` | `lag` |
    | `by_route` | `route`, `lag` |
    | `by_crossing` | `crossing`, `lag` |
    | `by_unit` | `state` and `unit` (of one axis), `lag` |
    | `by_parameter` | `parameter` and `gate` (of one axis) |

    Attributes:
        axes: for each axis of the arrays below, the labels of its places by the name of what it
            runs over. A label is a step, a name, or a `range` of lags or steps.
        parameter: the parameter's name, None for the whole gradient.
        held: the parts, or their sizes, in one row; asked through what follows.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.LSTM(1, 2)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(5, 1, 1))[0].sum().backward()
        >>> parts = retrograde.decompose(recording).by_route("weight_hh_l0", bins=(0, 1, 3))
        >>> parts
        Parts(weight_hh_l0 by route [6] and lag [3])
        >>> parts.sum("route").share.shape
        torch.Size([3])
        >>> near = parts.select(route="carousel", lag=range(0, 3))
        >>> near.axes
        ({'lag': (range(0, 1), range(1, 3))},)
        >>> torch.allclose(near.share, parts.share[parts.labels.index("carousel"), :2])
        True
    """

    axes: tuple[Axis, ...]
    parameter: str | None
    held: Formed | Measured

    @staticmethod
    def of(axes: Sequence[Axis], parameter: str | None, rows: Scaled) -> "Parts":
        """Parts that were formed, a row for each place, those of the last axis side by side."""
        return Parts(tuple(axes), parameter, Formed(rows))

    @staticmethod
    def measured(
        axes: Sequence[Axis],
        parameter: str | None,
        log2: Float[Tensor, "*A"],
        share: Float[Tensor, "*A"],
        whole: Scaled | None = None,
        former: Former | None = None,
    ) -> "Parts":
        """Parts whose sizes and shares were found without forming them.

        Args:
            axes: as in the attributes.
            parameter: the name of the parameter, None for the whole gradient.
            log2, share: of each part.
            whole: the gradient, as one row.
            former: forms the parts where that is asked for, under the parameter's name ("" for the
                whole gradient).
        """
        names = ("",) if parameter is None else (parameter,)
        held = Measured(log2.flatten(), share.flatten(), whole, names, former)
        return Parts(tuple(axes), parameter, held)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many places each axis has."""
        return tuple(map(size_of, self.axes))

    @property
    def log2(self) -> Float[Tensor, "*A"]:
        """log2 of the Frobenius norm of each part, float64; -inf for a part of zero."""
        return self.held.log2.view(self.shape)

    @property
    def norm(self) -> Float[Tensor, "*A"]:
        """The norms as plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    @property
    def share(self) -> Float[Tensor, "*A"]:
        """Signed share <part, G> / <G, G> of each part in the whole gradient G; they sum to 1.

        Also after `select` it is the share in the whole. NaN if the whole gradient is zero.
        """
        return self.held.share.view(self.shape)

    @property
    def scaled(self) -> Scaled:
        """The parts as values and integer exponents of two, which leave no range; one row each."""
        return self.held.rows()

    def parts(self) -> Float[Tensor, "..."]:
        """The parts as plain tensors of the parameter's shape [*R]; they sum to the gradient.

        For all parameters together each is one vector. Those of `by_time` and, for large layers,
        `by_unit` are formed here: that takes a further pass, and the memory of all of them.

        Raises:
            ArgumentError: for parts of a report, of which only sizes and shares are kept.
        """
        plain = self.scaled.plain()
        return plain.reshape(*self.shape, *plain.shape[1:])

    def sum(self, *names: str) -> "Parts":
        """The sums of the parts along some axes, exactly; all parts in one without a name.

        Args:
            names: names of axes, or one of the two names of an axis that has two.

        Raises:
            ArgumentError: for a name that no axis has, and for parts of a report, whose sums have
                sizes that do not follow from theirs.
        """
        for name in names:
            self._place(name)
        gone = set(names) if names else {name for axis in self.axes for name in axis}
        axes, numbers = [], []
        for axis in self.axes:
            left = {name: labels for name, labels in axis.items() if name not in gone}
            keys = list(zip(*left.values(), strict=True)) if left else [()] * size_of(axis)
            unique = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            numbers.append((torch.tensor([unique[key] for key in keys]), len(unique)))
            columns = zip(*unique, strict=True) if unique else [()] * len(left)
            axes.append(dict(zip(left, columns, strict=True)))
        return self.regrouped(axes, numbers)

    def select(self, **labels: Any) -> "Parts":
        """Some of the parts, by their labels.

        Args:
            labels: by name of an axis: one label, for which the axis goes; or several in a tuple,
                list or range. An integer means the lags or steps that hold it; a range those
                that lie inside of it.

        Raises:
            ArgumentError: for an unknown name, a label that no part has, and a range that begins or
                ends inside of a part.
        """
        kept = [list(range(size)) for size in self.shape]
        gone: set[str] = set()
        for name, wanted in labels.items():
            place = self._place(name)
            column = self.axes[place][name]
            found = set(places_of(name, column, wanted))
            kept[place] = [at for at in kept[place] if at in found]
            if not isinstance(wanted, tuple | list | range):
                gone.add(name)
        if not all(kept):
            raise ArgumentError(f"no part has all of these labels: {_checks.shown(labels)}")
        axes, numbers = [], []
        for axis, places in zip(self.axes, kept, strict=True):
            number = torch.full((size_of(axis),), -1)
            number[places] = torch.arange(len(places))
            left = [name for name in axis if name not in gone]
            axes.append({name: tuple(axis[name][at] for at in places) for name in left})
            numbers.append((number, len(places)))
        return self.regrouped(axes, numbers)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a row for each part, with its labels, log2, norm and share.

        Polars reads it as it is: `polars.DataFrame(parts.to_dataframe())`.

        A range has two columns, `first_lag` and `last_lag` for example. Parts by time have a column
        for the lag as well, and pairs whose use step comes after the loss step are left out.

        Raises:
            MissingExtraError: without pandas; the message says how to install it.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.RNN(1, 2)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(3, 1, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> list(flow.by_lag().to_dataframe())  # doctest: +SKIP
            ['first_lag', 'last_lag', 'log2', 'norm', 'share']
        """
        pandas = _pandas()
        columns: dict[str, list[Any]] = dict(table_columns(self.axes))
        for name in ("log2", "norm", "share"):
            columns[name] = getattr(self, name).flatten().tolist()
        if self._by_time:
            lags = self.lags.flatten().tolist()
            columns = {
                name: [value for value, lag in zip(values, lags, strict=True) if lag >= 0]
                for name, values in (columns | {"lag": lags}).items()
            }
        return pandas.DataFrame(columns)

    def chart(self) -> Any:
        """An Altair chart that suits the axes; `.save("parts.png")` needs no browser.

        By time it is the map of loss steps and use steps, by lag the shares, by route or crossing
        sizes and shares over lag; by parameter the blocks; of any other axes their shares.
        """
        kind, drawn = self._drawn()
        return getattr(charts, kind)(*drawn)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The same with Matplotlib, as (figure, axes); of routes and crossings the shares alone.

        Args:
            ax: the axes to draw on; new ones if None.

        Raises:
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        kind, drawn = self._drawn()
        plotted: tuple[Any, Any] = getattr(plots, kind)(*drawn, ax)
        return plotted

    def _drawn(self) -> tuple[str, tuple[Any, ...]]:
        """The name of the chart that suits the axes, and what it is drawn from."""
        log2, share = self.log2.cpu(), self.share.cpu()
        if self._by_time:
            shown = self.pooled()
            sides = borders(shown.axes[0]["loss_step"]), borders(shown.axes[1]["use_step"])
            sizes = [_without_end(row) for row in shown.log2.tolist()]
            return "loss_step_by_use_step", (*sides, sizes, self.parameter)
        match tuple(tuple(axis) for axis in self.axes):
            case (("lag",),):
                return "shares_by_lag", (self.lags, log2, share)
            case ((("route" | "crossing"),), ("lag",)):
                return "split_by_lag", (self.kind, self.labels, self.lags, log2, share)
            case (("parameter", "gate"),):
                return "blocks", (self.blocks, log2, share)
        return "shares", ([dict(axis) for axis in self.axes], log2, share)

    def pooled(self, most: int = POOLED) -> "Parts":
        """Parts by time for a picture, with at most `most` rows and columns.

        Neighbours are put together; their share is the sum, their size the largest of any.

        Raises:
            ArgumentError: if `most` is not a positive integer.
        """
        most = _checks.whole("most", most)
        sides, widths = [], []
        for axis, size in zip(self.axes, self.shape, strict=True):
            ((name, labels),) = axis.items()
            width = max(1, -(-size // most))
            groups = [labels[at : at + width] for at in range(0, size, width)]
            sides.append({name: tuple(map(merged, groups))})
            widths.append(width)
        log2, share = self.log2.cpu(), self.share.cpu()
        for at, width in enumerate(widths):
            if log2.shape[at]:
                log2 = torch.stack([some.amax(at) for some in torch.split(log2, width, at)], at)
                share = torch.stack([some.sum(at) for some in torch.split(share, width, at)], at)
        return Parts.measured(sides, self.parameter, log2, share)

    def sizes(self) -> "Parts":
        """The same without the parts themselves: labels, sizes and shares, on the CPU."""
        log2, share = self.log2.double().cpu(), self.share.double().cpu()
        return Parts.measured(self.axes, self.parameter, log2, share)

    def times(self, factor: Float[Tensor, "*R"]) -> "Parts":
        """Every part times a factor for each element of the parameter: parts of that gradient."""
        rows = self.scaled
        return Parts.of(self.axes, self.parameter, Scaled(rows.values * factor, rows.exponent))

    # What parts of some kinds have.

    @property
    def lags(self) -> Any:
        """The lags of each part, as ranges; by time the lag of each pair, -1 where k > t."""
        if not self._by_time:
            return self._labels("lag")
        steps = [ends(label) for label in self._labels("loss_step")]
        first, last = torch.tensor(steps, dtype=torch.int64).reshape(-1, 2, 1).unbind(1)
        k = torch.tensor([ends(label)[0] for label in self._labels("use_step")])
        lags = torch.where(last >= k, (torch.maximum(first, k) + last) // 2 - k, -1)
        return lags.to(self.held.log2.device)

    @property
    def entries(self) -> Int[Tensor, "E"]:
        """By time: the loss step t of each row, the last one where several share it."""
        last = [ends(label)[1] for label in self._labels("loss_step")]
        return torch.tensor(last, dtype=torch.int64, device=self.held.log2.device)

    @property
    def labels(self) -> tuple[Any, ...]:
        """The labels of the first axis: "direct" and the routes, or the numbers of crossings."""
        return next(iter(self.axes[0].values()))

    @property
    def ways(self) -> tuple[Any, ...]:
        """`labels` under its earlier name, until 0.2."""
        return self.labels

    @property
    def kind(self) -> str:
        """What the labels are: "route" or "crossings"."""
        name = next(iter(self.axes[0]))
        return "crossings" if name == "crossing" else name

    @property
    def blocks(self) -> tuple[tuple[Any, Any], ...]:
        """(parameter, gate) of each block; the gate is None where a cell has none."""
        return tuple(zip(self._labels("parameter"), self._labels("gate"), strict=True))

    @cached_property
    def log2_mean_by_lag(self) -> Float[Tensor, "K"]:
        """By time: log2 of the mean norm of the pairs at each lag 0 .. T-1; -inf for none."""
        self._labels("loss_step")
        return mean_by_lag(self.log2, self.lags)

    @property
    def reach(self) -> int:
        """By time: the largest lag, in steps, whose mean norm is still 1 % of that at lag 0."""
        return reach_of(self.log2_mean_by_lag)

    @property
    def _by_time(self) -> bool:
        return [*map(tuple, self.axes)] == [("loss_step",), ("use_step",)]

    def _labels(self, name: str) -> tuple[Any, ...]:
        for axis in self.axes:
            if name in axis:
                return axis[name]
        raise AttributeError(f"parts by {self._names()} have no {name}")

    def _place(self, name: object) -> int:
        """The number of the axis with this name."""
        for place, axis in enumerate(self.axes):
            if isinstance(name, str) and name in axis:
                return place
        raise ArgumentError(f"no axis {_checks.shown(name)} in parts by {self._names()}")

    def _names(self) -> str:
        return " and ".join(" and ".join(axis) for axis in self.axes) or "nothing"

    def regrouped(
        self, axes: Sequence[Axis], numbers: Sequence[tuple[Int[Tensor, "_"], int]]
    ) -> "Parts":
        """Sums over the places of each axis that share a number; an axis without names goes."""
        groups, count = torch.zeros(1, dtype=torch.int64), 1
        for number, size in numbers:
            wide = groups[:, None] * size + number
            groups = torch.where((groups[:, None] < 0) | (number < 0), -1, wide).flatten()
            count *= size
        kept = tuple(axis for axis in axes if axis)
        return Parts(kept, self.parameter, self.held.grouped(groups, count))

    def __eq__(self, other: object) -> bool:
        """Whether labels, sizes and shares are the same."""
        if not isinstance(other, Parts):
            return NotImplemented
        mine, theirs = self.sizes(), other.sizes()
        return (
            (self.axes, self.parameter) == (other.axes, other.parameter)
            and torch.equal(mine.log2, theirs.log2)
            and torch.equal(mine.share, theirs.share)
        )

    def __hash__(self) -> int:
        return hash((self.parameter, self.shape))

    def __repr__(self) -> str:
        axes = (f"{' and '.join(axis)} [{size_of(axis)}]" for axis in self.axes)
        return f"Parts({self.parameter or 'all parameters'} by {' and '.join(axes) or 'nothing'})"

    def _repr_html_(self) -> str:
        return card(repr(self), draw=self.chart)


def together(parts: Sequence[Parts]) -> Parts:
    """The parts of several parameters, with the same labels, as those of one vector.

    Squared norms add up, and shares are weighted by <G_p, G_p>, unless the parts are at hand.
    """
    axes, held = parts[0].axes, [one.held for one in parts]
    formed = [one for one in held if isinstance(one, Formed)]
    if len(formed) == len(held):
        return Parts.of(axes, None, joined([one.values for one in formed]))
    measured = [one for one in held if isinstance(one, Measured)]
    wholes = [one.whole for one in measured if one.whole is not None]
    weights = torch.stack([whole.log2_norms().squeeze() for whole in wholes])
    weights = torch.softmax(2 * weights * torch.log(weights.new_tensor(2.0)), 0).nan_to_num()
    sizes = zip(*(torch.split(one.log2, WIDTH) for one in measured), strict=True)
    log2 = torch.cat([log2_of_sum(2 * torch.stack(some)) / 2 for some in sizes])
    shares = zip(*(torch.split(one.share, WIDTH) for one in measured), strict=True)
    share = torch.cat([weights @ torch.stack(some) for some in shares])
    names = tuple(name for one in measured for name in one.names)
    return Parts(axes, None, Measured(log2, share, joined(wholes), names, measured[0].former))


def _without_end(row: list[float]) -> list[float]:
    """A row of log2 norms as far as there is anything."""
    while row and row[-1] == -torch.inf:
        row.pop()
    return row


def _pandas() -> Any:
    with optional("a table", "dataframe"):
        import pandas  # type: ignore[import-untyped]

    return pandas
