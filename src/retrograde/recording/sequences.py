"""From the calls of a layer and the gradients of a backward pass to one `Recorded`.

Calls that continue each other's state become one sequence, with what the loss gives to each of
them; separate sequences lie side by side as samples, since the gradient of the weights is the sum
over both. Where a state was not handed on unchanged, what comes back from the next call counts as
given by the loss, so that the parts still sum to the gradient.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.cells import policy_of
from retrograde.errors import RecordingError
from retrograde.recording.agreement import check_shapes, declared_cells
from retrograde.recording.calls import (
    BackwardPass,
    Call,
    Intermediate,
    Segment,
    StateOrigin,
    StateRead,
    merged,
    reads_of,
)
from retrograde.recording.changes import (
    BRANCHED,
    BY_HAND,
    CHANGED,
    COMPUTED,
    DETACHED,
    FED_BACK,
    REPLACED,
    in_words,
)
from retrograde.recording.recorded import Recorded, spread
from retrograde.recording.replay import Back, Replayed, pulled_back, replay

AGREES = 32
"""The gradient that came back from one call to another agrees with the tensors found between
them if it differs by no more than this many eps, relative to its size. A hook in between makes it
differ."""


def assemble(
    name: str, calls: list[Call], backward: BackwardPass, samples: int | None = None
) -> Recorded:
    """Put the calls of a layer in one backward pass together.

    Args:
        name: the layer.
        calls: its calls in this pass.
        backward: the pass.
        samples: how many samples are asked for, evenly spread over those that have a loss; None for
            all, with gradients.

    Raises:
        RecordingError: if the calls ran with different weights, if a dropout's masks cannot be
            drawn again, or if the loss used what is not recorded.
    """
    problem = backward.problems.get(name) or _problem(name, calls, backward)
    if problem:
        raise RecordingError(f"{name!r}: {problem}")
    try:
        cells, names = calls[0].cells, dict[str, str]()
        if calls[0].form.declared:
            check_shapes(calls)
            first, reached = calls[0], _reached(calls, backward)
            cells, names = declared_cells(first.form, first.weights, reached)
        sequences, notes = _sequences_of(calls, backward)
        masked = any(call.random is not None for call in calls)
        held = any(
            read.entered and bool(read.factor.any())
            for sequence in sequences
            for segment in sequence
            for read in segment.reads or ()
        ) or any(bool(segment.by_entered.any()) for sequence in sequences for segment in sequence)
        chosen = None
        if samples is not None and len(calls) == 1 and not (masked or calls[0].ragged):
            chosen = spread(_given_by_the_loss(sequences[0][0]), samples)
        some = None if chosen is None else torch.tensor(chosen, device=calls[0].output.device)
        replayed = Replayed.side_by_side(
            [replay(sequence, cells, masked, held, some) for sequence in sequences]
        )
        if len(sequences) > 1:
            notes.append(
                f"{len(sequences)} separate runs of the layer lie side by side as samples: lags do "
                "not cross from one to another"
            )
        policy = policy_of(replayed.cell)
        if policy is not None:
            notes.append(
                f"{policy!r} clips inside its back-propagation: what is taken apart is the clipped "
                "gradient, flow.unclipped is the true one"
            )
        gradients = {
            weight: _through_the_layer(names.get(weight, weight), calls, backward, notes)
            for weight in replayed.cell.parameters
        }
    except RecordingError as error:
        raise RecordingError(f"{name!r}: {error}") from None
    whole = Recorded(
        name,
        replayed.cell,
        replayed.x,
        replayed.initial,
        replayed.direct,
        gradients if chosen is None else {},
        None if replayed.reads is replayed.x else replayed.reads,
        replayed.boundaries,
        replayed.lengths,
        tuple(notes),
        lags_end=_lags_end(sequences),
        rounding=max(call.rounding for call in calls),
        final=_final([sequence[-1].call for sequence in sequences], replayed.initial, some),
        samples=None if chosen is None else tuple(chosen),
    )
    if samples is None:
        return whole
    return whole.sample(samples) if chosen is None else whole.with_run(replayed.ran)


def _given_by_the_loss(segment: Segment) -> list[Float[Tensor, "_ B M"]]:
    """What the loss gives to the samples of a call."""
    outputs = [segment.call.given_to_outputs(gradient) for gradient in segment.by_output.values()]
    return [*outputs, segment.by_state.unsqueeze(0)]


def _lags_end(sequences: list[list[Segment]]) -> tuple[int, ...]:
    """The steps before which lags end in any sequence."""
    found = {k for sequence in sequences for k, _, ends in _before_calls(sequence) if ends}
    return tuple(sorted(found))


def _final(last: list[Call], like: Tensor, samples: Tensor | None) -> Tensor | None:
    """The state in which the last calls ended; None where other samples began than ended."""
    if any(set(call.last) < set(call.cells[0].slots) for call in last if call.form.declared):
        return None
    state = torch.cat([call.state(call.last) for call in last])
    state = state if samples is None else state[samples]
    return state if state.shape == like.shape else None


def _reached(calls: list[Call], backward: BackwardPass) -> set[str]:
    """The weights that got a gradient."""
    return {name for call in calls for name, key in call.keys.items() if key in backward.weights}


def _through_the_layer(
    weight: str, calls: list[Call], backward: BackwardPass, notes: list[str]
) -> Tensor:
    """Autograd's gradient of a weight, without what did not come through the layer."""
    used = {call.keys[weight] for call in calls if weight in call.keys}
    gradients = [backward.weights[key] for key in used if key in backward.weights]
    if not gradients:
        raise RecordingError(
            f"autograd gave no gradient of its {weight} in this pass: it was frozen, the loss does "
            "not depend on it, or backward(inputs=...) left it out; call backward() without inputs"
        )
    beside = [backward.beside[key] for key in used if key in backward.beside]
    if beside:
        notes.append(
            f"a part of the gradient of {weight} does not come through the layer (a penalty on the "
            "weights?) and is left out"
        )
    total = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)
    return total - sum(beside) if beside else total


