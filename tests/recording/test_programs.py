"""States are followed through whatever is done to them between calls, drawn as programs.

Each program runs on the user's module, recorded and not, and on a plain loop with weight copies
(programs.py); every norm, part and lag must agree. More of them: PROGRAMS=2000 pytest ...
"""

import os
import sys
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde
from support.backends import BACKENDS, using
from support.programs import (
    COUNT,
    ELEMENTWISE,
    HARD,
    INDEXING,
    KINDS,
    LAYERS,
    MIXED,
    WHOLE,
    WITH_EARLIER,
    WITH_OLD,
    Call,
    D,
    Module,
    Op,
    Plain,
    Program,
    numbers,
    run,
    weighed,
)
from support.type_checks import unchecked

EXACT = 1e-12  # float64, sums of a few dozen products
DRAWN = int(os.environ.get("PROGRAMS", "0"))


def drawn(count):
    """The number of examples, each some passes; PROGRAMS asks for more."""
    return settings(
        max_examples=DRAWN or count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **({"derandomize": False} if DRAWN else {}),
    )


# --- programs, drawn ---

seeds = st.integers(0, 50)
EVERYWHERE = {"scale", "divide", "negate", "scale units", "tanh", "sigmoid", "softplus", "softsign"}
"""Operations that change every entry of a state and lose none."""


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
    count = draw(st.integers(3, 5))
    for number in range(count):
        done = draw(ops(kind, cells, names, most))
        if number == count - 1:
            done = tuple(op for op in done if _makes_a_state(op, calls[-1]))
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
        together=draw(st.booleans()),
        seed=draw(st.integers(0, 20)),
        **shape,
    )


def _makes_a_state(op, before):
    """Whether what an operation makes after the last call is a state like those before.

    What is mixed there is read at the last step if the loop makes its states so. Else it is a mean
    over time or the like, and each state in it is read at its own step.
    """
    own = [other for other in before.ops if {*op.on} <= {*other.on}]
    alike = bool(own) and all(other.name in EVERYWHERE for other in before.ops)
    return op.name not in WITH_EARLIER and (op.name not in WITH_OLD or alike)


# --- what must hold ---


def trained(program, watched):
    """The module's gradients, and the recording if it was watched."""
    module = program.module()
    machine = Module(program, module)
    with retrograde.record(module) if watched else nullcontext() as recording:
        run(program, machine)
        machine.loss().backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    return module, gradients, recording, torch.stack([t.detach() for t in machine.terms])


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
    # In a stack that reads both ways each layer is pulled back by itself, and units stay in place.
    lenient = lenient or (program.layers == 2 and program.directions == 2)
    if ends or (lenient and lags_end(flow)):
        ends_are_said(flow, ends)
    else:
        agrees(flow, expected)
        without_crossings(program, module, flow, loop)
    sums_up(flow, gradients, expected)


def lags_end(flow):
    """The steps before which lags are said to end."""
    return tuple(flow.recorded.lags_end)


def ends_are_said(flow, ends):
    """What lets no row pass is named; the one place to change if rows come to pass there too."""
    found = lags_end(flow)
    assert not ends or set(found) == set(ends), f"lags end before steps {ends}; said: {found}"
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
            flow.by_crossing(name, max_crossings=1, bins="every"),
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
    assert not lags_end(flow), f"lags are said to end before {lags_end(flow)}; all of it passes"
    assert not flow.reach_is_lower_bound
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
STAYS = [*ELEMENTWISE, *WITH_OLD, *LAYERS, *WHOLE]  # samples keep their places


@drawn(12)
@given(program=programs(PASSES))
def test_states_are_followed_through_what_acts_on_each_number(program):
    with unchecked():
        check(program)


@drawn(4)
@given(program=programs([*WITH_EARLIER, "scale", "dropout", "where on"], most=2))
def test_states_of_earlier_calls_are_followed_or_named(program):
    with unchecked():
        check(program, lenient=True)


@drawn(4)
@given(program=programs(STAYS, packed=True, most=2))
def test_packed_batches_hand_their_states_on(program):
    with unchecked():
        check(program)


@drawn(4)
@given(program=programs([*HARD, "scale", "tanh", "permute samples"], most=1, batch=(2, 3)))
def test_where_no_row_passes_the_step_is_named_and_the_parts_still_sum(program):
    with unchecked():
        check(program)


@drawn(4)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@given(program=programs(PASSES, most=1, ways=["checkpoint", "hooks"]))
def test_checkpoints_and_hooks_that_look_change_nothing(program):
    with unchecked():
        check(program)


