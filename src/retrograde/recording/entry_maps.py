"""Which entries of earlier states a tensor reads, found in the autograd graph between them.

People mask, scale, reorder, split and join states between the calls of a layer. As long as every
entry of each tensor in between reads at most one entry of the tensor before it, the composition is
a sum of terms, `value[i] = sum of factor[i] * site[source[i]]`, along which rows of adjoints pass
exactly. A site is a tensor at which the search ends: a result of a call, or a state given to one.

Which entry a node reads, and with which factor, is found by running the node: what it gives back is
linear in the gradient, so its transpose, found by differentiating once more and applied to the
numbers of the entries, tells where each entry comes from. A last run with other numbers confirms
the answer, so that a node that mixes entries (a matrix product, a norm) is always recognised.

Only nodes of torch are run, never a user's own function, and none of the user's hooks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, takewhile
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from retrograde.recording.graph import SEARCHED, Edge, Node

POINTWISE = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Abs Add Addcdiv Addcmul Alias Clamp ClampMax ClampMin Clone Div Elu Exp Gelu Hardtanh "
        "LeakyRelu Lerp MaskedFill Mul NativeDropout Neg Pow Relu Rsub Sigmoid Silu Softplus Sub "
        "Tanh Threshold Where"
    ).split()
    for number in range(3)
)
"""Nodes whose entries read the same entry of each input. Running them with ones is faster."""

OPAQUE = (
    "AccumulateGrad",
    "Addbmm",
    "Addmm",
    "Addmv",
    "Baddbmm",
    "Bmm",
    "Checkpoint",
    "Compiled",
    "Convolution",
    "Cudnn",
    "Einsum",
    "Embedding",
    "Linear",
    "LogSoftmax",
    "Miopen",
    "Mkldnn",
    "Mm",
    "Mv",
    "Native",
    "ScaledDot",
    "Softmax",
)
"""Prefixes of the names of nodes that mix entries, unless they are pointwise; they are not run."""

MOST_SITES = 8
"""A tensor that reads more sites than this is not followed: it is a sum over steps and no state."""

HOOKED = "BackwardHookFunctionBackward"
"""What torch puts around a module with a backward hook: its inputs, as they are."""


@dataclass(frozen=True, eq=False)
class Term:
    """`factor[i] * site[source[i]]` for every entry i of a tensor, all of them flat.

    Attributes:
        source: entries of the site; None if each entry reads the one in its own place.
        factor: float64.
    """

    source: Int[Tensor, "n"] | None
    factor: Float[Tensor, "n"]

    def after(self, source: Int[Tensor, "m"] | None, factor: Float[Tensor, "m"]) -> "Term":
        """The term of a tensor whose entries read these entries with these factors."""
        if source is None:
            return Term(self.source, self.factor * factor)
        inner = source if self.source is None else self.source[source]
        return Term(inner, self.factor[source] * factor)


Terms = Mapping[Edge, tuple[Term, ...]]
"""The terms of one tensor by the site that they read."""


@dataclass(frozen=True, eq=False)
class EntryMap:
    """How one tensor follows from the sites.

    Attributes:
        terms: what it reads of each site, as far as that can be told.
        between: the terms of every tensor in between, without the sites.
        nodes: for every tensor in between and every site, the nodes in between that use it.
        opaque: the sites that it also depends on in some other form.
    """

    terms: Terms
    between: Mapping[Edge, Terms] = field(default_factory=dict)
    nodes: Mapping[Edge, frozenset[Node]] = field(default_factory=dict)
    opaque: frozenset[Edge] = frozenset()

    def nonzero(self, but: Collection[Edge]) -> set[Edge]:
        """The sites of which something is read, except for some."""
        others = ((site, terms) for site, terms in self.terms.items() if site not in but)
        return {site for site, terms in others if any(bool(t.factor.any()) for t in terms)}

    def restricted_to(self, sites: Collection[Edge]) -> "EntryMap":
        """The part that reads some of the sites only."""

        def some(terms: Terms) -> Terms:
            return {site: each for site, each in terms.items() if site in sites}

        between = {edge: some(terms) for edge, terms in self.between.items()}
        between = {edge: terms for edge, terms in between.items() if terms}
        nodes = {e: users for e, users in self.nodes.items() if e in between or e in sites}
        return EntryMap(some(self.terms), between, nodes, self.opaque)


_Reading = tuple[Tensor | None, Tensor] | None
"""Which entry of an input each entry of a node's output reads, and with which factor."""