def _problem(name: str, calls: list[Call], backward: BackwardPass) -> str:
    """Why these calls cannot be put together; empty if they can."""
    if any((call, "activation") in backward.arrived for call in calls):
        return (
            "the loss uses what return_activations=True returned, and a gradient that enters there "
            "is not followed; use output and state for the recorded pass"
        )
    if name in backward.inside:
        return (
            "the loss depends on it other than through its output and state, as a penalty on "
            "gradients (create_graph=True) does; leave such terms out of the recorded pass"
        )
    if len(calls) == 1:
        return ""
    weights = [[w for cell in call.cells for w in cell.parameters.values()] for call in calls]
    for others in weights[1:]:
        same = others[0] is weights[0][0] or all(map(torch.equal, weights[0], others))
        if not same:
            return (
                "its weights were not the same in all calls of this backward pass, so there is no "
                "single gradient to take apart; record passes with one set of weights"
            )
    return ""


def together(
    name: str, passes: Sequence[BackwardPass], calls: list[Call], problem: str
) -> Recorded:
    """The calls of a layer in several backward passes as one sequence, or several.

    Raises:
        RecordingError: as `assemble`, if the weights changed between the passes, and for a problem
            that one of them has.
    """
    if problem:
        raise RecordingError(problem)
    first, *others = (call.weights.copies for call in calls)
    for other in others:
        if other is not first and not all(torch.equal(first[n], other[n]) for n in first):
            raise RecordingError(
                f"{name!r}: its weights changed between these passes, so that there is no single "
                "gradient to take apart: each of recording.passes is exact by itself. To see "
                "several as one sequence, let the optimiser step after the last of them only"
            )
    return assemble(name, calls, BackwardPass.together(passes))


def split_by_checkpoint(calls: Sequence[Call]) -> str:
    """Why calls that a checkpoint ran again cannot be put together; empty if they can.

    With use_reentrant=False the graph is that of the forward pass. With use_reentrant=True each
    checkpointed part runs again from copies of its inputs and goes back by a backward pass of its
    own; what lies between two such parts is in the graph of neither.
    """
    for call in (call for call in calls if call.rerun and not call.origin):
        state = call.state(call.given)
        for before in calls:
            if before is call or before.batch != call.batch:
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return (
                    "its state is handed on between two parts that a checkpoint with "
                    "use_reentrant=True runs again, and lags across them would be lost; use "
                    "use_reentrant=False, which gives the same gradient"
                )
    return ""