@pytest.mark.parametrize("kind", ["nn.LSTMCell", "nn.GRU", "ours.LSTM(peephole)"])
def test_forward_called_by_name_is_followed_or_told_from_no_call(kind):
    program = loop_of(kind, "scale", reads="h", way="forward")
    with unchecked():
        try:
            check(program)
        except retrograde.RetrogradeError as error:
            assert "forward" in str(error) and "was not called" not in str(error)


@drawn(4)
@given(program=programs([*MIXED, "scale", "where on"], most=2))
def test_parts_that_stand_in_for_each_other_are_followed_or_named(program):
    with unchecked():
        check(program, lenient=True)


@drawn(3)
@given(program=programs([*COUNT, *INDEXING, "scale"], packed=True, most=1))
def test_samples_of_a_packed_batch_that_move_are_followed_or_named(program):
    """Those that moved are in the time of the sample that they come from."""
    with unchecked():
        module, gradients, recording, _ = trained(program, watched=True)
        flow, loop = retrograde.decompose(recording), Plain(program, module)
        run(program, loop)
        sums_up(flow, gradients, loop.contributions())
        assert flow.reach_is_lower_bound == bool(lags_end(flow))


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


LSTMS = ("nn.LSTMCell", "ours.LSTM(peephole)")
NAMED = {
    **{f"h scaled, c itself: {kind}": loop_of(kind, "scale", on="h") for kind in LSTMS},
    **{f"c scaled, h itself: {kind}": loop_of(kind, "scale", on="c") for kind in LSTMS},
    **{
        f"dropout on h as in Tacotron 2: {kind}": loop_of(kind, "dropout", on="h") for kind in LSTMS
    },
    **{
        f"{op}: {kind}": loop_of(kind, op)
        for kind in ("nn.LSTMCell", "nn.GRU")
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
    "one layer replaced": loop_of("nn.LSTM", "replace a layer", layers=2),
    "one layer scaled": loop_of("nn.LSTM", "scale a layer", layers=2),
}


@pytest.mark.parametrize("name", NAMED)
def test_of_each_kind_one(name):
    with unchecked():
        check(NAMED[name])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("change", [None, "where on", "add old"])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("kind", ["nn.GRUCell", "nn.LSTMCell", "ours.LSTM(peephole)"])
def test_a_hook_that_looks(kind, everywhere, change):
    program = loop_of(kind, change, reads="h", way="call" if everywhere else "hooks")
    handle = None
    if everywhere:
        handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with unchecked():
            check(program)
    finally:
        if handle:
            handle.remove()


@pytest.mark.parametrize(
    ("kind", "steps"), [("nn.LSTMCell", 48), ("nn.GRU", 16), ("ours.LSTM(peephole)", 16)]
)
def test_training_is_the_same_to_the_last_bit(kind, steps, unchecked):
    """Each step of training hands the state on in another way; PROGRAMS=200 takes 200 steps."""
    ways = ["scale", "dropout", "where on", "zoneout", "shrink", "reorder beams", "add an input"]
    ways += ["scale samples of a clone", "linear", "detach", "masked update", "add a sample"]
    loops = [loop_of(kind, op, steps=3) for op in ways]
    if not KINDS[kind].stepped:
        loops += [replace(loop, calls=packed(loop.calls)) for loop in loops[:4]]
    trained = []
    for watched in (False, True):
        module = loops[0].module()
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        for step in range(max(steps, DRAWN)):
            machine = Module(loops[step % len(loops)], module)
            optimiser.zero_grad()
            with retrograde.record(module) if watched else nullcontext():
                run(machine.program, machine)
                machine.loss().backward()
            optimiser.step()
        trained.append([p.detach() for p in module.parameters()])
    assert all(map(torch.equal, *trained))


def packed(calls):
    return tuple(replace(call, lengths=(2, 1)) for call in calls)


# --- programs that read as users write them ---


def copies_of(module, count):
    """The weights of a module, once for each step."""
    weights = dict(module.named_parameters())
    return [
        {n: w.detach().clone().requires_grad_() for n, w in weights.items()} for _ in range(count)
    ]


def tables_of(copies, terms):
    """C[t,k] of loss terms by step."""
    wanted = [w for step in copies for w in step.values()]
    names, steps = list(copies[0]), len(copies)
    tables = {n: torch.zeros(steps, steps, *copies[0][n].shape, dtype=D) for n in names}
    for t, term in terms.items():
        found = iter(torch.autograd.grad(term, wanted, retain_graph=True, materialize_grads=True))
        for k in range(steps):
            for name in names:
                tables[name][t, k] = next(found)
    return tables


def same_as(flow, copies, terms):
    agrees(flow, tables_of(copies, terms))
    assert flow.residual < EXACT


def torch_cell(weights, module, x, state):
    """torch's own cell, with other weights."""
    return torch.func.functional_call(module, weights, (x, state))


def test_a_padded_loop_is_the_layer():
    """Every mask on: reach, norms and entries are those of nn.LSTM on the whole sequence."""
    torch.manual_seed(0)
    lstm, cell = nn.LSTM(3, 8, dtype=D), nn.LSTMCell(3, 8, dtype=D)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in lstm.state_dict().items()})
    x, on = numbers(1, 20, 4, 3), torch.ones(20, 4, 1, dtype=torch.bool)
    with retrograde.record(lstm) as whole:
        lstm(x)[0][-1].square().sum().backward()
    with retrograde.record(cell) as stepped:
        h = c = torch.zeros(4, 8, dtype=D)
        for x_k, on_k in zip(x, on, strict=True):
            new = cell(x_k, (h, c))
            h, c = torch.where(on_k, new[0], h), torch.where(on_k, new[1], c)
        h.square().sum().backward()
    one, other = retrograde.decompose(whole), retrograde.decompose(stepped)
    assert other.reach == one.reach and other.entries.steps.tolist() == [19]
    assert other.residual < EXACT
    for name in other.parameters:
        torch.testing.assert_close(
            other.by_time(name).norm, one.by_time(f"{name}_l0").norm, atol=1e-10, rtol=1e-8
        )


