"""Each picture of the explorer: its words have the numbers of the very pass that it draws."""

import json
import math

import pytest

import retrograde
from retrograde.explore.lesson import GENERATIONS, Setting, flow_of, recorded
from retrograde.explore.showing import MINUS, pictures, typeset
from retrograde.explore.views import VIEWS

SMALL = {"steps": 12, "hidden": 4}


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_every_view_of_every_generation_is_drawn_and_told(generation):
    setting = Setting(generation, **SMALL)
    for view in VIEWS.values():
        for picture in pictures(view.draw(setting)):
            mime, spec = picture._mime_()
            drawn = json.loads(spec)
            assert mime.startswith("application/vnd.vegalite.v")
            assert drawn["width"] == "container" and "data" in spec
            assert "http" not in spec.replace("https://vega.github.io/schema", "")
        assert view.answer(setting).endswith(".")


@pytest.mark.filterwarnings("ignore:the leading exponent:UserWarning")
@pytest.mark.parametrize("setting", [Setting(**SMALL), Setting("cec", **SMALL, every_step=False)])
def test_the_words_are_those_of_the_pass(setting):
    flow = flow_of(setting)
    assert f"reaches {flow.reach} of 11 steps" in VIEWS["lags"].answer(setting)
    near = float(flow.by_lag(bins=(0, 9)).share[0])
    assert f"Lags 0 to 8 are {near:.1%} of it" in VIEWS["lags"].answer(setting)
    routes = flow.by_route("weight_hh").share.sum(1)
    for name, part in zip(flow.by_route("weight_hh").labels, routes.tolist(), strict=True):
        assert f"`{name}` {part + 0.0:.1%}" in VIEWS["routes"].answer(setting)
    none = float(flow.by_crossing("weight_hh").share.sum(1)[0])
    assert f"**{none:.1%}** of the gradient" in VIEWS["crossings"].answer(setting)
    leading = retrograde.spectrum(recorded(setting)).exponents.leading
    assert f"factor of {math.exp(leading):.3g} per step" in VIEWS["spectrum"].answer(setting)


def test_a_knob_moves_every_picture():
    for view in VIEWS.values():
        drawn = {
            pictures(view.draw(Setting(**SMALL, recurrent_scale=scale)))[0]._mime_()[1]
            for scale in (1.0, 1.1)
        }
        assert len(drawn) == 2


def test_powers_and_indices_are_typeset():
    told = typeset("**2^-3.1 times**, 1.01^200, R_o, weight_hh, `recurrent.cell`")
    assert told == (
        f"**2<sup>{MINUS}3.1</sup> times**, 1.01<sup>200</sup>, <i>R</i><sub>o</sub>, weight_hh, "
        "`recurrent.cell`"
    )


def test_two_charts_can_be_compared():
    """The same vertical scale, and no titles of different heights above."""
    for setting in (Setting(**SMALL), Setting(**SMALL, forget_bias=3.0)):
        (picture,) = pictures(VIEWS["lags"].draw(setting), y=(-30.0, 5.0))
        spec = json.loads(picture._mime_()[1])
        assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [-30, 5]
        assert spec["title"] == ""


def test_the_window_is_the_smallest_that_keeps_enough():
    """Against the parts by lag: what is lost is the sum of those from lag K on."""
    setting = Setting(**SMALL)
    parts = flow_of(setting).by_lag(bins="every").parts()
    lost = [float((parts[k:].sum(0)).norm() / parts.sum(0).norm()) for k in range(13)]
    window = next(k for k in range(1, 13) if lost[k] <= 0.1)
    assert f"**{window} of 12 steps**" in VIEWS["window"].answer(setting)
