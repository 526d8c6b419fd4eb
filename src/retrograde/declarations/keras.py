"""The recurrent layers of Keras, on its torch backend: LSTM, GRU, SimpleRNN and RNN(cell).

`RNN.inner_loop` is observed, where masks, initial states and dropout are all resolved; it runs a
loop of torch operations, or cuDNN. None of this imports Keras: a class is known by its name, and
what Keras has to do itself is asked of the module that a user imported.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells import AbstractCell, Gate, Stacked
from retrograde.cells.gates import GRU_GATES, LSTM_GATES
from retrograde.cells.keras import KerasCell, keras_cell, kind_of
from retrograde.declarations.declaration import Declaration
from retrograde.declarations.reading import OUTPUT, CallTensors
from retrograde.errors import RecordingError

RNN = "keras.src.layers.rnn.rnn.RNN"
"""The class that LSTM, GRU and SimpleRNN of Keras inherit from."""

LAYER = "keras.src.layers.layer.Layer"

STACKED = "keras.src.layers.rnn.stacked_rnn_cells.StackedRNNCells"

PLAIN = {"tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "linear": "identity"}
"""The activation functions of Keras that a SimpleRNN's cell has, and what they are called here."""

SEPARATOR = "/"
"""Between the names of layers in a path, as Keras writes it."""


def is_a(module: object, name: str) -> bool:
    """Whether an object is of a class of another package, by its qualified name."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == name for kind in type(module).__mro__)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules inside a model by path; inside a Keras layer by the names of layers.

    Keras keeps most layers in lists of its own, where torch's `named_modules` does not find them:
    the path of a layer is that of its Keras name, "encoder/lstm", as in `model.get_layer`.
    """
    if "keras" not in sys.modules:
        yield from model.named_modules()
        return
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        children: list[tuple[str, nn.Module]] = []
        if is_a(module, LAYER):
            inner: Any = module
            names: dict[str, int] = {}
            for layer in inner._layers:
                if isinstance(layer, nn.Module):
                    name = str(layer.name)
                    count = names[name] = names.get(name, 0) + 1
                    name += f"_{count}" * (count > 1)
                    children.append((f"{path}{SEPARATOR}{name}" if path else name, layer))
        own = {id(child) for _, child in children}
        for name, child in module._modules.items():
            known = id(child) in own or isinstance(child, nn.ParameterDict)
            if child is not None and not known and not _private(module, child):
                children.append((f"{path}.{name}" if path else name, child))
        waiting += reversed(children)


def expression_of(model: nn.Module, layer: nn.Module) -> str:
    """A layer of Keras inside a model as Python; empty for what the model's layers do not hold.

    "model.get_layer('both').forward_layer": by its name where a model asks for it by name, and else
    by the attribute of the layer that it is a part of.
    """
    waiting, seen = [("model", model)], set()
    while waiting:
        here, holder = waiting.pop(0)
        if holder is layer:
            return here if is_a(layer, LAYER) else ""
        if id(holder) in seen or not is_a(holder, LAYER):
            continue
        seen.add(id(holder))
        inside: Any = holder
        named = {id(part): name for name, part in inside._modules.items()}
        named |= {id(part): name for name, part in vars(inside).items()}
        for part in inside._layers:
            if hasattr(inside, "get_layer"):
                waiting.append((f"{here}.get_layer({str(part.name)!r})", part))
            elif id(part) in named:
                waiting.append((f"{here}.{named[id(part)]}", part))
    return ""


def _private(module: nn.Module, child: nn.Module) -> bool:
    """Whether it is the copy of itself that a Sequential of Keras runs."""
    return is_a(module, LAYER) and type(child).__name__ == "Functional"


@contextmanager
def one_direction_at_a_time(model: nn.Module) -> Iterator[None]:
    """In the block, no Bidirectional of Keras runs both directions as one kernel, as on a GPU.

    Its two layers are not called then, so that nothing of them is seen.
    """
    both = [vars(m) for _, m in named_modules(model) if is_a(m, BIDIRECTIONAL)]
    for attributes in both:
        attributes |= dict.fromkeys(FUSED, _never)
    try:
        yield
    finally:
        for attributes in both:
            for name in FUSED:
                attributes.pop(name, None)


BIDIRECTIONAL = "keras.src.layers.rnn.bidirectional.Bidirectional"


