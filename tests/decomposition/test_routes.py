"""Routes, crossings and cuts against dense Jacobians and `detach`, which know no engine."""

import itertools

import pytest
import torch
from torch import Tensor

import retrograde
from retrograde.cells import GRU, Elman, pull_back, truncated
from retrograde.decomposition.by_lag import LagSums
from retrograde.engine import fold
from retrograde.errors import ArgumentError
from support.conformance import EXACT, flow_of, plain_pass, unrolled_and_entries, vectors
from support.problems import FAMILY, GRU2014_, GRU_, LSTM_, PROBLEMS, TANH, B, T, stack
from support.type_checks import unchecked

WAYS = [p for p in PROBLEMS if p.name not in ("lstm-no-bias", "gru-no-bias", "gru-2014-no-bias")]


def dense_routes(cell, plain) -> list[dict[str, Tensor]]:
    """For every step the Jacobian of each route, [B, S, S], rows d s_k, columns d s_{k-1}.

    That a cell's routes are the right ones is tested with `detach` below, and against Greff et al.
    in cells/test_generations.py; here it is what is made of them over time.
    """
    steps = []
    for x, state in zip(plain.x, plain.states, strict=False):
        x, state = x.detach(), state.detach()
        eye = torch.eye(cell.state_size, dtype=torch.float64)
        rows = eye.unsqueeze(1).expand(-1, B, -1)
        routes = pull_back(cell.linearise(cell.step(x, state)), rows).by_route()
        steps.append({name: part.transpose(0, 1) for name, part in routes.items()})
    return steps


def parameter_gradients(cell, plain, k, adjoint):
    """d<adjoint, s_k>/dW through step k alone, by autograd."""
    weights = {n: w.clone().requires_grad_() for n, w in cell.parameters.items()}
    state = cell.with_parameters(weights).step(plain.x[k], plain.states[k].detach()).state
    value = (adjoint.detach() * state).sum()
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


@pytest.mark.parametrize("problem", WAYS, ids=lambda problem: problem.name)
def test_routes_and_crossings(problem):
    """Each part, by walking every path from every entry back with dense matrices."""
    cell = problem.make()
    plain = plain_pass(cell, steps=4)
    flow = flow_of(cell, plain)
    jacobians = dense_routes(cell, plain)
    crossing = set(cell.recurrent_routes)
    most = 2
    by_route, by_crossing = {}, {}
    for t in range(4):
        classes = {0: plain.direct[t]}
        arrived = {"direct": plain.direct[t]}
        for k in reversed(range(t + 1)):
            for store, ways in ((by_route, arrived), (by_crossing, classes)):
                for way, adjoint in ways.items():
                    for name, grad in parameter_gradients(cell, plain, k, adjoint).items():
                        key = (name, way, t - k)
                        store[key] = store.get(key, 0) + grad
            moved, total = {}, sum(classes.values())
            arrived = {
                route: torch.einsum("bs,bsr->br", total, J) for route, J in jacobians[k].items()
            }
            for number, adjoint in classes.items():
                for route, J in jacobians[k].items():
                    to = min(most, number + (route in crossing))
                    moved[to] = moved.get(to, 0) + torch.einsum("bs,bsr->br", adjoint, J)
            classes = moved
    for name in flow.parameters:
        routes = flow.by_route(name, bins="every")
        assert routes.labels == ("direct", *cell.routes)
        crossings = flow.by_crossing(name, max_crossings=most, bins="every")
        assert crossings.labels == ("0", "1", "2+")
        zero = torch.zeros_like(cell.parameters[name])
        for split, store in ((routes, by_route), (crossings, by_crossing)):
            ways = split.labels if split is routes else range(most + 1)
            expected = torch.stack(
                [
                    torch.stack([store.get((name, way, lag), zero) for lag in range(4)])
                    for way in ways
                ]
            )
            torch.testing.assert_close(split.parts(), expected, **EXACT)
            norms = vectors(expected, 2).norm(dim=2)
            torch.testing.assert_close(split.norm, norms, **EXACT)
            whole = expected.sum((0, 1))
            share = vectors(expected * whole, 2).sum(2) / whole.square().sum()
            torch.testing.assert_close(split.share, share, **EXACT)
            by_lag = flow.by_lag(name, bins="every").parts()
            torch.testing.assert_close(split.parts().sum(0), by_lag, **EXACT)
    every = flow.by_route()
    torch.testing.assert_close(every.parts().sum(0), flow.by_lag().parts(), **EXACT)
    assert float(flow.by_crossing(max_crossings=1).share.sum()) == pytest.approx(1)