def test_a_batch_that_shrinks_as_its_samples_end():
    torch.manual_seed(0)
    cell, x, lengths = nn.LSTMCell(3, 4, dtype=D), numbers(1, 9, 4, 3), [9, 7, 4, 2]

    def loop(step):
        h = c = torch.zeros(4, 4, dtype=D)
        terms = {}
        for t in range(9):
            left = sum(length > t for length in lengths)
            h, c = step(t, x[t, :left], (h[:left], c[:left]))
            terms[t] = h.square().sum()
        return terms

    with retrograde.record(cell) as recording:
        sum(loop(lambda t, x_k, state: cell(x_k, state)).values()).backward()
    copies = copies_of(cell, 9)
    terms = loop(lambda t, x_k, state: torch_cell(copies[t], cell, x_k, state))
    flow = retrograde.decompose(recording)
    same_as(flow, copies, terms)
    assert flow.steps == 9 and not any("no state was handed" in n for n in flow.recorded.notes)


def test_a_packed_batch_whose_states_another_call_takes_on():
    """Each sample's steps follow each other in a time of its own: 9 + 3 of them, or 2 + 3."""
    torch.manual_seed(0)
    lstm, x, y = nn.LSTM(3, 4, dtype=D), numbers(1, 9, 4, 3), numbers(2, 3, 4, 3)
    lengths = [9, 7, 4, 2]
    with retrograde.record(lstm) as recording:
        _, state = lstm(pack_padded_sequence(x, lengths))
        lstm(pack_padded_sequence(y, [3] * 4), state)[0].data.square().sum().backward()
    cell = nn.LSTMCell(3, 4, dtype=D)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in lstm.state_dict().items()})
    copies, terms = copies_of(cell, 12), defaultdict(float)
    for b, length in enumerate(lengths):
        state = None
        for t in range(length + 3):
            x_k = x[t, b : b + 1] if t < length else y[t - length, b : b + 1]
            state = torch_cell(copies[t], cell, x_k, state)
            if t >= length:
                terms[t] = terms[t] + state[0].square().sum()
    flow = retrograde.decompose(recording)
    tables = {f"{n}_l0": table for n, table in tables_of(copies, terms).items()}
    agrees(flow, tables)
    assert flow.steps == 12 and flow.residual < EXACT


