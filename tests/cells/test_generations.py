"""The LSTM family against its papers, written down a second time and differentiated by hand."""

import pytest
import torch
from torch import nn

from retrograde.cells import GRU2014, LSTM, generations, pull_back, truncated
from retrograde.cells.generations import TABLE
from retrograde.decomposition.by_lag import LagSums
from retrograde.engine import fold, unroll
from retrograde.errors import ArgumentError
from support.conformance import EXACT, plain_pass, unrolled_and_entries
from support.papers import by_gate, reference_step
from support.problems import FAMILY, GRU2014_, INPUTS, B, H, T

PAPER = {"atol": 1e-10, "rtol": 1e-10}


def drawn(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Greff:
    """Sections II-A and II-B of Greff et al. (2017), line by line, for the vanilla LSTM.

    Samples are columns here, gates are called z, i, f, o as there, and nothing is shared with the
    package but the numbers in the weights.
    """

    def __init__(self, cell):
        order = ("i", "f", "z", "o")  # torch's, in which the package keeps them
        self.W = dict(zip(order, cell.weight_ih.chunk(4), strict=True))
        self.R = dict(zip(order, cell.weight_hh.chunk(4), strict=True))
        bias = (cell.bias_ih + cell.bias_hh).chunk(4)
        self.b = {gate: b[:, None] for gate, b in zip(order, bias, strict=True)}
        peepholes = cell.weight_ch.chunk(3)
        self.p = {gate: p[:, None] for gate, p in zip("ifo", peepholes, strict=True)}

    def forward(self, x, y, c):
        W, R, p, b = self.W, self.R, self.p, self.b
        steps = [{"y": y, "c": c}]  # steps[t + 1] is time t
        for x_t in x:
            y, c = steps[-1]["y"], steps[-1]["c"]
            z = torch.tanh(W["z"] @ x_t + R["z"] @ y + b["z"])
            i = torch.sigmoid(W["i"] @ x_t + R["i"] @ y + p["i"] * c + b["i"])
            f = torch.sigmoid(W["f"] @ x_t + R["f"] @ y + p["f"] * c + b["f"])
            new_c = z * i + c * f
            o = torch.sigmoid(W["o"] @ x_t + R["o"] @ y + p["o"] * new_c + b["o"])
            new_y = torch.tanh(new_c) * o
            steps.append({"x": x_t, "z": z, "i": i, "f": f, "o": o, "c": new_c, "y": new_y})
        return steps

    def backward(self, steps, Delta, Delta_c):
        """Deltas of section II-B; `Delta_c` enters the last cell state."""
        R, p = self.R, self.p
        zero = torch.zeros_like(steps[0]["y"])
        later = {name: zero for name in ("z", "i", "f", "o", "c", "f_gate")}
        deltas = []
        for t in reversed(range(len(Delta))):
            s, c_before = steps[t + 1], steps[t]["c"]
            h = torch.tanh(s["c"])
            dy = Delta[t] + sum(R[gate].T @ later[gate] for gate in "zifo")
            do = dy * h * s["o"] * (1 - s["o"])
            dc = dy * s["o"] * (1 - h**2) + p["o"] * do + p["i"] * later["i"]
            dc = dc + p["f"] * later["f"] + later["c"] * later["f_gate"]
            if t == len(Delta) - 1:
                dc = dc + Delta_c
            df = dc * c_before * s["f"] * (1 - s["f"])
            di = dc * s["z"] * s["i"] * (1 - s["i"])
            dz = dc * s["i"] * (1 - s["z"] ** 2)
            later = {"z": dz, "i": di, "f": df, "o": do, "c": dc, "f_gate": s["f"]}
            deltas.insert(0, later)
        return deltas

    def gradients(self, steps, deltas):
        """The fifteen blocks, the t = 0 terms of a non-zero initial state included."""
        blocks = {}
        for gate in "zifo":
            pairs = [(d[gate], s, before) for d, s, before in zip(deltas, steps[1:], steps)]  # noqa: B905
            blocks["W" + gate] = sum(d @ s["x"].T for d, s, _ in pairs)
            blocks["R" + gate] = sum(d @ before["y"].T for d, _, before in pairs)
            blocks["b" + gate] = sum(d.sum(1) for d, _, _ in pairs)
        for gate in "if":
            before = zip(steps, deltas)  # noqa: B905
            blocks["p" + gate] = sum((s["c"] * d[gate]).sum(1) for s, d in before)
        now = zip(steps[1:], deltas, strict=True)
        blocks["po"] = sum((s["c"] * d["o"]).sum(1) for s, d in now)
        return blocks


def test_greffs_equations_hold_for_all_fifteen_blocks():
    cell = FAMILY["lstm-2002"]()
    paper = Greff(cell)
    x, state = drawn(T, B, INPUTS), drawn(B, 2 * H, seed=6)
    direct, direct_c = drawn(T, B, H, seed=7), drawn(B, H, seed=8)

    steps = paper.forward([x_t.T for x_t in x], state[:, :H].T, state[:, H:].T)
    deltas = paper.backward(steps, [d.T for d in direct], direct_c.T)
    blocks = paper.gradients(steps, deltas)
    assert len(blocks) == 15

    plain = plain_pass(cell)
    plain.x, plain.states[0] = list(x), state
    plain.direct = torch.cat((direct, torch.zeros_like(direct)), -1)
    plain.direct[-1, :, H:] = direct_c
    unrolled, entries = unrolled_and_entries(cell, plain)
    y = torch.stack([step["y"].T for step in steps])
    torch.testing.assert_close(unrolled.states[:, :, :H], y, **PAPER)
    sums = LagSums((range(T),), cell)
    fold(unrolled, entries, [sums])
    ours = {name: lag.parts()[0] for name, lag in sums.result().items()}
    for number, gate in enumerate(("i", "f", "z", "o")):
        rows = slice(number * H, (number + 1) * H)
        torch.testing.assert_close(ours["weight_ih"][rows], blocks["W" + gate], **PAPER)
        torch.testing.assert_close(ours["weight_hh"][rows], blocks["R" + gate], **PAPER)
        torch.testing.assert_close(ours["bias_ih"][rows], blocks["b" + gate], **PAPER)
    for number, gate in enumerate("ifo"):
        rows = slice(number * H, (number + 1) * H)
        torch.testing.assert_close(ours["weight_ch"][rows], blocks["p" + gate], **PAPER)


def test_the_jacobian_splits_into_carousel_and_crossings():
    """J = A + R for s = [c; y]: K_cc, K_cy and their images in y, one gate at a time."""
    cell = FAMILY["lstm-2002"]()
    x, state = drawn(INPUTS), drawn(2 * H, seed=6)
    y, c = state[:H], state[H:]
    W, R = cell.weight_ih.chunk(4), cell.weight_hh.chunk(4)
    b = (cell.bias_ih + cell.bias_hh).chunk(4)
    p_i, p_f, p_o = cell.weight_ch.chunk(3)
    a = [W[g] @ x + R[g] @ y + b[g] for g in range(4)]
    i, f, z = torch.sigmoid(a[0] + p_i * c), torch.sigmoid(a[1] + p_f * c), torch.tanh(a[2])
    new_c = f * c + i * z
    o, h = torch.sigmoid(a[3] + p_o * new_c), torch.tanh(new_c)
    slope = {"i": i * (1 - i), "f": f * (1 - f), "o": o * (1 - o)}
    D = torch.diag(o * (1 - h**2) + h * slope["o"] * p_o)
    into_c = {  # d c_k / d (c, y)_{k-1}, route by route
        "carousel": (torch.diag(f), None),
        "peephole.input": (torch.diag(z * slope["i"] * p_i), None),
        "peephole.forget": (torch.diag(c * slope["f"] * p_f), None),
        "recurrent.input": (None, torch.diag(z * slope["i"]) @ R[0]),
        "recurrent.forget": (None, torch.diag(c * slope["f"]) @ R[1]),
        "recurrent.cell": (None, torch.diag(i * (1 - z**2)) @ R[2]),
    }
    zero = torch.zeros(H, H, dtype=torch.float64)
    expected = {"recurrent.output": torch.zeros(2 * H, 2 * H, dtype=torch.float64)}
    expected["recurrent.output"][:H, :H] = torch.diag(h * slope["o"]) @ R[3]
    for route, (from_c, from_y) in into_c.items():
        from_c, from_y = (zero if part is None else part for part in (from_c, from_y))
        rows = torch.cat((from_y, from_c), 1)  # the package orders the state h, c
        expected[route] = torch.cat((D @ rows, rows))

    eye = torch.eye(2 * H, dtype=torch.float64).unsqueeze(1)
    graph = cell.linearise(cell.step(x.unsqueeze(0), state.unsqueeze(0)))
    routes = pull_back(graph, eye).by_route()
    assert set(routes) == set(expected)
    for route, rows in routes.items():
        torch.testing.assert_close(rows[:, 0], expected[route], **PAPER)


@pytest.mark.parametrize("row", [row.name for row in TABLE])
def test_every_generation_computes_what_its_paper_says(row):
    cell = FAMILY[row]()
    w = by_gate(cell)
    x, state = drawn(T, B, INPUTS), drawn(B, cell.state_size, seed=6)
    ours = unroll(cell, x, state).states
    for k in range(T):
        state = reference_step(row, w, x[k], state[:, :H], state[:, H : 2 * H], state[:, 2 * H :])
        torch.testing.assert_close(ours[k + 1], state, **EXACT)


def test_the_gru_of_2014_resets_before_the_product():
    cell = GRU2014_()
    (W_r, W_z, W_n), (R_r, R_z, R_n) = cell.weight_ih.chunk(3), cell.weight_hh.chunk(3)
    b_r, b_z, b_n = (cell.bias_ih + cell.bias_hh).chunk(3)
    x, h = drawn(B, INPUTS), drawn(B, H, seed=6)
    r = torch.sigmoid(x @ W_r.T + h @ R_r.T + b_r)
    z = torch.sigmoid(x @ W_z.T + h @ R_z.T + b_z)
    n = torch.tanh(x @ W_n.T + (r * h) @ R_n.T + b_n)
    torch.testing.assert_close(cell.step(x, h).state, z * h + (1 - z) * n, **EXACT)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_parameter_counts(row):
    gates = {"cec": 1, "lstm-1997": 3, "nig": 3, "nfg": 3, "nog": 3, "cifg": 3}.get(row.name, 4)
    peepholes = {"nig": 2, "nfg": 2, "nog": 2, "cifg": 2}.get(row.name, 3)
    peepholes *= row.name not in ("cec", "lstm-1997", "lstm-2000", "np")
    count = gates * (H * INPUTS + H * H + 2 * H) + peepholes * H + 9 * H * H * (row.name == "fgr")
    assert row.parameter_count(INPUTS, H) == count
    assert row.parameter_count(INPUTS, H, bias=False) == count - gates * 2 * H
    assert sum(weight.numel() for weight in FAMILY[row.name]().parameters.values()) == count


def test_the_generation_of_2000_has_as_many_parameters_as_torchs_lstm():
    for bias in (True, False):
        module = nn.LSTM(INPUTS, H, bias=bias)
        count = sum(weight.numel() for weight in module.parameters())
        assert generations["lstm-2000"].parameter_count(INPUTS, H, bias) == count


def truncated_gradient_of_1997(cell, x, direct):
    """Appendix A.1 of Hochreiter and Schmidhuber (1997), forward in time.

    Only ds(t)/ds(t-1) = 1 is kept: the partial derivatives of a cell's state with respect to the
    weights of its input gate and of its input grow by one term a step (eqs. 25-28), and the error
    of the cell state meets them at the time when it is made.
    """
    u_size = INPUTS + H + 1
    W = torch.cat((cell.weight_ih, cell.weight_hh, (cell.bias_ih + cell.bias_hh)[:, None]), 1)
    w_in, w_c, w_out = W.chunk(3)

    def sigma(v):
        return 1 / (1 + torch.exp(-v))

    total = torch.zeros_like(W)
    for b in range(B):
        s = torch.zeros(H, dtype=torch.float64)
        y = torch.zeros(H, dtype=torch.float64)
        ds_in = torch.zeros(H, u_size, dtype=torch.float64)
        ds_c = torch.zeros(H, u_size, dtype=torch.float64)
        for t in range(len(x)):
            u = torch.cat((x[t, b], y, torch.ones(1, dtype=torch.float64)))
            y_in, y_out, net_c = sigma(w_in @ u), sigma(w_out @ u), w_c @ u
            g, g_prime = 4 * sigma(net_c) - 2, 4 * sigma(net_c) * (1 - sigma(net_c))
            ds_in += (g * y_in * (1 - y_in))[:, None] * u
            ds_c += (g_prime * y_in)[:, None] * u
            s = s + y_in * g
            h, h_prime = 2 * sigma(s) - 1, 2 * sigma(s) * (1 - sigma(s))
            e = direct[t, b]
            e_s = (y_out * h_prime * e)[:, None]
            d_out = (h * y_out * (1 - y_out) * e)[:, None] * u
            total += torch.cat((e_s * ds_in, e_s * ds_c, d_out))
            y = y_out * h
    return total.split((INPUTS, H, 1), 1)


def test_the_truncated_backward_pass_of_1997():
    cell = FAMILY["lstm-1997"]()
    plain = plain_pass(cell)
    plain.states[0] = torch.zeros_like(plain.states[0])
    plain.direct[..., H:] = 0  # the loss sees h alone
    unrolled, entries = unrolled_and_entries(truncated(cell), plain)
    sums = LagSums((range(T),), cell)
    fold(unrolled, entries, [sums])
    x = torch.stack(plain.x).detach()
    by_ih, by_hh, by_bias = truncated_gradient_of_1997(cell, x, plain.direct[..., :H])
    ours = {name: lag.parts()[0] for name, lag in sums.result().items()}
    torch.testing.assert_close(ours["weight_ih"], by_ih, **EXACT)
    torch.testing.assert_close(ours["weight_hh"], by_hh, **EXACT)
    torch.testing.assert_close(ours["bias_ih"], by_bias.squeeze(1), **EXACT)


def test_refusals():
    with pytest.raises(ArgumentError, match=r"no LSTM generation 'lstm-2001'.*there are: cec \(ca"):
        LSTM(torch.zeros(8, 3), torch.zeros(8, 2), generation="lstm-2001")
    with pytest.raises(ArgumentError, match=r"weight_ch is missing, expected shape \(6,\)"):
        LSTM(torch.zeros(8, 3), torch.zeros(8, 2), generation="peephole")
    with pytest.raises(ArgumentError, match=r"weight_ih has shape \(8, 3\), expected \(6, 3\)"):
        LSTM(torch.zeros(8, 3), torch.zeros(6, 2), generation="lstm-1997")
    with pytest.raises(ArgumentError, match=r"does not have: weight_ch"):
        LSTM(torch.zeros(8, 3), torch.zeros(8, 2), weight_ch=torch.zeros(6))
    with pytest.raises(ArgumentError, match="GRU2014 with H=2"):
        GRU2014(torch.zeros(6, 3), torch.zeros(6, 2), torch.zeros(5))