def cut_step(cell, cut):
    """A plain step of an LSTM or GRU in which the old state is detached where a route is cut.

    Written with `detach` alone: the pull-back has no part in it.
    """

    def old(tensor, route):
        return tensor.detach() if route in cut else tensor

    def linear(weight, bias, h):
        return h @ weight.T + (0 if bias is None else bias)

    def lstm(x, state):
        h, c = state.chunk(2, -1)
        W, R = cell.weight_ih.chunk(4), cell.weight_hh.chunk(4)
        b = (cell.bias_ih + cell.bias_hh).chunk(4)
        p_i, p_f, p_o = (0, 0, 0) if cell.weight_ch is None else cell.weight_ch.chunk(3)
        gates = ("input", "forget", "cell", "output")
        a = {g: x @ W[n].T + b[n] + old(h, f"recurrent.{g}") @ R[n].T for n, g in enumerate(gates)}
        i = torch.sigmoid(a["input"] + p_i * old(c, "peephole.input"))
        f = torch.sigmoid(a["forget"] + p_f * old(c, "peephole.forget"))
        new_c = f * old(c, "carousel") + i * torch.tanh(a["cell"])
        o = torch.sigmoid(a["output"] + p_o * old(new_c, "peephole.output"))
        return torch.cat((o * torch.tanh(old(new_c, "readout")), new_c), -1)

    def gru(x, h):
        x_r, x_z, x_n = linear(cell.weight_ih, cell.bias_ih, x).chunk(3, -1)
        R_r, R_z, R_n = cell.weight_hh.chunk(3)
        b_r, b_z, b_n = cell.bias_hh.chunk(3)
        r = torch.sigmoid(x_r + linear(R_r, b_r, old(h, "recurrent.reset")))
        z = torch.sigmoid(x_z + linear(R_z, b_z, old(h, "recurrent.update")))
        n = torch.tanh(x_n + r * linear(R_n, b_n, old(h, "recurrent.candidate")))
        return (1 - z) * n + z * old(h, "carousel")

    return lstm if hasattr(cell, "generation") else gru


def cuts():
    found = []
    peepholes = ("peephole.input", "peephole.forget", "peephole.output", "readout")
    for name, make, routes in (
        ("lstm", LSTM_, ("recurrent.input", "recurrent.output", "carousel", "readout")),
        ("lstm-2002", FAMILY["lstm-2002"], peepholes),
        ("gru", GRU_, ("recurrent.reset", "recurrent.update", "recurrent.candidate", "carousel")),
    ):
        for cut in (*((route,) for route in routes), routes[:2]):
            found.append(pytest.param(make, cut, id=f"{name}-{'+'.join(cut)}"))
    return found


@pytest.mark.parametrize(("make", "cut"), cuts())
def test_cutting_a_route_equals_detaching_it_in_a_plain_loop(make, cut):
    cell = make()
    plain = plain_pass(cell)
    flow = flow_of(cell, plain)
    weights = {n: w.clone().requires_grad_() for n, w in cell.parameters.items()}
    live = cut_step(cell.with_parameters(weights), cut)
    state, value = plain.states[0].detach(), 0
    for k in range(T):
        state = live(plain.x[k].detach(), state)
        torch.testing.assert_close(state, plain.states[k + 1], **EXACT)
        value = value + (plain.direct[k] * state).sum()
    expected = torch.autograd.grad(value, list(weights.values()))
    left = flow.without(*cut)
    for name, grad in zip(weights, expected, strict=True):
        torch.testing.assert_close(left.by_lag(name).parts().sum(0), grad, **EXACT)
        torch.testing.assert_close(left.gradient[name].plain()[0], grad, **EXACT)
    assert left.residual < 1e-12
    assert set(left.routes) == set(cell.routes) - set(cut)
    assert any(
        not torch.allclose(left.gradient[n].plain(), flow.gradient[n].plain()) for n in weights
    ), "the cut has no effect"


