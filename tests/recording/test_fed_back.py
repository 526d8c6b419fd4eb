"""Layers that read their own outputs: as the next input, also where that is the state itself.

What comes back through the input counts as given by the loss to the output that it was computed
from. Loops are drawn, and a loop with weight copies and inputs that are leaves tells C[t,k].
"""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from support.programs import D, elman, gru, lstm, numbers, weighed

H, B = 3, 2
KINDS = {
    "nn.GRUCell": (nn.GRUCell, gru, "h"),
    "nn.LSTMCell": (nn.LSTMCell, lstm(), "hc"),
    "nn.RNNCell": (nn.RNNCell, elman(torch.tanh), "h"),
    "nn.GRU": (nn.GRU, gru, "h"),
    "nn.LSTM": (nn.LSTM, lstm(), "hc"),
    "declared": (nn.GRUCell, gru, "h"),
}
READ = {  # what the next call reads of the state that it is given
    "an input": None,
    "the state itself": lambda s: s["h"],
    "the other part": lambda s: s["c" if "c" in s else "h"],
    "a view": lambda s: s["h"].view_as(s["h"]),
    "the other samples": lambda s: s["h"].flip(-2),
    "a function": lambda s: torch.tanh(s["h"] @ numbers(5, H, H)),
    "detached": lambda s: s["h"].detach(),
}
BETWEEN = {  # what is done to the state before it is given
    "nothing": lambda t: t,
    "scaled": lambda t: 0.7 * t,
    "one sample reset": lambda t: t * torch.tensor([[1.0], [0.0]], dtype=D),
    "samples swapped": lambda t: t.flip(-2),
}
loops = st.lists(
    st.tuples(st.sampled_from(sorted(READ)), st.sampled_from(sorted(BETWEEN)), st.booleans()),
    min_size=2,
    max_size=5,
)


def looped(step, letters, rows, calls, leaves=None):
    """The loop of the user; gives the inputs computed from states, and a term for every step."""
    state = {n: numbers(seed, *rows, B, H) for seed, n in enumerate(letters)}
    terms, inputs = [], []
    for k, (read, between, lost) in enumerate(calls):
        given = {n: BETWEEN[between](part) for n, part in state.items()}
        x = numbers(20 + k, *rows, B, H) if READ[read] is None else READ[read](given)
        inputs.append(x)
        if leaves is not None:  # a tensor of its own, so that its gradient is told apart
            x = leaves[k] if leaves else x.view_as(x)
            inputs[-1] = inputs[-1] if leaves else x
        state = step(k, x, given)
        last = k + 1 == len(calls)
        seen = [t for t in state.values() if lost or last]
        terms.append(sum(((t * weighed(k, H)).sum() + t.square().sum() for t in seen), start=0.0))
    return inputs, terms


def with_copies(step, letters, rows, calls, weights):
    """|C[t,k]| of every weight, from autograd alone."""
    copies = [{n: w.clone().requires_grad_() for n, w in weights.items()} for _ in calls]

    def each(k, x, state):
        return step(copies[k], x, state, False)

    inputs, terms = looped(each, letters, rows, calls, leaves=[])
    live = [x for x in inputs if x.requires_grad]
    came = iter(torch.autograd.grad(sum(terms), live, allow_unused=True)) if live else iter(())
    given = [next(came) if x.requires_grad else None for x in inputs]
    leaves = [x.detach().requires_grad_() for x in inputs]
    inputs, terms = looped(each, letters, rows, calls, leaves)
    for k, (x, gradient) in enumerate(zip(inputs, given, strict=True)):
        if k and gradient is not None and x.requires_grad:
            terms[k - 1] = terms[k - 1] + (x * gradient).sum()
    wanted = [copy for of_step in copies for copy in of_step.values()]
    tables = {n: torch.zeros(len(calls), len(calls), *w.shape, dtype=D) for n, w in weights.items()}
    for t, term in enumerate(terms):
        if not torch.is_tensor(term):
            continue
        found = iter(torch.autograd.grad(term, wanted, materialize_grads=True, retain_graph=True))
        for k in range(len(calls)):
            for name in weights:
                tables[name][t, k] = next(found)
    return tables


@settings(max_examples=14, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(sorted(KINDS)), calls=loops)
def test_contributions_are_those_of_weight_copies(kind, calls):
    make, step, letters = KINDS[kind]
    torch.manual_seed(0)
    model = nn.ModuleList([make(H, H, dtype=D)])
    stepped = kind.endswith("Cell") or kind == "declared"
    rows = () if stepped else (1,)

    def call(k, x, state):
        given = tuple(state.values()) if len(letters) > 1 else state["h"]
        returned = model[0](x, given)
        last = returned if stepped else returned[1]
        return dict(zip(letters, last if len(letters) > 1 else (last,), strict=True))

    cells = {nn.GRUCell: retrograde.Declaration()} if kind == "declared" else None
    with retrograde.record(model, cells=cells) as recording:
        sum(looped(call, letters, rows, calls)[1]).backward()
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and flow.steps == len(calls)
    weights = {n.removesuffix("_l0"): p.detach() for n, p in model[0].named_parameters()}
    tables = with_copies(step, letters, (), calls, weights)
    for name, table in tables.items():
        by_time = flow.by_time(name if name in flow.parameters else name + "_l0")
        norms = table.flatten(2).norm(dim=2)[by_time.entries]
        torch.testing.assert_close(by_time.norm, norms, rtol=1e-9, atol=1e-12)
    fed = [k for k, (read, *_) in enumerate(calls) if k and read not in ("an input", "detached")]
    told = [note for note in flow.recorded.notes if "computed from the layer's own outputs" in note]
    assert bool(told) == bool(fed) and set(fed) <= set(flow.recorded.lags_end)


def test_a_note_says_what_lags_through_the_input_are():
    cell = nn.GRUCell(H, H, dtype=D)
    with retrograde.record(cell) as recording:
        h = numbers(0, B, H)
        for _ in range(4):
            h = cell(h, h)
        h.square().sum().backward()
    flow = retrograde.decompose(recording)
    assert flow.recorded.notes == (
        "the input at steps 1, 2, 3 is computed from the layer's own outputs: what comes back "
        "through it counts as given by the loss to those outputs, so that lags through the input "
        "end there",
    )
    assert flow.steps == 4 and flow.reach_is_lower_bound
