"""Which modules are recurrent layers, whether they can be recorded, how they lay things out, and in
which precision they compute.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrograde.cells import AbstractCell, Position, clipped
from retrograde.declarations import Declaration
from retrograde.declarations.keras import named_modules
from retrograde.declarations.matching import Declared, declared_in
from retrograde.nn import AbstractRecurrent
from retrograde.nn.torch_layers import CELLS, torch_cells
from retrograde.recording.interception import is_own

Layer = nn.RNNBase | nn.RNNCellBase | AbstractRecurrent
"""A recurrent layer of torch, stepped by the model's own loop or not, or one of ours."""

ANALYSED = (torch.float32, torch.float64)
"""Lower precisions are taken apart in float32."""

COMPILED = "_orig_mod"
"""The attribute in which torch.compile keeps the module that it wraps."""

CARRIED = "_retrograde_declaration"
"""The attribute by which a module carries its declaration while a model is diagnosed on copies."""

_LAYER_NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def recurrent_layers(model: nn.Module, cells: Declared | None = None) -> dict[str, nn.Module]:
    """Every recurrent layer inside the model, by name (or else its class).

    Also those in forms that cannot be recorded. What wraps a model (DistributedDataParallel,
    torch.compile) has no part in the names.

    Args:
        model: any module.
        cells: declarations of further layers, by the name or the class of modules.

    Raises:
        ArgumentError: for a declaration that matches nothing.

    Example:
        >>> import torch
        >>> from retrograde.recording import recurrent_layers
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(2, 3), "out": torch.nn.ReLU()})
        >>> recurrent_layers(model)
        {'encoder': GRU(2, 3)}
    """
    return {name: module for name, (module, _) in layers_of(model, cells).items()}


def layers_of(
    model: nn.Module, cells: Declared | None = None
) -> dict[str, tuple[nn.Module, Declaration | None]]:
    """The same, with the declarations of those that are declared.

    What is inside a declared module is a part of it, and no layer of its own.
    """
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    modules = {_without_wrappers(path): module for path, module in named_modules(model)}
    carried = {path: vars(module).get(CARRIED) for path, module in modules.items()}
    declared = declared_in(modules, cells)
    declared = {path: each for path, each in carried.items() if each is not None} | declared
    inside = tuple(f"{path}." for path in declared)
    found: dict[str, tuple[nn.Module, Declaration | None]] = {}
    for path, module in modules.items():
        if path.startswith(inside) or (path and "" in declared):
            continue
        if path in declared or isinstance(module, Layer) or _foreign(module):
            found[path or class_of(module)] = module, declared.get(path)
    return found


@contextmanager
def declared(model: nn.Module, cells: Declared | None) -> Iterator[None]:
    """In the block, declared modules carry their declarations, and so do those of its copies.

    Raises:
        ArgumentError: for a declaration that matches nothing.
    """
    found = layers_of(model, cells).values() if cells is not None else ()
    carriers = [vars(module) for module, declaration in found if declaration is not None]
    declarations = [declaration for _, declaration in found if declaration is not None]
    for attributes, declaration in zip(carriers, declarations, strict=True):
        attributes[CARRIED] = declaration
    try:
        yield
    finally:
        for attributes in carriers:
            attributes.pop(CARRIED, None)


def _without_wrappers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != COMPILED)


