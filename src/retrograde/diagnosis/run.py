"""One forward and one backward pass of a model that may be changed, looked at from all sides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde import _checks
from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.errors import ArgumentError, RetrogradeError
from retrograde.recording import Recording, record, recurrent_layers

LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Balance:
    """L2 norms of gradients and weights: of a recurrent layer, and of what comes after it.

    `wakes` says whether a weight of what comes after is all zeros and gets a gradient: it passes
    nothing back, and will from the next step of the optimiser on.
    """

    layer: float
    layer_weight: float
    after: float
    after_weight: float
    wakes: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """A recorded pass.

    Attributes:
        recording: its recurrent layers.
        loss: the loss.
        balance: gradients and weights of the layer that ran last; empty where nothing with weights
            comes after it. What separates another layer from them is a recurrence, too.
        after: what ran after the recurrent layers and has weights, by its place in the model.
    """

    recording: Recording
    loss: float
    balance: dict[str, Balance]
    after: tuple[str, ...]


def run(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    afterwards: Callable[[nn.Module], None] | None = None,
) -> Run:
    """Run a copied model once, forwards and backwards. Random numbers outside are left alone.

    Args:
        model: the copy; its gradients are overwritten.
        batch: what `loss_fn` takes beside the model; it gets a copy, where that can be made.
        loss_fn: maps (model, batch) to the scalar loss.
        seed: of what is random in the pass.
        afterwards: what is done to the gradients after the backward pass (clipping).

    Raises:
        ArgumentError: if the loss is not a scalar tensor with a gradient.
        RetrogradeError: whatever `record` refuses.
    """
    batch = copied(batch)
    for parameter in model.parameters():
        parameter.grad = None
    order: list[nn.Module] = []
    layers = recurrent_layers(model)
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and (module in layers.values() or _own_parameters(module))
    ]
    try:
        with seeded(seed), torch.enable_grad():
            with record(model) as recording:
                loss = scalar(_called(loss_fn, model, batch))
                if any(parameter.grad is not None for parameter in model.parameters()):
                    raise ArgumentError(
                        "loss_fn(model, batch) must leave backward() to retrograde: return the "
                        "loss and call neither backward() nor an optimiser in it"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    if afterwards is not None:
        for parameter in model.parameters():  # the recording holds the gradients as they came
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()
        afterwards(model)
    after = modules_after(order, list(layers.values()))
    last = next((module for module in reversed(order) if module in layers.values()), None)
    balance = {
        name: Balance(*_norms([layer]), *_norms(after), _wakes(after))
        for name, layer in layers.items()
        if after and layer is last
    }
    places = {module: path for path, module in model.named_modules()}
    return Run(recording, float(loss.detach()), balance, tuple(places[m] for m in after))


def _called(loss_fn: LossFunction, model: nn.Module, batch: Any) -> Any:
    """What the user's function returns; where it fails, the error says how it was called."""
    try:
        return loss_fn(model, batch)
    except Exception as error:
        if not isinstance(error, RetrogradeError):
            several = "; a list is one batch, iter(batches) is several"
            listed = several if isinstance(batch, list) else ""
            error.add_note(f"(Retrograde called it as loss_fn(model, batch){listed}.)")
        raise


def change_output(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor]) -> None:
    """Have a layer of a copied model return other numbers, in outputs and states alike."""

    def other(result: Any) -> Any:
        if isinstance(result, Tensor):
            return change(result) if result.is_floating_point() else result
        if isinstance(result, PackedSequence):
            return result._replace(data=other(result.data))
        return tuple(map(other, result)) if isinstance(result, tuple) else result

    recurrent_layers(model)[layer].register_forward_hook(lambda _, __, result: other(result))


def moved_by(model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, layer: str) -> float:
    """By how much the loss moves if a layer returns something else, relative to the loss.

    In a copy every number that the layer returns gets noise of the size of what it returned.
    """
    losses = []
    for noisy in (False, True):
        copy = copied_model(model)
        generator = torch.Generator().manual_seed(seed % 2**63)

        def noise(tensor: Tensor, generator: torch.Generator = generator) -> Tensor:
            added = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return tensor + added.to(tensor) * tensor.detach().abs().mean()

        if noisy:
            change_output(copy, layer, noise)
        with seeded(seed), torch.enable_grad():  # as in any other pass
            losses.append(float(loss_fn(copy, copied(batch)).detach()))
    before, after = losses
    return abs(after - before) / max(abs(before), 1e-30)


def scalar(loss: object) -> Tensor:
    """The loss, if it is one.

    Raises:
        ArgumentError: if it is not a scalar tensor with a gradient.
    """
    return _checks.loss("loss_fn(model, batch)", loss, "the model's parameters")


def modules_after(order: list[nn.Module], layers: list[nn.Module]) -> list[nn.Module]:
    """Modules with weights of their own that ran only after the last recurrent layer did."""
    last = max((place for place, module in enumerate(order) if module in layers), default=-1)
    before = set(order[: last + 1])
    inside = {part for layer in layers for part in layer.modules()}
    later = dict.fromkeys(module for module in order[last + 1 :] if module not in before | inside)
    return [module for module in later if _own_parameters(module)] if last >= 0 else []


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _norms(modules: list[nn.Module]) -> tuple[float, float]:
    """L2 norms of the gradients and of the weights of some modules.

    Of matrices alone: a bias may be as large as the targets, and passes nothing back.
    """
    parameters = [p for module in modules for p in module.parameters() if p.ndim > 1]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return _norm(gradients), _norm([p.detach() for p in parameters])


def _wakes(modules: list[nn.Module]) -> bool:
    """Whether a weight is all zeros and gets a gradient."""
    return any(
        p.grad is not None and p.ndim > 1 and not bool(p.any()) and bool(p.grad.any())
        for module in modules
        for p in _own_parameters(module)
    )


def _norm(tensors: list[Tensor]) -> float:
    squares = [t.double().square().sum() for t in tensors]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
