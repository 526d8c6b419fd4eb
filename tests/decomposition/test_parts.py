"""Parts are one type: sums, selections, tables and charts of every decomposition."""

import pickle
import sys
from dataclasses import replace
from functools import partial
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import retrograde
from retrograde.decomposition import (
    ByLag,
    ByParameter,
    ByTime,
    Parts,
    Split,
    by_time,
    by_unit,
    formed,
    rows,
)
from retrograde.decomposition.rows import WIDTH, shares_in_first
from retrograde.engine.scaling import Scaled
from retrograde.errors import ArgumentError, MissingExtraError
from support.conformance import EXACT, brute_force, flow_of, plain_pass, vectors
from support.problems import PROBLEMS, T


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    model = nn.LSTM(2, 3, dtype=torch.float64)
    with retrograde.record(model) as recording:
        model(torch.randn(7, 2, 2, dtype=torch.float64))[0].square().sum().backward()
    return retrograde.decompose(recording)


NAME = "weight_hh_l0"


def all_of(flow, parameter):
    """Every decomposition of a parameter, by name."""
    found = {
        "time": flow.by_time(parameter),
        "lag": flow.by_lag(parameter),
        "route": flow.by_route(parameter),
        "crossing": flow.by_crossing(parameter, max_crossings=2),
        "unit": flow.by_unit(parameter),
    }
    return found if parameter else found | {"parameter": flow.by_parameter()}


