"""How the calls of a layer are read: those of torch's layers and of ours as they are made, those of
a module of the user's own as it is declared.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from retrograde.cells import Position
from retrograde.declarations import Declaration
from retrograde.declarations.reading import (
    OF_PIECE,
    OUTPUT,
    CallTensors,
    argument_names,
    held_state,
    is_sequence,
    named_arguments,
    read_call,
)
from retrograde.recording.calls import data
from retrograde.recording.form import Form, Layer, class_of, form_of
from retrograde.recording.interception import computing, outermost
from retrograde.recording.weights import Weights, weights_of


class LayerReader:
    """Reads the calls of a layer of torch or of ours."""

    method = "forward"
    """The method of the module that is observed."""

    places: Mapping[str, str] = MappingProxyType({})
    """The names of weights in the module, where they are others than here."""

    def __init__(self, module: Layer):
        self.module = module
        self.form, self._mode = form_of(module), _mode(module)

    @property
    def forwards(self) -> tuple[type[nn.Module], type[nn.Module]]:
        """The classes whose forward computes the layer, and whose forward runs when it is called;
        the same but for subclasses."""
        return computing(self.module), outermost(self.module)

    def before(self) -> None:
        """A call begins."""
        if self._mode != _mode(self.module):
            self.form, self._mode = form_of(self.module), _mode(self.module)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], returned: Any) -> CallTensors:
        """What went into a call and came out of it."""
        named = {**dict(zip(("input", "hx"), args, strict=False)), **kwargs}
        return _tensors_of(self.form, named, returned)

    def weights(self, copies: Mapping[str, Tensor], tensors: CallTensors) -> Weights:
        """Copies of the weights, with what makes the cells."""
        return weights_of(self.module, self.form, copies)


class DeclaredReader:
    """Reads the calls of a module of the user's own."""

    def __init__(self, module: nn.Module, declaration: Declaration):
        self.module, self.declaration = module, declaration
        used = (name for name, _ in module.named_parameters() if declaration.uses(name))
        self.places = {declaration.names.get(name, name): name for name in used}
        names = tuple(self.places)
        layout = declaration.batch_comes_first(module)
        directions = declaration.directions(module)
        kind, readout = class_of(module), declaration.readout
        self.form = Form(
            kind, False, layout, directions, 0.0, False, (), names, declared=True, readout=readout
        )
        self.method = declaration.method
        self._held: dict[str, Tensor] = {}
        self._arguments = argument_names(module, self.method)

    @property
    def forwards(self) -> tuple[type[nn.Module], type[nn.Module]]:
        """The class whose forward runs when it is called, twice."""
        return (outermost(self.module, self.method),) * 2

    def before(self) -> None:
        """A call begins: the state that attributes hold is the one that enters."""
        if self.declaration.held:
            self._held = held_state(self.declaration, self.module)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], returned: Any) -> CallTensors:
        """What went into a call and came out of it."""
        held, self._held = self._held, {}
        arguments = named_arguments(self._arguments, args, kwargs)
        if self.declaration.reading is not None:
            found: CallTensors = self.declaration.reading(self.module, arguments, returned)
        else:
            found = read_call(self.declaration, self.module, arguments, returned, held)
        stepped = not is_sequence(found.x)
        if stepped != self.form.stepped:
            self.form = replace(self.form, stepped=stepped)
        return found

    def weights(self, copies: Mapping[str, Tensor], tensors: CallTensors) -> Weights:
        """Copies of the weights, with what makes the cells."""
        parameters = dict(self.module.named_parameters())
        live = {name: parameters[place] for name, place in self.places.items()}
        trained = {n: w for n, w in copies.items() if live[n].requires_grad}
        fixed = {n: w for n, w in copies.items() if n not in trained}
        declaration, module, inputs = self.declaration, self.module, data(tensors.x).shape[-1]
        seen = {piece: part.shape[-1] for piece, part in tensors.given.items()}
        for name, part in tensors.results.items():
            seen[declaration.handed_on if name == OUTPUT else name.removeprefix(OF_PIECE)] = (
                part.shape[-1]
            )
        if declaration.cell is None:
            sizes = declaration.sizes(module, seen)
            return Weights(
                copies,
                lambda: declaration.cells_of(module, trained, fixed, inputs, sizes),
                declaration,
            )
        cells = declaration.cells_of(module, trained, fixed, inputs, {})
        directions = self.form.directions
        if len(cells) > 1 and not self.form.positions:
            positions = Position.every(len(cells) // directions, directions == 2)
            self.form = replace(self.form, positions=positions)
        return Weights(copies, lambda: cells, declaration)


Reader = LayerReader | DeclaredReader


def reader_of(module: nn.Module, declaration: Declaration | None) -> Reader:
    """What reads the calls of a layer."""
    if declaration is not None:
        return DeclaredReader(module, declaration)
    assert isinstance(module, Layer)
    return LayerReader(module)


def _mode(module: nn.Module) -> tuple[bool, float]:
    """What may change from one call to the next: training mode and dropout."""
    return module.training, vars(module).get("dropout", 0.0)


def _tensors_of(form: Form, arguments: Mapping[str, Any], returned: Any) -> CallTensors:
    """What went into a layer of torch or of ours, and what it returned."""
    state = returned if form.stepped else returned[1]
    output = {} if form.stepped else {OUTPUT: data(returned[0])}

    def parts_of(state: Any) -> dict[str, Tensor]:
        parts = () if state is None else (state,) if isinstance(state, Tensor) else state
        return dict(zip(form.pieces, parts, strict=False))

    given, last = parts_of(arguments.get("hx")), parts_of(state)
    return CallTensors(arguments["input"], given, {**output, **last})
