"""Weights in files of Keras, written here as Keras 3.15 writes them; no Keras is needed."""

import io
import json
import zipfile

import pytest
import torch
from torch import nn

from retrograde.cli.weights_file import read
from retrograde.errors import InputError
from retrograde.spectra import inspect_weights

h5py = pytest.importorskip("h5py")

I, H = 3, 5  # noqa: E741


def layer_of_torch(kind, **how):
    torch.manual_seed(0)
    return kind(I, H, **how)


def in_keras(layer):
    """Kernel, recurrent kernel and bias with the numbers of a layer of torch."""
    kernel, recurrent, *biases = (weight.detach() for weight in layer.parameters())
    if isinstance(layer, nn.GRU):
        order = torch.arange(3 * H).view(3, H)[[1, 0, 2]].flatten()
        kernel, recurrent = kernel[order], recurrent[order]
        return kernel.T, recurrent.T, torch.stack([bias[order] for bias in biases])
    return kernel.T, recurrent.T, sum(biases)


def numbered(layers):
    """A file of `save_weights`: weights by number below the attributes of layers."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.create_group("vars").attrs["name"] = "sequential"
        for (attribute, name), weights in layers.items():
            opened.create_group(f"layers/{attribute}/vars").attrs["name"] = name
            cell = opened.create_group(f"layers/{attribute}/cell/vars")
            cell.attrs["name"] = "lstm_cell"
            for number, weight in enumerate(weights):
                cell.create_dataset(str(number), data=weight.numpy())
        dense = opened.create_group("layers/dense/vars")
        dense.attrs["name"] = "head"
        dense.create_dataset("0", data=torch.ones(H, 1).numpy())
        opened.create_dataset("optimizer/vars/0", data=1)
    return file.getvalue()


def configuration(**activations):
    layers = [
        {"class_name": "SimpleRNN", "config": {"name": name, "activation": activation}}
        for name, activation in activations.items()
    ]
    return json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": layers}})


def zipped(weights, config):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)
    return file.getvalue()


def named(layers, end=""):
    """A file of `save("model.h5")`, of Keras 3, or with ":0" at the end of names of Keras 2."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for name, weights in layers.items():
            group = opened.create_group(f"model_weights/{name}/sequential/{name}/lstm_cell")
            for called, weight in zip(("kernel", "recurrent_kernel", "bias"), weights, strict=True):
                group.create_dataset(called + end, data=weight.numpy())
        opened["model_weights"].create_dataset("head/head/kernel" + end, data=[[1.0]])
    return file.getvalue()


def inspected(folder, contents, name="model.weights.h5"):
    path = folder / name
    path.write_bytes(contents)
    return inspect_weights(read(path)).layers


def same_numbers(ours, torchs):
    """Keras' order of gates, and torch's numbers."""
    by_gate = {gate.gate: gate for gate in torchs.gates}
    for gate in ours.gates:
        other = by_gate[gate.gate]
        assert gate.spectral_radius == pytest.approx(other.spectral_radius)
        assert gate.frobenius_norm == pytest.approx(other.frobenius_norm)
    assert (ours.horizon is None) == (torchs.horizon is None)
    if ours.horizon:
        assert ours.horizon.steps == pytest.approx(torchs.horizon.steps)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_every_kind_of_file_says_what_the_layer_of_torch_says(kind, tmp_path):
    theirs = layer_of_torch(kind)
    (expected,), weights = inspect_weights(theirs).layers, in_keras(theirs)
    files = {
        "model.weights.h5": numbered({("lstm", "memory"): weights}),
        "model.keras": zipped(
            numbered({("lstm", "memory"): weights}), configuration(memory="tanh")
        ),
        "model.h5": named({"memory": weights}),
        "keras2.h5": named({"memory": weights}, ":0"),
    }
    for name, contents in files.items():
        (found,) = inspected(tmp_path, contents, name)
        assert found.name == "memory" and found.kind.name == expected.kind.name
        assert (found.input_size, found.hidden_size) == (I, H)
        same_numbers(found, expected)
    if kind is nn.GRU:
        assert [gate.gate for gate in found.gates] == ["update", "reset", "candidate"]


def test_the_configuration_of_a_model_gives_activation_and_order(tmp_path):
    weights = in_keras(layer_of_torch(nn.RNN))
    contents = numbered({("a", "second"): weights, ("b", "first"): weights})
    config = configuration(first="relu", second="linear")
    layers = inspected(tmp_path, zipped(contents, config), "model.keras")
    kinds = [(layer.name, layer.kind.nonlinearity) for layer in layers]
    assert kinds == [("first", "relu"), ("second", "identity")]


def test_keras_default_weights_are_recognised():
    bound = (6 / (8 + 128)) ** 0.5
    torch.manual_seed(0)
    weights = {
        "lstm/kernel": torch.empty(8, 128).uniform_(-bound, bound),
        "lstm/recurrent_kernel": nn.init.orthogonal_(torch.empty(32, 128)),
        "lstm/bias": torch.cat([torch.zeros(32), torch.ones(32), torch.zeros(64)]),
    }
    (layer,) = inspect_weights(weights).layers
    looks = [likeness.initialisation for likeness in layer.likenesses]
    assert looks == ["glorot-uniform", "orthogonal", "forget-bias", "zero"]
    assert layer.likenesses[2].reason == "bias is 1 in every unit"


def hostile(change):
    file = io.BytesIO(numbered({("lstm", "memory"): in_keras(layer_of_torch(nn.LSTM))}))
    with h5py.File(file, "r+") as opened:
        change(opened, opened["layers/lstm/cell/vars"])
    return file.getvalue()


def replaced(make):
    def change(file, held):
        del held["1"]
        make(held)

    return change


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (lambda: numbered({}), "holds no recurrent layer of Keras; it holds head"),
        (
            lambda: hostile(replaced(lambda h: h.create_dataset("1", (5, 20), "f4"))),
            r"claims the shape \[5, 20\] and holds fewer numbers",
        ),
        (
            lambda: hostile(replaced(lambda h: h.create_dataset("1", data=[[1] * 20] * 5))),
            "only floating-point weights are read",
        ),
        (
            lambda: hostile(
                replaced(
                    lambda h: h.create_dataset(
                        "1", (5, 20), "f4", external=[("/etc/hostname", 0, 400)]
                    )
                )
            ),
            "lies in another file, which is not read",
        ),
        (
            lambda: hostile(
                lambda file, held: (
                    file.__setitem__("layers/lstm", h5py.SoftLink("/elsewhere"))
                    if file.pop("layers/lstm", None) is None
                    else file.__setitem__("layers/lstm", h5py.ExternalLink("other.h5", "/"))
                )
            ),
            "holds no recurrent layer",
        ),
        (lambda: numbered({("lstm", "memory"): ()})[:700], "is damaged, or no file of Keras"),
        (lambda: zipped(b"no HDF5", "{}"), "is damaged, or no file of Keras"),
        (lambda: zipped(numbered({}), "{"), "is damaged, or no file of Keras"),
    ],
)
def test_what_is_no_weight_is_not_read(contents, said, tmp_path):
    with pytest.raises(InputError, match=said):
        inspected(tmp_path, contents())
