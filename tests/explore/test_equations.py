"""The equations that the lecture typesets, evaluated as they are written."""

import re

import pytest
import torch

from retrograde.cells import pull_back
from retrograde.cells.generations import generations
from retrograde.explore import equations
from retrograde.explore.lesson import GENERATIONS, Setting, cell_of

AS_CODE = [  # what is written, and what Python is to read; the longer ones first
    (r"R_(\w)\^\{\\top\}", r"back_\1*"),
    (r"R\^\{\\top\}", r"back_a*"),
    (r"\\hat\\delta\^(\w)_k", r"within"),
    (r"\\delta\^(\w)_k", r"d\1"),
    (r"\\phi'\(c_k\)", "phi_slope"),
    (r"\\phi\(c_k\)", "phi"),
    (r"(\w)_\{k-1\}", r"\1_before"),
    (r"h_k\^2", "h * h"),
    (r"(\w)'", r"\1_slope"),
    (r"\\odot", "*"),
]
LETTERS = {
    **{"input": "i", "forget": "f", "cell": "g", "output": "o", "squashed": "phi"},
    **{"reset": "r", "update": "z", "candidate": "n", "inner": "q", "hidden": "a"},
}


def value_of(tex, names):
    for written, meant in AS_CODE:
        tex = re.sub(written, meant, tex)
    return eval(tex, {"__builtins__": {}}, names)


class Back:
    """R^T of a gate: what multiplies an adjoint of its pre-activations from the left."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __mul__(self, adjoint):
        return adjoint @ self.matrix


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_the_equation_as_it_is_written_gives_each_route_its_part(generation):
    cell = cell_of(Setting(generation, steps=2, hidden=3, recurrent_scale=2.0))
    torch.manual_seed(0)
    x, before, delta = (torch.randn(1, n).double() for n in (4, cell.state_size, cell.state_size))
    step = cell.step(x, before)
    parts = pull_back(cell.linearise(step), delta.unsqueeze(0)).by_route()

    names = {LETTERS[name]: value for name, value in step.activations.items()}
    kinds = {gate.name: gate.activation for gate in cell.activations}
    names |= {
        LETTERS[name] + "_slope": kind.derivative(step.activations[name])
        for name, kind in kinds.items()
        if kind is not None and name in step.activations
    }
    blocks = cell.parameters["weight_hh"].chunk(len(cell.gates))
    for gate, block in zip(cell.gates, blocks, strict=True):
        names["back_" + LETTERS[gate.name]] = Back(block)
    for slot, place in cell.slots.items():
        names |= {f"d{slot}": delta[:, place], f"{slot}_before": before[:, place]}
        names[slot] = step.state[:, place]
    if "weight_ch" in cell.parameters:
        gates = generations[generation].peephole_gates
        for gate, p in zip(gates, cell.parameters["weight_ch"].chunk(len(gates)), strict=True):
            names["p_" + LETTERS[gate]] = p
    if generation in equations.WITHIN:
        names["within"] = value_of(equations.WITHIN[generation].partition("&=")[2].strip(), names)
    assert set(parts) <= set(equations.TERMS[generation])
    for route, part in parts.items():
        slot, term = equations.TERMS[generation][route]
        expected = torch.zeros_like(delta)
        expected[:, cell.slots[slot]] = value_of(term, names)
        torch.testing.assert_close(part.squeeze(0), expected)