def in_both_directions(model: nn.Module, layer: str) -> bool:
    """Whether a layer, by its path, is one of the two of a Bidirectional."""
    both = (path for path, module in named_modules(model) if is_a(module, BIDIRECTIONAL))
    return any(layer.rpartition(SEPARATOR)[0] == path for path in both)


FUSED = ("_can_attempt_fused_lstm", "_can_attempt_fused_gru")
"""What a Bidirectional asks before it runs both directions as one kernel."""


def _never(*_: Any, **__: Any) -> bool:
    return False


def declaration_of(module: Any) -> Declaration:
    """What is known of a recurrent layer of Keras."""
    cell = module.cell
    parameters = _parameters(module)
    how: dict[str, Any] = {
        "method": "inner_loop",
        "batch_first": True,
        "bidirectional": False,
        "names": {name: short for name, (short, _) in parameters.items()} or {"": ""},
    }
    own = _own_cell(cell)
    pieces = _pieces(cell)
    kind = kind_of(cell)
    step, gates = STEPS.get(kind, (_step, ()))
    readout = "" if own or kind else "y"
    stepped = step is _step and not own
    how["reading"] = partial(_read, pieces=pieces, readout=readout, stepped=stepped)
    if own:
        return Declaration(cell=_cell_of, state=pieces, **how)
    state = dict(zip(pieces, _flat(cell.state_size), strict=True))
    return Declaration(step, state=state, readout=readout, gates=gates, **how)


def _own_cell(cell: Any) -> bool:
    """Whether the recurrence is one of `retrograde.cells`, or a stack of them."""
    if is_a(cell, STACKED):
        return all(map(_own_cell, cell.cells))
    kind = kind_of(cell)
    if kind == "SimpleRNN":
        return _name_of(cell.activation) in PLAIN
    usual = bool(kind) and _name_of(cell.activation) == "tanh"
    return usual and _name_of(cell.recurrent_activation) == "sigmoid"


def _name_of(activation: Any) -> str:
    """The name of an activation function of Keras; of any other one none of its names."""
    module = getattr(activation, "__module__", "")
    return getattr(activation, "__name__", "") if module == ACTIVATIONS else ""


ACTIVATIONS = "keras.src.activations.activations"


def _pieces(cell: Any) -> tuple[str, ...]:
    """The names of the pieces of its state, in the order in which Keras flattens it."""
    if is_a(cell, STACKED):
        several = len(cell.cells) > 1 or not _own_cell(cell)
        return tuple(
            f"{piece}_l{number}" if several else piece
            for number, each in enumerate(cell.cells)
            for piece in _pieces(each)
        )
    count = len(_flat(cell.state_size))
    if count == 1:
        return ("h",)
    if is_a(cell, "keras.src.layers.rnn.lstm.LSTMCell"):
        return ("h", "c")
    return tuple(f"s{number}" for number in range(count))


def _flat(nested: Any) -> list[Any]:
    """The leaves of nested lists and tuples, in order."""
    if isinstance(nested, list | tuple):
        return [leaf for part in nested for leaf in _flat(part)]
    return [nested]


def _parameters(module: Any) -> dict[str, tuple[str, Any]]:
    """The variables of a layer's cell, and what they are called, by their names among parameters.

    The name of a variable alone, "kernel", or with those of the cells inside its own.
    """
    variables = {id(_held(variable)): variable for variable in module.cell.variables}
    found = {
        name: variables[id(parameter)]
        for name, parameter in module.named_parameters()
        if id(parameter) in variables and parameter.dtype.is_floating_point
    }
    paths = [variable.path.split(SEPARATOR) for variable in found.values()]
    shared = len(os.path.commonprefix([path[:-1] for path in paths])) if paths else 0
    short = [SEPARATOR.join(path[shared:]) for path in paths]
    if len(set(short)) < len(short):
        short = list(found)
    return {name: (each, found[name]) for name, each in zip(found, short, strict=True)}


def _held(variable: Any) -> Tensor:
    """The parameter itself; in mixed precision the value of a variable is a copy of it."""
    value: Tensor = variable._value
    return value


def _named(module: Any) -> dict[str, Any]:
    """The variables of a layer's cell by what they are called."""
    return dict(_parameters(module).values())


