"""By time: how large is C[t,k], what enters at t and uses the weights at k.

The part itself is `sum_b da_b (x) u_b` and is hardly ever formed: its squared norm is
`sum_{b,b'} <da_b, da_b'> <u_b, u_b'>`, two small Gram matrices, of which the first serves all
parameters that share the adjoint `da`. Where the batch is wider than the operands, forming the
part costs less, and where the Gram sum cancels it is formed as well.

Reference for the Gram form: Xuechen Li et al., "Large Language Models Can Be Strong Differentially
Private Learners", ICLR (2022), arXiv 2110.05679 ("ghost clipping").
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.forward_mode import jvp_of_parameters
from retrograde.cells.reverse_mode import FormedGradients
from retrograde.cells.reverse_mode import Uses as PulledUses
from retrograde.compiled.sizes import Sizes, gradients_of, sizes_of
from retrograde.compiled.uses import Side, Uses
from retrograde.decomposition.parts import Parts
from retrograde.decomposition.rows import shares, summed
from retrograde.engine.adjoint import AdjointSpan, backpropagate
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import ParameterSums
from retrograde.engine.scaling import Scaled, as_vectors
from retrograde.engine.unroll import Chunk, Unrolled

FORMED = 2**22
"""The numbers of parts that are formed at a time, 16 MiB in float32."""

CANCELS = 2**14
"""A sum of squares below so many eps of what its terms could make is not to be trusted."""

Operands = Sequence[Float[Tensor, "K B _"] | None]
"""What the adjoints of each step are multiplied by to give gradients; None for those of biases."""


@dataclass(frozen=True, eq=False)
class OfChunk:
    """What the library finds of each operand, of the rows at all steps of a chunk.

    Attributes:
        first: the first step.
        sides: what the operands make gradients of.
        values: a number for each operand, row and step, [U, E, K].
        exponent: 2**exponent is what a row at a step is in units of, [E, K].
    """

    first: int
    sides: tuple[Side, ...]
    values: Float[Tensor, "U E K"]
    exponent: Int[Tensor, "E K"]

    @property
    def steps(self) -> slice:
        """The steps, as a slice of all."""
        return slice(self.first, self.first + self.exponent.shape[1])


class ByChunk:
    """Puts together what the library finds of spans, and passes on what makes a chunk.

    Spans of many samples are a few steps long, and every operation costs far more than its numbers.

    Args:
        rows: the most that there are.
        nothing: what stands for a row that has not entered yet.
        take: what takes a chunk.
    """

    def __init__(self, rows: int, nothing: float, take: Callable[[OfChunk], None]):
        self._rows, self._nothing, self._take = rows, nothing, take
        self._held: OfChunk | None = None

    def add(
        self, span: AdjointSpan, sides: tuple[Side, ...], found: Float[Tensor, "U N K"]
    ) -> None:
        """Take what was found of a span, whose chunk has the library's uses."""
        chunk, rows = span.chunk, found.shape[1]
        if self._held is None or self._held.first != chunk.first:
            self.done()
            values = found.new_full((len(found), self._rows, len(chunk)), self._nothing)
            exponent = span.exponent.new_zeros(self._rows, len(chunk))
            self._held = OfChunk(chunk.first, sides, values, exponent)
        self._held.values[:, :rows, span.here] = found
        self._held.exponent[:rows, span.here] = span.exponent

    def done(self) -> None:
        """Pass on what there is."""
        if self._held is not None:
            self._take(self._held)
            self._held = None


class ContributionNorms:
    """The fold behind `by_time`: log2 norms of every C[t,k], for every parameter."""

    def __init__(self, entries: Entries, steps: int, parameters: Iterable[str]):
        self._tables = _tables(entries, steps, parameters, -torch.inf)
        self._chunks = ByChunk(len(entries), -torch.inf, self._enter_chunk)

    def update(self, span: AdjointSpan, found: Sizes | None = None) -> None:
        """Take a span, of which the library may have found the sizes already."""
        uses = span.chunk.compiled_uses
        if uses is not None and uses.by_products:
            self._chunks.add(span, uses.sides, _compiled_norms(span, uses, found))
            return
        for name, further, log2 in contribution_norms(span):
            self._enter(name, further, log2, span.steps)

    def _enter_chunk(self, chunk: OfChunk) -> None:
        for side, log2 in zip(chunk.sides, chunk.values + chunk.exponent, strict=True):
            self._enter(side.parameter, side.first > 0, log2, chunk.steps)

    def _enter(self, name: str, further: bool, log2: Float[Tensor, "N K"], steps: slice) -> None:
        table = self._tables[name][: len(log2), steps]
        if further:  # squared norms of further rows of the same parameter add up
            log2 = torch.logaddexp2(2 * table, 2 * log2) / 2
        table.copy_(log2)

    def result(self) -> dict[str, Float[Tensor, "E T"]]:
        self._chunks.done()
        return _by_entry(self._tables)


