"""The networks of 1997 and 2000: weight counts as printed, equations and gradients by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import retrograde
from retrograde.errors import ArgumentError
from retrograde.tasks.blocks import DECLARATIONS, BlockNetwork, Blocks
from retrograde.tasks.experiments import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("unchecked")

REBER = {"biased": "gates", "spread": 0.2}
ONE_CELL = {
    "output_gates": False,
    "seen": "nothing",
    "skip": True,
    "cell_input": "[0, 1]",
    "cell_output": "identity",
}
GERS = {"forget_gates": True, "seen": "cells", "skip": True, "biased": "gates and outputs"}
PRINTED = {  # Hochreiter and Schmidhuber (1997), tables 1 to 9; Gers et al. (2000)
    "1, 4 blocks": (264, Blocks(7, 7, 4, 1, **REBER)),
    "1, 3 blocks": (276, Blocks(7, 7, 3, 2, **REBER)),
    "2a": (10_504, Blocks(101, 101, 1, 1, **ONE_CELL)),
    "2c, p=50": (364, Blocks(54, 2, 2)),
    "2c, p=1000": (6064, Blocks(1004, 2, 2)),
    "3": (102, Blocks(1, 1, 3, biased="hidden")),
    "4 and 5": (93, Blocks(2, 1, 2, 2, biased="all")),
    "6a": (156, Blocks(8, 4, 2, 2, biased="all")),
    "6b": (308, Blocks(8, 8, 3, 2, biased="all")),
    "Gers 2000": (424, Blocks(7, 7, 4, 2, **GERS)),
    "Gers 2002": (
        17,
        Blocks(1, 1, 1, forget_gates=True, seen="cells", biased="all", peepholes=True),
    ),
}


@pytest.mark.parametrize("printed, plan", PRINTED.values(), ids=PRINTED)
def test_weights_are_as_many_as_printed(printed: int, plan: Blocks):
    network = BlockNetwork(plan, plan.draw(torch.Generator().manual_seed(0)))
    assert plan.weights == printed == sum(weight.numel() for weight in network.parameters())


def test_biases_of_gates_begin_where_they_are_told():
    plan = Blocks(2, 1, 2, 3, biased="all", input_biases=(-3.0, -6.0), spread=0.1)
    drawn = plan.draw(torch.Generator().manual_seed(1))
    assert drawn["bias_gates"][:2].tolist() == [-3, -6]
    rest = torch.cat([value.flatten() for name, value in drawn.items() if name != "bias_gates"])
    assert float(rest.abs().max()) <= 0.1 and float(rest.std()) == pytest.approx(0.058, abs=0.012)
    assert float(drawn["bias_gates"][2:].abs().max()) <= 0.1


PLANS = {
    "1997": Blocks(3, 2, 2, 3, biased="all", spread=0.9),
    "2000": Blocks(3, 2, 2, 3, spread=0.9, **GERS),
    "2a": Blocks(3, 2, 2, 1, spread=0.9, **ONE_CELL),
    "linear": Blocks(3, 2, 2, 2, biased="all", spread=0.9, output="identity"),
    "2002": Blocks(
        3, 2, 2, forget_gates=True, seen="cells", biased="all", spread=0.9, peepholes=True
    ),
}


def outputs_by_hand(weights: dict[str, Tensor], x: Tensor, plan: Blocks) -> Tensor:
    """The papers' equations, unit by unit, with the logistic function alone."""
    f = torch.sigmoid
    g = f if plan.cell_input == "[0, 1]" else lambda net: 4 * f(net) - 2
    h = (lambda s: s) if plan.cell_output == "identity" else lambda s: 2 * f(s) - 1
    zero = torch.zeros(1, dtype=x.dtype)
    cells = [zero[0]] * plan.cells
    fed_back, outputs = [zero[0]] * plan.fed_back, []
    for x_k in x:

        def net(
            row: int, part: str, unit: int, x_k: Tensor = x_k, seen: list[Tensor] = fed_back
        ) -> Tensor:
            total = weights["weight_ih"][row] @ x_k
            for u, y_u in enumerate(seen):
                total = total + weights["weight_hh"][row, u] * y_u
            return total + (weights[f"bias_{part}"][unit] if f"bias_{part}" in weights else 0.0)

        nets = [net(plan.cells + row, "gates", row) for row in range(plan.blocks * len(plan.gates))]
        if plan.peepholes:  # of input and forget gates
            for row in range(2 * plan.blocks):
                nets[row] = nets[row] + weights["weight_ch"][row] * cells[row % plan.blocks]
        gates = [f(net_g) for net_g in nets]
        y, new = [], []
        for cell in range(plan.cells):
            block = cell // plan.size
            gate = {name: gates[n * plan.blocks + block] for n, name in enumerate(plan.gates)}
            entering = gate["input"] * g(net(cell, "cells", cell))
            new.append(gate.get("forget", 1.0) * cells[cell] + entering)
            if plan.peepholes:  # the output gate sees the new state
                row = 2 * plan.blocks + block
                gate["output"] = f(nets[row] + weights["weight_ch"][row] * new[-1])
            y.append(gate.get("output", 1.0) * h(new[-1]))
        cells = new
        fed_back = (y + gates if plan.seen == "all" else y)[: plan.fed_back]
        net_k = weights["weight_ho"] @ torch.stack(y) + weights.get("bias_o", 0.0)
        if plan.skip:
            net_k = net_k + weights["weight_io"] @ x_k
        outputs.append(net_k if plan.output == "identity" else f(net_k))
    return torch.stack(outputs)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_outputs_and_gradients_are_those_of_the_papers_equations(plan: Blocks):
    network = BlockNetwork(plan, plan.draw(torch.Generator().manual_seed(2))).double()
    weights = {name.rpartition(".")[2]: weight for name, weight in network.named_parameters()}
    x = torch.randn(5, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    by_hand = outputs_by_hand(weights, x[:, 0], plan)
    output = network(x)
    torch.testing.assert_close(output[:, 0], by_hand, rtol=1e-13, atol=1e-14)
    theirs = torch.autograd.grad(by_hand.square().sum(), list(weights.values()))
    ours = torch.autograd.grad(output.square().sum(), list(weights.values()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_truncated_gradient_is_that_of_1997():
    """Their forward recursion for the derivatives of each state, equations 25 to 28."""
    plan = PLANS["1997"]
    network = BlockNetwork(
        plan, plan.draw(torch.Generator().manual_seed(4)), truncated=True
    ).double()
    weights = {name.rpartition(".")[2]: value for name, value in network.named_parameters()}
    x = torch.randn(6, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    target = torch.tensor([0.3, 0.8], dtype=torch.float64)
    (0.5 * (network(x)[-1, 0] - target).square().sum()).backward()

    f, size, blocks, cells = torch.sigmoid, plan.size, plan.blocks, plan.cells
    with torch.no_grad():
        state, fed_back = torch.zeros(cells).double(), torch.zeros(plan.fed_back).double()
        units = cells + blocks  # the cells' inputs, and the input gates
        into = torch.zeros(cells, units, 3 + plan.fed_back + 1).double()  # d s_j / d w
        for x_k in x[:, 0]:
            y_m = torch.cat((x_k, fed_back, torch.ones(1).double()))
            rows = torch.cat((weights["weight_ih"], weights["weight_hh"]), 1)
            biases = torch.cat((weights["bias_cells"], weights["bias_gates"]))
            net = torch.cat((rows, biases.unsqueeze(1)), 1) @ y_m
            g = 4 * f(net[:cells]) - 2
            gates = f(net[cells:])
            for cell in range(cells):
                block = cell // size
                y_in = gates[block]
                into[cell, cell] += y_in * (4 * f(net[cell]) * (1 - f(net[cell]))) * y_m
                into[cell, cells + block] += g[cell] * y_in * (1 - y_in) * y_m
                state[cell] += y_in * g[cell]
            y_out = gates[blocks:].repeat_interleave(size)
            h = 2 * f(state) - 1
            y_c = y_out * h
            fed_back = torch.cat((y_c, gates))
        output = f(weights["weight_ho"] @ y_c + weights["bias_o"])
        error = (output - target) * output * (1 - output)
        back = weights["weight_ho"].T @ error
        e_s = back * y_out * 2 * f(state) * (1 - f(state))
        expected = torch.einsum("j,jum->um", e_s, into)
        e_out = (back * h).view(blocks, size).sum(1) * gates[blocks:] * (1 - gates[blocks:])
    rows = torch.cat((network.hidden.weight_ih.grad, network.hidden.weight_hh.grad), 1)
    torch.testing.assert_close(rows[:units], expected[:, :-1], rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(rows[units:], torch.outer(e_out, y_m_before(network, x)))
    torch.testing.assert_close(network.weight_ho.grad, torch.outer(error, y_c))


def y_m_before(network: BlockNetwork, x: Tensor) -> Tensor:
    """What the hidden units saw at the last step."""
    plan, hidden = network.plan, dict(network.hidden.named_parameters())
    state = {"c": x.new_zeros(1, plan.cells), "y": x.new_zeros(1, plan.fed_back)}
    for x_k in x[:-1]:
        state = plan.step(hidden, x_k, state)
        state.pop("h")
    return torch.cat((x[-1, 0], state["y"][0])).detach()


def test_both_gradients_are_taken_apart():
    plan, crossed = PLANS["1997"], {}
    for truncated in (False, True):
        network = BlockNetwork(
            plan, plan.draw(torch.Generator().manual_seed(6)), truncated
        ).double()
        with retrograde.record(network, cells=DECLARATIONS) as recording:
            network(torch.ones(9, 2, 3).double())[-1].sum().backward()
        flow = retrograde.decompose(recording)
        assert flow.residual < 1e-13 and flow.steps == 9
        crossed[truncated] = flow.by_crossing().share[1:].abs().max()
    assert float(crossed[False]) > 0.01 and float(crossed[True]) == 0


def test_plans_are_checked():
    for wrong, name in (
        ({"blocks": 0}, "blocks"),
        ({"seen": "gates"}, "seen"),
        ({"biased": "cells"}, "biased"),
        ({"cell_input": "[-3, 3]"}, "cell_input"),
        ({"input_biases": (-1.0, -2.0)}, "input_biases"),  # no gate has a bias
        ({"biased": "all", "input_biases": (-1.0,)}, "input_biases"),
        ({"biased": "all", "forget_biases": (1.0, 1.0)}, "forget_biases"),
    ):
        with pytest.raises(ArgumentError, match=name):
            Blocks(**{"inputs": 2, "outputs": 1, "blocks": 2, **wrong})


READINGS: dict[str, dict[str, object]] = {
    "direct": {
        "skip": True,
        "biased": "gates and outputs",
        "input_biases": (-0.5, -1.0, -1.5),
    },
    "unfed": {"seen": "nothing"},
    "linear": {"output": "identity"},
}


def test_every_published_row_has_its_network():
    assert len(EXPERIMENTS) == 5 + 3 + 2 + 2 * 9 + 8 + 2 * (3 + 2) + 2 + 4
    for row in EXPERIMENTS.values():
        if row.reading:
            printed = EXPERIMENTS[row.name.rpartition("-")[0]]
            network = replace(printed.network, **READINGS[row.name.rpartition("-")[2]])
            assert row == replace(printed, name=row.name, network=network, reading=row.reading)
            continue
        assert row.network.weights == row.published.weights, row.name
        assert (row.network.inputs, row.network.outputs) == (row.task.inputs, row.task.outputs)
    assert EXPERIMENTS["6b"].network.input_biases == (-2, -4, -6)
    first = EXPERIMENTS["1-4x1-0.1"].network
    assert first.output_biases == (-1, -2, -3, -4) and first.spread == 0.2
