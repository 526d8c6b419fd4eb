"""States are followed through whatever is done to them between calls, drawn as programs.

Each program runs on the user's module, recorded and not, and on a plain loop with weight copies
(programs.py); every norm, part and lag must agree. More of them: PROGRAMS=2000 pytest ...
"""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import retrograde
from conftest import unchecked
from programs import (
    COUNT,
    ELEMENTWISE,
    HARD,
    INDEXING,
    KINDS,
    LAYERS,
    MIXED,
    WHOLE,
    WITH_OLD,
    Call,
    Module,
    Op,
    Plain,
    Program,
    run,
)

EXACT = 1e-12  # float64, sums of a few dozen products
DRAWN = int(os.environ.get("PROGRAMS", "0"))


def drawn(count):
    """So many examples, each some passes; PROGRAMS asks for more."""
    return settings(
        max_examples=DRAWN or count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **({"derandomize": False} if DRAWN else {}),
    )


# --- programs, drawn ---

seeds = st.integers(0, 50)


@st.composite
def ops(draw, kind, cells, names, most=3):
    """What is done between two calls: operations on all parts of the state, or on some."""
    letters, found = KINDS[kind].letters, []
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from(names))
        on = letters
        if len(letters) > 1 and name not in WHOLE | MIXED | COUNT:
            on = draw(st.sampled_from([letters, letters, *letters, letters[1:]]))
        if (name in LAYERS and cells == 1) or (name in MIXED and len(letters) == 1):
            continue
        found.append(Op(name, on, draw(seeds), draw(st.booleans())))
    if not found and draw(st.integers(0, 5)) == 5:  # truncated back-propagation
        on = draw(st.sampled_from([letters, letters[0], letters[-1]]))
        found.append(Op("detach", on))
    return tuple(found)


@st.composite
def programs(draw, names, kinds=tuple(KINDS), most=3, packed=False, ways=("call",), batch=(1, 4)):
    """Some calls, the last of them read by the loss, so that all matter to it."""
    kind = draw(st.sampled_from([kind for kind in kinds if not (packed and KINDS[kind].stepped)]))
    stepped, letters, shape = KINDS[kind].stepped, KINDS[kind].letters, {}
    if not stepped:
        shape = {
            "layers": draw(st.integers(1, 2)),
            "directions": draw(st.sampled_from([1, 1, 1, 2])),
            "batch_first": not packed and draw(st.booleans()),
        }
    cells = shape.get("layers", 1) * shape.get("directions", 1)
    reads = st.sampled_from(["", *letters, letters, *([] if stepped else ["y", "yh"])])
    calls = []
    for number in range(draw(st.integers(2, 4)) + 1):
        done = draw(ops(kind, cells, names, most))
        cut = done and done[0].name == "detach"  # what is read of a call before is all it has
        calls.append(
            Call(
                1 if stepped else draw(st.integers(1, 2)),
                letters if cut or not number else draw(reads),
                done,
                tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))) if packed else (),
            )
        )
    calls[-1] = replace(calls[-1], reads=letters)
    return Program(
        kind,
        tuple(calls),
        draw(st.integers(*batch)),
        initial=draw(st.sampled_from(["none", "given", "learned"])),
        way=draw(st.sampled_from(ways)),
        seed=draw(st.integers(0, 20)),
        **shape,
    )


# --- what must hold ---


def trained(program, watched):
    """The module's gradients, and the recording if it was watched."""
    module = program.module()
    machine = Module(program, module)
    with retrograde.record(module) if watched else unwatched() as recording:
        run(program, machine)
        sum(machine.terms).backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    return module, gradients, recording, torch.stack([t.detach() for t in machine.terms])


class unwatched:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


def check(program, lenient=False):
    """Every norm, part and lag of a program is that of the plain loop."""
    module, plain_gradients, _, plain_terms = trained(program, watched=False)
    _, gradients, recording, terms = trained(program, watched=True)
    assert torch.equal(terms, plain_terms), "recording changed the forward pass"
    for name, gradient in gradients.items():
        assert torch.equal(gradient, plain_gradients[name]), f"recording changed {name}.grad"
    loop = Plain(program, module)
    ends = run(program, loop)
    expected = loop.contributions()
    for name, table in expected.items():  # the oracle itself
        torch.testing.assert_close(table.sum((0, 1)), gradients[name], atol=1e-9, rtol=1e-9)
    flow = retrograde.decompose(recording)
    if ends:
        ends_are_said(flow, ends)
    elif not (lenient and getattr(flow.recorded, "lags_end", ())):
        agrees(flow, expected)
        without_crossings(program, module, flow, loop)
    sums_up(flow, gradients, expected)