def why_unsupported(module: nn.Module, declaration: Declaration | None = None) -> str:
    """Why this layer cannot be recorded, and what to do; empty if it can."""
    foreign = _foreign(module)
    if foreign:
        return foreign
    declared = declaration is not None
    assert declared or isinstance(module, Layer)
    reasons = []
    if isinstance(module, nn.RNNBase) and module.mode not in CELLS:
        reasons.append(f"its mode {module.mode!r} is unknown; use nn.LSTM, nn.GRU or nn.RNN")
    parameters = dict(module.named_parameters())
    if declaration is not None:
        used = {name: p for name, p in parameters.items() if declaration.uses(name)}
        parameters = {declaration.names.get(name, name): p for name, p in used.items()}
    if not parameters:
        reasons.append("it has no weights, as a lazy layer before its first call; run it once")
    if any(parameter.is_inference() for parameter in parameters.values()):
        reasons.append(
            "its weights were made under torch.inference_mode(), where nothing has a gradient; "
            "make the model outside of it"
        )
    wrong = {p.dtype for p in parameters.values() if not p.dtype.is_floating_point}
    if wrong:
        kinds = ", ".join(sorted(str(dtype) for dtype in wrong))
        reasons.append(f"its weights are {kinds}; only real floating-point weights are taken apart")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if frozen and (not declared or len(frozen) == len(parameters)):
        reasons.append(
            f"{', '.join(frozen)} has requires_grad=False, so autograd gives no gradient to take "
            "apart; set requires_grad_(True) for the recorded pass"
        )
    clipping = getattr(module, "clipping", None)
    if clipping and clipping.policy.random:
        reasons.append(
            f"{clipping.policy!r} draws random numbers inside back-propagation, which are not "
            "kept; record the pass without it and use flow.clipped(policy)"
        )
    return "; ".join(reasons)


def _foreign(module: nn.Module) -> str:
    """Recurrent layers that hooks and autograd cannot see into."""
    kind = getattr(module, "original_name", type(module).__name__)
    if kind not in _LAYER_NAMES:
        return ""
    if isinstance(module, torch.jit.ScriptModule):
        return (
            f"it is a TorchScript {kind}, inside which no hook runs; record the module that it was "
            "scripted from"
        )
    if type(module).__module__.startswith("torch") and ".quant" in type(module).__module__:
        return (
            f"it is a quantised {kind}, which has no gradient; record the floating-point model "
            "before it is quantised"
        )
    return ""


@dataclass(frozen=True)
class Form:
    """How a layer reads, names and lays out things: all that is needed of it after the pass.

    Attributes:
        kind: its class, for messages.
        stepped: it does one step a call (nn.LSTMCell and the like).
        batch_first: as given to its constructor.
        directions: 2 if it is bidirectional.
        dropout: the probability that acted between its layers, 0 in eval mode.
        overridden: it is a subclass with a forward of its own.
        positions: its layers and directions in torch's order; none for a single step.
        weights: the names of its weights.
        declared: it is a module of the user's own, called with sequences or, if stepped, with one
            step.
        readout: the part of its state that no step reads.
        pieces: the parts of its state, in the order in which it takes and returns them.
    """

    kind: str
    stepped: bool
    batch_first: bool
    directions: int
    dropout: float
    overridden: bool
    positions: tuple[Position, ...]
    weights: tuple[str, ...]
    declared: bool = False
    readout: str = ""
    pieces: tuple[str, ...] = ("h", "c")

    @property
    def layers(self) -> int:
        return 1 if not self.positions else len(self.positions) // self.directions

    @property
    def plain(self) -> bool:
        """Whether it is one cell in one direction."""
        return len(self.positions) < 2 and self.directions == 1

    @property
    def transparent(self) -> bool:
        """Whether the graph shows what is inside it, where its results may be used as well."""
        return self.stepped or self.declared

    def of_layer(self, part: Tensor, number: int, width: int) -> Tensor:
        """What belongs to one of its layers and directions of a part of a state, [B, width]."""
        if self.positions:
            return part[number]
        return part.reshape(-1, width) if self.declared else part

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of its weights' names, in the same order."""
        return tuple(each.suffix for each in self.positions) or ("",)


