"""Which calls make up one sequence in a backward pass, and what the loss gives to each of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.engine import Border
from retrograde.record.calls import OUTPUT, Call, Link
from retrograde.record.passes import Pass

HANDED_ON = 32
"""A state was handed on as it looks if the gradient that came back agrees up to so many eps,
relative to its size. Nothing is lost with one that agrees less: it counts as computed anew."""


DETACHED = "the state was detached before {}: nothing comes back from there"
REPLACED = "parts of the state were replaced before {}: nothing comes back to them"
COMPUTED = (
    "the state before {} is computed from the one before, not handed on: what comes back through "
    "it counts as given by the loss"
)


@dataclass(frozen=True, eq=False)
class Span:
    """A call as a part of a sequence.

    Attributes:
        call: the call.
        by_output: what the loss gives to its output, in the layout of the output; None if nothing.
        by_state: what the loss gives to its last state, [B, S].
        border: what the state that it started from has to do with the call before; None for the
            first call, and where the state was simply handed on.
        how: the kind of the border in words, with a place for the step.
    """

    call: Call
    by_output: Tensor | None
    by_state: Float[Tensor, "B S"]
    border: Border | None
    how: str = ""


def chains_of(calls: list[Call], brought: Pass) -> tuple[list[list[Span]], list[str]]:
    """The sequences in a pass, and what there is to say of them."""
    there, after = set(calls), dict[Call, Call]()
    outside = 0
    for call in calls:
        if call.link and call.link.before in there:
            after[call.link.before] = call
        outside += call.link is not None and call.link.before not in there
    later = set(after.values())
    chains = []
    for call in calls:
        if call not in later:
            chain = [call]
            while chain[-1] in after:
                chain.append(after[chain[-1]])
            chains.append(_spans(chain, brought))
    notes = [note for chain in chains for note in _borders_in_words(chain)]
    for layer in sorted(set().union(*(call.passed_to for call in calls))):
        notes.append(
            f"the state passes on to {layer!r}: what comes back from there counts as given by the "
            "loss"
        )
    if outside:
        notes.append(
            "the initial state was carried in from a call outside this backward pass: nothing "
            "comes back from before step 0"
        )
    return chains, notes


def _spans(chain: list[Call], brought: Pass) -> list[Span]:
    """The calls of a sequence, with what the loss gives to each."""
    handed_on = [call.link and _handed_on(call, call.link, brought) for call in chain]
    spans = []
    for number, call in enumerate(chain):
        after = chain[number + 1] if number + 1 < len(chain) else None
        follows = bool(after and handed_on[number + 1])
        border, how = None, ""
        if number and call.link:
            carried = call.link.carried & bool(handed_on[number])
            if not bool(carried.all()):
                border = Border(call.state(call.given), carried)
                how = REPLACED if handed_on[number] else COMPUTED
                how = how if call.link.sources else DETACHED
        output, state = _entering(call, after, follows, brought)
        spans.append(Span(call, output, state, border, how))
    return spans


def _entering(
    call: Call, after: Call | None, follows: bool, brought: Pass
) -> tuple[Tensor | None, Float[Tensor, "B S"]]:
    """What the loss gives to the output and to the last state of a call.

    Without what comes back from the call after, if that follows.
    """
    link = after.link if after else None
    shared = set(call.cells[0].slots) if call.form.stepped else link.results if link else set()
    entering: dict[str, Tensor] = {}
    for name in (OUTPUT, *call.cells[0].slots):
        stores = [brought.entered if name in shared else brought.arrived]
        if name in shared and not follows:
            stores.append(brought.returned)
        for store in stores:
            if (call, name) in store:
                gradient = call.as_returned(name, store[call, name])
                entering[name] = entering[name] + gradient if name in entering else gradient
    output = entering.pop(OUTPUT, None)
    state = call.state(entering)
    if after and link and follows:  # what uses an altered state before it is handed on
        between = {n: brought.entered_given.get((after, n)) for n in link.altered}
        used = {letter: gradient for letter, gradient in between.items() if gradient is not None}
        state = state + after.state(used) * link.carried
    return output, state


def _handed_on(call: Call, link: Link, brought: Pass) -> bool:
    """Whether the gradient came back through a link as it must have if the state was handed on."""
    if not link.altered:
        return True
    before = link.before
    names = frozenset().union(*(link.sources[letter] for letter in link.altered))
    back = {
        n: before.as_returned(n, brought.returned[before, n])
        for n in names
        if (before, n) in brought.returned
    }
    output = back.pop(OUTPUT, None)
    arrived = before.state(back)
    if output is not None:
        top, steps = before.cells[-1], before.outputs(output)
        if before.form.directions == 2 or bool(steps[:-1].any()):
            return False
        arrived[:, -top.state_size :][:, top.output] += steps[-1]
    given = {n: brought.given[call, n] for n in link.altered if (call, n) in brought.given}
    expected = call.state(given) * link.carried
    tolerance = HANDED_ON * torch.finfo(call.output.dtype).eps
    return bool((arrived - expected).norm() <= tolerance * arrived.norm())


def _borders_in_words(chain: list[Span]) -> list[str]:
    """One sentence for each kind of border in a sequence."""
    kinds: dict[str, list[int]] = {}
    step = 0
    for span in chain:
        if span.how:
            kinds.setdefault(span.how, []).append(step)
        step += len(span.call.sequence(span.call.x)[0])
    return [kind.format(_steps(steps)) for kind, steps in kinds.items()]


def _steps(steps: list[int], shown: int = 5) -> str:
    named = ", ".join(map(str, steps[:shown]))
    more = f" and {len(steps) - shown} more" if len(steps) > shown else ""
    return f"step{'s' if len(steps) > 1 else ''} {named}{more}"