def test_cutting_equals_leaving_the_term_out_of_a_product_of_dense_jacobians():
    for make in (LSTM_, FAMILY["fgr"], GRU2014_, TANH, stack(LSTM_, GRU_)):
        cell = make()
        plain = plain_pass(cell)
        flow = flow_of(cell, plain)
        jacobians = dense_routes(cell, plain)
        for cut in cell.routes:
            expected = {name: 0 for name in cell.parameters}
            adjoint = torch.zeros(B, cell.state_size, dtype=torch.float64)
            for k in reversed(range(T)):
                adjoint = adjoint + plain.direct[k]
                for name, grad in parameter_gradients(cell, plain, k, adjoint).items():
                    expected[name] = expected[name] + grad
                left = [J for route, J in jacobians[k].items() if route != cut]
                adjoint = torch.einsum("bs,bsr->br", adjoint, sum(left, torch.zeros(1, 1, 1)))
            for name, grad in flow.without(cut).gradient.items():
                torch.testing.assert_close(grad.plain()[0], expected[name], **EXACT)


def test_cuts_add_up():
    flow = flow_of(LSTM_(), plain_pass(LSTM_()))
    one_by_one = flow.without("carousel").without("recurrent.cell")
    at_once = flow.without("recurrent.cell", "carousel")
    for name in flow.parameters:
        torch.testing.assert_close(
            one_by_one.gradient[name].plain(), at_once.gradient[name].plain(), **EXACT
        )


def test_without_recurrent_weights_everything_is_in_crossing_0():
    for make in (LSTM_, FAMILY["lstm-2002"], GRU_, TANH):
        cell = make()
        zeros = torch.zeros_like(cell.weight_hh)
        cell = cell.with_parameters({**cell.parameters, "weight_hh": zeros})
        flow = flow_of(cell, plain_pass(cell))
        split = flow.by_crossing(max_crossings=3)
        assert not bool(split.parts()[1:].any())
        torch.testing.assert_close(split.parts()[0], flow.by_lag().parts(), **EXACT)


@pytest.mark.parametrize("row", ["cec", "lstm-1997"])
def test_crossing_0_is_the_truncated_gradient_of_1997(row):
    """What cells/test_generations.py checks `truncated` against is the paper's own algorithm."""
    cell = FAMILY[row]()
    plain = plain_pass(cell)
    flow = flow_of(cell, plain)
    unrolled, entries = unrolled_and_entries(truncated(cell), plain)
    sums = LagSums((range(T),), cell)
    fold(unrolled, entries, [sums])
    for name, lag in sums.result().items():
        carousel = flow.by_crossing(name).parts()[0].sum(0)
        torch.testing.assert_close(carousel, lag.parts()[0], **EXACT)


def test_classes_that_differ_by_thousands_of_binary_orders():
    """A scalar gated net: crossing 0 falls by 2^-8 a step, the rest stays near 1; both are kept."""
    steps = 400
    bias = torch.tensor([20.0, -8 * torch.log(torch.tensor(2.0)).item(), 0.0])
    recurrent = torch.tensor([[0.0], [0.0], [1.0]])
    cell = GRU(torch.zeros(3, 1), recurrent, torch.zeros(3), bias)
    recorded = retrograde.record_cell(
        cell, torch.zeros(steps, 1, 1), lambda h, s: h[-1].sum(), torch.zeros(1, 1)
    )
    split = retrograde.decompose(recorded).by_crossing("bias_ih", bins="every")
    z = torch.sigmoid(bias[1].double())
    r = torch.sigmoid(bias[0].double())
    lags = torch.arange(steps, dtype=torch.float64)
    # h stays 0, so that only a_n has a derivative: (1 - z) times z^lag, and the rest in between.
    carousel = torch.log2(1 - z) + lags * torch.log2(z)
    # float32: z and 1 - z are off by 2^-24 of themselves, and 400 powers of z by 400 times that
    torch.testing.assert_close(split.log2[0], carousel, atol=2e-4, rtol=0)
    assert float(split.log2[0, -1]) < -3000
    whole = torch.log2(1 - z) + lags[-1] * torch.log2(z + (1 - z) * r)
    assert float(split.log2[-1, -1]) == pytest.approx(float(whole), abs=2e-4)


