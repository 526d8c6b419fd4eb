"""What an experiment on a whole model is: a question, and what is done to a copy to answer it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from retrograde.diagnosis.finding import Check, Finding, Kind, NotApplicable
from retrograde.diagnosis.run import LossFunction, Run
from retrograde.diagnosis.sight import Sight
from retrograde.diagnosis.subject import Subject


@dataclass(frozen=True, eq=False)
class Case:
    """A model with a batch and a loss, and the passes that were made already.

    Attributes:
        model: the model that is copied for every further pass.
        batch: what `loss_fn` takes beside the model.
        loss_fn: maps (model, batch) to the scalar loss.
        seed: of what is random in a pass.
        run: the recorded pass; None if nothing could be recorded.
        subjects: its layers.
        sight: the forward pass watched from outside.
        needs_lag: the lag that the user named.
        limits: the thresholds by name.
        reached: the places in the model of tensors from an earlier pass that the backward pass
            went into.
    """

    model: nn.Module
    batch: Any
    loss_fn: LossFunction
    seed: int
    run: Run
    subjects: Mapping[str, Subject]
    sight: Sight
    needs_lag: int | None
    limits: Mapping[str, float]
    reached: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partly:
    """That nothing was found in what could be tried.

    Attributes:
        reason: what could not be tried, and why.
    """

    reason: str


@dataclass(frozen=True)
class Experiment:
    """A question about a model as a whole.

    Attributes:
        name: its name, in findings and on the command line.
        title: the answer that is a finding, in words.
        meaning: what is done and why the answer matters.
        look: the findings, none if all is well; or why it cannot be tried, or not in all parts.
        sources: papers and threads behind it.
        thresholds: the rows of the table that it uses.
        replaces: rules whose findings about the same layer are consequences of this one.
        remedies: the remedies that are tried, by name.
        concerns: the model as a whole; rules concern its layers one by one.
        rests_on: nothing that a void decomposition could spoil.
        kind: the question that it answers a part of.
    """

    name: str
    title: str
    meaning: str
    look: Callable[[Case], list[Finding] | NotApplicable | Partly]
    sources: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    concerns: Literal["model"] = "model"
    rests_on: Literal["given"] = "given"
    kind: Kind = field(kw_only=True)

    def check(self, case: Case) -> tuple[Check, list[Finding]]:
        """What became of it, and what it found."""
        try:
            found = self.look(case)
        except Exception as error:  # a copy that cannot be run again is no fault of the model
            found = NotApplicable(f"it failed: {type(error).__name__}: {error}")
        if isinstance(found, NotApplicable):
            return Check(self.name, None, "not applicable", found.reason), []
        if isinstance(found, Partly):
            return Check(self.name, None, "passed", found.reason), []
        return Check(self.name, None, "found" if found else "passed"), found


def listed(numbers: list[int], shown: int = 5) -> str:
    """Some numbers in words."""
    named = ", ".join(map(str, numbers[:shown]))
    return f"{named} and {len(numbers) - shown} more" if len(numbers) > shown else named