def brute_force_by_unit(plain, name):
    """C[t,k;j]: dL_t/ds_k by autograd, one unit of it at a time given back to step k alone."""
    weight, units = plain.weights[0][name], plain.states[0].shape[1]
    parts = torch.zeros(T, T, units, *weight.shape, dtype=weight.dtype)
    for t in range(T):
        for k in range(t + 1):
            after = plain.states[k + 1]
            (delta,) = plain.grad([after], steps=[t])
            weight = plain.weights[k][name]  # the copy that step k uses
            for j in range(units):
                alone = torch.zeros_like(delta)
                alone[:, j] = delta[:, j]
                (part,) = torch.autograd.grad(
                    after, [weight], alone, retain_graph=True, materialize_grads=True
                )
                parts[t, k, j] = part
    return parts


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_parts_by_unit_against_autograd(problem, monkeypatch):
    cell = problem.make()
    plain = plain_pass(cell)
    name = list(cell.parameters)[len(cell.parameters) // 2]
    exact = brute_force_by_unit(plain, name)
    flow = flow_of(cell, plain)
    found = flow.by_unit(name, bins=(0, 2))
    by_lag = torch.stack(
        [
            sum(exact[t, t - lag] for lag in lags for t in range(lag, T))
            for lags in (range(2), range(2, T))
        ],
        1,
    )
    assert found.shape == (cell.state_size, 2)
    torch.testing.assert_close(found.parts(), by_lag, **EXACT)
    torch.testing.assert_close(found.norm, vectors(by_lag, 2).norm(dim=2), **EXACT)
    whole = by_lag.sum((0, 1))
    share = vectors(by_lag * whole, 2).sum(2) / whole.square().sum()
    torch.testing.assert_close(found.share, share, **EXACT)
    whole_parts = flow.by_unit(bins=(0, 2)).parts()
    torch.testing.assert_close(whole_parts.sum(0), flow.by_lag(bins=(0, 2)).parts(), **EXACT)

    # A large layer is measured some units at a time; the parts are formed when they are asked for.
    numbers = sum(weight.numel() for weight in cell.parameters.values())
    monkeypatch.setattr(by_unit, "KEPT", 3 * numbers)
    large = flow_of(cell, plain).by_unit(name, bins=(0, 2))
    torch.testing.assert_close(large.norm, found.norm, **EXACT)
    torch.testing.assert_close(large.share, found.share, **EXACT)
    torch.testing.assert_close(large.parts(), found.parts(), **EXACT)
    for one in (large, found):
        torch.testing.assert_close(one.sum("state", "unit").parts(), by_lag.sum(0), **EXACT)
        few = one.select(lag=3, state=next(iter(cell.slots))).sum("unit")
        slot = next(iter(cell.slots.values()))
        torch.testing.assert_close(few.parts(), by_lag[slot, 1].sum(0), **EXACT)


def test_a_unit_of_a_pointwise_cell_is_its_rows(flow):
    """The part of h_j and c_j together in a weight lies in the rows of unit j of every gate."""
    parts = flow.by_unit(NAME, bins=(0,)).sum("state", "lag").parts()
    gradient = flow.by_lag(NAME, bins=(0,)).parts()[0]
    for j in range(3):
        expected = torch.zeros_like(gradient)
        expected[j::3] = gradient[j::3]
        torch.testing.assert_close(parts[j], expected, **EXACT)


def test_sums_of_parts_by_time_against_autograd():
    cell = PROBLEMS[0].make()
    plain = plain_pass(cell)
    flow = flow_of(cell, plain)
    for name, exact in brute_force(plain, *flow.parameters).items():
        parts = flow.by_time(name)
        torch.testing.assert_close(parts.parts(), exact, **EXACT)
        torch.testing.assert_close(parts.sum("loss_step").parts(), exact.sum(0), **EXACT)
        torch.testing.assert_close(parts.sum("use_step").parts(), exact.sum(1), **EXACT)
        norms = vectors(exact.sum(0), 1).norm(dim=1)
        torch.testing.assert_close(parts.sum("loss_step").norm, norms, **EXACT)
        late = parts.select(loss_step=T - 1, use_step=range(1, 3))
        torch.testing.assert_close(late.parts(), exact[T - 1, 1:3], **EXACT)
        torch.testing.assert_close(late.sum("use_step").parts(), exact[T - 1, 1:3].sum(0), **EXACT)


@pytest.mark.parametrize("parameter", [NAME, None])
def test_every_decomposition_sums_to_the_gradient_along_all_axes(flow, parameter):
    whole = flow.by_lag(parameter, bins=(0,)).parts()[0]
    for found in all_of(flow, parameter).values():
        torch.testing.assert_close(found.sum().parts(), whole, **EXACT)
        assert found.sum().shape == () and float(found.sum().share) == pytest.approx(1)
        names = [name for axis in found.axes for name in axis]
        for name in names:
            less = found.sum(name)
            assert [n for axis in less.axes for n in axis] == [n for n in names if n != name]
            parts = less.parts()
            rows = parts.reshape(-1, *whole.shape)
            torch.testing.assert_close(rows.sum(0), whole, **EXACT)
            norms = vectors(rows, 1).norm(dim=1)
            torch.testing.assert_close(less.norm.flatten(), norms, **EXACT)
            assert float(less.share.sum()) == pytest.approx(1)
    routes = flow.by_route(parameter)
    torch.testing.assert_close(routes.sum("route").parts(), flow.by_lag(parameter).parts(), **EXACT)
    by_route = routes.parts().sum(1)
    torch.testing.assert_close(routes.sum("lag").parts(), by_route, **EXACT)


@pytest.mark.parametrize("error", [1.0, 1e-6])
def test_shares_are_those_of_the_parts_whatever_autograd_gave(flow, error):
    """A gradient that a hook changed is no measure; one that is a rounding away makes none."""
    torch.manual_seed(0)
    given = {
        name: gradient * (1 + error * torch.randn_like(gradient))
        for name, gradient in flow.recorded.gradients.items()
    }
    other = replace(flow, recorded=replace(flow.recorded, gradients=given))
    for name in flow.parameters:
        share = other.by_time(name).share
        tolerance = EXACT if error == 1 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(share, flow.by_time(name).share, **tolerance)
        assert float(share.sum()) == pytest.approx(1, abs=1e-12)


def test_blocks_sum_by_parameter_and_by_gate(flow):
    blocks = flow.by_parameter()
    by_parameter = blocks.sum("gate")
    assert by_parameter.axes == ({"parameter": flow.parameters},)
    sizes = [flow.gradient[name].log2_norms() for name in flow.parameters]
    torch.testing.assert_close(by_parameter.log2, torch.cat(sizes))
    forget = blocks.select(gate="forget")
    assert forget.axes == ({"parameter": flow.parameters},)
    at = [number for number, (_, gate) in enumerate(blocks.blocks) if gate == "forget"]
    assert forget.share.equal(blocks.share[at])
    torch.testing.assert_close(
        blocks.sum("parameter").select(gate="forget").share, blocks.share[at].sum()
    )


def test_a_selection_keeps_its_share_of_the_whole(flow):
    parts = flow.by_route(NAME)
    some = parts.select(route=("recurrent.input", "direct"), lag=range(1, 5))
    assert some.axes == (
        {"route": ("direct", "recurrent.input")},
        {"lag": (range(1, 2), range(2, 3), range(3, 5))},
    )
    torch.testing.assert_close(some.share, parts.share[:2, 1:4], **EXACT)
    torch.testing.assert_close(some.log2, parts.log2[:2, 1:4], **EXACT)
    assert some.parts().equal(parts.parts()[:2, 1:4])
    torch.testing.assert_close(some.sum("lag").share, parts.share[:2, 1:4].sum(1), **EXACT)
    for lag in (4, np.int64(4), torch.tensor(4)):
        one = parts.select(lag=lag)
        assert one.axes == ({"route": parts.labels},)
        torch.testing.assert_close(one.share, parts.share[:, 3], **EXACT)
    assert flow.by_time(NAME).select(loss_step=[2, 5]).share.equal(flow.by_time(NAME).share[[2, 5]])


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"step": 1}, "no axis 'step' in parts by route and lag"),
        ({"route": "peephole"}, "no part has route 'peephole'; there are: direct, recurrent"),
        ({"lag": 99}, "no part has lag 99"),
        ({"lag": True}, "lag must be an integer; got True"),
        ({"lag": range(0, 4)}, "begins or ends inside range"),
        ({"route": ["carousel", 3]}, "no part has route 3"),
        ({"route": []}, "no part has all of these labels"),
    ],
)
def test_labels_that_no_part_has_are_refused(flow, labels, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        flow.by_route(NAME).select(**labels)


def test_axes_that_parts_do_not_have_are_refused(flow):
    with pytest.raises(ArgumentError, match="no axis 'route' in parts by lag"):
        flow.by_lag(NAME).sum("route")
    with pytest.raises(AttributeError, match="parts by lag have no loss_step"):
        flow.by_lag(NAME).reach  # noqa: B018
    for gone in (flow.by_time(NAME).pooled(3), flow.by_lag(NAME).sizes()):
        with pytest.raises(ArgumentError, match="only the sizes and shares of these parts"):
            gone.sum()
        with pytest.raises(ArgumentError, match="only the sizes and shares of these parts"):
            gone.parts()
        assert gone.select(**{next(iter(gone.axes[0])): 0}).share.numel()


def test_sums_never_leave_the_range():
    """Parts of 2^-3000 and 2^3000, and of nothing at all."""
    exponent = torch.tensor([-3000, -3001, 3000, 0])
    rows = Scaled(torch.tensor([[1.0, 0], [0, 2.0], [3.0, 0], [0, 0]]), exponent)
    parts = Parts.of(({"route": ("a", "b")}, {"lag": (range(1), range(1, 2))}), "w", rows)
    small, large = parts.sum("lag").log2.tolist()
    assert small == pytest.approx(-2999.5) and large == pytest.approx(3000 + np.log2(3))
    assert parts.sum().log2.item() == pytest.approx(3000 + np.log2(3))
    assert parts.select(lag=1).sum("route").log2.item() == -3000
    assert parts.share.sum().item() == pytest.approx(1)


def test_a_table_has_a_row_for_every_part(flow, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'retrograde\[dataframe\]'"):
        flow.by_lag(NAME).to_dataframe()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    columns = ["log2", "norm", "share"]
    table = flow.by_route(NAME).to_dataframe()
    assert list(table) == ["route", "first_lag", "last_lag", *columns]
    assert table["route"][5:11] == ["recurrent.input"] * 5 + ["recurrent.forget"]
    assert (table["first_lag"][3], table["last_lag"][3]) == (3, 4)
    assert table["share"] == flow.by_route(NAME).share.flatten().tolist()
    table = flow.by_time(NAME).to_dataframe()
    assert list(table) == ["loss_step", "use_step", *columns, "lag"]
    assert len(table["lag"]) == 7 * 8 // 2
    row = table["loss_step"].index(4) + 1
    assert (table["use_step"][row], table["lag"][row]) == (1, 3)
    assert table["log2"][row] == float(flow.by_time(NAME).log2[4, 1])
    assert list(flow.by_parameter().to_dataframe()) == ["parameter", "gate", *columns]
    assert list(flow.by_lag().sum().to_dataframe()) == columns
    assert list(flow.by_unit().to_dataframe())[:3] == ["state", "unit", "first_lag"]


def test_a_real_data_frame(flow):
    pandas = pytest.importorskip("pandas")
    frame = flow.by_unit(NAME).to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 6 * 5
    assert frame.groupby("state").share.sum().sum() == pytest.approx(1)


@pytest.mark.parametrize("parameter", [NAME, None])
def test_every_decomposition_has_a_chart(flow, parameter):
    for name, found in all_of(flow, parameter).items():
        for parts in (found, found.sizes(), found.sum(next(iter(found.axes[0]))), found.sum()):
            spec = parts.chart().to_dict()
            assert "nothing to draw" not in str(spec), name
    nothing = Parts.of(({"unit": ("a",)},), None, Scaled.of(torch.zeros(1, 2)))
    assert "nothing to draw" in str(nothing.chart().to_dict())


def test_of_many_units_the_largest_are_drawn():
    share = torch.linspace(1, 0, 200, dtype=torch.float64)
    parts = Parts.measured(({"unit": tuple(range(200))},), None, share.log2(), share)
    spec = parts.chart().to_dict()
    assert len(spec["data"]["values"].splitlines()) == 1 + 60
    assert "60 with the largest shares of 200" in str(spec["title"])


def test_parts_compare_print_and_travel(flow):
    for parts in all_of(flow, None).values():
        again = pickle.loads(pickle.dumps(parts))
        assert again == parts == parts.sizes() and hash(again) == hash(parts)
        assert again.parts().equal(parts.parts())
    assert repr(flow.by_route(NAME)) == f"Parts({NAME} by route [6] and lag [5])"
    assert repr(flow.by_parameter()) == "Parts(all parameters by parameter and gate [16])"
    assert flow.by_lag() != flow.by_lag(NAME) and flow.by_lag() != 3
    assert flow.by_lag(bins=(0, 2)) != flow.by_lag(bins=(0, 3))


def test_old_names_are_aliases(flow):
    assert ByTime is ByLag is ByParameter is Split is Parts
    assert flow.by_time().entries.tolist() == list(range(7))
    assert flow.by_lag().lags[3] == range(3, 5)
    assert (flow.by_route().kind, flow.by_crossing().kind) == ("route", "crossings")
    assert flow.by_parameter().blocks[0] == ("weight_ih_l0", "input")
    coarse = flow.with_rows(3).by_time()
    assert coarse.axes[0]["loss_step"] == (range(0, 3), range(3, 6), 6)
    assert coarse.lags.equal(flow.with_rows(3).entries.lag_table)
    assert coarse.entries.tolist() == [2, 5, 6]


def _regrouped(module, name, change):
    """The same former with other numbers of the sums that parts belong to."""
    sound = getattr(module, name)
    return lambda *args: sound(*args[:-2], change(args[-2]), args[-1])


def _without_whole(parts, groups, count):
    return formed.Formed(rows.summed(parts.values, groups, count))


FAULTS = {
    "exponents forgotten": (
        *(rows, "times_power_of_two", lambda values, exponent: values),
        test_sums_never_leave_the_range,
    ),
    "shares of what is left": (
        *(formed.Formed, "grouped", _without_whole),
        test_a_selection_keeps_its_share_of_the_whole,
    ),
    "loss steps turned round": (
        *(by_time, "contributions"),
        _regrouped(by_time, "contributions", lambda groups: groups.view(T, -1).flip(0).flatten()),
        test_sums_of_parts_by_time_against_autograd,
    ),
    "the unit beside it": (
        *(by_unit, "sums_by_unit", _regrouped(by_unit, "sums_by_unit", lambda g: g.roll(2))),
        partial(test_parts_by_unit_against_autograd, PROBLEMS[0]),
    ),
    "bins turned round": (
        *(by_unit, "sums_by_unit"),
        _regrouped(by_unit, "sums_by_unit", lambda groups: groups.view(-1, 2).flip(1).flatten()),
        partial(test_parts_by_unit_against_autograd, PROBLEMS[0]),
    ),
}
"""What is broken on purpose, how, and the test that must notice."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_suite_rejects(fault, flow, monkeypatch):
    place, name, broken, test = FAULTS[fault]
    monkeypatch.setattr(place, name, broken)
    needs = {"flow": flow, "monkeypatch": monkeypatch}
    needs = {key: value for key, value in needs.items() if key in signature(test).parameters}
    with pytest.raises(AssertionError):
        test(**needs)


def test_shares_of_rows_wider_than_what_is_taken_at_once():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 2 * WIDTH + 3, generator=generator)
    narrow = torch.randn(3, 2, 2, generator=generator)
    exponents = torch.tensor([0, 4, -3])
    empty = torch.zeros(3, 0)
    parts = [
        [Scaled(values[:2], exponents[:2]), Scaled(values[2:], exponents[2:])]
        for values in (wide, narrow, empty)
    ]
    rows = torch.cat((wide, narrow.flatten(1)), 1).double() * torch.exp2(exponents).unsqueeze(1)
    whole = rows[:2].sum(0)
    expected = rows @ whole / (whole @ whole)
    torch.testing.assert_close(shares_in_first(parts, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", (-3000, 200, 3000))
def test_shares_do_not_depend_on_the_units_of_zeros(exponent):
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, -1.0, 1.0]])
    parts = [[Scaled(rows, torch.tensor([0, exponent, 0]))]]
    expected = torch.tensor([1.0, 0.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(shares_in_first(parts, 2), expected, rtol=1e-15, atol=0)
