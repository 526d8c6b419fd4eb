"""Weights before training: closed forms, what layers and initialisations are told by, bad files."""

import json
import math
import os
import pickle
import sys
import warnings
import zipfile
from dataclasses import replace

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.cells.generations import TABLE
from retrograde.cli import main
from retrograde.errors import UnsupportedModelError
from retrograde.spectra import inspect_weights
from retrograde.spectra.weights.extremes import largest_singular_value, spectral_radius

NILPOTENT = [[8.0, 8.0], [-8.0, -8.0]]


def only(source):
    (layer,) = inspect_weights(source).layers
    return layer


def looks(source):
    return {each.part: each.initialisation for each in only(source).likenesses}


def rnn(recurrent, **more):
    recurrent = torch.tensor(recurrent)
    return {"weight_ih_l0": torch.zeros(len(recurrent), 1), "weight_hh_l0": recurrent, **more}


def filled(module, name, value):
    with torch.no_grad():
        getattr(module, name).fill_(value)
    return module


def drawn(kind, hidden, name, seed, **options):
    """A module initialised by name, as retrograde.nn.initialise does it."""
    generator = torch.Generator().manual_seed(seed)
    module = kind(3, hidden)
    retrograde.nn.initialise(module, "torch", generator=generator)
    retrograde.nn.initialise(module, name, generator=generator, **options)
    return module


# The numbers.


def test_a_nilpotent_matrix_has_radius_0_and_norm_16():
    layer = only(rnn(NILPOTENT))
    (gate,) = layer.gates
    assert gate.spectral_radius == pytest.approx(0, abs=1e-6)
    assert gate.largest_singular_value == pytest.approx(16)
    assert gate.frobenius_norm == pytest.approx(16)
    assert [(b.nonlinearity, b.limit, b.vanishes, b.may_explode) for b in layer.bounds] == [
        ("tanh", 1, False, True),
        ("sigmoid", 4, False, True),
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0.5, [(True, False), (True, False)]), (1.0, [(False, False), (True, False)])]
    + [(2.0, [(False, True), (True, False)]), (5.0, [(False, True), (False, True)])],
)
def test_the_bounds_of_pascanu_turn_at_1_for_tanh_and_4_for_sigmoid(size, expected):
    rotation = [[0.0, -size], [size, 0.0]]
    layer = only(rnn(rotation))
    assert [(bound.vanishes, bound.may_explode) for bound in layer.bounds] == expected
    assert layer.gates[0].spectral_radius == pytest.approx(size)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_module_says_its_nonlinearity(nonlinearity):
    (bound,) = only(nn.RNN(2, 3, nonlinearity=nonlinearity)).bounds
    assert (bound.nonlinearity, bound.gamma) == (nonlinearity, 1)


def test_a_sigmoid_rnn_has_the_limit_4():
    (bound,) = only(retrograde.nn.RNN(2, 3, nonlinearity="sigmoid")).bounds
    assert (bound.gamma, bound.limit) == (0.25, 4)


@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_the_numbers_of_each_gate_are_those_of_numpy(hidden, seed, dtype):
    torch.manual_seed(seed)
    module = nn.LSTM(2, hidden, dtype=dtype)
    blocks = module.weight_hh_l0.detach().double().numpy().reshape(4, hidden, hidden)
    for gate, block in zip(only(module).gates, blocks, strict=True):
        assert gate.spectral_radius == pytest.approx(abs(numpy.linalg.eigvals(block)).max())
        assert gate.largest_singular_value == pytest.approx(numpy.linalg.norm(block, 2))
        assert gate.frobenius_norm == pytest.approx(numpy.linalg.norm(block))