def contribution_norms(span: AdjointSpan) -> Iterator[tuple[str, bool, Float[Tensor, "N K"]]]:
    """log2 of the norm of what each row makes of each parameter.

    A parameter whose rows follow from several adjoints comes several times, from the second time
    on with True.
    """
    compiled = span.chunk.compiled_uses
    if compiled is not None and compiled.by_products:
        every = _compiled_norms(span, compiled) + span.exponent
        for side, log2 in zip(compiled.sides, every, strict=True):
            yield side.parameter, side.first > 0, log2
        return
    for uses in span.adjoint.uses:
        log2 = _log2_norms(*_by_step(uses, len(span))) + span.exponent.unsqueeze(-1)
        for column, (name, first, _) in enumerate(uses.operands):
            yield name, first > 0, log2[..., column]
    formed_log2: dict[str, Tensor] = {}
    for k, formed in enumerate(span.formed):
        for some, gradients in _blocks(formed):
            for name, parts in gradients.items():
                if name not in formed_log2:
                    formed_log2[name] = torch.full_like(span.norms, -torch.inf, dtype=torch.float64)
                formed_log2[name][some, k] = Scaled(parts, span.exponent[some, k]).log2_norms()
    for name, log2 in formed_log2.items():
        yield name, False, log2


def _compiled_norms(
    span: AdjointSpan, uses: Uses, found: Sizes | None = None
) -> Float[Tensor, "U N K"]:
    """The same of each operand, in units of the rows, by the compiled library.

    Parts are formed only where the sum of squares cancels, as it does wherever it is negative.
    """
    if found is None or found.squares is None:
        found = sizes_of(uses, span.here.start, span.values, span.lags)
    assert found.squares is not None and found.cancels is not None
    log2 = torch.log2(found.squares).div_(2)
    if bool(found.cancels.any()):
        counts = [len(operands) for operands in uses.operands]
        groups = zip(torch.split(log2, counts), torch.split(found.cancels, counts), strict=True)
        for number, (sizes, cancels) in enumerate(groups):
            some = cancels.any(0)
            rows = torch.nonzero(some.any(1)).squeeze(1)
            if not len(rows):
                continue
            pulled = span.pull_back(span.values[rows]).uses[number]
            adjoint, operands = _by_step(pulled, len(span))
            step = torch.arange(len(span), device=some.device).expand(len(rows), -1)[some[rows]]
            sizes[:, some] = _by_forming(adjoint[some[rows]], step, operands).T
    return log2


