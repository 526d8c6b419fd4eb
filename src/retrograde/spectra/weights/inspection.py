"""What recurrent weights say on their own, before a step is taken: sizes, bounds, horizons.

References: Razvan Pascanu, Tomas Mikolov and Yoshua Bengio, "On the difficulty of training
recurrent neural networks", ICML (2013), arXiv 1211.5063, for the bounds; Corentin Tallec and Yann
Ollivier, "Can recurrent neural networks warp time?", ICLR (2018), arXiv 1804.11188, for the horizon
that a gate's bias stands for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde._json import strict
from retrograde.cells.gates import ACTIVATIONS, SIGMOID
from retrograde.cells.generations import generation
from retrograde.cells.position import Position
from retrograde.errors import UnsupportedModelError
from retrograde.nn import GRU, LSTM, RNN
from retrograde.recording.form import Layer, form_of
from retrograde.recording.layers import recurrent_layers, why_unsupported
from retrograde.spectra.weights import text
from retrograde.spectra.weights.extremes import is_exact, largest_singular_value, spectral_radius
from retrograde.spectra.weights.initialisations import likenesses
from retrograde.spectra.weights.keras import (
    KerasWeights,
    is_keras_layer,
    keras_layers,
    keras_layers_of,
)
from retrograde.spectra.weights.kinds import (
    Kind,
    kind_of,
    names_in,
    split_name,
    state_dicts,
    unwrapped,
)
from retrograde.spectra.weights.layers import BiasHorizon, GateWeights, LayerWeights, WeightBound

SCHEMA = "retrograde-inspection/1"

READ = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The kinds of weights that are inspected, all of them in float64."""

