"""Every chart: titles with units, whole steps, a line that says how to read it, colours to tell."""

import re
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch

from retrograde import charts
from retrograde.charts.drawing import LINE, ramp
from retrograde.charts.studies import Quantity

LAGS = [range(0, 1), range(1, 2), range(2, 4)]
LOG2 = torch.tensor([0.0, -1.0, -2.5], dtype=torch.float64)
SHARE = torch.tensor([0.7, 0.4, -0.1], dtype=torch.float64)
WIDE = ([[0, 1], [0, 1]], [[0.1, 0.2]] * 2, [[0.4, 0.5]] * 2, [[0.8, 0.9]] * 2)
RUN = {"reach": [(0, 3.0), (1, 4.0)], "horizon": [(0, 5.0), (1, 6.0)], "rate": [(0, -0.5)]}
REACH = Quantity("reach (steps)", {"a": [(0, 3.0), (10, 9.0)], "b": [(0, 4.0)]}, needed=20)
TIME = Quantity("time constant (steps)", {"a": [(0, 3.0), (10, 900.0)], "b": []}, log=True)

DRAWN = {
    "adjoint_curve": [([0.0, -1.0, -2.0], 1.0)],
    "before_after": [(["a", "b"], [7, 7], [9, None], "reach", "steps", 8.0)],
    "blocks": [([("w", "forget"), ("w", "cell"), ("b", None)], LOG2, SHARE)],
    "clipping": [(LAGS, (SHARE, SHARE), ["a", "b", "c"], (SHARE, SHARE), 0.9, 0.5)],
    "exponents": [([1, 2], [0, 2], 4, [[0.1, -0.2], [0.0, -0.1]])],
    "gates_over_time": [(["forget", "cell"], *WIDE, 2)],
    "horizon_growth": [
        (["fresh", "trained"], {"window": [3, 5], "reach": [3, None]}),
        (["fresh", "trained"], {"window": [3, 5]}, "RNN", (9, "a year")),
    ],
    "inside_training": [
        (["a", "b"], {"a": True, "b": False}, [REACH, TIME], "Inside while they train, at lag 20")
    ],
    "lag_curve": [(LOG2, 2, 1.0, 0.01)],
    "loss_step_by_use_step": [
        ([0, 1, 2], [0, 1, 2], [[0.0], [-1.0, 0.0]], "weight_hh_l0"),
        ([1, 2], [0, 1, 2], [[-1.0, 0.0]], None),
    ],
    "memory": [({"a": LOG2.tolist(), "b": LOG2.tolist()}, 0.01, "h")],
    "reach_by_layer": [({"a": LOG2.tolist()}, 0.01, 2, 9)],
    "saturation_over_time": [(["forget", "cell"], WIDE[0], WIDE[1], 2)],
    "shares": [
        ([{"unit": ("a", "b", "c")}], LOG2, SHARE),
        ([{"unit": ("a",)}, {"lag": LAGS}], LOG2[None], SHARE[None]),
    ],
    "shares_by_lag": [(LAGS, LOG2, SHARE)],
    "singular_values": [([1, 4], [0, 2], 4, [[0.1, -0.2], [0.0, -0.1]])],
    "split_by_lag": [
        ("route", ["direct", "carousel"], LAGS, LOG2.expand(2, 3), SHARE.expand(2, 3)),
        ("crossings", ["0", "1+"], LAGS, LOG2.expand(2, 3), SHARE.expand(2, 3)),
    ],
    "success_by_lag": [
        (
            ["RNN", "LSTM"],
            [[5, 10]] * 2,
            [[1.0, 0.5]] * 2,
            [[0.7, 0.2]] * 2,
            [[1.0, 0.8]] * 2,
            "It.",
        )
    ],
    "training_curves": [([1.0, 0.5], [1.0, 0.3])],
    "training_run": [({"lstm": RUN}, 4)],
    "truncation_curve": [([1, 2], [[0.4, 0.1], [0.5, 0.2], [0.6, 0.3]], 0.3, 2, "sliding")],
}
CASES = [
    pytest.param(name, case, id=f"{name}-{n}")
    for name in DRAWN
    for n, case in enumerate(DRAWN[name])
]
WHOLE = ("step", "lag", "block", "K ")


def test_no_chart_is_left_out():
    folder = Path(charts.__file__).parent
    functions = re.findall(
        r"@figure\ndef (\w+)", "".join(p.read_text() for p in folder.glob("*.py"))
    )
    assert sorted(functions) == sorted(DRAWN)


def panels(spec):
    """The parts of a chart that have axes of their own, each as the views that share them."""
    for part in spec.get("vconcat", [spec.get("spec", spec)]):
        part = part.get("spec", part)
        yield part.get("layer", [part])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_titles_units_and_how_to_read_it(name, case):
    spec = getattr(charts, name)(*case).to_dict()
    titles = [part["title"] for part in (spec, *spec.get("vconcat", ())) if "title" in part]
    for title in titles:
        assert title["text"] and title["subtitle"], "what it is, and how to read it"
        assert " ".join(title["subtitle"]).endswith(".")
        assert all(len(line) <= LINE for line in title["subtitle"])
    assert titles
    for views in panels(spec):
        for axis in "xy":
            on = [
                v["encoding"][axis] for v in views if "field" in v.get("encoding", {}).get(axis, {})
            ]
            named = [channel for channel in on if channel.get("title")]
            assert named, f"no title on {axis}"
            for channel in named:
                words = (
                    channel["title"]
                    if isinstance(channel["title"], str)
                    else " ".join(channel["title"])
                )
                assert words not in ("lag", "steps"), "a unit"
                if channel["type"] == "quantitative" and words.startswith(WHOLE):
                    assert channel["axis"]["tickMinStep"] == 1, words


def linear(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return torch.tensor(
        [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    )


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
DEFICIENCIES = {
    "none": torch.eye(3),
    "protan": torch.tensor(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": torch.tensor(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": torch.tensor(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = torch.tensor(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def lab(colour, seen_by):
    x, y, z = (
        (
            (TO_XYZ @ (DEFICIENCIES[seen_by] @ linear(colour)).clamp(0, 1))
            / torch.tensor([0.9505, 1.0, 1.089])
        )
        .clamp(1e-6)
        .pow(1 / 3)
        .tolist()
    )
    return torch.tensor([116 * y - 16, 500 * (x - y), 200 * (y - z)])


PAIRS = [
    (charts.INK, charts.COUNTER),  # adds to the gradient, or pulls against it; remedy and original
    (charts.GREY, charts.INK),  # before and after
    (charts.INK, charts.ACCENT),  # a curve, and what it is compared with
    *combinations(charts.SERIES[:8], 2),
]


@pytest.mark.parametrize("seen_by", DEFICIENCIES)
def test_colours_that_mean_something_are_told_apart(seen_by):
    """A difference of 10 in CIELAB is seen at a glance; more colours have shapes of their own."""
    for one, other in PAIRS:
        apart = float((lab(one, seen_by) - lab(other, seen_by)).norm())
        assert apart >= 10, f"{one} and {other}: {apart:.1f}"
    steps = [lab(colour, seen_by) for colour in ramp(9)]
    for one, other in pairwise(steps):
        assert float((one - other).norm()) >= 3, "neighbours on the ramp"
    assert float((steps[0] - steps[-1]).norm()) >= 40
