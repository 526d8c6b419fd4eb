"""A remedy: what can be done to a layer, and the lines of code that do it to the user's own model.

It is a function that changes a copied model, or raises `Unfit` where it has no place in the layer,
with a name and a description. The description is text that the program prints, so it is data and no
docstring, which `python -OO` removes.
"""

import keyword
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from retrograde.declarations.keras import expression_of, named_modules

Afterwards = Callable[[nn.Module], None]


class Unfit(Exception):
    """A remedy that has no place in this layer."""


@dataclass(eq=False)
class Target:
    """A copied model with one layer that a remedy changes.

    Attributes:
        model: the copy; a remedy may put another in its place.
        name: the layer's name in a recording.
        path: its place in the model, "" for the model itself.
        lag: the lag that it needs, in steps.
        after: what runs after the recurrent layers and has weights, by place.
        entering: the largest norm with which the loss enters a sample's state at any step.
        targets: mean and standard deviation of what predictions are compared with, if that is
            known of a regression.
    """

    model: nn.Module
    name: str
    path: str
    lag: int
    after: tuple[str, ...]
    entering: float
    targets: tuple[float, float] | None = None

    @property
    def layer(self) -> nn.Module:
        return self.module(self.path)

    def module(self, path: str) -> nn.Module:
        """A module of the model by its place; a layer inside one of Keras by the names of layers.

        Raises:
            Unfit: where there is none.
        """
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            found = dict(named_modules(self.model))
        if path not in found:
            raise Unfit
        return found[path]

    @property
    def here(self) -> str:
        """The layer as an expression in the user's code."""
        return expression_of(self.model, self.layer) or expression(self.path)

    def replace(self, layer: nn.Module, inner: str = "") -> None:
        """Put another module in the layer's place; its recurrent layer may lie inside it."""
        layer.train(self.layer.training)
        if self.path:
            self.model.set_submodule(self.path, layer)
        else:
            self.model, self.name = layer, type(layer).__name__
        if inner:
            self.name = f"{self.path}.{inner}" if self.path else inner


def expression(path: str) -> str:
    """A place in a model as Python: "model.encoder.lstm", or get_submodule where that is none."""
    if not path:
        return "model"
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in path.split(".")):
        return f"model.{path}"
    return f"model.get_submodule({path!r})"


def assignment(path: str, value: str) -> str:
    """The line that puts another module in a place: what is no expression cannot be assigned to."""
    here = expression(path)
    if here.startswith("model.get_submodule("):
        return f"model.set_submodule({path!r}, {value})"
    return f"{here} = {value}"


@dataclass(frozen=True)
class Applied:
    """What was done to a layer.

    Attributes:
        title: in a line.
        code: the lines that do it to the user's model.
        afterwards: what is left to do after the backward pass.
        note: what a reader must know about it.
        by_training: whether training tells more of it than one pass does.
        rate: what it multiplies the learning rate by.
        loss_scale: what the loss is multiplied by for the backward pass, and the gradient divided
            by after it.
    """

    title: str
    code: str
    afterwards: Afterwards | None = None
    note: str = ""
    by_training: bool = False
    rate: float = 1.0
    loss_scale: float = 1.0


@dataclass(frozen=True)
class Remedy:
    """Something that can be tried.

    Attributes:
        name: by which rules and reports call it.
        description: what it does to a layer and why, as reports and `retrograde explain` print it.
        apply: does it to a copy, and says what was done.
        claims: how causes and advice begin that say the same, and fall where training refutes it.
    """

    name: str
    description: str
    apply: Callable[[Target], Applied]
    claims: tuple[str, ...] = ()


REMEDIES: dict[str, Remedy] = {}
"""All that can be tried, by name."""


def remedy(
    name: str, description: str, *claims: str
) -> Callable[[Callable[[Target], Applied]], Callable[[Target], Applied]]:
    """Enter the function below it into `REMEDIES`."""

    def enter(apply: Callable[[Target], Applied]) -> Callable[[Target], Applied]:
        REMEDIES[name] = Remedy(name, description, apply, claims)
        return apply

    return enter