def ends_are_said(flow, ends):
    """What lets no row pass is named; the one place to change if rows come to pass there too."""
    found = getattr(flow.recorded, "lags_end", None)
    assert found is not None, "Recorded has no lags_end"
    assert set(ends) <= set(found), f"lags end before steps {ends}; said of {list(found)}"
    assert flow.reach_is_lower_bound


def sums_up(flow, gradients, expected):
    """The parts sum to the gradient, and splits of the parts to the parts."""
    assert set(flow.parameters) == set(gradients)
    for name in flow.parameters:
        size = float(expected[name].flatten(2).norm(dim=-1).sum())
        lag = flow.by_lag(name, bins="every")
        close = {"atol": 1e-11 * max(size, 1e-3), "rtol": 0}
        torch.testing.assert_close(lag.parts().sum(0), gradients[name], **close)
        torch.testing.assert_close(flow.gradient[name].plain()[0], gradients[name], **close)
        for split in (
            flow.by_route(name, bins="every"),
            flow.by_crossing(name, max_crossings=2, bins="every"),
        ):
            torch.testing.assert_close(split.parts().sum(0), lag.parts(), **close)
        # Terms that nearly cancel leave fewer digits.
        assert (
            flow.residual * float(gradients[name].norm())
            < EXACT
            * max(1.0, max(float(t.flatten(2).norm(dim=-1).sum()) for t in expected.values()))
            or flow.residual < EXACT
        )


def agrees(flow, expected):
    """Norms by time, parts by lag, entries and reach are those of the tables."""
    steps = next(iter(expected.values())).shape[0]
    assert flow.steps == steps, f"{flow.steps} steps; expected {steps}"
    entries = flow.entries.steps.tolist()
    for name, table in expected.items():
        norms = table.flatten(2).norm(dim=-1)
        found = torch.zeros_like(norms)
        found[entries] = flow.by_time(name).norm
        close = {"atol": 1e-10 * max(1.0, float(norms.max())), "rtol": 1e-8}
        torch.testing.assert_close(
            found,
            norms,
            msg=lambda m, n=name, f=found, e=norms: (
                f"C[t,k] of {n}\nexpected\n{e}\ngot\n{f}\n{flow.recorded.notes}\n{m}"
            ),
            **close,
        )
        torch.testing.assert_close(flow.by_lag(name, bins="every").parts(), by_lag(table), **close)
    assert not getattr(flow.recorded, "lags_end", ()), "lags are said to end; all of it passes"
    assert not getattr(flow, "reach_is_lower_bound", False)
    if entries:
        assert flow.reach in reaches(expected, entries)


def by_lag(table):
    """Sums of C[t,k] by lag t - k."""
    steps = len(table)
    return torch.stack(
        [
            sum((table[k + lag, k] for k in range(steps - lag)), torch.zeros_like(table[0, 0]))
            for lag in range(steps)
        ]
    )


def reaches(expected, entries):
    """The largest lag whose mean norm is 1 % of that at lag 0; either side where it is close."""
    squares = sum(table.flatten(2).square().sum(-1) for table in expected.values())
    norms = squares.sqrt()
    means = torch.zeros(len(norms), dtype=torch.float64)
    for lag in range(len(norms)):
        at = [norms[t, t - lag] for t in entries if t >= lag]
        means[lag] = sum(at) / len(at) if at else 0.0
    bounds = (0.01 * (1 + 1e-6), 0.01 * (1 - 1e-6))
    return {
        max([lag for lag, m in enumerate(means) if m >= share * means[0] and m > 0], default=0)
        for share in bounds
    }


