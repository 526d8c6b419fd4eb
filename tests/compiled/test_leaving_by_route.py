"""What comes back by each route, from the library and from operations of torch.

Others hold the latter against autograd (tests/decomposition/test_routes.py, in both backends).
"""

from dataclasses import replace

import pytest
import torch

from retrograde.decomposition.by_route import RouteSums
from retrograde.engine import Entries
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.boundary import Boundary, Read
from retrograde.engine.scaling import NO_EXPONENT
from support.backends import BACKENDS, using
from support.chunks import KINDS, cell_of, chunk_of, drawn

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)

LAGS = (range(1), range(1, 2), range(2, 4), range(4, 9))


def a_span(chunk, first, dtype):
    """A row for each of nine steps, the latest first, on scales of their own; one is all zeros."""
    steps, (B, S) = len(chunk) - first, chunk.steps.state.shape[1:]
    entries = Entries.of(torch.ones(len(chunk), B, S, dtype=dtype))
    lags = entries.lags_between(first, steps, len(chunk) - first)
    values = drawn(len(lags), steps, B, S, dtype=dtype) * (lags >= 0)[..., None, None]
    values[1] = 0
    norms = values.flatten(2).norm(dim=2)
    exponent = (7 * torch.arange(len(lags)).unsqueeze(1) + torch.arange(steps)) % 5 - 100
    return entries, AdjointSpan(first, values, exponent, norms, lags, chunk)


def leaving(chunk, first, dtype):
    """What goes from each step to the one before in plain numbers, and the exponents."""
    entries, span = a_span(chunk, first, dtype)
    rows = len(chunk.graph.routes) * len(LAGS)
    out = torch.full((rows, *span.values.shape[1:]), torch.nan, dtype=dtype)
    sums = RouteSums(LAGS, chunk.cell, entries)
    exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
    before = entries.lags_between(first - 1, len(span), len(span.lags))
    last, units = sums._leaving(span, exponent, before, out)
    assert out[:, -1].isnan().all()
    whole = torch.cat((last.unsqueeze(1), out[:, :-1]), 1)
    plain = whole.double() * torch.exp2(units.double())[..., None, None]
    return torch.where((units == NO_EXPONENT)[..., None, None], 0, plain), units


def compare(chunk, first, dtype):
    found = []
    for name in ("compiled", "eager"):
        with using(name):
            found.append(leaving(replace(chunk), first, dtype))
    (ours, units), (theirs, expected) = found
    assert torch.equal(units, expected) and bool((units == NO_EXPONENT).any())
    assert bool(theirs.any()) and bool(theirs.isfinite().all())
    atol = (1e-13 if dtype == torch.float64 else 3e-6) * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_give_the_same_by_every_route(kind):
    for batch, hidden, first, dtype in (
        (1, 1, 0, torch.float64),
        (3, 19, 2, torch.float64),
        (11, 5, 3, torch.float32),
    ):
        compare(chunk_of(cell_of(kind, 2, hidden, dtype), 9, batch), first, dtype)


def test_boundaries_and_threads():
    """Plain factors between steps are run, what mixes units is left to the eager backend."""
    chunk, before = chunk_of(cell_of("lstm-2002", 2, 33), 9, 4), torch.get_num_threads()
    kept = torch.rand(4, 66, generator=torch.Generator().manual_seed(1)) > 0.3
    one = Boundary.detached(drawn(4, 66), kept)
    mixing = replace(one, reads=(Read(kept.double(), torch.arange(264).flip(0).view(4, 66)),))
    plain = compare(chunk, 0, torch.float64)
    for boundary in (one, mixing):
        bounded = compare(replace(chunk, boundaries={0: boundary, 5: boundary}), 0, torch.float64)
        near = (bounded - plain).abs() < 1e-12 * plain.abs().max()
        same = near.flatten(2).all(2).all(0)
        assert same.tolist() == [step not in (0, 5) for step in range(9)]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(compare(chunk, 0, torch.float64), plain)
        finally:
            torch.set_num_threads(before)