def _sequences_of(
    calls: list[Call], backward: BackwardPass
) -> tuple[list[list[Segment]], list[str]]:
    """The sequences of calls in a pass, and notes about them."""
    there, after = set(calls), dict[Call, Call]()
    outside = 0
    for call in calls:
        before = call.origin.before if call.origin else None
        if before is not None and before in there:
            after[before] = call
        else:
            outside += call.origin is not None
    later = set(after.values())
    sequences = []
    for call in calls:
        if call not in later:
            sequence = [call]
            while sequence[-1] in after:
                sequence.append(after[sequence[-1]])
            sequences.append(_segments(sequence, backward))
    changes = [
        [(k, change) for k, changes, _ in _before_calls(sequence) for change in changes]
        for sequence in sequences
    ]
    every = (note for of_sequence in changes for note in in_words(of_sequence))
    notes = list(dict.fromkeys(every))
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
    return sequences, notes


def _segments(sequence: list[Call], backward: BackwardPass) -> list[Segment]:
    """The calls of a sequence, with what the loss gives to each."""
    given = [_LossGradients(call) for call in sequence]
    origins = [_origin_in(call, backward) for call in sequence[1:]]
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


@dataclass(frozen=True, eq=False)
class _OriginInPass:
    """A `StateOrigin` in one backward pass.

    Attributes:
        call: the call.
        before: the one before it.
        origin: where its state came from.
        reads: what its state reads of the call before, as far as adjoints are followed.
        agrees: whether the gradient came back as the tensors between the calls require.
    """

    call: Call
    before: Call
    origin: StateOrigin
    reads: tuple[StateRead, ...]
    agrees: bool

    @property
    def unchanged(self) -> bool:
        """Whether the state was handed on as it was."""
        call, before = self.call, self.before
        if len(self.reads) != 1 or self.reads[0].entered or call.batch > before.batch:
            return False
        (read,) = self.reads
        own = torch.arange(read.source.numel(), device=read.source.device).view_as(read.source)
        if not bool(((read.factor == 1) & (read.source == own)).all()):
            return False
        if not self.origin.altered:
            return True
        # A sum has factors of 1 as well: whether anything was added, the numbers tell.
        return torch.equal(call.state(call.given), before.state(before.last)[: call.batch])

    @property
    def ends(self) -> bool:
        """Whether lags end there although the state depends on earlier ones."""
        return self._computed or self.call.fed_back

    @property
    def _computed(self) -> bool:
        """Whether the state was computed in a way that is not followed."""
        return self.origin.opaque or not self.agrees

    @property
    def changes(self) -> tuple[str, ...]:
        """What happened to the state before the call, as sentences."""
        fed_back = (FED_BACK,) * self.call.fed_back
        return self._changes_of_the_state + fed_back

    @property
    def _changes_of_the_state(self) -> tuple[str, ...]:
        words = [COMPUTED] if self._computed else []
        if self.unchanged:
            return tuple(words)
        factors = [read.factor for read in self.reads]
        nothing = ~torch.stack(factors).ne(0).any(0) if factors else None
        if nothing is None or bool(nothing.all()):
            return tuple(words) or (REPLACED if self.origin.letters else DETACHED,)
        if bool(nothing.any()) and not self._computed:
            words.append(REPLACED)
        carried = torch.stack(factors).sum(0)
        own = torch.arange(carried.numel(), device=carried.device).view_as(carried)
        moved = [read.entered | (read.source != own) for read in self.reads]
        scaled = (carried != 1) & (carried != 0)
        others = zip(moved, self.reads, strict=True)
        changed = bool(scaled.any()) or any(bool((o & (r.factor != 0)).any()) for o, r in others)
        if changed or not words:  # where no factor tells, something was added
            words.append(CHANGED)
        return tuple(words)


