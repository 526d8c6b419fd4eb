"""Bad values at every public entry: refused with one of the package's errors, whatever they are.

Each row is a call that works, and what each of its arguments has to be. A bad value of that kind is
put in the place of the good one, and must raise a `RetrogradeError`; numbers of NumPy and torch in
the place of Python's must be taken. A public function or an argument that has no row fails.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import retrograde
from retrograde import cells, clipping, diagnosis, engine, report, spectra, studies, tasks
from retrograde.errors import RetrogradeError
from retrograde.integrations import lightning
from retrograde.spectra import weights

pytestmark = pytest.mark.usefixtures("unchecked")  # as users call it: without our type checks

NOTHING, TEXT, LIST = None, "nonesuch", ["a"]
NO_NUMBER = (TEXT, LIST, {}, 1j, True, np.bool_(True), math.nan, np.float64("nan"), nn.Linear(1, 1))
NO_WHOLE = (*NO_NUMBER, 2.5, 2.0, np.float32(2), math.inf, torch.ones(2), torch.tensor(True))
NO_OBJECT = (NOTHING, 3, TEXT, LIST, math.nan, torch.ones(2, 2), nn.LSTM)


@dataclass(frozen=True)
class Kind:
    """What an argument has to be: values to be refused, and others to be taken as the good one."""

    bad: tuple[Any, ...]
    good: Callable[[Any], tuple[Any, ...]] = lambda value: ()


def _wholes(value: int) -> tuple[Any, ...]:
    return np.int64(value), np.uint8(value), torch.tensor(value), np.array(value)


def _reals(value: float) -> tuple[Any, ...]:
    return np.float32(value), np.float64(value), torch.tensor(value), Fraction(value)


def _an_int(value: int) -> tuple[Any, ...]:
    """Of a call that takes its time."""
    return (np.int64(value),)


COUNT = Kind((*NO_WHOLE, NOTHING, 0, -1, np.int64(-3)), _wholes)
COUNT_OR_NONE = Kind((*NO_WHOLE, 0, -1), _wholes)
INTEGER = Kind((*NO_WHOLE, NOTHING), _wholes)
INTEGER_OR_NONE = Kind(NO_WHOLE, _wholes)
SIZE = Kind((*NO_NUMBER, NOTHING, 0, -1.0, -math.inf, torch.ones(2)), _reals)
SHARE = Kind((*NO_NUMBER, NOTHING, -0.1, 1.5, math.inf, torch.ones(2)), _reals)
NUMBER = Kind((*NO_NUMBER, NOTHING, math.inf, 10**400, torch.ones(2)), _reals)
FLAG = Kind((NOTHING, 2, TEXT, LIST, math.nan, 1.0), lambda value: (np.bool_(value),))
DELTA = Kind((*NO_NUMBER, NOTHING, -0.1, torch.ones(2)), _reals)
NAME = Kind((NOTHING, 3, TEXT, LIST, b"x", math.nan, True))
NAME_OR_NONE = Kind((3, TEXT, LIST, b"x", math.nan, True))
LABEL = Kind((NOTHING, 3, LIST, b"x"))
OBJECT = Kind(NO_OBJECT)
OBJECT_OR_NONE = Kind(NO_OBJECT[1:])
FUNCTION = Kind((NOTHING, 3, TEXT, LIST, torch.ones(2)))
FUNCTION_OR_NONE = Kind((3, TEXT, LIST, torch.ones(2)))


def taking(count: int, kind: Kind = FUNCTION) -> Kind:
    """A function of so many arguments: one of none, fewer, more or other ones is refused."""
    fewer, more = ", ".join("abc"[: count - 1]), ", ".join("abcd"[: count + 1])
    others = [f"lambda{' ' * bool(a)}{a}: 0" for a in (fewer, more, "*, a", "**a")]
    return Kind((*kind.bad, lambda: 0, *map(eval, others)))


MODEL = Kind((*NO_OBJECT, nn.Linear))
RECURRENT = Kind((*NO_OBJECT, nn.Linear(1, 1), nn.Sequential()))
RECORDING = Kind((*NO_OBJECT, nn.LSTM(1, 1), {"LSTM": 1}))
SEQUENCE = Kind(
    (
        *(3, TEXT, LIST, math.nan, np.ones((4, 2, 1), dtype=np.float32), nn.LSTM(1, 1)),
        *(torch.ones(4), torch.ones(4, 2, 7), torch.ones(4, 2, 1, 1), torch.ones(0, 2, 1)),
        *(torch.ones(4, 2, 1, dtype=torch.int64), torch.ones(4, 2, 1, dtype=torch.complex64)),
        *(torch.ones(4, 2, 1, dtype=torch.bool), torch.ones(4, 2, 1).to_sparse(), NOTHING),
    )
)
STATE = Kind((*SEQUENCE.bad[:-1], torch.ones(2, 7), torch.ones(3, 2), torch.ones(2, 2).double()))
WEIGHT = Kind(
    (
        *(3, TEXT, LIST, math.nan, np.ones((2, 2), dtype=np.float32), nn.LSTM(1, 1)),
        *(torch.ones(()), torch.ones(5), torch.ones(7, 5), torch.ones(2, 1, 1)),
        torch.ones(8, 2, dtype=torch.int64),
    )
)
CELLS = Kind((3, TEXT, LIST, math.nan, {"nonesuch": 3}, {3: 3}, {nn.GRU: 3}))
BINS = Kind((5, 0.5, NOTHING, TEXT, LIST, (), (1, 2), (0, 0), (0, 1.5), (0, math.nan), {0: 1}))
PATH = Kind((NOTHING, 3, LIST, math.nan, b"x", "/nonesuch/x", "/", "x" * 5000, "a\0b", "\ud800"))
MAPPING = Kind((3, TEXT, LIST, math.nan, torch.ones(2)))
FREE = Kind(())
"""Anything at all: handed to the caller's own function, or only printed."""


@dataclass(frozen=True)
class Row:
    """A call that works."""

    call: Callable[..., Any]
    good: Mapping[str, Any]
    kinds: Mapping[str, Kind]
    spread: str = ""  # an argument that is given as *arguments

    def __call__(self, **changed: Any) -> Any:
        arguments = {**self.good, **changed}
        spread = arguments.pop(self.spread, ())
        return self.call(*spread, **arguments)


