"""The walk of one adjoint against autograd on a plain loop, and what the drawing shows of it."""

import re
from xml.etree import ElementTree

import pytest
import torch

from retrograde.errors import ArgumentError
from retrograde.explore import equations, unrolled
from retrograde.explore.lesson import GENERATIONS, Setting, cell_of, recorded

T, H = 6, 3


def setting(generation, **more):
    return Setting(generation, steps=T, hidden=H, recurrent_scale=1.5, forget_bias=0.7, **more)


def by_autograd(one):
    """dL/ds_k of the last step's loss, and dL/dR if the weights were used at step k alone."""
    made = recorded(one)
    cell, x = made.cell, made.x
    uses = [cell.parameters["weight_hh"].clone().requires_grad_() for _ in range(T)]
    state, states = torch.zeros(1, cell.state_size, dtype=torch.float64), []
    for x_k, use in zip(x, uses, strict=True):
        step = cell.with_parameters({**cell.parameters, "weight_hh": use}).step
        state = step(x_k, state).state
        state.retain_grad()
        states.append(state)
    (made.direct[-1] * state).sum().backward()
    return [s.grad for s in states], [use.grad for use in uses]


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_the_adjoints_are_autograds_and_so_is_what_each_use_adds(generation):
    adjoints, uses = by_autograd(setting(generation))
    whole = sum(uses)
    stops = unrolled.walk(setting(generation))
    assert [stop.step for stop in stops] == list(reversed(range(T)))
    for stop in stops:
        adjoint = adjoints[stop.step]
        assert 2**stop.log2 == pytest.approx(float(adjoint.norm()), rel=1e-9)
        for name, slot in cell_of(setting(generation)).slots.items():
            assert 2 ** stop.slots[name] == pytest.approx(float(adjoint[:, slot].norm()), rel=1e-9)
        assert 2**stop.used == pytest.approx(float(uses[stop.step].norm()), rel=1e-9, abs=1e-300)
        so_far = (sum(uses[stop.step :]) * whole).sum() / whole.square().sum()
        assert stop.so_far == pytest.approx(float(so_far), rel=1e-9)


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_the_parts_by_route_make_up_the_adjoint(generation):
    first, *others = unrolled.walk(setting(generation))
    assert not first.routes
    for stop in others:
        assert tuple(stop.routes) == cell_of(setting(generation)).routes
        assert sum(part.share for part in stop.routes.values()) == pytest.approx(1)


def test_the_carousel_of_an_open_lstm_is_its_forget_gate():
    """With no recurrent weights the only route is c to c, and its factor is f = sigma(b)."""
    one = Setting(steps=4, hidden=1, recurrent_scale=0.0)
    stops = unrolled.walk(one)
    forget = recorded(one).cell.step(recorded(one).x, torch.zeros(4, 1, 2).double())
    f = forget.activations["forget"].flatten()
    for stop in stops[2:]:  # c alone, once the loss has come in by h
        before = stops[stop.lag - 1]
        assert 2 ** (stop.log2 - before.log2) == pytest.approx(float(f[stop.step + 1]))
        assert stop.routes["carousel"].share == pytest.approx(1)


def test_the_walk_does_not_depend_on_where_the_loss_of_the_setting_enters():
    one, other = setting("gru"), setting("gru", every_step=False)
    assert unrolled.walk(one) == unrolled.walk(other)


@pytest.mark.parametrize("generation", GENERATIONS.values())
@pytest.mark.parametrize("lag", [0, 2, T - 1])
def test_the_drawing_is_an_svg_with_what_has_been_walked_in_colour(generation, lag):
    one = setting(generation)
    svg = ElementTree.fromstring(unrolled.drawn(one, lag, columns=T))
    space = "{http://www.w3.org/2000/svg}"
    hue = equations.colours(generation)
    routes = cell_of(one).routes
    drawn = [
        (path.find(space + "title").text, path.get("stroke"))
        for path in svg.iter(space + "path")
        if path.find(space + "title") is not None
    ]
    lines = [line for line in drawn if line[0] != "readout"]
    assert len(lines) == (T - 1) * len(routes)
    stops = unrolled.walk(one)
    for route in routes:
        coloured = [stroke for name, stroke in lines if name == route and stroke != "currentColor"]
        assert coloured == [hue[route]] * sum(
            stop.routes[route].log2 > -torch.inf for stop in stops[1 : lag + 1]
        )
    words = "".join(svg.itertext())
    for slot in stops[lag].slots.values():
        assert (f"2{slot:.1f}" if slot > -torch.inf else "0") in words


def test_a_phone_sees_the_steps_around_the_adjoint():
    """Three columns that hold the adjoint and, where there is one, the step to come."""
    one = setting("lstm-2000")
    for lag in range(T):
        text = unrolled.drawn(one, lag, columns=3)
        steps = {int(k) for k in re.findall(r"<tspan[^>]*dy=\"4\">(\d+)<", text)}
        at = T - lag
        assert len(steps) == 3 and at in steps and (max(1, at - 1) in steps)


@pytest.mark.parametrize("lag, columns", [(-1, 3), (T, 3), (0, 1)])
def test_what_cannot_be_drawn_is_refused(lag, columns):
    with pytest.raises(ArgumentError):
        unrolled.drawn(setting("gru"), lag, columns)


def test_the_table_and_the_words_have_the_numbers_of_the_stop():
    one = setting("lstm-2000")
    stop = unrolled.walk(one)[2]
    table = unrolled.table(one, 2)
    for name, part in stop.routes.items():
        assert name in table and f"2<sup>{part.log2:.1f}</sup>" in table
        assert f"{part.share:.1%}" in table
    assert f"**{stop.so_far:.1%}**" in unrolled.in_words(one, 2)
    assert "loss itself" in unrolled.table(one, 0) and "enters at step 6" in unrolled.in_words(
        one, 0
    )


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_the_equation_has_a_term_for_each_route_in_its_colour(generation):
    tex, hue = equations.backward(generation), equations.colours(generation)
    for route in cell_of(setting(generation)).routes:
        _, term = equations.TERMS[generation][route]
        assert rf"\textcolor{{{hue[route]}}}{{{term}}}" in tex
    assert tex.count(r"\textcolor") == len(cell_of(setting(generation)).routes)
    assert tex.count("{") == tex.count("}")
