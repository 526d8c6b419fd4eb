"""A graph that the model keeps from one pass to the next, and that grows with each."""

from collections.abc import Sequence

from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject


def kept_graph(places: Sequence[str]) -> Finding:
    """The finding about a model whose pass went back into what earlier passes left at some places.

    It concerns the model, not one of its layers, and what was looked at was a copy in which the
    graph is cut off there.
    """
    named = ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" * (len(places) > SHOWN))
    return Finding(
        "kept-graph",
        "warning",
        None,
        f"The model carries the graph of an earlier pass into the next: the gradient goes back "
        f"through {named}",
        (Evidence("tensors with a graph that the pass used", float(len(places)), "tensors"),),
        (
            "A state, or something computed, was kept in the model without detach(): each backward "
            "pass goes back through all passes before it, or fails where their graphs are freed",
            "backward(retain_graph=True) keeps those graphs, and memory and time grow with each",
        ),
        (
            f"Carry on {places[0]}.detach() instead",
            "The rest of this report is about the latest pass alone: in the copy that was run the "
            "graph ends there",
        ),
    )


SHOWN = 3
"""The message names so many places."""


def _nothing(subject: Subject) -> NotApplicable:
    """A layer has no number for it; `kept_graph` is told by the copy of the whole model."""
    return NotApplicable("it concerns the model as a whole")


def _of_the_model(subject: Subject, evidence: Evidence) -> Finding:
    raise AssertionError("there is no such number of a layer")


KEPT = Rule(
    "kept-graph",
    "A graph is kept and grows",
    "Whether the backward pass goes back into tensors that the model keeps from an earlier pass: a "
    "state that is carried on without detach(), and graphs held by retain_graph=True. Such tensors "
    "are copied without their graph, and looked at for a gradient.",
    _nothing,
    _of_the_model,
    concerns="model",
)