class ContributionShares:
    """The fold behind the shares of `by_time`: <C[t,k], G> over <G, G> for every parameter.

        <C[t,k], G> = <delta_k, push_k(G)>

    push_k(G) is the change of s_k that goes with the change G of the weights at step k, so that
    neither the part nor its factors are needed. It is the same for all rows.

    Args:
        entries: the rows.
        steps: T.
        gradient: the whole gradient G of each parameter, or what comes near to it.
        norms: a fold that finds the sizes of the same contributions; the library can be asked for
            both at once.
    """

    def __init__(
        self,
        entries: Entries,
        steps: int,
        gradient: Mapping[str, Scaled],
        norms: ContributionNorms | None = None,
    ):
        self._gradient = {name: whole.normalised()[0] for name, whole in gradient.items()}
        self._square = {
            name: float(whole.values.double().square().sum())
            for name, whole in self._gradient.items()
        }
        self._tables, self._norms = _tables(entries, steps, gradient, 0.0), norms
        self._chunk: Chunk | None = None
        self._pushed: Tensor | None = None  # of steps that the library cannot run
        self._whole: tuple[Tensor, ...] = ()  # of steps that it can
        self._units: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # 1 / <G, G> of parameters
        self._chunks = ByChunk(len(entries), 0.0, self._add_chunk)

    def update(self, span: AdjointSpan) -> None:
        uses, found = span.chunk.compiled_uses, None
        if self._chunk is not span.chunk:
            self._enter(span.chunk)
        if uses is not None:
            both = self._norms is not None and uses.by_products
            found = sizes_of(uses, span.here.start, span.values, span.lags, self._whole, both)
            assert found.inner is not None
            self._chunks.add(span, uses.sides, found.inner)
        elif self._pushed is not None:
            pushed = self._pushed[:, span.here].flatten(2).permute(1, 2, 0)  # [K, B*S, U]
            inner = torch.bmm(span.values.flatten(2).transpose(0, 1), pushed)
            names = span.chunk.graph.parameters
            self._add(names, inner.permute(2, 1, 0), span.exponent, span.steps)
        for k, formed in enumerate(span.formed):
            for some, gradients in _blocks(formed):
                rows = [
                    as_vectors(parts) @ self._gradient[name].values.flatten()
                    for name, parts in gradients.items()
                ]
                names = tuple(gradients)
                share = self._shares(names, torch.stack(rows), span.exponent[some, k])
                for name, one in zip(names, share, strict=True):
                    self._tables[name][some, span.first + k] += one
        if self._norms is not None:
            self._norms.update(span, found)

    def _enter(self, chunk: Chunk) -> None:
        """What is needed of the steps of a chunk."""
        self._chunk, uses, graph = chunk, chunk.compiled_uses, chunk.graph
        whole = {name: self._gradient[name].values.squeeze(0) for name in graph.parameters}
        if uses is not None:
            self._whole = gradients_of(uses, whole)
        else:
            self._pushed = jvp_of_parameters(graph, whole) if whole else None

    def _add_chunk(self, chunk: OfChunk) -> None:
        names = tuple(side.parameter for side in chunk.sides)
        self._add(names, chunk.values, chunk.exponent, chunk.steps)

    def _add(
        self,
        names: tuple[str, ...],
        inner: Float[Tensor, "U N K"],
        exponent: Int[Tensor, "N K"],
        steps: slice,
    ) -> None:
        """Add what <C, G> is in units of the rows to the tables of some parameters."""
        for name, one in zip(names, self._shares(names, inner, exponent), strict=True):
            self._tables[name][: len(one), steps] += one

    def _shares(
        self, names: tuple[str, ...], inner: Float[Tensor, "U *R"], exponent: Int[Tensor, "*R"]
    ) -> Float[Tensor, "U *R"]:
        """<C, G> in units of 2^exponent, a row for each name, as shares."""
        if names not in self._units:
            square = inner.new_tensor([self._square[name] for name in names], dtype=torch.float64)
            scale = torch.cat([self._gradient[name].exponent for name in names])
            self._units[names] = torch.where(square > 0, 1 / square, 0), scale.double()
        share, scale = (each.view(-1, *[1] * exponent.ndim) for each in self._units[names])
        return inner.double() * share * torch.exp2(exponent - scale)

    def result(self, whole: Mapping[str, Scaled]) -> dict[str, Float[Tensor, "E T"]]:
        """The shares in what the parts sum to, so that they sum to 1."""
        self._chunks.done()
        found = _by_entry(self._tables)
        for name, table in found.items():
            of_whole = shares(whole[name], self._gradient[name])
            if self._square[name] and bool(of_whole != 0):
                table /= of_whole
        return found


def _tables(
    entries: Entries, steps: int, parameters: Iterable[str], fill: float
) -> dict[str, Tensor]:
    """One table a parameter, a row for each entry, the latest first, as rows come."""
    shape = (len(entries), steps)
    new = entries.direct.new_full
    return {name: new(shape, fill, dtype=torch.float64) for name in parameters}


def _by_entry(tables: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "E T"]]:
    """The tables with the earliest entry first."""
    return {name: table.flip(0) for name, table in tables.items()}


def parts_by_time(
    unrolled: Unrolled,
    entries: Entries,
    gradient: Mapping[str, Scaled],
    norms: ContributionNorms,
    in_whole: ContributionShares,
) -> dict[str, Parts]:
    """What the two folds found, parameter by parameter; `gradient` is what the parts sum to."""
    log2, share = norms.result(), in_whole.result(gradient)
    steps = tuple(
        first if first == last else range(first, last + 1) for first, last in entries.blocks
    )
    axes = ({"loss_step": steps}, {"use_step": tuple(range(len(unrolled)))})
    former = partial(contributions, unrolled, entries)
    return {
        name: Parts.measured(axes, name, log2[name], share[name], gradient[name], former)
        for name in log2
    }


@torch.no_grad()
def contributions(
    unrolled: Unrolled, entries: Entries, groups: Int[Tensor, "N"], count: int
) -> dict[str, Scaled]:
    """Sums of C[t,k], formed, for every parameter.

    Args:
        unrolled, entries: the pass.
        groups: the sum that each pair belongs to, loss step by loss step; -1 for none.
        count: how many sums there are.
    """
    weights = unrolled.cell.parameters
    totals = {
        name: Scaled.of(value.new_zeros(count, *value.shape)) for name, value in weights.items()
    }
    table = groups.view(len(entries), -1).flip(0)  # latest loss step first, as rows come
    for step in backpropagate(unrolled, entries):
        column = table[: len(step.delta.exponent), step.k]
        present, place = torch.unique(column, return_inverse=True)
        place = place - int((present < 0).sum())
        present = present[present >= 0].to(step.delta.exponent.device)
        if not len(present):
            continue
        rows = summed(step.delta, place, len(present))
        sums = ParameterSums(weights, len(present))
        sums.units(rows.exponent)
        sums.add(step.pull_back(rows.values))
        for name, part in sums.result().items():
            total = totals[name]
            here = Scaled(total.values[present], total.exponent[present]).plus(part)
            total.values[present], total.exponent[present] = here.values, here.exponent
    return totals