def test_a_projected_lstm_recurs_through_r_times_m():
    module = nn.LSTM(2, 5, proj_size=3)
    layer = only(module.state_dict())
    product = (module.weight_hh_l0[5:10] @ module.weight_hr_l0).detach().double()
    assert (layer.hidden_size, layer.projection) == (5, 3)
    assert layer.gates[1].frobenius_norm == pytest.approx(float(product.norm()), rel=1e-5)
    radius = float(torch.linalg.eigvals(product).abs().max())
    assert layer.gates[1].spectral_radius == pytest.approx(radius, rel=1e-5)


def test_estimates_of_large_matrices_come_close(monkeypatch):
    """A matrix with known eigenvalues and one far from normal, both beyond the exact size."""
    monkeypatch.setattr("retrograde.spectra.weights.extremes.EXACT", 100)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(600, 600, generator=generator, dtype=torch.float64) / 600**0.5
    known = float(torch.linalg.eigvals(matrix).abs().max())
    assert spectral_radius(matrix) == pytest.approx(known, rel=1e-3)
    known = float(torch.linalg.matrix_norm(matrix, 2))
    assert largest_singular_value(matrix) == pytest.approx(known, rel=1e-3)
    identity = 3 * torch.eye(300, dtype=torch.float64)
    assert spectral_radius(identity) == pytest.approx(3)
    assert spectral_radius(0 * identity) == 0
    layer = only(nn.RNN(2, 101))
    assert not layer.gates[0].exact and "~" in str(inspect_weights(nn.RNN(2, 101)))


# Horizons.


@pytest.mark.parametrize(("bias", "steps"), [(0.0, 2.0), (1.0, 3.718), (5.0, 149.4)])
def test_the_horizon_adds_up_both_biases(bias, steps):
    """sigma(1) is 3.7 steps, sigma(5) 149: FACTS of the forget bias, by either or both biases."""
    for parts in ((bias, 0.0), (0.0, bias), (bias / 2, bias / 2)):
        module = filled(filled(nn.LSTM(2, 3), "bias_ih_l0", parts[0]), "bias_hh_l0", parts[1])
        horizon = only(module.state_dict()).horizon
        assert horizon.gate == "forget"
        assert horizon.steps == pytest.approx((steps, steps, steps), rel=1e-3)
        assert horizon.bias == pytest.approx((bias, bias, bias))


def test_the_horizon_reads_the_rows_of_its_gate():
    """Least, median and largest over the units: of the forget gate, of the update gate."""
    u = torch.tensor([1.0, 7.0, 3.0, 29.0])
    for module, gate, row in ((nn.LSTM(2, 4), "forget", 1), (nn.GRU(2, 4), "update", 1)):
        filled(filled(module, "bias_ih_l0", 9.0), "bias_hh_l0", 0.0)
        with torch.no_grad():
            module.bias_ih_l0[row * 4 : row * 4 + 4] = u.log()
        horizon = only(module.state_dict()).horizon
        assert horizon.gate == gate
        assert horizon.steps == pytest.approx((2, 6, 30))


def test_coupled_gates_keep_what_they_do_not_let_in():
    module = retrograde.nn.LSTM(2, 3, generation="cifg")
    filled(filled(module, "bias_ih_l0", -2.0), "bias_hh_l0", 0.0)
    horizon = only(module).horizon
    assert horizon.gate == "input"
    assert horizon.steps[0] == pytest.approx(1 + math.exp(2))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.LSTM(2, 3, bias=False), "there are no biases"),
        (retrograde.nn.LSTM(2, 3, generation="nfg"), "f = 1"),
        (retrograde.nn.LSTM(2, 3, generation="nfg").state_dict(), "shapes do not tell"),
    ],
)
def test_without_a_horizon_the_text_says_why(module, why):
    assert only(module).horizon is None
    assert why in str(inspect_weights(module))


# What the layers are.


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_generation_is_told_by_its_shapes(row):
    module = retrograde.nn.LSTM(3, 4, generation=row.name)
    kind = only(module.state_dict()).kind
    told = kind.generations if kind.name == "LSTM" else kind.others
    assert row.name in told
    for name in told:
        other = retrograde.nn.LSTM(3, 4, generation=name).state_dict()
        assert {n: w.shape for n, w in other.items()} == {
            n: w.shape for n, w in module.state_dict().items()
        }
    assert only(module).kind.generations == (row.name,)
    assert tuple(g.gate for g in only(module).gates if g.gate in row.gates) == row.gates