def _cell_of(module: Any, weights: Mapping[str, Tensor]) -> AbstractCell:
    """The cell of a layer with these weights."""
    names = {id(variable): name for name, variable in _named(module).items()}

    def of(cell: Any) -> KerasCell:
        held = (cell.kernel, cell.recurrent_kernel, cell.bias)
        given = [None if each is None else weights[names[id(each)]] for each in held]
        kind = kind_of(cell)
        how: dict[str, Any] = {}
        if kind == "GRU":
            how["reset_after"] = bool(cell.reset_after)
        if kind == "SimpleRNN":
            how["activation"] = PLAIN[_name_of(cell.activation)]
        return keras_cell(kind, *given, **how)  # type: ignore[arg-type]

    if is_a(module.cell, STACKED):
        cells = [of(cell) for cell in module.cell.cells]
        return cells[0] if len(cells) == 1 else Stacked(tuple(cells))
    return of(module.cell)


def _three(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | float]:
    """Kernel, recurrent kernel and bias."""
    return weights["kernel"], weights["recurrent_kernel"], weights.get("bias", 0.0)


def _lstm(
    module: Any, weights: Mapping[str, Tensor], x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A step of keras.layers.LSTMCell with any activation functions."""
    kernel, recurrent, bias = _three(weights)
    a_i, a_f, a_c, a_o = (x @ kernel + s["h"] @ recurrent + bias).chunk(4, -1)
    gate, activation = module.cell.recurrent_activation, module.cell.activation
    i, f, g, o = gate(a_i), gate(a_f), activation(a_c), gate(a_o)
    c = f * s["c"] + i * g
    return {"h": o * activation(c), "c": c, "input": i, "forget": f, "cell": g, "output": o}


def _gru(
    module: Any, weights: Mapping[str, Tensor], x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A step of keras.layers.GRUCell with any activation functions."""
    kernel, recurrent, bias = _three(weights)
    after = module.cell.reset_after
    both = isinstance(bias, Tensor) and bias.ndim == 2
    of_input, of_state = bias if both else (bias, 0.0)  # type: ignore[misc]
    x_z, x_r, x_h = (x @ kernel + of_input).chunk(3, -1)
    h, size = s["h"], s["h"].shape[-1]
    a_z, a_r, a_h = (h @ recurrent + of_state).chunk(3, -1)
    gate = module.cell.recurrent_activation
    z, r = gate(x_z + a_z), gate(x_r + a_r)
    inner = r * a_h if after else (r * h) @ recurrent[:, 2 * size :]
    candidate = module.cell.activation(x_h + inner)
    return {"h": z * h + (1 - z) * candidate, "update": z, "reset": r, "candidate": candidate}


def _simple_rnn(
    module: Any, weights: Mapping[str, Tensor], x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A step of keras.layers.SimpleRNNCell with any activation function."""
    kernel, recurrent, bias = _three(weights)
    return {"h": module.cell.activation(x @ kernel + s["h"] @ recurrent + bias)}


STEPS: Mapping[str, tuple[Callable[..., dict[str, Tensor]], tuple[Gate, ...]]] = {
    "LSTM": (_lstm, tuple(replace(gate, activation=None) for gate in LSTM_GATES)),
    "GRU": (_gru, tuple(replace(gate, activation=None) for gate in GRU_GATES)),
    "SimpleRNN": (_simple_rnn, ()),
}
"""Steps and gates of Keras' cells, for activation functions that no cell of ours has."""


def _step(
    module: Any, weights: Mapping[str, Tensor], x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A step of any cell, which Keras does with these weights in place of its variables."""
    scope = sys.modules["keras"].StatelessScope
    variables = _named(module)
    mapping = [(variables[name], weight) for name, weight in weights.items()]
    states = iter(s.values())
    with scope(state_mapping=mapping):
        y, new = module.cell(x, _like(module.state_size, states))
    return {**dict(zip(s, _flat(new), strict=False)), "y": y}


def _like(nested: Any, leaves: Iterator[Tensor]) -> Any:
    """The leaves, nested as others are."""
    if isinstance(nested, list | tuple):
        return [_like(part, leaves) for part in nested]
    return next(leaves)


def _read(
    module: Any,
    arguments: Mapping[str, Any],
    returned: tuple[Tensor, Tensor, Any],
    pieces: Sequence[str],
    readout: str,
    stepped: bool,
) -> CallTensors:
    """The call of a layer's `inner_loop`.

    Raises:
        RecordingError: for what draws masks that a replay cannot know.
    """
    sequences, mask = arguments["sequences"], arguments.get("mask")
    if sequences.ndim != 3:
        raise RecordingError(
            f"its input has shape {tuple(sequences.shape)}; only layers that read a vector at each "
            "step, [B, T, I], are taken apart"
        )
    if isinstance(mask, list | tuple):
        mask = mask[0]
    last_output, outputs, states = returned
    given = dict(zip(pieces, _flat(arguments["initial_state"]), strict=True))
    states = _flat(states)
    x = _dropped(module, sequences.detach(), bool(arguments.get("training")))
    x = x.flip(1) if module.go_backwards else x
    results: dict[str, Tensor] = {}
    places, lengths = None, None
    if mask is not None:
        mask = mask.flip(1) if module.go_backwards else mask
        x, places, lengths = _kept(x, mask, bool(module.zero_output_for_mask))
    if module.return_sequences:
        results[OUTPUT] = outputs
    elif readout or last_output is not states[_handed_on(pieces)]:
        results[OUTPUT] = last_output
        if places is None:
            places = torch.full((len(x), 1), x.shape[1] - 1, device=x.device)
        else:
            places = places[:, -1:]
    if module.return_state or not module.return_sequences:
        results |= dict(zip(pieces, states, strict=True))
    rounding = _rounding(module, x.dtype, stepped or mask is not None)
    return CallTensors(x, given, results, lengths, (sequences,), places, rounding)


def _rounding(module: Any, dtype: torch.dtype, by_step: bool) -> float:
    """The rounding error of `keras.ops.matmul`, which multiplies float64 in float32.

    LSTM and GRU do not use it unless their cell is called step by step, as for a mask.
    """
    backend = sys.modules.get("keras.src.backend.torch.rnn")
    whole = hasattr(backend, "_fallback_lstm") and hasattr(module, "use_cudnn") and not by_step
    cell = module.cell
    if whole and module.use_cudnn and not cell.recurrent_dropout:
        if getattr(cell, "reset_after", True):
            return 0.0
    name = str(dtype).removeprefix("torch.")
    multiplied = sys.modules["keras"].backend.result_type(name, name)
    return torch.finfo(getattr(torch, multiplied)).eps


def _handed_on(pieces: Sequence[str]) -> int:
    """The number of the piece that a layer hands on: the h of the uppermost cell."""
    return max(number for number, piece in enumerate(pieces) if piece[0] == "h")


def _dropped(module: Any, x: Tensor, training: bool) -> Tensor:
    """The input as the recurrence reads it: a dropout multiplies every step by one mask.

    Raises:
        RecordingError: where a dropout acts inside the recurrence.
    """
    cells = module.cell.cells if is_a(module.cell, STACKED) else [module.cell]
    if not training:
        return x
    inside = [each for each in cells if getattr(each, "recurrent_dropout", 0)]
    if inside:
        raise RecordingError(
            f"its recurrent_dropout={inside[0].recurrent_dropout} multiplies the state by masks "
            "that are not kept; call the model with training=False, or set recurrent_dropout=0, "
            "for the recorded pass"
        )
    if not any(getattr(each, "dropout", 0) for each in cells):
        return x
    mask = module.cell._dropout_mask if len(cells) == 1 else None
    if not isinstance(mask, Tensor):
        raise RecordingError(
            "its dropout draws a mask for each gate or inner cell, which are not kept; call the "
            "model with training=False, or set dropout=0, for the recorded pass"
        )
    return x * mask.detach().unsqueeze(1)


def _kept(x: Tensor, mask: Tensor, zeroed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The steps that a mask keeps, moved together, the step of each output, and the lengths.

    Args:
        x: the input, [B, T, I].
        mask: where a step counts, [B, T]; elsewhere the state stays as it is.
        zeroed: whether outputs at the other steps are 0, and not the output before.

    Raises:
        RecordingError: for a sample of which no step counts.
    """
    mask = mask.reshape(x.shape[:2]).bool()
    lengths = mask.sum(1)
    if not bool(lengths.all()):
        sample = int(torch.nonzero(lengths == 0)[0])
        raise RecordingError(
            f"its mask skips every step of sample {sample}; leave empty samples out of the "
            "recorded pass"
        )
    order = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    order = order[:, : int(lengths.max())]
    kept = x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    places = mask.cumsum(1) - 1
    if zeroed:
        places = torch.where(mask, places, -1)
    return kept, places, lengths