def test_blocks_of_rows_keep_routes_and_crossings_exact():
    cell = FAMILY["lstm-2002"]()
    plain = plain_pass(cell, steps=12)
    flow = flow_of(cell, plain, max_rows=4)
    assert flow.entries.resolution == 3
    for split in (flow.by_route(), flow.by_crossing(max_crossings=2)):
        torch.testing.assert_close(split.parts().sum(0), flow.by_lag().parts(), **EXACT)


def test_losses_at_few_steps():
    """Steps without an entry of their own, and an entry only at the last step."""
    cell = LSTM_()
    plain = plain_pass(cell, steps=7)
    for kept in ((6,), (2, 5)):
        direct = torch.zeros_like(plain.direct)
        direct[list(kept)] = plain.direct[list(kept)]
        some = type(plain)(plain.x, plain.states, plain.weights, direct)
        flow = flow_of(cell, some)
        for bins, split in itertools.product(
            ("octaves", (0, 3)), (flow.by_route, flow.by_crossing)
        ):
            parts = split(bins=bins).parts()
            torch.testing.assert_close(parts.sum(0), flow.by_lag(bins=bins).parts(), **EXACT)


def test_a_recorded_cell_with_cut_routes_is_compared_with_autograd():
    """Only what `without` cut has no gradient of autograd's to be compared with."""
    recorded = retrograde.record_cell(
        truncated(LSTM_()), torch.ones(4, 1, 2, dtype=torch.float64), lambda h, s: h.sum()
    )
    with pytest.warns(retrograde.VoidDecompositionWarning):  # the full gradient is another
        residual = retrograde.decompose(recorded).residual
    assert residual > 1e-3 and not residual.ok
    flow = flow_of(LSTM_(), plain_pass(LSTM_()))
    assert flow.without(*flow.unrolled.cell.recurrent_routes).residual < 1e-12


def test_refusals():
    flow = flow_of(LSTM_(), plain_pass(LSTM_()))
    known = "recurrent.input, recurrent.forget, recurrent.cell, recurrent.output, carousel, readout"
    with pytest.raises(
        ArgumentError, match=rf"no route 'peephole.input' in this cell; it .*{known}"
    ):
        flow.without("peephole.input")
    for bad in (0, -1, True):
        with pytest.raises(ArgumentError, match="max_crossings must be a positive integer; got"):
            flow.by_crossing(max_crossings=bad)
    with unchecked(), pytest.raises(ArgumentError, match="a positive integer; got 2.5"):
        flow.by_crossing(max_crossings=2.5)
    with pytest.raises(ArgumentError, match="no parameter 'weight_ch' in 'test'; it has weight_ih"):
        flow.by_route("weight_ch")
    two = flow_of(stack(LSTM_, LSTM_)(), plain_pass(stack(LSTM_, LSTM_)()))
    assert "carousel_l1" not in two.without("carousel_l1").routes
    with pytest.raises(ArgumentError, match="carousel_l0, recurrent.input_l1"):
        two.without("carousel")


def test_elman_has_one_route_and_n_crossings():
    """A scalar linear recurrence crosses its weight once a step: lag n lies in crossing n."""
    cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
    recorded = retrograde.record_cell(cell, torch.ones(6, 1, 1), lambda h, s: s.sum())
    split = retrograde.decompose(recorded).by_crossing("weight_ih", max_crossings=3, bins="every")
    expected = torch.zeros(4, 6)
    for lag in range(6):
        expected[min(lag, 3), lag] = 0.5**lag
    torch.testing.assert_close(split.parts().flatten(1), expected)