@pytest.mark.parametrize(
    ("module", "name", "others"),
    [
        (nn.LSTM(3, 4), "LSTM", ()),
        (nn.LSTMCell(3, 4), "LSTM", ()),
        (nn.GRU(3, 4), "GRU", ("lstm-1997",)),
        (nn.GRUCell(3, 4), "GRU", ("lstm-1997",)),
        (retrograde.nn.GRU(3, 4, generation="gru-2014"), "GRU", ("lstm-1997",)),
        (nn.RNN(3, 4), "RNN", ("cec",)),
        (nn.RNNCell(3, 4), "RNN", ("cec",)),
    ],
    ids=repr,
)
def test_kinds_are_told_by_shapes_and_modules_are_sure(module, name, others):
    found = only(module.state_dict())
    assert (found.kind.name, found.kind.others) == (name, others)
    assert (found.input_size, found.hidden_size, found.bias) == (3, 4, True)
    assert (only(module).kind.name, only(module).kind.others) == (name, ())
    told = only(module).gates
    assert [replace(gate, limit=None) for gate in told] == [
        replace(gate, limit=None) for gate in found.gates
    ]
    limits = {"hidden": 1, "cell": 1, "candidate": 1}  # and 1/gamma = 4 behind a sigmoid
    assert [gate.limit for gate in told] == [limits.get(gate.gate, 4) for gate in told]
    unknown = [gate.limit for gate in found.gates if gate.gate == "hidden"]
    assert unknown == ([None] if name == "RNN" else [])


def test_layers_are_found_inside_a_model_by_the_prefix_of_their_names():
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 3),
            "encoder": nn.ModuleDict({"lstm": nn.LSTM(3, 4, 2, bidirectional=True)}),
            "cells": nn.ModuleList([nn.GRUCell(8, 5), nn.GRUCell(5, 5)]),
        }
    )
    expected = [("encoder.lstm", f"_l{n}{end}") for n in (0, 1) for end in ("", "_reverse")]
    expected += [("cells.0", ""), ("cells.1", "")]
    for source in (model, model.state_dict()):
        assert [(each.name, each.suffix) for each in inspect_weights(source).layers] == expected
    text = str(inspect_weights(model))
    assert "encoder.lstm: LSTM lstm-2000, 2 layers, both directions, 3 inputs, 4 units" in text


def wrap(weights, prefix):
    return {prefix + name: weight for name, weight in weights.items()}


LSTM = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))


@pytest.mark.parametrize(
    "checkpoint",
    [
        wrap(LSTM.state_dict(), "module."),
        wrap(LSTM.state_dict(), "_orig_mod.module."),
        wrap(LSTM.state_dict(), "module._orig_mod."),
        {"epoch": 3, "state_dict": LSTM.state_dict(), "optimizer_states": [{"state": {}}]},
        {"step": 1, "a": {"b": LSTM.state_dict()}, "optimizer": {"state": {0: {"x": 1}}}},
    ],
    ids=["ddp", "compiled ddp", "ddp of compiled", "lightning", "nested"],
)
def test_what_wraps_a_model_or_its_state_dict_has_no_part_in_the_names(checkpoint):
    assert only(checkpoint).name == "1"
    assert only(checkpoint).gates == only(LSTM).gates


def test_a_compiled_model_is_the_model():
    assert [
        layer.name for layer in inspect_weights(torch.compile(LSTM, backend="eager")).layers
    ] == ["1"]
    assert [
        layer.name for layer in inspect_weights(torch.compile(LSTM[1], backend="eager")).layers
    ] == ["LSTM"]