def without_crossings(program, module, flow, whole):
    """What crosses no recurrent weights, of a loop in which nothing comes back through them."""
    loop = Plain(program, module, whole)
    run(program, loop)
    for name, table in loop.contributions().items():
        found = flow.by_crossing(name, max_crossings=1, bins="every").parts()[0]
        size = float(table.flatten(2).norm(dim=-1).max())
        torch.testing.assert_close(found, by_lag(table), atol=1e-10 * max(1, size), rtol=1e-8)


# --- drawn ---

PASSES = [*ELEMENTWISE, *WITH_OLD, *INDEXING, *COUNT, *LAYERS, *WHOLE]
STAYS = [*ELEMENTWISE, *WITH_OLD, *LAYERS, *WHOLE, "shrink"]  # samples keep their places


@drawn(60)
@given(program=programs(PASSES))
def test_states_are_followed_through_what_acts_on_each_number(program):
    with unchecked():
        check(program)


@drawn(15)
@given(program=programs(STAYS, packed=True, most=2))
def test_packed_batches_hand_their_states_on(program):
    with unchecked():
        check(program)


@drawn(15)
@given(program=programs([*HARD, "scale", "tanh", "permute samples"], most=1, batch=(2, 3)))
def test_where_no_row_passes_the_step_is_named_and_the_parts_still_sum(program):
    with unchecked():
        check(program)


@drawn(15)
@given(program=programs(PASSES, most=1, ways=["checkpoint", "hooks", "forward"]))
def test_ways_to_call_a_module(program):
    assume(program.way != "hooks" or "nn" in program.kind)
    with unchecked():
        check(program)


@drawn(15)
@given(program=programs([*MIXED, "scale", "where on"], most=2))
def test_parts_that_stand_in_for_each_other_are_followed_or_named(program):
    with unchecked():
        check(program, lenient=True)


# --- each kind on its own ---


def loop_of(kind, op, steps=5, on=None, batch=3, reads=None, **options):
    """The same operation between all calls; the loss reads what comes of it, or the last state."""
    letters = KINDS[kind].letters
    ops = (op if isinstance(op, tuple) else (op,)) if op else ()
    done = [
        Op(name, on or letters, seed=7 * step, read=reads is None)
        for step in range(steps)
        for name in ops
    ]
    each = [tuple(done[step * len(ops) : (step + 1) * len(ops)]) for step in range(steps)]
    calls = [Call(1, reads or "", each[step]) for step in range(steps - 1)]
    return Program(kind, (*calls, Call(1, letters)), batch, **options)


LSTMS = ("nn.LSTMCell", "nn.LSTM", "ours.LSTM(peephole)")
NAMED = {
    **{f"h scaled, c itself: {kind}": loop_of(kind, "scale", on="h") for kind in LSTMS},
    **{f"c scaled, h itself: {kind}": loop_of(kind, "scale", on="c") for kind in LSTMS},
    **{
        f"dropout on h as in Tacotron 2: {kind}": loop_of(kind, "dropout", on="h") for kind in LSTMS
    },
    **{
        f"{op}: {kind}": loop_of(kind, op)
        for kind in ("nn.LSTMCell", "nn.GRUCell", "nn.LSTM")
        for op in ("where on", "masked update", "zoneout", "shrink", "reorder beams")
    },
    "beams that grow, shrink and are reordered": Program(
        "nn.LSTMCell",
        (
            Call(1, "h", (Op("repeat", "hc"),)),
            Call(1, "h", (Op("reorder beams", "hc", 3),)),
            Call(1, "", (Op("reorder beams", "hc", 5, True),)),
            Call(1, "h", (Op("shrink", "hc"),)),
            Call(1, "hc"),
        ),
        batch=2,
    ),
    "states in one tensor that the loss reads": loop_of("nn.LSTMCell", "stack parts"),
    "states of a stack in one tensor": loop_of("nn.GRU", "by samples", layers=2),
    "a reset where units are exactly 0": loop_of("nn.RNNCell(relu)", "reset samples", reads="h"),
    "a hook that looks": loop_of("nn.GRUCell", None, reads="h", way="hooks"),
    "one layer replaced": loop_of("nn.LSTM", "replace a layer", layers=2),
    "one layer scaled": loop_of("nn.LSTM", "scale a layer", layers=2),
}


@pytest.mark.parametrize("name", NAMED)
def test_of_each_kind_one(name):
    with unchecked():
        check(NAMED[name])
