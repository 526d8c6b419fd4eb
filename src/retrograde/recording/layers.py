"""Which modules are recurrent layers, and whether they can be recorded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from retrograde.declarations import Declaration
from retrograde.declarations.keras import named_modules
from retrograde.declarations.matching import Declared, declared_in
from retrograde.nn.torch_layers import CELLS
from retrograde.recording.form import Layer, class_of

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