def test_several_state_dicts_and_a_checkpoint_that_holds_itself():
    checkpoint = {"model": nn.GRU(2, 3).state_dict(), "ema": nn.GRU(2, 3).state_dict()}
    checkpoint["self"] = checkpoint
    assert [layer.name for layer in inspect_weights(checkpoint).layers] == ["model", "ema"]


def test_a_parametrized_layer_is_read_as_it_computes_its_weights():
    module = nn.LSTM(3, 4)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.fill_(2.0)  # the length of every row
    gates = only(nn.Sequential(module)).gates
    assert [gate.frobenius_norm for gate in gates] == pytest.approx([4.0] * 4)
    with pytest.raises(UnsupportedModelError, match="parametrized weights are computed by the"):
        inspect_weights(nn.Sequential(module).state_dict())


class Custom(nn.Module):
    """Somebody's own cell, with torch's names."""

    def __init__(self):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.eye(3))
        self.inner = nn.GRUCell(2, 3)


def test_a_cell_of_the_users_own_is_found_by_its_names():
    found = inspect_weights(Custom()).layers
    assert [(layer.name, layer.kind.name, layer.input_size) for layer in found] == [
        ("inner", "GRU", 2),
        ("RNN", "RNN", None),
    ]


def test_the_model_is_left_as_it_was():
    model = nn.LSTM(3, 40)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    inspect_weights(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


# What it looks like.

SIZES = [8, 13, 32, 128]
KINDS = [nn.LSTM, nn.GRU, nn.RNN]
SEEDS = range(3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torchs_default_is_recognised(kind, hidden, dtype):
    for seed in SEEDS:
        torch.manual_seed(seed)
        found = looks(kind(3, hidden, dtype=dtype).state_dict())
        assert set(found.values()) == {"torch"}, found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("gain", [1.0, 0.7])
def test_orthogonal_blocks_are_recognised(kind, hidden, gain):
    for seed in SEEDS:
        module = drawn(kind, hidden, "orthogonal", seed, gain=gain)
        layer = only(module.state_dict())
        found = next(each for each in layer.likenesses if each.part == "recurrent weights")
        assert found.initialisation == "orthogonal"
        assert found.value == pytest.approx(gain, rel=1e-4)
        for gate in layer.gates:
            assert gate.largest_singular_value == pytest.approx(gain, rel=1e-4)
            assert gate.spectral_radius == pytest.approx(gain, rel=1e-4)
            assert gate.frobenius_norm == pytest.approx(gain * hidden**0.5, rel=1e-4)


def keeping(module):
    return next(each for each in only(module).likenesses if each.part.startswith("bias of the"))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("value", [1.0, 3.0, -2.0, 0.1])
def test_forget_biases_are_recognised(kind, hidden, value):
    for seed in SEEDS:
        found = keeping(drawn(kind, hidden, "forget-bias", seed, value=value).state_dict())
        assert found.initialisation == "forget-bias"
        assert found.value == pytest.approx(value)


@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("horizon", [20, 700])
def test_chrono_and_the_uniform_gate_are_recognised(hidden, horizon):
    for seed in SEEDS:
        for kind in (nn.LSTM, nn.GRU):
            module = drawn(kind, hidden, "chrono", seed, horizon=horizon)
            found = keeping(module.state_dict())
            assert found.initialisation == "chrono"
            # The largest of H draws: its relative spread is 1/H, and e^-9 of it is beyond 9/H.
            assert found.value == pytest.approx(horizon, rel=9 / hidden)
            rest = {part: how for part, how in looks(module).items() if part != found.part}
            assert set(rest.values()) == {"torch"}
            module = drawn(kind, hidden, "uniform-gate", seed)
            assert keeping(module.state_dict()).initialisation == "uniform-gate"


def test_the_horizon_of_chrono_is_estimated_without_bias():
    """The largest of H draws from U[1, T - 1] is expected at 1 + (T - 2) H / (H + 1)."""
    hidden, horizon = 19, 42
    module = drawn(nn.GRU, hidden, "forget-bias", 0)
    with torch.no_grad():
        u = 1 + (horizon - 2) * torch.arange(1, hidden + 1) / (hidden + 1)
        module.bias_ih_l0[hidden : 2 * hidden] = u.log()
    assert keeping(module).value == pytest.approx(horizon, rel=1e-5)
    assert "chrono, horizon about 42" in str(inspect_weights(module))


def test_a_bound_that_rounding_moves_is_still_a_bound():
    hidden = 50
    module = nn.RNN(hidden, hidden, dtype=torch.bfloat16)
    bound = hidden**-0.5
    with torch.no_grad():
        for weight in (module.weight_ih_l0, module.weight_hh_l0):
            weight.copy_(torch.linspace(-bound, bound, hidden**2).view(hidden, hidden))
    assert float(module.weight_hh_l0.detach().max()) > bound
    assert looks(module)["recurrent weights"] == "torch"


def test_a_single_row_is_neither_orthogonal_nor_an_identity():
    for module in (nn.RNN(2, 1), nn.LSTM(2, 3, proj_size=1)):
        with torch.no_grad():
            module.weight_hh_l0.fill_(0.5)
        assert looks(module)["recurrent weights"] is None


@pytest.mark.parametrize("hidden", SIZES)
def test_the_identity_rnn_is_recognised(hidden):
    for seed in SEEDS:
        module = nn.RNN(3, hidden, nonlinearity="relu")
        generator = torch.Generator().manual_seed(seed)
        retrograde.nn.initialise(module, "identity", generator=generator)
        assert looks(module.state_dict()) == {
            "input weights": "identity",
            "recurrent weights": "identity",
            "biases": "zero",
        }


def test_biases_that_torch_adds_up_are_told():
    """The recipe that sets both to 1: the gate's bias is 2."""
    module = nn.LSTM(3, 8)
    with torch.no_grad():
        module.bias_ih_l0[8:16] = 1.0
    found = keeping(module)  # the other bias is still torch's
    assert (found.initialisation, found.value) == ("forget-bias", 1.0)
    with torch.no_grad():
        module.bias_hh_l0[8:16] = 1.0
    found = keeping(module)
    assert (found.initialisation, found.value) == ("forget-bias", 2.0)
    assert "adds them up to 2" in found.reason


def test_a_whole_matrix_made_orthogonal_is_told_from_its_blocks():
    module = nn.LSTM(3, 8)
    nn.init.orthogonal_(module.weight_hh_l0)
    found = only(module).likenesses[1]
    assert found.initialisation == "orthogonal" and "not for each" in found.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", SIZES)
def test_trained_weights_look_like_nothing(kind, hidden):
    """torch's default, moved by as much as its own size; and every other initialisation, moved."""
    for seed, name in enumerate(["torch", "orthogonal", "forget-bias", "chrono", "uniform-gate"]):
        if kind is nn.RNN and seed > 1:
            continue
        module = drawn(kind, hidden, name, seed, **({"horizon": 50} if name == "chrono" else {}))
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight), alpha=hidden**-0.5)
        assert set(looks(module.state_dict()).values()) == {None}