def recorded() -> retrograde.Recording:
    torch.manual_seed(0)
    model = nn.LSTM(1, 2)
    with retrograde.record(model) as recording:
        model(torch.randn(6, 2, 1))[0].sum().backward()
    return recording


def entered(model: Any, keep: Any) -> None:
    with retrograde.record(model, keep=keep):
        model(torch.ones(2, 1, 1))[0].sum().backward()


def with_gradients() -> nn.Module:
    model = nn.LSTM(1, 2)
    model(torch.ones(4, 2, 1))[0].sum().backward()
    return model


def clipped_inside(model: Any, policy: Any) -> None:
    clipping_of = retrograde.nn.clip_inside(model, policy)
    clipping_of.remove()


def step(weights: Mapping[str, torch.Tensor], x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ weights["w"].T + h)


RECORDED = recorded()
FLOW = retrograde.decompose(RECORDED)
HORIZON = FLOW.horizon()
SPECTRUM = retrograde.spectrum(RECORDED)
CELL = RECORDED["LSTM"].cell
LAYER = cells.LSTM(torch.ones(8, 1) / 9, torch.ones(8, 2) / 9)
ELMAN = {"weight_ih": torch.ones(2, 1), "weight_hh": torch.ones(2, 2)}
GRU = {"weight_ih": torch.ones(6, 1), "weight_hh": torch.ones(6, 2)}
LSTM = {"weight_ih": torch.ones(8, 1), "weight_hh": torch.ones(8, 2)}
PROJECTED = {**LSTM, "weight_hh": torch.ones(8, 1), "weight_hr": torch.ones(1, 2)}
ELMAN_CELL = cells.Elman(**ELMAN)
BIASES = {"bias_ih": torch.ones(8), "bias_hh": torch.ones(8)}
OF_WEIGHTS = {name: WEIGHT for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
X = torch.ones(4, 2, 1)
REPORT = retrograde.diagnose(RECORDED)
NORM = clipping.GlobalNorm(1.0)
INSIDE = clipping.StateNorm(1.0)
MODULE = {"input_size": 1, "hidden_size": 2}
OF_MODULE = {
    **dict.fromkeys(("input_size", "hidden_size", "num_layers"), COUNT),
    **dict.fromkeys(("bias", "batch_first", "bidirectional", "truncated"), FLAG),
    "dropout": SHARE,
    "device": Kind(()),  # torch's own to say
    "dtype": Kind((3, TEXT, torch.int64, torch.bool)),
}
MODULE_GOOD = {
    **MODULE,
    **dict.fromkeys(("batch_first", "bidirectional", "truncated"), False),
    **{"num_layers": 2, "bias": True, "dropout": 0.5},
}
OF_PLAIN = {name: kind for name, kind in OF_MODULE.items() if name != "truncated"}
PLAIN_GOOD = {name: value for name, value in MODULE_GOOD.items() if name != "truncated"}
UNIT_GOOD = {
    name: PLAIN_GOOD[name] for name in PLAIN_GOOD if name not in ("input_size", "bidirectional")
}
DIAGNOSE = {
    "needs_lag": Kind(COUNT_OR_NONE.bad, _an_int),
    "layer": NAME_OR_NONE,
    "thresholds": Kind(
        (
            *MAPPING.bad,
            *({"nonesuch": 1.0}, {3: 1.0}, {"reach_fraction": -1}, {"reach_fraction": math.nan}),
            *({"reach_fraction": "x"}, {"reach_fraction": None}, {"dead_share": 3.0}),
            *({"dead_share": True}, {"imbalance": -1.0}),
        ),
        lambda value: ({"reach_fraction": np.float32(0.2)}, MappingProxyType({"conflict": -2})),
    ),
    "spectrum": Kind(FLAG.bad),
    "progress": taking(3, FUNCTION_OR_NONE),
}

ROWS: dict[str, Row] = {
    "retrograde.decompose": Row(
        retrograde.decompose,
        {"recording": RECORDED, "max_rows": 3},
        {"recording": RECORDING, "max_rows": COUNT_OR_NONE, "relative": COUNT_OR_NONE},
    ),
    "retrograde.diagnose": Row(
        retrograde.diagnose,
        {
            **{"subject": nn.LSTM(1, 2), "batch": X, "loss_fn": lambda m, x: m(x)[0].sum()},
            **{"needs_lag": 2, "layer": "LSTM", "thresholds": {}, "spectrum": False},
            **{"remedies": False, "budget": 1.0, "optimizer": torch.optim.Adam, "batches": [X]},
            **{"try_training": 0, "seed": 1, "progress": None, "cells": None},
        },
        {
            **{"subject": RECURRENT, "batch": FREE, "loss_fn": taking(2), **DIAGNOSE},
            "cells": CELLS,
            **{
                "remedies": Kind(FLAG.bad[1:]),
                "budget": Kind((*NO_NUMBER, NOTHING, -1.0, -math.inf)),
            },
            **{"optimizer": FUNCTION_OR_NONE, "batches": Kind((3, 2.5, TEXT, nn.LSTM(1, 2)))},
            **{"try_training": Kind((*NO_WHOLE, NOTHING, -1), _an_int)},
            "seed": Kind(INTEGER.bad, _an_int),
        },
    ),
    "retrograde.diagnose of a recording": Row(
        retrograde.diagnose,
        {"subject": RECORDED, "needs_lag": 2, "layer": "LSTM", "thresholds": {}},
        {
            "subject": RECORDING,
            **{n: DIAGNOSE[n] for n in ("needs_lag", "layer", "thresholds")},
            "cells": Kind((3, TEXT, {"LSTM": 3})),
        },
    ),
    "retrograde.audit": Row(
        retrograde.audit,
        {
            **{"model": nn.LSTM(1, 2), "batch": X, "loss_fn": lambda m, x: m(x)[0].sum()},
            **{"cells": None, "lengths": (2,), "seed": 1},
        },
        {
            **{"model": RECURRENT, "batch": FREE, "loss_fn": taking(2), "seed": INTEGER},
            **{"cells": CELLS, "lengths": Kind((3, TEXT, [0], [TEXT], [2.5], math.nan))},
        },
    ),
    "retrograde.Declaration": Row(
        retrograde.Declaration,
        {
            **{"step": lambda w, x, s: s, "state": ("h", "c"), "readout": "y", "x": "x"},
            **{"initial": 1, "lengths": "lengths", "output": {"h": 0}, "last": ("h", "c")},
            **{"held": ("h", "c"), "start": ("h0", "c0"), "batch_first": True},
            **{"bidirectional": False, "weights": "w", "carousel": ("c->c",), "gates": ()},
            **{"names": {"w": "kernel"}, "method": "forward", "reading": None},
        },
        {
            "step": Kind((*taking(3).bad[1:2], 3, LIST, lambda: 0, lambda w, x: 0)),
            "cell": Kind((3, TEXT, LIST, lambda m, w: 0)),  # beside a step
            "state": Kind((3, math.nan, LIST, {3: 3}, ())),
            "readout": Kind((3, LIST, NOTHING)),
            "x": Kind((2.5, LIST, NOTHING, math.nan)),
            **dict.fromkeys(("initial", "lengths", "output", "last"), Kind((2.5, math.nan, b"x"))),
            **dict.fromkeys(("held", "start"), Kind((3, ("a", "b", "c"), math.nan))),
            "batch_first": Kind((2, TEXT, LIST, math.nan)),
            "bidirectional": Kind((2, TEXT, LIST, math.nan, True)),  # which needs cell=
            **dict.fromkeys(("weights", "carousel"), Kind((3, math.nan, [3]))),
            "gates": Kind((3, TEXT, LIST, (3,))),
            "names": Kind((*MAPPING.bad, NOTHING, {"w": 3})),
            "method": Kind((NOTHING, 3, LIST, math.nan)),
            "reading": taking(3, FUNCTION_OR_NONE),
        },
    ),
    "retrograde.horizon": Row(
        retrograde.horizon,
        {
            **{"model": nn.LSTM(1, 2), "batches": X, "loss_fn": lambda m, x: m(x)[0].sum()},
            **{"kind": "chunks", "layer": "LSTM", "most": 2, "seed": 1, "progress": None},
            **{"training_steps": 10, "batch_size": 4, "cells": None, "past": "mean"},
            **{"cut": lambda batch, steps: batch[-steps:], "all_reduce": False},
        },
        {
            **{"model": RECURRENT, "batches": FREE, "loss_fn": taking(2), "kind": NAME},
            **{"layer": NAME_OR_NONE, "most": COUNT, "seed": INTEGER, "training_steps": COUNT},
            **{"batch_size": COUNT_OR_NONE, "progress": taking(3, FUNCTION_OR_NONE)},
            **{"past": NAME, "cut": taking(2, FUNCTION_OR_NONE), "all_reduce": FLAG},
            "cells": Kind((3, TEXT, LIST, math.nan, {"nonesuch": 3}, {3: 3})),
        },
    ),
    "retrograde.record": Row(
        entered,
        {"model": nn.LSTM(1, 2), "keep": 2},
        {"model": RECURRENT, "keep": COUNT_OR_NONE},
    ),
    "retrograde.record_cell": Row(
        retrograde.record_cell,
        {
            **{"cell": ELMAN_CELL, "x": X, "loss": lambda h, s: h.sum()},
            **{"initial": torch.ones(2, 2), "name": "cell", "gradients": None},
        },
        {
            **{"cell": OBJECT, "x": SEQUENCE, "name": LABEL, "initial": STATE},
            "gradients": Kind((*MAPPING.bad, {}, {"nonesuch": torch.ones(1)}, nn.RNNCell(1, 1))),
            "loss": Kind((*taking(2).bad, lambda h, s: h, lambda h, s: 3.0, lambda h, s: None)),
        },
    ),
    "retrograde.spectrum": Row(
        retrograde.spectrum,
        {"subject": RECORDED, "x": None, "n": 2, "transient": 0, "start": 1, "stop": 5},
        {
            **{"subject": RECORDING, "x": Kind((3, TEXT, X)), "n": COUNT_OR_NONE},
            "transient": Kind((*NO_WHOLE, -1, 3), _wholes),
            "start": Kind((*NO_WHOLE, NOTHING, -1, 6), _wholes),
            "stop": Kind((*NO_WHOLE, -1, 0, 7), _wholes),
        },
    ),
    "retrograde.spectrum of a layer": Row(
        retrograde.spectrum,
        {"subject": nn.LSTM(1, 2), "x": X},
        {"subject": RECURRENT, "x": SEQUENCE},
    ),
    "retrograde.Monitor": Row(
        retrograde.Monitor,
        {
            **{"model": nn.LSTM(1, 2), "every": 3, "log": None, "samples": 4, "entries": 8},
            **{"needs_lag": 5, "delta": 0.1, "budget": 0.1, "smoothing": 0.5, "trigger": 4.0},
            **{"limits": {"reach": (3, None)}, "alert": None, "cells": None},
        },
        {
            **{"model": MODEL, "log": taking(2, FUNCTION_OR_NONE), "cells": CELLS},
            **{"every": COUNT, **dict.fromkeys(("samples", "entries"), COUNT_OR_NONE)},
            **{"needs_lag": COUNT_OR_NONE, "alert": taking(3, FUNCTION_OR_NONE)},
            "delta": Kind((*NO_NUMBER, -0.1), _reals),
            "budget": Kind((*NO_NUMBER, 0, 1.0, -0.1), _reals),
            "smoothing": Kind((*NO_NUMBER, 1.0, -0.1), _reals),
            "trigger": Kind((*NO_NUMBER, 1, 0.5), _reals),
            "limits": Kind((*MAPPING.bad, {"reach": 3}, {"reach": (5, 1)}, {"reach": "ab"})),
        },
    ),
    "retrograde.nn.LSTM": Row(
        retrograde.nn.LSTM,
        {**MODULE_GOOD, "generation": "peephole", "device": None, "dtype": None},
        {**OF_MODULE, "generation": NAME},
    ),
    "retrograde.nn.GRU": Row(
        retrograde.nn.GRU,
        {**MODULE_GOOD, "generation": "gru-2014", "device": None, "dtype": None},
        {**OF_MODULE, "generation": NAME},
    ),
    "retrograde.nn.RNN": Row(
        retrograde.nn.RNN,
        {**MODULE_GOOD, "nonlinearity": "relu", "device": None, "dtype": None},
        {**OF_MODULE, "nonlinearity": NAME},
    ),
    **{
        f"retrograde.nn.{kind.__name__}": Row(
            kind,
            {**PLAIN_GOOD, "form": "log", "device": None, "dtype": None},
            {**OF_PLAIN, "form": NAME},
        )
        for kind in (retrograde.nn.MinGRU, retrograde.nn.MinLSTM)
    },
    "retrograde.nn.LRU": Row(
        retrograde.nn.LRU,
        {
            **{name: PLAIN_GOOD[name] for name in UNIT_GOOD if name != "bias"},
            **{"state_size": 3, "radius": (0.1, 0.9), "device": None, "dtype": None},
        },
        {
            **{name: OF_PLAIN[name] for name in (*UNIT_GOOD, "device", "dtype") if name != "bias"},
            "state_size": COUNT,
            "radius": Kind((NOTHING, 3, TEXT, LIST, (0.5,), (0.9, 0.1), (0, 1), (0.5, math.nan))),
        },
    ),
    "retrograde.nn.SelectiveScan": Row(
        retrograde.nn.SelectiveScan,
        {**UNIT_GOOD, "state_size": 3, "rank": 1, "device": None, "dtype": None},
        {
            **{name: OF_PLAIN[name] for name in (*UNIT_GOOD, "device", "dtype")},
            **{"state_size": COUNT, "rank": COUNT_OR_NONE},
        },
    ),
    "retrograde.nn.GatedLinearAttention": Row(
        retrograde.nn.GatedLinearAttention,
        {**PLAIN_GOOD, "key_size": 2, "rank": 1, "tau": 4.0, "device": None, "dtype": None},
        {**OF_PLAIN, "key_size": COUNT, "rank": COUNT, "tau": SIZE},
    ),
    "retrograde.nn.MLSTM": Row(
        retrograde.nn.MLSTM,
        {**PLAIN_GOOD, "key_size": 2, "device": None, "dtype": None},
        {**OF_PLAIN, "key_size": COUNT},
    ),
    "retrograde.nn.SLSTM": Row(
        retrograde.nn.SLSTM,
        {**MODULE_GOOD, "device": None, "dtype": None},
        OF_MODULE,
    ),
    "retrograde.nn.LSTM.forward": Row(
        retrograde.nn.LSTM(1, 2, generation="peephole").forward,
        {"input": X, "hx": (torch.ones(1, 2, 2), torch.ones(1, 2, 2)), "return_activations": True},
        {
            "input": SEQUENCE,
            "hx": Kind((3, TEXT, LIST, X, (X,), (X, 3), (3, 3), {"h": X})),
            "return_activations": FLAG,
        },
    ),
    "retrograde.nn.LSTM.from_torch": Row(
        retrograde.nn.LSTM.from_torch, {"module": nn.LSTM(1, 2)}, {"module": RECURRENT}
    ),
    "retrograde.nn.GRU.from_torch": Row(
        retrograde.nn.GRU.from_torch, {"module": nn.GRU(1, 2)}, {"module": RECURRENT}
    ),
    "retrograde.nn.RNN.from_torch": Row(
        retrograde.nn.RNN.from_torch, {"module": nn.RNN(1, 2)}, {"module": RECURRENT}
    ),
    "retrograde.nn.clip_inside": Row(
        clipped_inside,
        {"model": nn.LSTM(1, 2), "policy": INSIDE},
        {"model": RECURRENT, "policy": Kind((*NO_OBJECT, NORM))},
    ),
    "retrograde.nn.unclip": Row(retrograde.nn.unclip, {"model": nn.LSTM(1, 2)}, {"model": MODEL}),
    "retrograde.nn.initialise": Row(
        retrograde.nn.initialise,
        {
            **{"module": nn.LSTM(1, 2), "name": "chrono", "value": 1.0, "horizon": 9},
            **{"gain": 1.0, "generator": None},
        },
        {
            **{"module": RECURRENT, "name": NAME, "value": NUMBER, "gain": NUMBER},
            "horizon": Kind((*NO_WHOLE, NOTHING, 2, 0, -1), _wholes),
            "generator": OBJECT_OR_NONE,
        },
    ),
    "cells.Activation": Row(
        cells.Activation,
        {
            **{"name": "softplus", "function": torch.nn.functional.softplus},
            **{"derivative": lambda y: 1 - torch.exp(-y), "largest_slope": 1, "saturates": False},
        },
        {
            **{"name": LABEL, "function": FUNCTION, "derivative": FUNCTION},
            **{"largest_slope": Kind((*NO_NUMBER, NOTHING, 0, -1.0), _reals), "saturates": FLAG},
        },
    ),
    "cells.Gate": Row(
        cells.Gate,
        {"name": "keep", "activation": None, "role": "forget", "keeps": "h"},
        {"name": LABEL, "activation": OBJECT_OR_NONE, "role": NAME_OR_NONE, "keeps": LABEL},
    ),
    "cells.Position": Row(
        cells.Position,
        {"layer": 1, "reverse": True},
        {"layer": Kind((*NO_WHOLE, NOTHING, -1), _wholes), "reverse": FLAG},
    ),
    "cells.Elman": Row(
        cells.Elman,
        {**ELMAN, "bias_ih": None, "bias_hh": None, "activation": "tanh"},
        {**OF_WEIGHTS, "activation": NAME},
    ),
    "cells.GRU": Row(cells.GRU, {**GRU, "bias_ih": None, "bias_hh": None}, OF_WEIGHTS),
    "cells.GRU2014": Row(cells.GRU2014, {**GRU, "bias_ih": None, "bias_hh": None}, OF_WEIGHTS),
    "cells.LSTM": Row(
        cells.LSTM,
        {**LSTM, **BIASES, "weight_ch": None, "weight_gg": None, "generation": "lstm-2000"},
        {**OF_WEIGHTS, "weight_ch": WEIGHT, "weight_gg": WEIGHT, "generation": NAME},
    ),
    "cells.ProjectedLSTM": Row(
        cells.ProjectedLSTM, {**PROJECTED, **BIASES}, {**OF_WEIGHTS, "weight_hr": WEIGHT}
    ),
    **{
        f"cells.{kind.__name__}": Row(
            kind,
            {**{name: torch.ones(shape) for name, shape in shapes.items()}, **options},
            {**dict.fromkeys(shapes, WEIGHT), **kinds},
        )
        for kind, shapes, options, kinds in (
            (cells.MinGRU, {"weight_ih": (4, 3), "bias_ih": (4,)}, {"form": "log"}, {"form": NAME}),
            (
                cells.MinLSTM,
                {"weight_ih": (6, 3), "bias_ih": (6,)},
                {"form": "log"},
                {"form": NAME},
            ),
            (cells.LRU, cells.lru.shapes(3, 3, 2), {}, {}),
            (cells.SelectiveScan, cells.selective.shapes(3, 2, 1), {}, {}),
            (
                cells.GatedLinearAttention,
                cells.matrix_memory.attention_shapes(3, 4, 2, 1),
                {"tau": 2.0, "scale": 1.0},
                {"tau": SIZE, "scale": NUMBER},
            ),
            (cells.MLSTM, cells.matrix_memory.mlstm_shapes(3, 4, 2), {}, {}),
        )
    },
    "cells.SLSTM": Row(cells.SLSTM, {**LSTM, "bias_ih": None, "bias_hh": None}, OF_WEIGHTS),
    "cells.Stacked": Row(
        cells.Stacked,
        {"layers": (LAYER,), "masked": False},
        {"layers": Kind((*NO_OBJECT, (), (3,), [LAYER], (LAYER, LAYER))), "masked": FLAG},
    ),
    "cells.SideBySide": Row(
        cells.SideBySide,
        {"layers": (LAYER, LAYER), "ends": ("a", "b")},
        {
            "layers": Kind((*NO_OBJECT, (), (3, 3), [LAYER])),
            "ends": Kind((*NO_OBJECT, (), (1, 2), ("a", "a"), ("a",))),
        },
    ),
    "cells.Cut": Row(
        cells.Cut,
        {"cell": LAYER, "cut": frozenset(["carousel"])},
        {"cell": OBJECT, "cut": Kind((*NO_OBJECT, "carousel", frozenset([3]), frozenset("x")))},
    ),
    "cells.Clipped": Row(
        cells.Clipped,
        {"cell": LAYER, "policy": INSIDE},
        {"cell": OBJECT, "policy": Kind((*NO_OBJECT, NORM))},
    ),
    "cells.clipped": Row(
        cells.clipped,
        {"cell": LAYER, "policy": INSIDE},
        {"cell": OBJECT, "policy": Kind((*NO_OBJECT, NORM))},
    ),
    "cells.unclipped": Row(cells.unclipped, {"cell": LAYER}, {"cell": OBJECT}),
    "cells.policy_of": Row(cells.policy_of, {"cell": LAYER}, {"cell": OBJECT}),
    "cells.stepping": Row(cells.stepping, {"cell": LAYER}, {"cell": OBJECT}),
    "cells.Carrying": Row(cells.Carrying, {"cell": LAYER}, {"cell": OBJECT}),
    "cells.truncated": Row(cells.truncated, {"cell": LAYER}, {"cell": OBJECT}),
    "cells.gate": Row(
        cells.gate,
        {"name": "forget", "value": torch.ones(2, 3)},
        {"name": Kind((NOTHING, 3, LIST, math.nan)), "value": Kind(NO_OBJECT[:4])},
    ),
    "cells.keras_cell": Row(
        cells.keras_cell,
        {
            **{"kind": "SimpleRNN", "kernel": torch.ones(1, 2), "bias": torch.ones(2)},
            **{"recurrent_kernel": torch.ones(2, 2), "reset_after": True, "activation": "relu"},
        },
        {
            "kind": NAME,
            **dict.fromkeys(("kernel", "recurrent_kernel"), Kind((*WEIGHT.bad[:7], NOTHING))),
            **{"bias": Kind(WEIGHT.bad[:7]), "reset_after": FLAG, "activation": NAME},
        },
    ),
    "cells.from_function": Row(
        cells.from_function,
        {
            **{"step": step, "parameters": {"w": torch.ones(2, 1)}, "input_size": 1, "state": 2},
            **{"output": None, "carousel": ()},
        },
        {
            "step": Kind((*taking(3).bad, lambda w, x, h: 3, lambda w, x, h: x)),
            "parameters": Kind((*NO_OBJECT, {}, {"w": 3}, {"w": torch.ones(2, 1).long()})),
            "input_size": COUNT,
            "state": Kind((*COUNT.bad, {"h": 0}, {"h": "x"}, {3: 3}, {"h": 2.5}), _wholes),
            "output": NAME_OR_NONE,
            "carousel": Kind((3, TEXT, NOTHING, [TEXT], [3], math.nan, [LIST])),
            "gates": Kind((3, math.nan, [3], [TEXT])),
        },
    ),
    "engine.unroll": Row(
        engine.unroll,
        {"cell": ELMAN_CELL, "x": X, "initial": torch.ones(2, 2), "keep": False},
        {
            **{"cell": OBJECT, "x": Kind(SEQUENCE.bad[:8]), "initial": STATE},
            **dict.fromkeys(("keep", "boundaries", "lengths"), FREE),  # made by the recording
        },
    ),
    "engine.Entries.merging": Row(
        engine.Entries.merging,
        {"direct": RECORDED["LSTM"].direct, "relative": 3},
        {"direct": Kind((NOTHING, 3, TEXT, torch.ones(2), LIST)), "relative": COUNT},
    ),
    "engine.Entries.of": Row(
        engine.Entries.of,
        {"direct": RECORDED["LSTM"].direct, "max_rows": 3},
        {"direct": Kind((NOTHING, 3, TEXT, torch.ones(2), LIST)), "max_rows": COUNT_OR_NONE},
    ),
    "spectra.compare": Row(
        spectra.compare,
        {"recurrences": {"a": SPECTRUM.memory}},
        {"recurrences": Kind((*MAPPING.bad, NOTHING, {"a": 3}, {3: SPECTRUM.memory}))},
    ),
    "spectra.inspect_weights": Row(
        spectra.inspect_weights,
        {"source": nn.LSTM(1, 2)},
        {"source": Kind((*RECURRENT.bad, {}, {"weight_hh_l0": 3}, {3: 3}))},
    ),
    "spectra.recurrent_matrices": Row(
        spectra.recurrent_matrices, {"cell": LAYER}, {"cell": OBJECT}
    ),
    "spectra.Spectrum.singular_values": Row(
        SPECTRUM.singular_values,
        {"lengths": [1, 2], "stop": 5, "n": 2},
        {
            "lengths": Kind(
                (3, TEXT, [TEXT], [], [0], [1.5], [True], [99], math.nan, {1}, torch.ones(2)),
                lambda value: ((1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)),
            ),
            "stop": Kind((*NO_WHOLE, -1, 0, 7), _wholes),
            "n": COUNT_OR_NONE,
        },
    ),
    "spectra.Spectrum.without": Row(
        SPECTRUM.without,
        {"routes": ("carousel",)},
        {"routes": Kind(((3,), (TEXT,), (LIST,)))},
        "routes",
    ),
    "Flow.by_time": Row(FLOW.by_time, {"parameter": None}, {"parameter": NAME_OR_NONE}),
    "Flow.by_lag": Row(
        FLOW.by_lag,
        {"parameter": None, "bins": (0, 2)},
        {"parameter": NAME_OR_NONE, "bins": BINS},
    ),
    "Flow.by_lag in bins of other kinds": Row(
        FLOW.by_lag,
        {"parameter": "weight_hh_l0", "bins": (0, 2)},
        {
            "parameter": FREE,
            "bins": Kind(
                (), lambda value: (np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2))
            ),
        },
    ),
    "Flow.by_route": Row(
        FLOW.by_route,
        {"parameter": None, "bins": (0, 2)},
        {"parameter": NAME_OR_NONE, "bins": BINS},
    ),
    "Flow.by_unit": Row(
        FLOW.by_unit,
        {"parameter": None, "bins": (0, 2)},
        {"parameter": NAME_OR_NONE, "bins": BINS},
    ),
    "Flow.horizon": Row(FLOW.horizon, {"kind": "sliding"}, {"kind": NAME}),
    "Horizon.of": Row(HORIZON.of, {"name": "weight_hh_l0"}, {"name": NAME}),
    "Horizon.each": Row(HORIZON.each, {"measure": "bias"}, {"measure": NAME}),
    "Horizon.bias_at": Row(HORIZON.bias_at, {"steps": 2}, {"steps": COUNT}),
    "Horizon.window": Row(HORIZON.window, {"delta": 0.1}, {"delta": DELTA}),
    "Horizon.summary": Row(HORIZON.summary, {"delta": 0.1}, {"delta": DELTA}),
    "Horizon.recommendation": Row(HORIZON.recommendation, {"delta": 0.1}, {"delta": DELTA}),
    "Horizon.chart": Row(HORIZON.chart, {"delta": 0.1}, {"delta": DELTA}),
    "Flow.by_crossing": Row(
        FLOW.by_crossing,
        {"parameter": None, "max_crossings": 2, "bins": (0, 2)},
        {"parameter": NAME_OR_NONE, "max_crossings": COUNT, "bins": BINS},
    ),
    "Flow.without": Row(
        FLOW.without,
        {"routes": ("carousel",)},
        {"routes": Kind(((3,), (TEXT,), (LIST,), (None,)))},
        "routes",
    ),
    "Flow.clipped": Row(
        FLOW.clipped,
        {"policies": (NORM,)},
        {"policies": Kind(((), (3,), (TEXT,), (None,), (clipping.ZClip(),)))},
        "policies",
    ),
    "Flow.with_rows": Row(FLOW.with_rows, {"max_rows": 2}, {"max_rows": COUNT}),
    "Flow.with_rows (relative)": Row(FLOW.with_rows, {"relative": 4}, {"relative": COUNT}),
    "Flow.contribution": Row(
        FLOW.contribution,
        {"parameter": "weight_hh_l0", "t": 3, "k": 2},
        {
            "parameter": NAME,
            "t": Kind((*INTEGER.bad, 99), _wholes),
            "k": Kind(COUNT.bad[:-3], _wholes),
        },
    ),
    "Flow.names": Row(FLOW.names, {"parameter": None}, {"parameter": NAME_OR_NONE}),
    "Parts.sum": Row(
        FLOW.by_route().sum,
        {"names": ("route",)},
        {"names": Kind(((3,), (TEXT,), (LIST,), (None,), ("route", 3)))},
        "names",
    ),
    "Parts.select": Row(
        FLOW.by_route().select,
        {"route": "carousel", "lag": 3},
        {"route": Kind((*NAME.bad, [])), "lag": Kind((*INTEGER.bad, 99, -1, range(9, 9)), _wholes)},
    ),
    "Parts.pooled": Row(FLOW.by_time().pooled, {"most": 2}, {"most": COUNT}),
    "Recorded.part": Row(RECORDED["LSTM"].part, {"samples": 1}, {"samples": COUNT}),
    "Recorded.sample": Row(RECORDED["LSTM"].sample, {"count": 1}, {"count": COUNT}),
    "clipping.GlobalNorm": Row(clipping.GlobalNorm, {"max_norm": 2.0}, {"max_norm": SIZE}),
    "clipping.Value": Row(clipping.Value, {"max_value": 2.0}, {"max_value": SIZE}),
    "clipping.AGC": Row(clipping.AGC, {"factor": 0.5, "eps": 0.5}, {"factor": SIZE, "eps": SIZE}),
    "clipping.AutoClip": Row(
        clipping.AutoClip,
        {"percentile": 10.0, "history": 5},
        {"percentile": Kind((*NUMBER.bad, -1, 101), _reals), "history": COUNT_OR_NONE},
    ),
    "clipping.ZClip": Row(
        clipping.ZClip,
        {"alpha": 0.5, "z_threshold": 2.5, "warmup": 25, "clip_factor": 1.0, "eps": 0.5},
        {
            **{"alpha": Kind((*SHARE.bad, 0, 1), _reals), "warmup": COUNT},
            **dict.fromkeys(("z_threshold", "clip_factor", "eps"), SIZE),
        },
    ),
    "clipping.ByGroup": Row(
        clipping.ByGroup,
        {"policies": {"recurrent": NORM}},
        {"policies": Kind((*MAPPING.bad, NOTHING, {}, {"a": 3}, {"all": NORM, "a": NORM}))},
    ),
    "clipping.Chain": Row(
        clipping.Chain,
        {"policies": (NORM,)},
        {"policies": Kind((*NO_OBJECT, (), (3,), [NORM], (INSIDE,)))},
    ),
    "clipping.ChainInside": Row(
        clipping.ChainInside,
        {"policies": (INSIDE,)},
        {"policies": Kind((*NO_OBJECT, (), (3,), [INSIDE], (NORM,)))},
    ),
    "clipping.chain": Row(
        clipping.chain,
        {"policies": (NORM, NORM)},
        {"policies": Kind(((), (3,), (None,), (NORM, INSIDE), (LIST,)))},
        "policies",
    ),
    "clipping.PreActivationValue": Row(
        clipping.PreActivationValue, {"max_value": 2.0}, {"max_value": SIZE}
    ),
    "clipping.StateNorm": Row(clipping.StateNorm, {"max_norm": 2.0}, {"max_norm": SIZE}),
    "clipping.HDetach": Row(
        clipping.HDetach, {"probability": 0.5}, {"probability": Kind((*SHARE.bad, 0), _reals)}
    ),
    "clipping.clip": Row(
        lambda model, **options: clipping.clip(model, **options),
        {"model": with_gradients(), "policy": NORM, "groups": None, "nonfinite": "skip"},
        {
            "model": Kind((*NO_OBJECT, nn.ReLU())),
            "policy": Kind((*NO_OBJECT, INSIDE, clipping.ZClip())),
            "groups": Kind((*MAPPING.bad, {"a": 3}, {3: "x"}, {"a": [3]}, {"a": "zzz"})),
            "nonfinite": NAME,
        },
    ),
    "clipping.Clipper": Row(
        clipping.Clipper,
        {
            **{"model": nn.LSTM(1, 2), "policy": NORM, "groups": None, "nonfinite": "skip"},
            **{"keep": 5, "scaler": None, "optimizer": None},
        },
        {
            "model": Kind((*NO_OBJECT, nn.ReLU())),
            "policy": Kind((*NO_OBJECT, INSIDE)),
            "groups": Kind((*MAPPING.bad, {"a": 3}, {3: "x"}, {"a": [3]}, {"a": "zzz"})),
            **{"nonfinite": NAME, "keep": COUNT_OR_NONE},
            **{"scaler": OBJECT_OR_NONE, "optimizer": OBJECT_OR_NONE},
        },
    ),
    "clipping.suggest": Row(
        clipping.suggest,
        {"history": [1.0, 2.0], "clip_rate": 0.5},
        {
            "history": Kind(
                (
                    *(NOTHING, 3, TEXT, LIST, {}, {"all": 3}, {"a": [1.0], "b": [1.0]}, [], [0.0]),
                    *([math.nan], [-1.0], [1j], [[1.0]], {"all": [1.0], "a": [1.0, 2.0]}, [True]),
                ),
                lambda value: (np.array(value), torch.tensor(value), (1, 2)),
            ),
            "clip_rate": Kind((*SHARE.bad, 0, 1), _reals),
        },
    ),
    "clipping.scope_of": Row(
        clipping.scope_of, {"name": "weight_hh_l0"}, {"name": Kind((NOTHING, 3, LIST, b"x"))}
    ),
    "diagnosis.limits": Row(
        diagnosis.limits, {"changed": None}, {"changed": DIAGNOSE["thresholds"]}
    ),
    "diagnosis.explain": Row(diagnosis.explain, {"name": "vanishing"}, {"name": NAME}),
    "report.compare": Row(
        report.compare,
        {"a": REPORT, "b": REPORT, "names": ("a", "b")},
        {"a": OBJECT, "b": OBJECT, "names": Kind((3, TEXT, LIST, ("a",), (1, 2), NOTHING))},
    ),
    "Report.to_json": Row(REPORT.to_json, {"path": "/dev/null"}, {"path": PATH}),
    "Report.to_html": Row(REPORT.to_html, {"path": "/dev/null"}, {"path": PATH}),
    "Report.from_json": Row(
        lambda path: None if path == "good" else report.Report.from_json(path),
        {"path": "good"},
        {"path": Kind((*PATH.bad, "/dev/null"))},
    ),
    "retrograde.save": Row(
        retrograde.save,
        {"recording": RECORDED, "path": "/dev/null"},
        {"recording": RECORDING, "path": PATH},
    ),
    "retrograde.load": Row(
        lambda path: None if path == "good" else retrograde.load(path),
        {"path": "good"},
        {"path": Kind((*PATH.bad, "/dev/null"))},
    ),
    "lightning.MonitorCallback": Row(
        lightning.MonitorCallback,
        {"every": 3, "images_every": 2, "samples": 4, "entries": 8},
        {
            "images_every": COUNT_OR_NONE,
            **{"every": COUNT, **dict.fromkeys(("samples", "entries"), COUNT_OR_NONE)},
        },
    ),
    "lightning.ClippingCallback": Row(
        lightning.ClippingCallback,
        {"policy": NORM, "groups": None, "nonfinite": "raise", "keep": 5, "every": 5},
        {
            **{"policy": Kind((*NO_OBJECT, INSIDE)), "groups": MAPPING, "nonfinite": NAME},
            **{"keep": COUNT_OR_NONE, "every": COUNT},
        },
    ),
    "tasks.Adding": Row(tasks.Adding, {"length": 50}, {"length": COUNT}),
    "tasks.ContinualReber": Row(
        tasks.ContinualReber, {"steps": 50, "resets": True}, {"steps": COUNT, "resets": FLAG}
    ),
    "tasks.Copying": Row(tasks.Copying, {"delay": 50}, {"delay": COUNT}),
    "tasks.DistractedSymbol": Row(
        tasks.DistractedSymbol,
        {"distance": 5, "distractors": 4},
        {"distance": COUNT, "distractors": COUNT},
    ),
    "tasks.FirstSymbol": Row(tasks.FirstSymbol, {"lag": 5}, {"lag": COUNT}),
    "tasks.ModernAdding": Row(tasks.ModernAdding, {"length": 50}, {"length": COUNT}),
    "tasks.ModernTemporalOrder": Row(tasks.ModernTemporalOrder, {"length": 50}, {"length": COUNT}),
    "tasks.Multiplication": Row(
        tasks.Multiplication, {"length": 50, "wrong": 13}, {"length": COUNT, "wrong": COUNT}
    ),
    "tasks.PeriodicFunction": Row(
        tasks.PeriodicFunction,
        {"shape": "cosine", "period": 10, "periods": 3, "tested": 5},
        {"shape": NAME, "period": COUNT, "periods": COUNT, "tested": COUNT},
    ),
    "tasks.RememberedSymbol": Row(
        tasks.RememberedSymbol, {"lag": 5, "between": "random"}, {"lag": COUNT, "between": NAME}
    ),
    "tasks.SequentialDigits": Row(
        tasks.SequentialDigits,
        {"permuted": True, "held_out": False},
        {"permuted": FLAG, "held_out": FLAG},
    ),
    "tasks.Spikes": Row(
        tasks.Spikes,
        {"what": "measure", "shortest": 10, "spikes": 3, "tested": 5, "alike": False},
        {"what": NAME, "shortest": COUNT, "spikes": COUNT, "tested": COUNT, "alike": FLAG},
    ),
    "tasks.TemporalOrder": Row(tasks.TemporalOrder, {"relevant": 2}, {"relevant": COUNT}),
    "tasks.TwoSequences": Row(
        tasks.TwoSequences,
        {"length": 10, "informative": 3, "noise": "plain"},
        {"length": COUNT, "informative": COUNT, "noise": NAME},
    ),
    "studies.results": Row(studies.results, {"name": "6a"}, {"name": NAME}),
    "studies.merged": Row(
        studies.merged,
        {"several": [studies.Results("6a", ())]},
        {"several": Kind((NOTHING, 3, TEXT, LIST, [], torch.ones(2)))},
    ),
}


