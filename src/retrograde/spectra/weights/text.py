"""An inspection for a terminal, drawn by rich."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from retrograde._terminal import as_text, indented, plain, rich
from retrograde.spectra.weights.extremes import EXACT
from retrograde.spectra.weights.layers import LayerWeights, WeightBound


def render(layers: Sequence[LayerWeights], notes: Sequence[str]) -> str:
    """What was found as plain text, 120 columns wide."""
    return as_text(renderable(layers, notes))


def renderable(layers: Sequence[LayerWeights], notes: Sequence[str]) -> Any:
    """What was found as something that a rich console can print."""
    parts: list[Any] = []
    for _, group in groupby(layers, lambda layer: layer.name):
        parts += [*_module(list(group)), ""]
    parts += [rich().Text(plain(f"not read: {note}")) for note in notes]
    parts += [rich().Text(sentence, style="dim") for sentence in _caveats(layers)]
    return rich().Group(*parts)


def _module(layers: Sequence[LayerWeights]) -> Iterator[Any]:
    """What is said of one recurrent module: its layers and directions together."""
    yield rich().Text(plain(_title(layers)), style="bold")
    for layer in layers:
        yield from (_line(words) for words in layer.non_finite)
    yield indented(
        _table(
            (
                *("layer", "gate", "spectral radius", "largest singular value"),
                *("1/gamma", "Frobenius norm"),
            ),
            [
                (
                    _where(layer),
                    gate.gate,
                    *(
                        ("" if gate.exact else "~") + _number(value)
                        for value in (gate.spectral_radius, gate.largest_singular_value)
                    ),
                    "-" if gate.limit is None else f"{gate.limit:g}",
                    _number(gate.frobenius_norm),
                )
                for layer in layers
                for gate in layer.gates
            ],
        )
    )
    for layer in layers:
        known = layer.kind.nonlinearity is not None
        yield from (_line(f"{_where(layer)}: {_bound(each, known)}") for each in layer.bounds)
    yield from _horizons(layers)
    rows = [
        (_where(layer), each.part, _looks(each.initialisation, each.value), each.reason)
        for layer in layers
        for each in layer.likenesses
    ]
    if rows:
        yield indented(_table(("layer", "weights", "look like", "because"), rows, right=False))


def _title(layers: Sequence[LayerWeights]) -> str:
    first = layers[0]
    kind = first.kind
    sure = f" {' or '.join(kind.generations)}" if kind.generations else ""
    other = f" (or an LSTM of generation {' or '.join(kind.others)})" if kind.others else ""
    name = kind.name + (f" with {kind.nonlinearity}" if kind.nonlinearity else "")
    positions = {layer.position for layer in layers if layer.position is not None}
    stacked = len({position.layer for position in positions})
    parts = [f"{first.name}: {name}{sure}{other}"]
    if stacked > 1:
        parts.append(f"{stacked} layers")
    if any(position.reverse for position in positions):
        parts.append("both directions")
    if first.input_size is not None:
        parts.append(f"{first.input_size} input{'s' * (first.input_size != 1)}")
    parts.append(f"{first.hidden_size} unit{'s' * (first.hidden_size != 1)}")
    if first.projection is not None:
        parts.append(f"projected to {first.projection}")
    parts.append(("" if first.bias else "no biases, ") + first.dtype)
    return ", ".join(parts)


def _horizons(layers: Sequence[LayerWeights]) -> Iterator[Any]:
    rows = [
        (_where(layer), layer.horizon.gate, *map(_number, layer.horizon.bias + layer.horizon.steps))
        for layer in layers
        if layer.horizon is not None
    ]
    if rows:
        yield _line(
            "the horizon that the biases of the gate that keeps the state stand for, "
            "1/(1 - f) steps, over the units:"
        )
        titles = ("layer", "gate", "least bias", "median", "largest")
        yield indented(_table((*titles, "least horizon", "median", "largest"), rows))
    elif layers[0].kind.name != "RNN":
        yield _line(f"no horizon: {_why_no_horizon(layers[0])}")


def _why_no_horizon(layer: LayerWeights) -> str:
    if layer.kind.name == "LSTM" and not layer.kind.gates[0][0].isdigit():
        if layer.kind.keeping is None:
            return "without a forget gate f = 1, and the carousel keeps its state forever"
    elif layer.kind.keeping is None:
        return "shapes do not tell which gates these are; give the model itself"
    return "its biases are not finite" if layer.bias else "there are no biases"


def _bound(bound: WeightBound, known: bool) -> str:
    phi = "tanh or relu" if bound.nonlinearity == "tanh" and not known else bound.nonlinearity
    limit = f"1/gamma = {bound.limit:g} ({phi})"
    if bound.vanishes:
        return f"||R||_2 < {limit}: gradients vanish for certain, and cannot explode"
    if bound.may_explode:
        return f"||R||_2 > {limit}: gradients may explode, and may also vanish"
    return f"||R||_2 = {limit}: gradients cannot explode"


def _looks(initialisation: str | None, value: float | None) -> str:
    if initialisation is None:
        return "none of these: trained?"
    match initialisation:
        case "chrono":
            return f"chrono, horizon about {value:.0f}"
        case "orthogonal" | "identity" if value is not None:
            return f"{initialisation}, times {value:.4g}"
        case "forget-bias":
            return f"forget-bias, {value:.4g}"
    return initialisation


def _caveats(layers: Sequence[LayerWeights]) -> Iterator[str]:
    """What the numbers do not say, of those that are shown."""
    if any(layer.kind.name != "RNN" for layer in layers):
        yield (
            "1/gamma: a plain RNN with a singular value below it vanishes (4 behind a sigmoid, 1 "
            "behind a tanh). In a gated cell each matrix is one of several, and it proves nothing."
        )
    if any(layer.bounds for layer in layers):
        if any(layer.kind.name == "RNN" and not layer.kind.nonlinearity for layer in layers):
            yield "Weights do not tell the nonlinearity of an RNN: hence a bound for each."
        yield (
            "Bounds: Pascanu et al. (2013), sufficient for vanishing, necessary for exploding. A "
            "spectral radius below 1 proves neither for a nonlinear RNN: [[8, 8], [-8, -8]] has 0, "
            "and tanh RNNs with it can explode."
        )
    if any(layer.horizon is not None for layer in layers):
        yield (
            "Horizons hold where inputs and states are 0; they move the gate. torch adds two "
            "biases, f = sigma(b_ih + b_hh)."
        )
    if any(layer.projection is not None for layer in layers):
        yield "With a projection M the recurrent matrix is R M."
    if not all(gate.exact for layer in layers for gate in layer.gates):
        yield f"~ estimates: beyond {EXACT} units only the outermost values are looked for."
    if any(layer.likenesses for layer in layers):
        yield (
            "Initialisations are recognised by bounds and distributions, and a few values rule out "
            "little. Weights after a little training still look like their initialisation."
        )


def _where(layer: LayerWeights) -> str:
    return plain(layer.suffix.removeprefix("_")) or "cell"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> Any:
    table = rich().Table(box=None, pad_edge=False)
    for column, title in enumerate(titles):
        number = right and column > 1
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(rich().Text(plain(cell)) for cell in row))
    return table


def _line(words: str) -> Any:
    return indented(rich().Text(plain(words)))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"