@pytest.mark.parametrize("hidden", [16, 64])
def test_bounds_alone_do_not_make_torchs_default(hidden):
    """Values inside the bounds of torch's default that are not uniform there."""
    torch.manual_seed(0)
    for power in (0.5, 3.0):
        module = nn.LSTM(3, hidden)
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(weight.sign() * weight.abs() ** power * hidden ** (power / 2 - 0.5))
                assert float(weight.abs().max()) <= hidden**-0.5
        recurrent = only(module).likenesses[1]
        assert recurrent.initialisation is None
        assert recurrent.reason == f"not uniform in torch's +-{hidden**-0.5:.3g}; not orthogonal"


def test_chrono_needs_its_mirror():
    module = drawn(nn.LSTM, 64, "chrono", 0, horizon=50)
    with torch.no_grad():
        module.bias_ih_l0[:64] *= 0.9
    assert keeping(module).initialisation is None


@pytest.mark.parametrize("name", ["chrono", "uniform-gate"])
def test_a_law_of_the_horizon_is_told_from_another(name):
    """Biases of both signs or of one, drawn from neither law."""
    module = drawn(nn.GRU, 64, "forget-bias", 0)
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(64, generator=generator)
    with torch.no_grad():
        module.bias_ih_l0[64:128] = b.abs() if name == "chrono" else 0.3 * b
    assert keeping(module).initialisation is None


