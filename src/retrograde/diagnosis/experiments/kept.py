"""A graph that the model keeps from one pass to the next, and that grows with each."""

from collections.abc import Sequence

import torch

from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable


def _look(case: Case) -> list[Finding] | NotApplicable:
    if case.reached:
        return [_kept(case.reached)]
    return [_kept(case.sight.kept, fails=True)] if case.sight.kept and _fails(case) else []


def _fails(case: Case) -> bool:
    """Whether a second pass in a row goes back into the graph of the first, which is freed."""
    model = copied_model(case.model)
    try:
        for _ in range(2):
            with seeded(case.seed), torch.enable_grad():
                torch.autograd.backward(case.loss_fn(model, copied(case.batch)))
    except RuntimeError as error:
        return "second time" in str(error)
    return False


def _kept(places: Sequence[str], fails: bool = False) -> Finding:
    """The finding about a model whose pass went back into what earlier passes left at some places.

    What was looked at was a copy in which the graph is cut off there.
    """
    named = ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" * (len(places) > SHOWN))
    return Finding(
        "kept-graph",
        "error" if fails else "warning",
        None,
        "The model carries the graph of an earlier pass into the next: "
        + (
            f"the second pass in a row goes back through {named} and fails, since the graph of the "
            "first is freed"
            if fails
            else f"the gradient goes back through {named}"
        ),
        (Evidence("tensors with a graph that the pass used", float(len(places)), "tensors"),),
        (
            "A state, or something computed, was kept in the model without detach(): each backward "
            "pass goes back through all passes before it, or fails where their graphs are freed",
            "backward(retain_graph=True) keeps those graphs, and memory and time grow with each",
        ),
        (
            f"Carry on {places[0]}.detach() instead",
            *(() if fails else (LATEST,)),
        ),
    )


LATEST = (
    "The rest of this report is about the latest pass alone: in the copy that was run the graph "
    "ends there"
)

SHOWN = 3
"""The message names at most this many places."""

KEPT = Experiment(
    "kept-graph",
    "A graph is kept and grows",
    "Whether the backward pass goes back into tensors that the model keeps from an earlier pass: a "
    "state that is carried on without detach(), and graphs held by retain_graph=True. Such tensors "
    "are copied without their graph, and looked at for a gradient. Where the model holds one after "
    "a pass, a second pass is made on the same copy.",
    _look,
    kind="wiring",
)