def _blocks(
    every: Sequence[FormedGradients],
) -> Iterator[tuple[slice, Mapping[str, Float[Tensor, "..."]]]]:
    """The parts that no outer product gives, some rows at a time, by parameter."""
    for formed in every:
        yield from formed.blocks(FORMED)


def _by_step(uses: PulledUses, steps: int) -> tuple[Float[Tensor, "N K B P"], Operands]:
    """Adjoints of several steps, and what they are multiplied by, step by step."""

    def apart(values: Tensor, axis: int) -> Tensor:
        return values.view(*values.shape[:axis], steps, -1, values.shape[-1])

    operands = [None if operand is None else apart(operand, 0) for _, _, operand in uses.operands]
    return apart(uses.adjoint, 1), operands


def _log2_norms(adjoint: Float[Tensor, "N K B P"], operands: Operands) -> Float[Tensor, "N K U"]:
    """log2 ||sum_b da_b (x) u_b|| for every row, step and operand, by whichever way costs least.

    Of a single sample the norm is the product of both norms.
    """
    rows, steps, batch, _ = adjoint.shape
    if batch == 1:
        size = torch.log2(torch.linalg.vector_norm(adjoint, dim=(2, 3)).double())
        of_operands = [
            size.new_zeros(steps)
            if operand is None
            else torch.log2(torch.linalg.vector_norm(operand, dim=(1, 2)).double())
            for operand in operands
        ]
        return size.unsqueeze(2) + torch.stack(of_operands, -1)
    columns = sum(1 if operand is None else operand.shape[2] for operand in operands)
    step = torch.arange(steps, device=adjoint.device).expand(rows, -1)
    if batch > columns:
        found = _by_forming(adjoint.flatten(0, 1), step.flatten(), operands)
        return found.view(rows, steps, -1)
    squares, cancels = _by_gram(adjoint, operands)
    log2 = torch.log2(squares.clamp(min=0)) / 2
    if bool(cancels.any()):
        some = cancels.any(2)
        log2[some] = _by_forming(adjoint[some], step[some], operands)
    return log2


def _by_gram(
    adjoint: Float[Tensor, "N K B P"], operands: Operands
) -> tuple[Float[Tensor, "N K U"], Tensor]:
    """Squared norms, and where the sum over sample pairs cancels too far to be trusted.

    A Gram entry is off by about eps |da_b| |da_b'|, so a sum of squares below 2^14 eps of
    (sum_b |da_b| |u_b|)^2 may be off by more than 2^-10 of itself. That square is at most
    B sum_b |da_b|^2 |u_b|^2.
    """
    batch = adjoint.shape[2]
    gram = (adjoint @ adjoint.mT).double()
    of_operands = torch.stack([_gram_of_operand(operand, gram) for operand in operands], -1)
    squares = torch.bmm(gram.flatten(2).transpose(0, 1), of_operands.flatten(1, 2))
    own = torch.diagonal(gram, dim1=2, dim2=3).transpose(0, 1)
    bound = torch.bmm(own, batch * torch.diagonal(of_operands, dim1=1, dim2=2).mT)
    cancels = squares < CANCELS * torch.finfo(adjoint.dtype).eps * bound
    return squares.transpose(0, 1), cancels.transpose(0, 1)


def _gram_of_operand(
    operand: Float[Tensor, "K B M"] | None, gram: Float[Tensor, "N K B B"]
) -> Float[Tensor, "K B B"]:
    if operand is None:
        return gram.new_ones(()).expand(gram.shape[1:])
    operand = operand.to(gram.dtype)
    return operand @ operand.mT


def _by_forming(
    adjoint: Float[Tensor, "R B P"], step: Int[Tensor, "R"], operands: Operands
) -> Float[Tensor, "R U"]:
    """Norms of the parts themselves, of rows that belong to some steps."""
    norms = []
    for operand in operands:
        if operand is None:
            norms.append(Scaled.of(adjoint.sum(1)).log2_norms())
            continue
        rows = max(1, FORMED // (adjoint.shape[2] * operand.shape[2]))
        parts = (
            torch.bmm(some.mT, operand[at])
            for some, at in zip(torch.split(adjoint, rows), torch.split(step, rows), strict=True)
        )
        norms.append(torch.cat([Scaled.of(part).log2_norms() for part in parts]))
    return torch.stack(norms, -1)