def test_weights_that_training_moves_stop_to_look_drawn():
    """A real optimiser, as in a first lesson: orthogonal blocks are lost at once."""
    torch.manual_seed(0)
    module = nn.LSTM(3, 16)
    retrograde.nn.initialise(module, "orthogonal")
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    x = torch.randn(10, 4, 3)
    for _ in range(30):
        optimiser.zero_grad()
        module(x)[0].sum().backward()
        optimiser.step()
    assert set(looks(module).values()) == {None}
    assert "none of these: trained?" in str(inspect_weights(module))


def test_few_values_are_said_to_be_few():
    reasons = {each.part: each.reason for each in only(nn.RNN(1, 2)).likenesses}
    assert reasons["biases"] == "4 values are too few to tell"


# Weights that are none.


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_a_result(value):
    module = nn.LSTM(2, 3)
    with torch.no_grad():
        module.weight_hh_l0[4, 1] = value
    inspection = inspect_weights({f"lstm.{n}": w for n, w in module.state_dict().items()})
    (layer,) = inspection.layers
    (words,) = layer.non_finite
    assert words.startswith("lstm.weight_hh_l0: not finite in 1 of 36 values")
    assert f"{value}, at [4, 1]" in words and words in str(inspection)
    assert [gate.spectral_radius is None for gate in layer.gates] == [False, True, False, False]
    assert layer.likenesses == ()
    json.dumps(inspection.to_dict(), allow_nan=False)


def test_a_bias_that_is_not_finite_has_no_horizon():
    module = filled(nn.LSTM(2, 3), "bias_hh_l0", math.inf)
    assert only(module).horizon is None
    assert "its biases are not finite" in str(inspect_weights(module))


def test_a_bias_beyond_range_has_an_infinite_horizon():
    module = filled(nn.LSTM(2, 3), "bias_hh_l0", 1000.0)
    inspection = inspect_weights(module)
    assert inspection.layers[0].horizon.steps[2] == math.inf
    assert inspection.to_dict()["layers"][0]["horizon"]["steps"][2] == "Infinity"


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn]
)
def test_weights_that_are_no_floats_are_refused_by_name(dtype):
    weights = {"a.weight_hh": torch.zeros(3, 3, dtype=dtype)}
    with pytest.raises(UnsupportedModelError, match=rf"a\.weight_hh is {dtype}"):
        inspect_weights(weights)
    found = inspect_weights({**weights, **nn.GRU(2, 3).state_dict()})
    assert len(found.layers) == 1 and "not read: a.weight_hh is" in str(found)


@pytest.mark.parametrize(
    "shape",
    [(5, 3), (6, 3), (15, 3), (3,), (0, 0), (3, 3, 3), (4, 0)],
)
def test_shapes_that_are_no_layer_are_refused(shape):
    with pytest.raises(UnsupportedModelError, match="known here"):
        inspect_weights({"weight_hh": torch.zeros(shape)})


def test_weights_that_do_not_fit_together_are_refused():
    weights = nn.LSTM(2, 3).state_dict()
    for name in weights:
        wrong = {**weights, name: torch.zeros(7, *weights[name].shape[1:])}
        with pytest.raises(UnsupportedModelError, match="no layer that is known here"):
            inspect_weights(wrong)
    projected = nn.LSTM(2, 3, proj_size=2).state_dict()
    with pytest.raises(UnsupportedModelError, match="no layer that is known here"):
        inspect_weights({**projected, "weight_hr_l0": torch.zeros(1, 3)})