def test_a_beam_search():
    """Beams are scored, the best go on, and one may go on twice."""
    torch.manual_seed(0)
    cell, head = nn.LSTMCell(2, 3, dtype=D), nn.Linear(3, 5, dtype=D)
    samples, beams, words = 2, 3, numbers(3, 5, 2)

    def search(step):
        h, c = numbers(4, samples, 1, 3), numbers(5, samples, 1, 3)
        h, c = (v.expand(-1, beams, -1).reshape(-1, 3) for v in (h, c))
        score, word, terms = numbers(6, samples, beams), torch.arange(6) % 5, {}
        for t in range(5):
            h, c = step(t, words[word], (h, c))
            scores = score.unsqueeze(-1) + head(h).log_softmax(-1).view(samples, beams, 5)
            terms[t] = scores.exp().sum()
            score, best = scores.detach().flatten(1).topk(beams)
            rows = (best // 5 + beams * torch.arange(samples).unsqueeze(1)).flatten()
            word = (best % 5).flatten()
            h, c = h[rows], c.index_select(0, rows)
        return terms

    with retrograde.record(cell) as recording:
        sum(search(lambda t, x_k, state: cell(x_k, state)).values()).backward()
    copies = copies_of(cell, 5)
    terms = search(lambda t, x_k, state: torch_cell(copies[t], cell, x_k, state))
    same_as(retrograde.decompose(recording), copies, terms)


def test_states_of_two_cells_in_one_tensor_that_the_loss_reads():
    """What the upper cell reads of the lower one enters there, at the step at which it is read."""
    torch.manual_seed(0)
    cells = nn.ModuleList([nn.GRUCell(2, 3, dtype=D), nn.GRUCell(3, 3, dtype=D)])
    x, steps = numbers(1, 5, 2, 2), 5

    def loop(lower, upper, between=lambda t, h: h):
        states, terms = numbers(2, 2, 2, 3), {}
        for t in range(steps):
            h = lower(t, x[t], states[0])
            states = torch.stack([h, upper(t, between(t, h), states[1])]) * 0.9
            terms[t] = (states * weighed(t, 2, 2, 3)).sum() + states.square().sum()
        return terms

    with retrograde.record(cells) as recording:
        sum(
            loop(*(lambda t, x_k, h, cell=cell: cell(x_k, h) for cell in cells)).values()
        ).backward()
    copies = [copies_of(cell, steps) for cell in cells]
    below, read = {}, {}

    def leaf(t, h):
        below[t], read[t] = h, h.detach().requires_grad_()
        return read[t]

    terms = loop(
        *(lambda t, x_k, h, i=i: torch_cell(copies[i][t], cells[i], x_k, h) for i in range(2)),
        leaf,
    )
    agrees(retrograde.decompose(recording["1"]), tables_of(copies[1], terms))
    total = sum(terms.values())
    given = torch.autograd.grad(total, list(read.values()), retain_graph=True)
    entering = {t: terms[t] + (below[t] * given[t]).sum() for t in range(steps)}
    agrees(retrograde.decompose(recording["0"]), tables_of(copies[0], entering))


def test_a_state_of_which_every_output_is_stacked_for_the_loss():
    """A masked state read in a stack counts at its own step, also for samples that had ended."""
    torch.manual_seed(0)
    cell, x, on = nn.GRUCell(2, 3, dtype=D), numbers(1, 6, 3, 2), numbers(2, 6, 3, 1) > 0

    def loop(step):
        h, outputs = numbers(3, 3, 3), []
        for t in range(6):
            h = torch.where(on[t], step(t, x[t], h), h)
            outputs.append(h)
        return torch.stack(outputs, 1)

    with retrograde.record(cell) as recording:
        (loop(lambda t, x_k, h: cell(x_k, h)) * weighed(4, 3, 6, 3)).sum().backward()
    copies = copies_of(cell, 6)
    outputs = loop(lambda t, x_k, h: torch_cell(copies[t], cell, x_k, h))
    terms = {t: (outputs[:, t] * weighed(4, 3, 6, 3)[:, t]).sum() for t in range(6)}
    same_as(retrograde.decompose(recording), copies, terms)


# --- faults, planted ---


def without_factors(self, delta):
    """Adjoints pass back as if the state had been handed on."""
    return delta


def not_moved(self, delta):
    """Adjoints pass back to the entries in the same places."""
    return sum(delta * read.factor for read in self.reads)


FAULTS = {
    "factors are left out": (
        "engine.boundary",
        "Boundary.pull_back",
        without_factors,
        "h scaled",
        "eager",  # the library is given the factors themselves
    ),
    "factors do not reach the library": (
        "engine.scan",
        "plain_boundaries",
        lambda *_: {},
        "h scaled",
        "compiled",
    ),
    "entries stay in their places": (
        "engine.boundary",
        "Boundary.pull_back",
        not_moved,
        "reorder beams",
        None,
    ),
    "what is mixed at the end is not found": (
        "recording.observation",
        "find_tails",
        lambda *_: None,
        "masked update",
        None,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_rejected(fault, monkeypatch):
    module, place, planted, name, backend = FAULTS[fault]
    if backend not in (None, *BACKENDS):
        pytest.skip("there is no library")
    *owners, function = place.split(".")
    owner = reduce(getattr, owners, sys.modules[f"retrograde.{module}"])
    monkeypatch.setattr(owner, function, planted)
    (program, *_) = [program for own, program in NAMED.items() if own.startswith(name)]
    found = pytest.raises((AssertionError, retrograde.VoidDecompositionWarning))
    with using(backend), unchecked(), found:
        last = replace(program.calls[-1], ops=program.calls[0].ops)  # the loss reads it too
        check(replace(program, calls=(*program.calls[:-1], last)))