LISTED = 5
"""The number of names listed from a state dict that holds no recurrent weights."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_weights` found; `print` shows it.

    Attributes:
        layers: every layer and direction of every recurrent module, in the order of the model.
        notes: what looks like a recurrent layer and could not be read, and why.

    Example:
        >>> import torch
        >>> from retrograde.spectra import inspect_weights
        >>> found = inspect_weights(torch.nn.GRU(2, 3, num_layers=2, bidirectional=True))
        >>> len(found.layers), found.notes
        (4, ())
    """

    layers: tuple[LayerWeights, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts; an infinity is the text "Infinity", as in reports."""
        found = strict({"schema": SCHEMA, **asdict(self)})
        for told, layer in zip(found["layers"], self.layers, strict=True):
            told["suffix"] = layer.suffix
        assert isinstance(found, dict)
        return found

    def __str__(self) -> str:
        return text.render(self.layers, self.notes)

    def __rich__(self) -> Any:
        return text.renderable(self.layers, self.notes)


def inspect_weights(source: nn.Module | Mapping[str, Any]) -> Inspection:
    """Look at the recurrent weights of a model before it is run.

    For every gate of every layer the spectral radius, the largest singular value and the Frobenius
    norm of its recurrent matrix; for a plain RNN the bounds of Pascanu et al. (2013); for an LSTM
    or a GRU the horizon that the biases of its gate stand for; and which initialisation it looks
    like, by the tests of `retrograde.spectra.weights.initialisations`. All in float64.

    Args:
        source: a model; or its state dict, or a checkpoint that holds one (Lightning's, with
            "state_dict" inside). In a state dict layers are told by the names and shapes of torch
            and of retrograde.nn (weight_ih_l0, weight_hh_l0, ..., weight_ch_l0), where some kinds
            look alike; a model itself says which they are. Layers of Keras are told by its names
            (lstm/kernel, lstm/recurrent_kernel), and their gates are in its order.
            "module." of DistributedDataParallel and "_orig_mod." of torch.compile have no part in
            the names.

    Returns:
        An `Inspection`. Nothing of it comes from training data: it tells what the weights allow,
        not what happens.

    Raises:
        ArgumentError: for anything but a model or a mapping.
        UnsupportedModelError: if there are no recurrent weights.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(3, 16)
        >>> retrograde.nn.initialise(lstm, "forget-bias", value=3.0)
        >>> layer = inspect_weights(lstm.state_dict()).layers[0]
        >>> layer.kind.name, [round(steps, 1) for steps in layer.horizon.steps]
        ('LSTM', [21.1, 21.1, 21.1])
        >>> [likeness.initialisation for likeness in layer.likenesses]
        ['torch', 'torch', 'forget-bias', 'torch']

    References: Pascanu, Mikolov and Bengio (2013), arXiv 1211.5063; Tallec and Ollivier (2018),
    arXiv 1804.11188.
    """
    if not isinstance(source, nn.Module):
        _checks.mapping("source", source, "of names to weights, or a model")
    layers: list[LayerWeights] = []
    notes: list[str] = []
    for group in _groups(source, notes):
        found = _layer(group)
        if isinstance(found, str):
            notes.append(found)
        else:
            layers.append(found)
    if not layers:
        raise UnsupportedModelError(_nothing(source, notes))
    return Inspection(tuple(layers), tuple(notes))


@dataclass(frozen=True)
class _Group:
    """The weights of one layer and direction, by name without the suffix of its position."""

    path: str
    position: Position | None
    weights: Mapping[str, Tensor]
    kind: Kind | None = None
    called: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> str:
        if self.called:
            return f"{self.path}/{self.called[name]}"
        name += "" if self.position is None else self.position.suffix
        return f"{self.path}.{name}" if self.path else name


def _groups(source: nn.Module | Mapping[str, Any], notes: list[str]) -> Iterator[_Group]:
    if not isinstance(source, nn.Module):
        found = list(state_dicts(source))
        for place, weights in found:
            yield from _grouped(weights, place if len(found) > 1 else "")
        yield from map(_of_keras, keras_layers(source))
        return
    known: set[int] = set()
    foreign: dict[str, str] = {}
    for name, module in recurrent_layers(source).items():
        if isinstance(module, Layer):
            known |= {id(parameter) for parameter in module.parameters()}
            yield from _of_module(name, module)
        elif is_keras_layer(module):
            yield from map(_of_keras, keras_layers_of(name, module))
        else:
            foreign[name] = why_unsupported(module)
    every = source.state_dict(keep_vars=True).items()
    rest = {name: weight for name, weight in every if isinstance(weight, Tensor)}
    rest = {name: weight for name, weight in rest.items() if id(weight) not in known}
    for group in _grouped(unwrapped(rest), ""):
        foreign.pop(group.path, None)  # TorchScript: its weights are there, if under torch's names
        yield group
    notes += [f"{name}: {why}" for name, why in foreign.items()]


def _of_keras(layer: KerasWeights) -> _Group:
    return _Group(layer.path, None, layer.in_rows, layer.kind, layer.called)


def _of_module(name: str, module: Layer) -> Iterator[_Group]:
    """A module knows what it is; its weights are read as it computes them, parametrized or not."""
    form = form_of(module)
    with torch.no_grad():
        weights = {each: getattr(module, each) for each in form.weights}
    for group in _grouped(weights, name):
        shapes = {each: tuple(weight.shape) for each, weight in group.weights.items()}
        yield _Group(name, group.position, group.weights, _kind_of_module(module, shapes))


def _kind_of_module(module: Layer, shapes: Mapping[str, tuple[int, ...]]) -> Kind | None:
    """The readings of the shapes, reduced to the one that this module is."""
    match module:
        case LSTM():
            row = generation(module.generation)
            return Kind("LSTM", (row.name,), row.gates)
        case GRU():
            generations: tuple[str, ...] = (module.generation,)
        case nn.GRU() | nn.GRUCell():
            generations = ("gru-torch",)
        case nn.LSTM() | nn.LSTMCell():
            generations = ("lstm-2000",)
        case nn.RNN() | nn.RNNCell() | RNN():
            return Kind("RNN", (), ("hidden",), nonlinearity=str(module.nonlinearity))
        case _:
            return kind_of(shapes)
    found = kind_of(shapes)
    return found and Kind(found.name, generations, found.gates)


def _grouped(weights: Mapping[str, Tensor], place: str) -> Iterator[_Group]:
    """The weights by layer and direction, for those that have recurrent ones."""
    groups: dict[tuple[str, Position | None], dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if (parts := split_name(name)) is not None:
            path, kind, position = parts
            path = ".".join(filter(None, (place, path)))
            groups.setdefault((path, position), {})[kind] = weight.detach()
    for (path, position), named in groups.items():
        if "weight_hh" in named:
            yield _Group(path, position, named)


def _layer(group: _Group) -> LayerWeights | str:
    """What its weights say, or why they say nothing."""
    weights, where = group.weights, group.named("weight_hh")
    for name, weight in weights.items():
        if weight.layout != torch.strided:
            return f"{group.named(name)} is sparse: call to_dense() on it first"
        if weight.dtype not in READ:
            return (
                f"{group.named(name)} is {weight.dtype}: only floats of 16, 32 or 64 bits are "
                "inspected; give the weights from before the model was quantised"
            )
        if weight.is_meta:
            return f"{group.named(name)} holds no numbers (it is on the meta device)"
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            return (  # a file of a kilobyte may claim more than there is memory
                f"{group.named(name)} claims the shape {list(weight.shape)} and holds fewer "
                "numbers than that (it is expanded): call clone() on it first"
            )
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if any(len(shapes[name]) != 2 for name in ("weight_hh", "weight_hr") if name in shapes):
        return (
            f"{where} of shape {list(shapes['weight_hh'])} belongs to no layer that is known here"
        )
    kind = group.kind or kind_of(shapes)
    if kind is None or not _fit(shapes, len(kind.gates)):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        return f"{where}: no layer that is known here has weights of these shapes: {listed}"
    projection = shapes.get("weight_hr")
    hidden = shapes["weight_hh"][0] // len(kind.gates)
    weights = {name: weight.cpu() for name, weight in weights.items()}
    non_finite = tuple(
        words
        for name, weight in weights.items()
        if (words := _non_finite(group.named(name), weight))
    )
    gates = tuple(_gates(weights, kind))
    return LayerWeights(
        group.path or kind.name,
        group.position,
        kind,
        shapes["weight_ih"][1] if "weight_ih" in shapes else None,
        hidden,
        None if projection is None else projection[0],
        "bias_ih" in weights or "bias_hh" in weights,
        str(weights["weight_hh"].dtype).removeprefix("torch."),
        gates,
        _bounds(kind, gates[0]) if kind.name == "RNN" else (),
        _horizon(weights, kind, hidden),
        () if non_finite else likenesses(weights, kind, hidden, group.called),
        non_finite,
    )


def _fit(shapes: Mapping[str, tuple[int, ...]], gates: int) -> bool:
    """Whether matrices and biases have as many rows as weight_hh."""
    rows = shapes["weight_hh"][0]
    return (
        rows > 0
        and rows % gates == 0
        and all(shapes.get(name, (rows,)) == (rows,) for name in ("bias_ih", "bias_hh"))
        and ("weight_ih" not in shapes or shapes["weight_ih"][:-1] == (rows,))
        and 0 not in shapes.get("weight_ih", ())
    )


def _gates(weights: Mapping[str, Tensor], kind: Kind) -> Iterator[GateWeights]:
    blocks = weights["weight_hh"].double().chunk(len(kind.gates))
    if "weight_hr" in weights:
        projection = weights["weight_hr"].double()
        blocks = tuple(block @ projection for block in blocks)
    named = list(zip(kind.gates, blocks, strict=True))
    if "weight_gg" in weights:
        named.append(("between gates", weights["weight_gg"].double()))
    for gate, block in named:
        if bool(block.isfinite().all()):
            yield GateWeights(
                gate,
                spectral_radius(block),
                largest_singular_value(block),
                float(torch.linalg.matrix_norm(block)),
                _limit(gate, kind),
                is_exact(block),
            )
        else:
            yield GateWeights(gate, None, None, None, _limit(gate, kind))


def _limit(gate: str, kind: Kind) -> float | None:
    """1/gamma of the activation function behind a gate; None where that is not known."""
    activations = {block.name: block.activation for block in kind.blocks}
    if gate not in activations:  # the weights between gates lead to sigmoids alone
        return 1 / SIGMOID.largest_slope
    activation = activations[gate]
    return None if activation is None else 1 / activation.largest_slope


def _bounds(kind: Kind, recurrent: GateWeights) -> tuple[WeightBound, ...]:
    size = recurrent.largest_singular_value
    if size is None:
        return ()
    possible = ("tanh", "sigmoid") if kind.nonlinearity is None else (kind.nonlinearity,)
    limits = {name: 1 / ACTIVATIONS[name].largest_slope for name in possible}
    return tuple(
        WeightBound(name, ACTIVATIONS[name].largest_slope, limit, size < limit, size > limit)
        for name, limit in limits.items()
    )


def _horizon(weights: Mapping[str, Tensor], kind: Kind, hidden: int) -> BiasHorizon | None:
    biases = [weights[name].double() for name in ("bias_ih", "bias_hh") if name in weights]
    if kind.keeping is None or not biases:
        return None
    number = kind.gates.index(kind.keeping)
    bias = torch.stack(biases).sum(0)[number * hidden : (number + 1) * hidden]
    if not bool(bias.isfinite().all()):
        return None
    steps = 1 + (-bias if kind.coupled else bias).exp()
    return BiasHorizon(kind.keeping, _spread(bias), _spread(steps))


def _spread(values: Tensor) -> tuple[float, float, float]:
    """Smallest, median and largest."""
    ranked = values.sort().values.tolist()
    count = len(ranked)
    return ranked[0], (ranked[(count - 1) // 2] + ranked[count // 2]) / 2, ranked[-1]


def _non_finite(name: str, weight: Tensor) -> str:
    wrong = (~weight.isfinite()).nonzero()
    if not len(wrong):
        return ""
    first = wrong[0].tolist()
    value = float(weight[tuple(first)])
    count = f"{len(wrong)} of {weight.numel()} values"
    return f"{name}: not finite in {count}, the first, {value}, at {first}"


def _nothing(source: nn.Module | Mapping[str, Any], notes: list[str]) -> str:
    if notes:
        return "no recurrent weights could be read: " + "; ".join(notes)
    names = names_in(source.state_dict() if isinstance(source, nn.Module) else source)
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    advice = ""
    if any("weight_hh" in name for name in names):
        advice = "; parametrized weights are computed by the model: give that instead"
    return (
        "expected recurrent weights, named as torch.nn names them (weight_hh_l0, or weight_hh of a "
        f"cell); there are {len(names)} names{': ' if names else ''}{listed}{advice}"
    )
