"""What every cell is held to. Each check is a function of a cell and raises if the cell is wrong.

The oracles know nothing of graphs: autograd on a plain loop over `step`, forward-mode
differentiation, finite differences. That `step` itself is right is torch.nn's business
(cells/test_cells.py) and, for cells that torch lacks, that of closed forms
(engine/test_engine.py).
"""

from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

import retrograde
from retrograde.cells import AbstractCell, pull_back
from retrograde.cells.plan import Plan
from retrograde.cells.program import FEW_ROWS
from retrograde.decomposition.by_lag import LagSums
from retrograde.engine import Entries, adjoint, backpropagate, fold, gradients, unroll
from retrograde.recording import Recorded
from support.problems import B, T

EXACT = {"atol": 1e-12, "rtol": 1e-12}  # float64 sums of a few dozen products


@dataclass
class Pass:
    """A plain loop with its own copy of the weights at every step, differentiated by autograd."""

    x: list[Tensor]
    states: list[Tensor]
    weights: list[dict[str, Tensor]]
    direct: Tensor  # dL/ds_t from the loss alone, [T, B, S]

    def loss(self, steps=None) -> Tensor:
        steps = range(len(self.x)) if steps is None else steps
        return sum((self.direct[t] * self.states[t + 1]).sum() for t in steps)

    def grad(self, wanted: list[Tensor], steps=None) -> list[Tensor]:
        return torch.autograd.grad(
            self.loss(steps), wanted, retain_graph=True, materialize_grads=True
        )


def plain_pass(cell: AbstractCell, seed: int = 3, steps: int = T) -> Pass:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = [draw(B, cell.input_size).requires_grad_() for _ in range(steps)]
    states = [draw(B, cell.state_size).requires_grad_()]
    weights = []
    for x_k in x:
        weights.append({n: w.clone().requires_grad_() for n, w in cell.parameters.items()})
        states.append(cell.with_parameters(weights[-1]).step(x_k, states[-1]).state)
    direct = torch.zeros(steps, B, cell.state_size, dtype=torch.float64)
    direct[:, :, cell.output] = draw(steps, B, cell.output_size)
    direct[-1] += draw(B, cell.state_size)  # and through h_n, c_n of every layer
    return Pass(x, states, weights, direct)


def unrolled_and_entries(cell: AbstractCell, plain: Pass, max_rows: int | None = None):
    x = torch.stack(plain.x).detach()
    entries = Entries.of(plain.direct, max_rows)
    return unroll(cell, x, plain.states[0].detach()), entries


def total_gradient(unrolled, entries) -> dict[str, Tensor]:
    sums = LagSums((range(0, len(unrolled)),), unrolled.cell)
    fold(unrolled, entries, [sums])
    return {name: lag.parts()[0] for name, lag in sums.result().items()}


def check_states_equal_the_loop(cell: AbstractCell) -> None:
    plain = plain_pass(cell)
    unrolled, _ = unrolled_and_entries(cell, plain)
    torch.testing.assert_close(unrolled.states, torch.stack(plain.states).detach(), **EXACT)


def check_parameter_gradients(cell: AbstractCell) -> None:
    """All steps pulled back at once, and two at a time."""
    plain = plain_pass(cell)
    at_once = total_gradient(*unrolled_and_entries(cell, plain))
    few = 2 * B * cell.state_size
    with patch.object(adjoint, "GATHERED", few), patch.object(gradients, "SUMMED", few):
        by_two = total_gradient(*unrolled_and_entries(cell, plain))
    for name in cell.parameters:
        theirs = sum(plain.grad([weights[name] for weights in plain.weights]))
        torch.testing.assert_close(at_once[name], theirs, **EXACT)
        torch.testing.assert_close(by_two[name], theirs, **EXACT)


def check_state_and_input_adjoints(cell: AbstractCell) -> None:
    plain = plain_pass(cell)
    unrolled, entries = unrolled_and_entries(cell, plain)
    wanted = plain.states[1:]
    for step in backpropagate(unrolled, entries):
        rows = step.delta.plain()
        for row in range(len(rows)):
            t = T - 1 - row
            by_state, by_x = plain.grad([wanted[step.k], plain.x[step.k]], steps=[t])
            torch.testing.assert_close(rows[row], by_state, **EXACT)
            scale = 2.0 ** float(step.delta.exponent[row])
            torch.testing.assert_close(step.adjoint.input()[row] * scale, by_x, **EXACT)
    initial = step.adjoint.previous() * torch.exp2(step.delta.exponent.double()).view(-1, 1, 1)
    torch.testing.assert_close(initial.sum(0), plain.grad([plain.states[0]])[0], **EXACT)


