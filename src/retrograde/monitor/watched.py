"""One recorded pass, with hooks on every parameter for the norms of the gradients."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retrograde.declarations.matching import Declared
from retrograde.errors import RecordingError, RetrogradeError
from retrograde.recording import Recording, record, recurrent_layers


class WatchedPass:
    """Hooks for one forward and one backward pass, and what they saw.

    Attributes:
        layers: the recurrent layers by name.
        problems: why some of them tell nothing, by name.
    """

    def __init__(self, model: nn.Module, cells: Declared | None = None):
        self.layers = recurrent_layers(model, cells)
        self.problems: dict[str, str] = {}
        self._grads: dict[str | None, list[tuple[Tensor, Tensor]]] = {}
        self._handles: list[RemovableHandle] = []
        self._block = record(model, cells)
        self._recording: Recording | None = None
        try:
            self._recording = self._block.__enter__()
        except Exception as error:  # the model as a whole is refused
            for name in self.layers or [type(model).__name__]:
                self._fail(name, error)
        owner = {id(p): name for name, layer in self.layers.items() for p in layer.parameters()}
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._watch(parameter, owner.get(id(parameter)))

    def close(self) -> Recording:
        """Take all hooks away, and give what was recorded; it is put together when asked for."""
        self._unhook()
        found = Recording()
        if self._recording is None:
            return found
        try:
            self._block.__exit__(None, None, None)
        except Exception as error:
            if not self._recording.refused:
                self._fail("recording", error)
        self.problems |= self._recording.refused
        for of_pass in self._recording.passes:  # of several passes in a block, the last one
            for name in of_pass:
                found.fill(name, partial(of_pass.__getitem__, name), partial(of_pass.sample, name))
                self.problems.pop(name, None)
        return found

    def discard(self) -> None:
        """Take all hooks away, and forget what they saw."""
        self._unhook()
        if self._recording is not None:
            error = RecordingError("the pass was given up")
            self._block.__exit__(type(error), error, None)

    def norm(self, layer: str | None) -> float:
        """L2 norm of the gradient of a layer, or of all outside the layers; NaN if none came."""
        squares = [float(norm) ** 2 for norm, _ in self._grads.get(layer, ())]
        return math.sqrt(sum(squares)) if squares else math.nan

    def nonfinite(self, layer: str) -> float:
        """How many values in the gradient of a layer's parameters are not finite."""
        return float(sum(int(count) for _, count in self._grads.get(layer, ())))

    def _watch(self, parameter: nn.Parameter, layer: str | None) -> None:
        def look(grad: Tensor) -> None:
            try:
                values = grad.detach().coalesce().values() if grad.is_sparse else grad.detach()
                norm = torch.linalg.vector_norm(values, dtype=torch.float64)
                # On a CPU the norm is there already, and tells; elsewhere asking would wait for it.
                finite = norm.is_cpu and bool(norm.isfinite())
                lost = norm.new_zeros(()) if finite else (~values.isfinite()).sum()
                self._grads.setdefault(layer, []).append((norm, lost))
            except Exception as error:  # not into the user's backward pass
                self._fail(layer or "gradient_norm_rest", error)

        self._handles.append(parameter.register_hook(look))  # type: ignore[no-untyped-call]

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _fail(self, name: str, error: Exception) -> None:
        self.problems[name] = in_words(name, error)


def in_words(name: str, error: Exception) -> str:
    """A reason as it is, or what went wrong where no one expected it."""
    if isinstance(error, RetrogradeError):
        return str(error)
    return f"{name!r}: {type(error).__name__}: {error}"