def test_sparse_weights_empty_ones_and_those_without_numbers_are_refused():
    with pytest.raises(UnsupportedModelError, match="weight_hh is sparse: call to_dense"):
        inspect_weights({"weight_hh": torch.eye(3).to_sparse()})
    with pytest.raises(UnsupportedModelError, match=r"weight_ih \[12, 0\]"):
        inspect_weights({"weight_hh": torch.ones(12, 4), "weight_ih": torch.ones(12, 0)})
    with pytest.raises(UnsupportedModelError, match="holds no numbers"):
        inspect_weights(nn.LSTM(2, 3, device="meta"))


def test_a_scripted_layer_is_read_by_its_names():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted_model = torch.jit.script(LSTM)
    found = inspect_weights(scripted_model)
    assert found.layers[0].gates == only(LSTM).gates and found.notes == ()


def test_without_recurrent_weights_the_first_names_are_listed():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    for source in (model, model.state_dict(), {"state_dict": model.state_dict(), "epoch": 1}):
        with pytest.raises(UnsupportedModelError, match=r"0\.weight, .*2\.weight, \.\.\."):
            inspect_weights(source)
    with pytest.raises(UnsupportedModelError, match="there are 0 names"):
        inspect_weights({})


def test_a_quantised_layer_is_named():
    model = nn.Sequential(nn.LSTM(2, 3), nn.GRU(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, dtype=torch.qint8)
    found = inspect_weights(quantised)
    assert [layer.kind.name for layer in found.layers] == ["GRU"]
    assert "0: it is a quantised LSTM" in found.notes[0]


def test_a_name_does_not_steer_the_terminal():
    weights = {f"\x1b[31m.{name}": weight for name, weight in nn.GRU(2, 3).state_dict().items()}
    text = str(inspect_weights(weights))
    assert "\x1b" not in text and "\\x1b[31m: GRU" in text


# The command.

USER = """
from torch import nn

def example():
    return nn.Sequential(nn.GRU(2, 3)), None, print
"""


class Runs:
    """Unpickling this leaves a trace."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["retrograde", "inspect", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    yield call
    sys.modules.pop("user", None)


def saved(kind, path, weights):
    match kind:
        case "safetensors":
            safetensors.torch.save_file(weights, path)
        case "zip":
            torch.save(weights, path)
        case "old":
            torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("safetensors", "a.safetensors"), ("safetensors", "a.bin"), ("zip", "a.pt"), ("old", "a.pth")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_command_reads_every_kind_of_file(run, kind, name, dtype):
    weights = nn.LSTM(2, 8, dtype=dtype).state_dict()
    saved(kind, name, dict(weights))
    code, out, err = run(name, "--json", "found.json")
    assert (code, err) == (0, "")
    assert out == f"{inspect_weights(weights)}\nwrote found.json\n"
    assert str(dtype).removeprefix("torch.") in out
    with open("found.json") as file:
        assert json.load(file) == json.loads(json.dumps(inspect_weights(weights).to_dict()))


def test_the_command_takes_a_function(run, tmp_path):
    (tmp_path / "user.py").write_text(USER)
    code, out, err = run("user.py:example")
    assert (code, err) == (0, "") and out.startswith("0: GRU gru-torch, 2 inputs, 3 units")


def test_the_command_reads_a_checkpoint_of_lightning(run):
    checkpoint = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5",
        "state_dict": wrap(nn.RNN(2, 3).state_dict(), "model._orig_mod.rnn."),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "callbacks": {},
    }
    torch.save(checkpoint, "epoch=1.ckpt")
    code, out, err = run("epoch=1.ckpt")
    assert (code, err) == (0, "") and out.startswith("model.rnn: RNN (or an LSTM of generation cec")


def write(name, content):
    with open(name, "wb") as file:
        file.write(content)


def truncated(kind, name, part):
    saved(kind, name, dict(nn.LSTM(2, 8).state_dict()))
    with open(name, "rb") as file:
        content = file.read()
    write(name, content[: int(len(content) * part)])


def zipped(name):
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("a.txt", "x")


def scripted(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(name)


BAD = {
    "missing": ("none.pt", lambda name: None, "there is no file none.pt; give a .safetensors"),
    "folder": ("folder.pt", os.mkdir, "is a folder"),
    "text": ("text.pt", lambda n: write(n, b"hello world"), "is not a checkpoint of torch.save or"),
    "empty": ("empty.pt", lambda n: write(n, b""), "is not a checkpoint of torch.save"),
    "zip": ("zip.pt", zipped, "is not a checkpoint of torch.save"),
    "half": ("half.pt", lambda n: truncated("zip", n, 0.5), "or is truncated"),
    "old half": ("old.pt", lambda n: truncated("old", n, 0.5), "or is truncated"),
    "scripted": ("script.pt", scripted, "is a TorchScript archive, which contains code"),
    "code": ("code.pt", lambda n: torch.save(Runs(), n), r"holds Python objects \(the first: "),
    "code in a dict": (
        "deep.pt",
        lambda n: torch.save({**nn.LSTM(2, 3).state_dict(), "x": Runs()}, n),
        "save model.state_dict() with torch.save or safetensors",
    ),
    "pickle": (
        "pickle.pt",
        lambda n: write(n, pickle.dumps(Runs())),
        "holds Python objects; loading them could run arbitrary code",
    ),
    "module": ("module.pt", lambda n: torch.save(nn.LSTM(2, 3), n), "the first: torch.nn.modules"),
    "list": ("list.pt", lambda n: torch.save([1], n), "no state dict but one object of type list"),
    "python": ("model.py", lambda n: write(n, b"x = 1"), "name its function as well"),
    "safe half": (
        "half.safetensors",
        lambda n: truncated("safetensors", n, 0.9),
        "is not a safetensors file, or is truncated",
    ),
    "safe text": ("t.safetensors", lambda n: write(n, b"hello"), "is not a safetensors file"),
    "safe empty": ("e.safetensors", lambda n: write(n, b""), "is not a safetensors file"),
    "other": (
        "linear.pt",
        lambda n: torch.save(nn.Linear(2, 2).state_dict(), n),
        "expected recurrent weights, named as torch.nn names them",
    ),
    "no function": ("user.py:missing", lambda n: write("user.py", b""), "has no function"),
    "no python": ("gone.py:example", lambda n: None, "there is no file gone.py"),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_a_message_and_exit_2(run, name, make, message):
    make(name)
    code, out, err = run(name)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "Traceback" not in err
    assert message.replace("\\", "") in err
    assert not os.path.exists("executed")


def test_a_file_without_permission_is_a_message(run, monkeypatch):
    """As root, who may read everything, would never see it."""
    write("secret.pt", b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    code, _, err = run("secret.pt")
    assert code == 2 and "cannot read secret.pt: Permission denied" in err


def test_the_weights_are_not_overwritten(run):
    torch.save(nn.GRU(2, 3).state_dict(), "a.pt")
    code, _, err = run("a.pt", "--json", "a.pt")
    assert code == 2 and "named twice" in err
    assert run("a.pt")[0] == 0


def test_weights_that_claim_more_than_their_file_holds_are_refused(run):
    """A file of a kilobyte, 80 GB of weights: copied, they would end the process."""
    torch.save(
        {
            "weight_hh_l0": torch.zeros(1).expand(10**5, 10**5),
            "weight_ih_l0": torch.zeros(1).expand(10**5, 2),
        },
        "huge.pt",
    )
    assert os.path.getsize("huge.pt") < 5000
    code, out, err = run("huge.pt")
    assert (code, out) == (2, "")
    assert "claims the shape [100000, 100000] and holds fewer numbers than that" in err