EXEMPT = {
    **dict.fromkeys(
        (
            *(
                "retrograde.Audit",
                "retrograde.Flow",
                "retrograde.Horizon",
                "retrograde.Recorded",
                "retrograde.Recording",
            ),
            *("retrograde.Report", "retrograde.Spectrum", "decompose.Flow", "decompose.ByLag"),
            *("decompose.ByParameter", "decompose.ByTime", "decompose.Parts", "decompose.Residual"),
            "decompose.NormsAtLags",
            "cells.KerasCell",
            *("decompose.Split", "spectra.Bound", "spectra.Chain", "spectra.Exponents"),
            *("spectra.Memory", "spectra.Radius", "spectra.SingularValues", "spectra.Spectrum"),
            *("weights.WeightBound", "weights.GateWeights", "weights.BiasHorizon"),
            *("weights.Inspection", "weights.Kind", "weights.LayerWeights", "weights.Likeness"),
            *("clipping.GroupAdvice", "clipping.GroupStatistics", "clipping.Part"),
            *("clipping.Statistics", "clipping.Suggestion", "diagnosis.GateSeries"),
            *("diagnosis.Check", "diagnosis.Evidence", "diagnosis.Finding", "diagnosis.Rule"),
            *("diagnosis.NotApplicable", "diagnosis.Threshold", "diagnosis.Spread"),
            *("monitor.Event", "monitor.History"),
            *("diagnosis.Training", "diagnosis.Trial", "report.Comparison", "report.Growth"),
            "report.NeededLag",
            *(
                "report.HorizonReport",
                "report.Layer",
                "report.Report",
                "report.Settings",
                "cells.CellAdjoint",
            ),
            *("studies.Machine", "studies.Outcome", "studies.Part", "studies.Results"),
            *("studies.StudyPage", "studies.Trial", "tasks.Guess", "tasks.Sequences"),
            *("cells.CellStep", "cells.Graph", "cells.Generation", "retrograde.nn.ClippedInside"),
            *(
                "engine.AdjointSpan",
                "engine.AdjointStep",
                "engine.AdjointSums",
                "engine.Boundary",
                "engine.Chunk",
            ),
            "engine.Read",
            *("engine.Entries", "engine.ParameterSums", "engine.Scaled"),
            "engine.Unrolled",
        ),
        "a result, made by another function",
    ),
    **dict.fromkeys(
        (
            *(
                "cells.AbstractCell",
                "cells.AbstractLayer",
                "cells.AbstractLinear",
                "clipping.AbstractInside",
            ),
            *("tasks.AbstractClassification", "tasks.AbstractTask", "studies.Run"),
            *("clipping.AbstractPolicy", "retrograde.nn.AbstractRecurrent", "engine.Fold"),
        ),
        "to be derived from",
    ),
    **dict.fromkeys(
        (
            *("engine.backpropagate", "engine.backpropagate_by_crossing", "engine.fold"),
            "engine.spans",
            *("engine.input_adjoints", "engine.scan", "engine.with_factors", "cells.pull_back"),
        ),
        "takes what unroll and Entries.of made, and is called for every step",
    ),
    "retrograde.backend": "takes nothing",
    "studies.published": "takes nothing",
    "tasks.EmbeddedReber": "takes nothing",
    **dict.fromkeys(("studies.Row", "studies.Study"), "made by the package's own tables"),
    "retrograde.RetrogradeError": "an error",
    "retrograde.VoidDecompositionWarning": "a warning",
    "diagnosis.Severity": "a type",
}
"""Public names without a row, and why."""