def check_step_against_differences(cell: AbstractCell) -> None:
    """Central differences of the step approach <J^T w, v> with slope 2 over three step sizes."""
    plain = plain_pass(cell)
    x, state = plain.x[1].detach(), plain.states[1].detach()
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(state.shape, generator=generator, dtype=torch.float64)
    w = torch.randn(state.shape, generator=generator, dtype=torch.float64)
    pulled = pull_back(cell.linearise(cell.step(x, state)), w.unsqueeze(0)).previous()[0]
    exact = float((pulled * v).sum())
    sizes = torch.tensor([1e-1, 1e-2, 1e-3], dtype=torch.float64)

    def along(size):
        return (cell.step(x, state + size * v).state * w).sum()

    errors = torch.stack([(along(s) - along(-s)) / (2 * s) - exact for s in sizes]).abs()
    if float(errors.max()) < 1e-9:  # piecewise linear cells: exact at any step size
        return
    slope = torch.log10(errors[:-1] / errors[1:])
    assert float(slope.min()) > 1.8, f"differences do not converge to the pull-back: {errors}"


def check_transpose_and_routes(cell: AbstractCell) -> None:
    """<J v, w> = <v, J^T w>, and the routes, by the names the cell gives, sum to J^T w."""
    plain = plain_pass(cell)
    x, state = plain.x[2].detach(), plain.states[2].detach()
    eye = torch.eye(cell.state_size, dtype=torch.float64)
    rows = eye.unsqueeze(1).expand(-1, B, -1)
    pulled = pull_back(cell.linearise(cell.step(x, state)), rows)

    def state_of(s, x_k):
        return cell.step(x_k, s).state

    for b in range(B):
        by_s, by_x = torch.func.jacfwd(state_of, argnums=(0, 1))(state[b], x[b])
        torch.testing.assert_close(pulled.previous()[:, b], by_s, **EXACT)
        torch.testing.assert_close(pulled.input()[:, b], by_x, **EXACT)
    routes = pulled.by_route()
    assert tuple(routes) == cell.routes
    torch.testing.assert_close(sum(routes.values()), pulled.previous(), **EXACT)


def check_many_rows_equal_one_at_a_time(cell: AbstractCell) -> None:
    """Many rows go through each sample's Jacobian, few through the weights: the same adjoints."""
    plain = plain_pass(cell)
    graph = cell.linearise(cell.step(plain.x[2].detach(), plain.states[2].detach()))
    generator = torch.Generator().manual_seed(2)
    shape = (FEW_ROWS + 3, B, cell.state_size)
    delta = torch.randn(shape, generator=generator, dtype=torch.float64)
    many = pull_back(graph, delta)
    routes = many.by_route()
    for row in range(len(delta)):
        one = pull_back(graph, delta[row : row + 1])
        torch.testing.assert_close(many.previous()[row], one.previous()[0], **EXACT)
        torch.testing.assert_close(many.input()[row], one.input()[0], **EXACT)
        for route, part in one.by_route().items():
            torch.testing.assert_close(routes[route][row], part[0], **EXACT)
    # the Jacobians of many steps are formed together
    x, states = (torch.stack(each[1:3]).detach() for each in (plain.x, plain.states))
    back = Plan(cell.linearise(cell.step(x, states))).back
    (together,) = back.run(back.at(1), delta)
    torch.testing.assert_close(together, many.previous(), **EXACT)


def check_autograd_gradcheck(cell: AbstractCell) -> None:
    plain = plain_pass(cell)
    leaves = [plain.x[0].detach().requires_grad_(), plain.states[0].detach().requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, s: cell.step(x, s).state, leaves)


CHECKS = [
    check_states_equal_the_loop,
    check_parameter_gradients,
    check_state_and_input_adjoints,
    check_step_against_differences,
    check_transpose_and_routes,
    check_many_rows_equal_one_at_a_time,
    check_autograd_gradcheck,
]


def brute_force(plain, *names):
    """C[t,k] of each parameter for every pair, one autograd call an entry step."""
    copies = [weights[name] for name in names for weights in plain.weights]
    steps = len(plain.x)
    rows = [plain.grad(copies, steps=[t]) for t in range(steps)]
    return {
        name: torch.stack([torch.stack(row[n * steps : (n + 1) * steps]) for row in rows])
        for n, name in enumerate(names)
    }


def vectors(parts, keep):
    """Each part as one vector behind `keep` axes; that of a scalar parameter has length 1."""
    return parts.unsqueeze(-1).flatten(keep)


def flow_of(cell, plain, **options):
    gradients = {
        name: sum(plain.grad([weights[name] for weights in plain.weights]))
        for name in cell.parameters
    }
    x = torch.stack(plain.x).detach()
    initial = plain.states[0].detach()
    recorded = Recorded("test", cell, x, initial, plain.direct, gradients)
    return retrograde.decompose(recorded, **options)