@dataclass(eq=False)
class EntryMaps:
    """Entry maps between the tensors of one graph; what was found once is kept."""

    _terms: dict[Edge, Terms] = field(default_factory=dict)
    _read: dict[tuple[Node, int, int], _Reading] = field(default_factory=dict)
    _uniform: dict[object, _Reading] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of the graph; what is known of a kind of node stays."""
        self._terms.clear()
        self._read.clear()

    def to(self, edge: Edge, sites: Collection[Edge]) -> EntryMap:
        """How the tensor at an edge follows from the sites.

        Args:
            edge: where the gradient of the tensor arrives.
            sites: the tensors at which the search ends.
        """
        if edge in sites:
            return EntryMap({edge: (whole(edge),)})
        order, leading = _leading(edge, sites)
        if edge not in leading:
            return EntryMap({})
        self.terms(*edge, sites)
        followed = {each for each in order if self._terms.get(each)}
        opaque: set[Edge] = set()
        nodes: dict[Edge, set[Node]] = {}
        waiting, between = [edge], set[Edge]()
        while waiting:
            each = waiting.pop()
            if each in between:
                continue
            between.add(each)
            for place, before in enumerate(each[0].next_functions):
                if before not in leading:
                    continue
                if each in followed and self._reads(each, place, before) is not None:
                    nodes.setdefault(before, set()).add(each[0])
                    if before not in sites and before in followed:
                        waiting.append(before)
                    elif before not in sites:
                        opaque |= _sites_of(before, sites)
                else:
                    opaque |= _sites_of(before, sites)
        found = {each: self._terms[each] for each in between if each in followed}
        for node in {user for users in nodes.values() for user in users}:
            for number in range(len(node._input_metadata)):  # what else comes back through it
                if (node, number) not in found:
                    found[node, number] = self.terms(node, number, sites)
        return EntryMap(
            self._terms[edge],
            {each: terms for each, terms in found.items() if terms},
            {each: frozenset(users) for each, users in nodes.items()},
            frozenset(opaque),
        )

    def terms(self, node: Node, number: int, sites: Collection[Edge]) -> Terms:
        """What one output of a node reads of the sites."""
        edge = (node, number)
        if edge not in self._terms:
            order, leading = _leading(edge, sites)
            for each in order:
                if each in leading and each not in sites and each not in self._terms:
                    self._terms[each] = self._follow(each, sites, leading)
        return self._terms.get(edge, {})

    def _follow(self, edge: Edge, sites: Collection[Edge], leading: Collection[Edge]) -> Terms:
        """The terms of a tensor from those of what it was computed from."""
        found: dict[Edge, list[Term]] = {}
        for place, before in enumerate(edge[0].next_functions):
            if before not in leading:
                continue
            read = self._reads(edge, place, before)
            if read is None:
                continue
            inner = {before: (whole(before),)} if before in sites else self._terms[before]
            for site, terms in inner.items():
                for term in terms:
                    _add(found.setdefault(site, []), term.after(*read))
        if len(found) > MOST_SITES:
            return {}
        return {site: tuple(terms) for site, terms in found.items()}

    def _reads(self, edge: Edge, place: int, before: Edge) -> _Reading:
        """Which entry of an input each entry of a tensor reads, and with which factor."""
        node, number = edge
        key = node, number, place
        if key not in self._read:
            alike = _signature(node, number, place, before)
            if alike is None:
                self._read[key] = _read_by_running(node, number, place, before)
            else:
                if alike not in self._uniform:
                    self._uniform[alike] = _read_by_running(node, number, place, before)
                self._read[key] = self._uniform[alike]
        return self._read[key]


def whole(site: Edge) -> Term:
    """The term that reads a site unchanged."""
    like = _metadata(site)
    return Term(None, _ones(prod(like.shape), like.device))


@lru_cache(maxsize=8)
def _ones(count: int, device: torch.device) -> Tensor:
    """Factors of 1, which nothing changes: every step of a loop asks for the same."""
    return torch.ones(count, dtype=torch.float64, device=device)


def shape_at(edge: Edge) -> tuple[int, ...]:
    """The shape of the tensor at an edge."""
    return tuple(_metadata(edge).shape)


def _add(terms: list[Term], new: Term) -> None:
    """Add a term; two that read the same entries are merged."""
    for number, old in enumerate(terms):
        if old.source is new.source or (
            old.source is not None
            and new.source is not None
            and torch.equal(old.source, new.source)
        ):
            terms[number] = Term(old.source, old.factor + new.factor)
            return
    terms.append(new)


def _metadata(edge: Edge) -> Any:
    """Shape, dtype and device of the tensor at an edge."""
    return edge[0]._input_metadata[edge[1]]


def _leading(edge: Edge, sites: Collection[Edge]) -> tuple[list[Edge], set[Edge]]:
    """The tensors that an edge was computed from, inputs first, and those that depend on a site.

    The search gives up after SEARCHED nodes.
    """
    order: list[Edge] = []
    leading: set[Edge] = set()
    seen: set[Edge] = set()
    waiting: list[tuple[Edge, bool]] = [(edge, False)]
    while waiting:
        each, done = waiting.pop()
        before = [other for other in each[0].next_functions if other[0] is not None]
        if done:
            order.append(each)
            if any(other in leading for other in before):
                leading.add(each)
        elif each not in seen and len(seen) < SEARCHED:
            seen.add(each)
            if each in sites:
                order.append(each)
                leading.add(each)
            else:
                waiting.append((each, True))
                waiting += ((other, False) for other in before)
    return order, leading


def _sites_of(edge: Edge, sites: Collection[Edge]) -> set[Edge]:
    """The sites that a tensor depends on, in any form."""
    order, leading = _leading(edge, sites)
    return {each for each in order if each in leading and each in sites}


def _signature(node: Node, number: int, place: int, before: Edge) -> object:
    """A key shared by all nodes that read alike; None where tensors decide."""
    kind = type(node)
    if kind.__name__ in POINTWISE or kind.__name__.startswith("CopySlices"):
        return None
    saved = [getattr(node, name) for name in _saved_names(node)]
    if any(isinstance(value, Tensor | list) or _holds_tensor(value) for value in saved):
        return None
    out, into = _metadata((node, number)), _metadata(before)
    shapes = tuple(tuple(one.shape) for one in (*node._input_metadata, into))
    values = tuple(map(str, saved))
    return (kind, number, place, shapes, values, out.dtype, into.dtype, str(out.device))


def _saved_names(node: Node) -> list[str]:
    return [name for name in dir(node) if name.startswith("_saved_")]


def _holds_tensor(value: object) -> bool:
    return isinstance(value, tuple) and any(isinstance(one, Tensor) for one in value)


def _read_by_running(
    node: Node, number: int, place: int, before: Edge
) -> tuple[Tensor | None, Tensor] | None:
    """Which entry of an input each entry of an output reads, found by running the node.

    Returns:
        The entries (None: the one in its own place) and factors, both flat; None if an entry may
        read several, or if the node must not be run.
    """
    name = type(node).__name__
    if name == HOOKED:
        like = _metadata((node, number))
        if number != place:  # nothing of the others
            nothing = torch.zeros(prod(like.shape), dtype=torch.float64, device=like.device)
            return nothing.long(), nothing
        return None, torch.ones(prod(like.shape), dtype=torch.float64, device=like.device)
    own = isinstance(node, torch.autograd.function.BackwardCFunction)
    if own or (name.startswith(OPAQUE) and name not in POINTWISE):
        return None
    out, into = _metadata((node, number)), _metadata(before)
    if not out.dtype.is_floating_point or not into.dtype.is_floating_point:
        return None
    for dtype in dict.fromkeys((torch.float64, out.dtype)):
        try:
            if name in POINTWISE and out.shape == into.shape:
                return None, _ones_through(node, place, dtype)
            return _probed(node, number, place, dtype)
        except RuntimeError:  # a node that takes its own precision alone, or whose data are gone
            continue
    return None


def _ones_through(node: Node, place: int, dtype: torch.dtype) -> Float[Tensor, "n"]:
    """The slope of a pointwise function, which is what it gives back for ones."""
    like = node._input_metadata[0]
    ones = torch.ones(like.shape, dtype=dtype, device=like.device)
    with torch.no_grad():
        given = node(ones)
    slope: Tensor = given[place] if isinstance(given, tuple) else given
    return slope.detach().flatten().double()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _probed(
    node: Node, number: int, place: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor] | None:
    """The entries that each entry of an output reads, from the transpose of the node's backward.

    The numbers of the entries are passed through digit by digit, so that they stay exact in the
    precision of the node.
    """
    metas = node._input_metadata
    like = metas[number]
    # A checkpoint that is running must not save what is computed here.
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        gradient = torch.zeros(like.shape, dtype=dtype, device=like.device, requires_grad=True)
        given = node(*(gradient if n == number else None for n in range(len(metas))))
        given = given[place] if isinstance(given, tuple) else given
        if given is None or not given.requires_grad:
            return None

        def transposed(values: Tensor) -> Tensor:
            values = values.to(given.dtype).reshape(given.shape)
            (back,) = torch.autograd.grad(given, gradient, values, retain_graph=True)
            return back.flatten().double()

        size = given.numel()
        eps = max(torch.finfo(one).eps for one in (dtype, given.dtype, like.dtype))
        base = max(2, int(min(2.0**40, 0.125 / eps)))
        places = torch.arange(size, device=like.device)
        factor = transposed(torch.ones(size, device=like.device, dtype=torch.float64))
        safe = torch.where(factor == 0, 1.0, factor)
        source = torch.zeros_like(factor, dtype=torch.int64)
        for unit in takewhile(lambda unit: unit < size, (base**n for n in count())):
            digits = (places // unit) % base
            found = transposed(digits.double() + 1) / safe
            if not bool(found.isfinite().all()):
                return None
            source += (found.round().long() - 1).clamp(0) * unit
        source = torch.where(factor == 0, 0, source)
        if bool((source >= size).any()):
            return None
        other = 1 + (places * 0.6180339887498949).frac().double()
        expected = factor * other[source]
        if not torch.allclose(transposed(other), expected, rtol=16 * eps, atol=0):
            return None
    if gradient.shape == given.shape and torch.equal(
        torch.where(factor == 0, places, source), places
    ):
        return None, factor
    return source, factor