MODULES = {
    **{"retrograde": retrograde, "retrograde.nn": retrograde.nn, "cells": cells},
    **{
        "clipping": clipping,
        "decompose": sys.modules["retrograde.decomposition"],
        "diagnosis": diagnosis,
        "engine": engine,
        "monitor": sys.modules["retrograde.monitor"],
    },
    **{"report": report, "spectra": spectra, "weights": weights, "lightning": lightning},
    **{"studies": studies, "tasks": tasks},
}


def shown(value: Any) -> str:
    return f"{value:.20}" if isinstance(value, str) else repr(value)[:60].replace("\n", " ")


@pytest.mark.parametrize("title", ROWS)
def test_bad_values_are_refused_with_an_error_of_ours(title):
    row = ROWS[title]
    row()
    wrong = []
    for name, kind in row.kinds.items():
        for bad in kind.bad:
            try:
                row(**{name: bad})
                wrong.append(f"{name}={shown(bad)}: accepted")
            except RetrogradeError as error:
                if len(str(error)) < 20:
                    wrong.append(f"{name}={shown(bad)}: says only {error}")
            except Exception as error:
                wrong.append(f"{name}={shown(bad)}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join([title, *wrong])


@pytest.mark.parametrize("title", ROWS)
def test_numbers_and_names_of_other_kinds_are_taken(title):
    row = ROWS[title]
    for name, kind in row.kinds.items():
        value = row.good.get(name)
        for good in () if value is None else kind.good(value):
            row(**{name: good})


def test_every_public_entry_has_a_row_and_every_argument_a_kind():
    """A new function, or a new argument of an old one, fails until its row says what it takes."""
    called = {id(getattr(row.call, "__func__", row.call)) for row in ROWS.values()}
    missing = []
    for title, module in MODULES.items():
        names = getattr(module, "__all__", ("MonitorCallback", "ClippingCallback"))
        for name in names:
            value, full = getattr(module, name), f"{title}.{name}"
            if not callable(value) or full in EXEMPT or full in ROWS or id(value) in called:
                continue
            missing.append(full)
    for title, row in ROWS.items():
        known = {name for other in ROWS.values() if other.call == row.call for name in other.kinds}
        for parameter in inspect.signature(row.call).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in known:
                missing.append(f"{title}({parameter.name})")
    assert not missing, "\n".join(missing)