def form_of(module: Layer) -> Form:
    """The form of a recurrent layer."""
    kind, overridden = class_of(module), not is_own(type(module).forward)
    if isinstance(module, nn.RNNCellBase):
        names = tuple(n for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if has(module, n))
        return Form(kind, True, False, 1, 0.0, overridden, (), names)
    positions = Position.every(module.num_layers, bool(module.bidirectional))
    dropout = module.dropout if module.training and module.num_layers > 1 else 0.0
    listed = module._flat_weights_names if isinstance(module, nn.RNNBase) else module.weight_names
    names = tuple(map(str, listed))
    directions, batch_first = 1 + bool(module.bidirectional), bool(module.batch_first)
    form = Form(kind, False, batch_first, directions, dropout, overridden, positions, names)
    if isinstance(module, AbstractRecurrent):
        return replace(form, pieces=module.state_pieces)
    return form


def class_of(module: nn.Module) -> str:
    """The name of its class, also if it is parametrized, or clipped inside after that."""
    kind: type = vars(type(module)).get("original", type(module))
    return (kind.__bases__[0] if parametrize.is_parametrized(module) else kind).__name__


def has(module: nn.Module, name: str) -> bool:
    """Whether the module has such a weight, as a parameter or computed; biases may be missing."""
    if parametrize.is_parametrized(module, name):
        return True
    return isinstance(getattr(module, name, None), Tensor)


@dataclass(eq=False)
class Weights:
    """Copies of a layer's weights at one time, and the cells of every layer and direction.

    The cells are made when they are asked for, which a training step need not wait for. `numbers`
    keeps where the entries of results lie in the state, which is the same in every call of a cell.
    """

    copies: Mapping[str, Tensor]
    make: Callable[[], tuple[AbstractCell, ...]]
    declaration: Declaration | None = None
    numbers: dict[object, Tensor] = field(default_factory=dict)

    @cached_property
    def cells(self) -> tuple[AbstractCell, ...]:
        """In torch's order."""
        return self.make()


def weights_of(module: Layer, form: Form, copies: Mapping[str, Tensor]) -> Weights:
    """Copies of a layer's weights with what makes its cells; the module itself is not held."""
    if isinstance(module, AbstractRecurrent):
        cells = module.cells(copies)
        return Weights(copies, lambda: cells)
    if isinstance(module, nn.RNNBase):
        mode = module.mode
    else:
        kinds = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
        plain = f"RNN_{getattr(module, 'nonlinearity', '')}".upper()
        mode = next((mode for kind, mode in kinds.items() if isinstance(module, kind)), plain)
    clipping = getattr(module, "clipping", None)

    def make() -> tuple[AbstractCell, ...]:
        cells = torch_cells(mode, form.suffixes, copies)
        return tuple(clipped(cell, clipping.policy) for cell in cells) if clipping else cells

    return Weights(copies, make)


TENSOR_FLOAT = 2.0**-10
"""The rounding error of TensorFloat-32, which keeps 10 bits after the leading one."""


def rounding_of(module: nn.Module, output: Tensor) -> float:
    """The largest relative rounding error (machine epsilon) in a call of a layer.

    Its tensors do not show it: under autocast a layer with float32 weights multiplies in bfloat16,
    and on a GPU float32 may be multiplied in TensorFloat-32, as cuDNN does for recurrent layers
    unless told otherwise.
    """
    found = [torch.finfo(output.dtype).eps]
    kind = output.device.type
    ours = isinstance(module, AbstractRecurrent)  # which leave autocast alone
    torchs = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    if not ours and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        found.append(torch.finfo(torch.get_autocast_dtype(kind)).eps)
    if output.dtype == torch.float32:
        multiplied = torch.get_float32_matmul_precision()
        if multiplied == "medium":
            found.append(torch.finfo(torch.bfloat16).eps)
        elif multiplied == "high" or (torchs and kind == "cuda" and _cudnn_rounds()):
            found.append(TENSOR_FLOAT)
    return max(found)


def _cudnn_rounds() -> bool:
    """Whether cuDNN may use TensorFloat-32; torch refuses to say where its settings disagree."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True
