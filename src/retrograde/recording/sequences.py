"""Calls that continue each other's state become one sequence, with what the loss gives to each.

Where a state was not handed on unchanged, what comes back from the next call counts as given by the
loss, so that the parts still sum to the gradient.
"""

from collections.abc import Iterator

from torch import Tensor

from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import Call, Intermediate
from retrograde.recording.changes import BRANCHED, BY_HAND, FED_BACK, in_words
from retrograde.recording.origins import OriginInPass, gradients_agree, origin_in
from retrograde.recording.reads import StateRead
from retrograde.recording.replay import Back, pulled_back
from retrograde.recording.segment import Segment


def sequences_of(
    calls: list[Call], backward: BackwardPass
) -> tuple[list[list[Segment]], list[str]]:
    """The sequences of calls in a pass, and notes about them."""
    sequences = [_segments(run, backward) for run in _runs(calls)]
    return sequences, _notes(calls, sequences)


def _runs(calls: list[Call]) -> list[list[Call]]:
    """The calls in runs, in which each continues the state of the one before."""
    there = set(calls)
    after = {before: call for call in calls if (before := _before(call)) in there}
    later, runs = set(after.values()), []
    for call in calls:
        if call not in later:
            run = [call]
            while run[-1] in after:
                run.append(after[run[-1]])
            runs.append(run)
    return runs


def _before(call: Call) -> Call | None:
    """The call whose state this one continues, if that is kept."""
    return call.origin.before if call.origin else None


def _notes(calls: list[Call], sequences: list[list[Segment]]) -> list[str]:
    """What happened to the states on the way, in sentences."""
    notes = []
    for sequence in sequences:
        changes = [(k, change) for k, changes, _ in before_calls(sequence) for change in changes]
        notes += in_words(changes)
    for layer in sorted(set().union(*(call.passed_to for call in calls))):
        notes.append(
            f"the state passes on to {layer!r}: what comes back from there counts as given by the "
            "loss"
        )
    there = set(calls)
    if any(call.origin and _before(call) not in there for call in calls):
        notes.append(
            "the initial state was carried in from a call outside this backward pass: nothing "
            "comes back from before step 0"
        )
    return list(dict.fromkeys(notes))


def _segments(sequence: list[Call], backward: BackwardPass) -> list[Segment]:
    """The calls of a sequence, with what the loss gives to each."""
    given = [_LossGradients(call) for call in sequence]
    origins = [origin_in(call, backward) for call in sequence[1:]]
    for number, own in enumerate(given):
        after = origins[number] if number < len(origins) else None
        own.collect(after, backward)
    as_input = any(each.origin.as_input for each in origins)
    back = Back.nothing(sequence[-1])
    for number in range(len(sequence) - 1, 0, -1):
        before, origin = given[number - 1], origins[number - 1]
        if as_input:  # autograd gives the sum of what comes back to the state and to the input
            segment = given[number].segment(None, (), False)
            to_input, back = pulled_back(segment, back, origin.reads, before.call)
            if origin.origin.as_input and origin.agrees:
                before.add(origin.origin.as_input, to_input)
        given[number].pass_early(before, origin)
    words = {BRANCHED: sequence[0].branches, FED_BACK: sequence[0].fed_back}
    told = tuple(word for word, holds in words.items() if holds)
    first = given[0].segment(None, told, bool(told))
    return [first, *(own.following(origin) for own, origin in zip(given[1:], origins, strict=True))]


def before_calls(sequence: list[Segment]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """For the first step of each call, and the one after the last: changes, whether lags end."""
    step = 0
    for segment in sequence:
        yield step, segment.changes, segment.ends
        step += len(segment.call.sequence(segment.call.x)[0])
        if segment.call.by_hand:
            yield step, (BY_HAND,), True


class _LossGradients:
    """What the loss gives to the results of one call, and to the state that entered it.

    The parts are kept by where they go, and by the name of a result or of a part of the state:

        result            a result of the call, in its own layout
        late              the state that entered, through a tensor that reads results as well
        early             the same through one that reads nothing else: it is given before the call
        state, entered    the last state and the one that entered, [B, S]: the next call's `early`
    """

    def __init__(self, call: Call):
        self.call = call
        self._parts: dict[tuple[str, str], Tensor] = {}

    def _put(self, where: str, name: str, gradient: Tensor) -> None:
        key = (where, name)
        self._parts[key] = self._parts[key] + gradient if key in self._parts else gradient

    def add(self, intermediate: Intermediate, gradient: Tensor) -> None:
        """What the loss gives to a tensor between this call and a later one."""
        for (entered, name), part in intermediate.pull_back(gradient).items():
            of_entered = "late" if intermediate.later else "early"
            self._put(of_entered if entered else "result", name, part)

    def collect(self, after: OriginInPass | None, backward: BackwardPass) -> None:
        """All that the loss gives, without what comes back from the next call."""
        call, origin = self.call, after.origin if after else None
        shared = origin.results if origin else frozenset[str]()
        if call.form.transparent:
            shared = frozenset((*call.sequences, *call.last))
        for name in (*call.sequences, *call.last):
            store = backward.entered if name in shared else backward.arrived
            if (call, name) in store:
                self._put("result", name, store[call, name])
        tensors = dict.fromkeys((*(origin.between if origin else ()), *call.tails))
        if after:
            agrees = after.agrees
        else:
            totals = {each: backward.between.get(each) for each in tensors}
            agrees = gradients_agree(call, totals, backward)
        if agrees:
            found = {each: backward.between[each] for each in tensors if each in backward.between}
        else:  # a hook changed what came back: all of that counts as given by the loss
            found = backward.returned.get(call, {})
        for intermediate, gradient in found.items():
            self.add(intermediate, gradient)

    def pass_early(self, before: "_LossGradients", origin: OriginInPass) -> None:
        """Hand what is given to the state that entered the call to the call before."""
        early = self._of("early")
        if not early:
            return
        vector = self.call.state(early)
        for read in origin.reads:
            part = (vector * read.factor.to(vector.dtype)).flatten()
            state = vector.new_zeros(before.call.batch * before.call.state_size)
            state = state.index_add_(0, read.source.flatten(), part)
            before._put("entered" if read.entered else "state", "", state.view(-1, vector.shape[1]))

    def following(self, origin: OriginInPass) -> Segment:
        """The call as one that continues a state."""
        return self.segment(None if origin.unchanged else origin.reads, origin.changes, origin.ends)

    def segment(
        self, reads: tuple[StateRead, ...] | None, changes: tuple[str, ...], ends: bool
    ) -> Segment:
        """The call as a part of its sequence."""
        call = self.call
        results = {n: call.as_returned(n, part) for n, part in self._of("result").items()}
        output = {name: results.pop(name) for name in call.sequences if name in results}
        state = call.state(results) + self._parts.get(("state", ""), 0)
        entered = call.state(self._of("late")) + self._parts.get(("entered", ""), 0)
        return Segment(call, output, state, entered, reads, changes, ends)

    def _of(self, where: str) -> dict[str, Tensor]:
        return {name: part for (place, name), part in self._parts.items() if place == where}