def _origin_in(call: Call, backward: BackwardPass) -> _OriginInPass:
    """The origin of a call's state, as the pass went through it."""
    origin = call.origin
    before = origin.before if origin else None
    assert origin is not None and before is not None
    agrees = _agrees(call, before, origin, backward)
    reads = reads_of(call, before, origin.terms)
    if not agrees:
        others = ~_mask(call, origin.altered)
        reads = [replace(read, factor=read.factor * others) for read in reads]
    unread = call.cells[0].slots.get(call.form.readout)
    if origin.same:
        factor = _mask(call, origin.same).double()
        if unread is not None:
            factor[:, unread] = 1
        own = torch.arange(factor.numel(), device=factor.device).view_as(factor)
        reads = merged([StateRead(False, own, factor)], reads)
    reads = [read for read in reads if bool(read.factor.any())]
    return _OriginInPass(call, before, origin, tuple(reads), agrees)


def _mask(call: Call, letters: Collection[str]) -> Bool[Tensor, "B S"]:
    """The entries of a state that belong to some of its parts."""
    ones = {n: torch.ones_like(part) for n, part in call.given.items() if n in letters}
    return call.state(ones).bool()


def _agrees(call: Call, before: Call, origin: StateOrigin, backward: BackwardPass) -> bool:
    """Whether the gradient came back as the tensors between two calls require."""
    if not origin.altered or not origin.plain:
        return True
    totals = {
        each: backward.given.get((call, letter)) if letter else backward.between.get(each)
        for each, letter in origin.between.items()
    }
    for each in before.tails:  # the loop may have gone on after the loss of this pass
        totals.setdefault(each, backward.between.get(each))
    return _gradients_agree(before, totals, backward)


def _gradients_agree(
    before: Call, totals: Mapping[Intermediate, Tensor | None], backward: BackwardPass
) -> bool:
    """Whether the results of a call received what the tensors computed from them give back."""
    arrived, expected = _LossGradients(before), _LossGradients(before)
    for intermediate, gradient in backward.returned.get(before, {}).items():
        arrived.add(intermediate, gradient)
    for intermediate, total in totals.items():
        if total is not None:
            expected.add(intermediate, total)
    return arrived.near(expected, AGREES * torch.finfo(before.output.dtype).eps)


class _LossGradients:
    """What the loss gives to the results of one call, and to the state that entered it."""

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

    def collect(self, after: _OriginInPass | None, backward: BackwardPass) -> None:
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
            agrees = _gradients_agree(call, totals, backward)
        if agrees:
            found = {each: backward.between[each] for each in tensors if each in backward.between}
        else:  # a hook changed what came back: all of that counts as given by the loss
            found = backward.returned.get(call, {})
        for intermediate, gradient in found.items():
            self.add(intermediate, gradient)

    def pass_early(self, before: "_LossGradients", origin: _OriginInPass) -> None:
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

    def near(self, other: "_LossGradients", tolerance: float) -> bool:
        """Whether two sums are the same up to rounding."""
        size = difference = 0.0
        mine, theirs = self._by_site(), other._by_site()
        for site in {*mine, *theirs}:
            some, others = mine.get(site), theirs.get(site)
            size += 0.0 if some is None else float(some.double().square().sum())
            apart = others if some is None else some if others is None else some - others
            assert apart is not None
            difference += float(apart.double().square().sum())
        return difference <= tolerance**2 * size

    def _by_site(self) -> dict[tuple[bool, str], Tensor]:
        """The sums, regardless of the step."""
        found: dict[tuple[bool, str], Tensor] = {}
        for (where, name), part in self._parts.items():
            key = (where != "result", name)
            found[key] = found[key] + part if key in found else part
        return found

    def following(self, origin: _OriginInPass) -> Segment:
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


def _before_calls(sequence: list[Segment]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """For the first step of each call, and the one after the last: changes, whether lags end."""
    step = 0
    for segment in sequence:
        yield step, segment.changes, segment.ends
        step += len(segment.call.sequence(segment.call.x)[0])
        if segment.call.by_hand:
            yield step, (BY_HAND,), True
