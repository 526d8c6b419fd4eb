"""The tasks of the papers: sequences against what the papers print, success tests at their edge."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from retrograde.errors import ArgumentError, MissingExtraError
from retrograde.tasks import (
    AbstractClassification,
    AbstractTask,
    Adding,
    ContinualReber,
    Copying,
    DistractedSymbol,
    EmbeddedReber,
    FirstSymbol,
    ModernAdding,
    ModernTemporalOrder,
    Multiplication,
    PeriodicFunction,
    RememberedSymbol,
    Sequences,
    SequentialDigits,
    Spikes,
    TemporalOrder,
    TwoSequences,
)
from retrograde.tasks.reber import SYMBOLS, Strings, walked
from retrograde.tasks.task import answered_last

pytestmark = pytest.mark.usefixtures("unchecked")
MANY = 20_000


def solves(task: AbstractTask, output: Tensor, sequences: Sequences) -> bool:
    return task.solved(task.right(output, sequences), task.errors(output, sequences))


def drawn(task: AbstractTask, count: int = 300, seed: int = 0) -> Sequences:
    return task.draw(count, torch.Generator().manual_seed(seed))


TASKS: list[AbstractTask] = [
    EmbeddedReber(),
    ContinualReber(200),
    RememberedSymbol(6),
    RememberedSymbol(6, "random"),
    DistractedSymbol(distance=9, distractors=5),
    FirstSymbol(7),
    TwoSequences(20),
    TwoSequences(20, 1, "noisy inputs"),
    TwoSequences(20, 2, "noisy targets"),
    Adding(40),
    Multiplication(40),
    ModernAdding(15),
    TemporalOrder(2),
    TemporalOrder(3),
    ModernTemporalOrder(30),
    Spikes("measure", 4, spikes=5),
    Spikes("generate", 4, spikes=5),
    PeriodicFunction("cosine", 5, 3),
    PeriodicFunction("triangle", 6, 3),
    PeriodicFunction("rectangle", 4, 3),
    Copying(6),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_sequences_are_padded_and_the_same_for_a_seed(task: AbstractTask):
    sequences = drawn(task)
    steps, count, inputs = sequences.x.shape
    assert (count, inputs) == (300, task.inputs)
    assert sequences.y.shape == (steps, 300, task.outputs) and sequences.due.shape == (steps, 300)
    assert int(sequences.lengths.max()) == steps
    outside = torch.arange(steps).unsqueeze(1) >= sequences.lengths
    assert not sequences.x[outside].any() and not sequences.due[outside].any()
    assert not sequences.y[~sequences.due].any() and bool(sequences.due.any(0).all())
    again = drawn(task)
    assert torch.equal(again.x, sequences.x) and torch.equal(again.y, sequences.y)
    if sequences.x.any():  # else nothing is read, and nothing drawn
        assert not torch.equal(drawn(task, seed=1).x, sequences.x)
    with pytest.raises(ArgumentError, match="count"):
        drawn(task, 0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_the_right_answers_solve_a_task_and_guesses_do_not(task: AbstractTask):
    sequences = drawn(task)
    ideal = sequences.y
    if isinstance(sequences, Strings):
        ideal = sequences.possible.float()
    if isinstance(task, TwoSequences) and task.noise == "noisy targets":
        expected = torch.where(sequences.x[0] > 0, 0.2, 0.8)
        ideal = torch.where(sequences.due.unsqueeze(2), expected, 0.0)
    if isinstance(task, AbstractClassification):
        ideal = 100 * (ideal - 0.5)
    assert task.right(ideal, sequences).all() and solves(task, ideal, sequences)
    assert not solves(task, torch.full_like(ideal, 0.5), sequences)


CONSTANT: dict[Callable[[], AbstractTask], Callable[[], Tensor]] = {
    lambda: DistractedSymbol(5, 3): lambda: torch.tensor([1.0, 0.0]),
    lambda: TwoSequences(12): lambda: torch.tensor([1.0]),
    lambda: TwoSequences(12, 1, "noisy targets"): lambda: torch.tensor([0.2]),
    lambda: Adding(100): lambda: torch.tensor([0.5]),
    lambda: Multiplication(60): lambda: torch.tensor([0.04]),
    lambda: ModernAdding(12): lambda: torch.tensor([1.0]),
    lambda: TemporalOrder(2): lambda: torch.tensor([1.0, 0.0, 0.0, 0.0]),
    lambda: ModernTemporalOrder(10): lambda: torch.tensor([1.0, 0.0, 0.0, 0.0]),
    lambda: Spikes("measure", 2, 2): lambda: torch.tensor([0.0]),
}


@pytest.mark.parametrize("make, answer", CONSTANT.items())
def test_the_score_of_guessing_is_that_of_a_constant_answer(
    make: Callable[[], AbstractTask], answer: Callable[[], Tensor]
):
    """`loss` by the answer that costs least, `right` by the one that is right most often."""
    task = make()
    sequences = drawn(task, MANY)
    constant = answer().expand_as(sequences.y)
    share = float(task.right(constant, sequences).double().mean())
    assert share == pytest.approx(task.guess.right, abs=0.011)  # three standard errors at 1/2
    if isinstance(task, AbstractClassification):
        assert float(task.loss(torch.zeros_like(constant), sequences)) == pytest.approx(log(4))
        return
    mean = sequences.y[sequences.due].mean(0)
    loss = float(task.loss(mean.expand_as(constant), sequences))
    assert loss == pytest.approx(task.guess.loss, rel=0.03)


def test_published_scores_of_guessing():
    assert Adding(10_000).guess.loss == pytest.approx(0.95 / 24, rel=1e-3)  # 1/24 if all were seen
    assert ModernAdding().guess.loss == pytest.approx(0.1667, abs=1e-4)
    published = {100: 0.1733, 200: 0.0945, 300: 0.0650, 500: 0.0400, 1000: 0.02039, 2000: 0.0103}
    for delay, loss in published.items():
        assert Copying(delay).guess.loss == pytest.approx(loss, abs=5e-5)
    assert TemporalOrder(3).guess.right == 1 / 8


# ---- the Reber grammar ----


def follows(string: str) -> bool:
    """An automaton of its own, after the figure: is this a string of the Reber grammar?"""
    table = {"BT": "1", "BP": "2", "1S": "1", "1X": "3", "2T": "2", "2V": "4"}
    table |= {"3X": "2", "3S": "5", "4P": "3", "4V": "5", "5E": "."}
    state = "B"
    for symbol in string[1:]:
        state = table.get(state + symbol, "")
    return string[0] == "B" and state == "."


def test_strings_are_embedded_reber_strings():
    strings = walked(300, torch.Generator().manual_seed(3)).spelt()
    assert min(map(len, strings)) == 9
    for string in strings:
        assert (
            string[0] == "B" and string[-1] == "E" and string[1] == string[-2] and string[1] in "TP"
        )
        assert follows(string[2:-2])
    drawn_stream = ContinualReber(500).draw(1, torch.Generator().manual_seed(3))
    stream = "".join(SYMBOLS[number] for number in drawn_stream.x[:, 0].argmax(1))
    assert len(stream) == 500
    whole = [f"B{part}E" for part in stream.split("EB")[1:-1]]  # EB is found only between strings
    assert whole and all(follows(part[2:-2]) for part in whole)


def test_each_next_symbol_is_due_and_the_possible_ones_are_known():
    generator = torch.Generator().manual_seed(0)
    lot = EmbeddedReber().lot(generator)
    training, test = lot.tests(256)
    spell = {
        "".join(SYMBOLS[i] for i in strings.x[: strings.lengths[n], n].argmax(1))
        for strings in (training,)
        for n in range(256)
    }
    assert not spell & {
        "".join(SYMBOLS[i] for i in test.x[: test.lengths[n], n].argmax(1)) for n in range(256)
    }
    again = lot.training(50)
    assert {
        "".join(SYMBOLS[i] for i in again.x[: again.lengths[n], n].argmax(1)) for n in range(50)
    } <= spell
    for strings in (training, test):
        assert torch.equal(strings.x[1:][strings.due[1:]], strings.y[:-1][strings.due[1:]])
        assert bool(strings.possible[strings.y.bool()].all())
        counts = strings.possible.sum(2)[strings.due]
        assert set(counts.tolist()) == {1, 2}
        last = strings.lengths - 2  # T or P, as the second symbol was
        which = torch.arange(256)
        assert torch.equal(strings.y[last, which], strings.y[0, which])
        assert bool((strings.possible[last, which].sum(1) == 1).all())


def test_a_choice_is_not_foretold_by_one_of_its_two():
    strings = EmbeddedReber().draw(50, torch.Generator().manual_seed(1))
    assert not EmbeddedReber().right(strings.y, strings).any()  # each has a choice at its start
    tied = strings.possible.float() * 0.5 + 0.5
    tied[0] = 0.7  # all alike: none is more active
    assert not EmbeddedReber().right(tied, strings).any()


def test_the_reber_guess_is_that_of_halving_the_choices():
    strings = EmbeddedReber().draw(4000, torch.Generator().manual_seed(2))
    halved = strings.possible / strings.possible.sum(2, keepdim=True).clamp_min(1)
    last, which = strings.lengths - 2, torch.arange(4000)
    halved[last, which] = torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0])  # T or P
    assert float(EmbeddedReber().loss(halved, strings)) == pytest.approx(
        EmbeddedReber().guess.loss, rel=0.01
    )


def test_a_stream_runs_to_its_first_error():
    task = ContinualReber(400)
    streams = task.draw(3, torch.Generator().manual_seed(4))
    output = streams.possible.float()
    assert task.run(output, streams) == [400, 400, 400]
    output[37, 1] = 1 - output[37, 1]
    assert task.run(output, streams) == [400, 37, 400]
    assert task.right(output, streams).tolist() == [True, False, True]


# ---- long lags ----


def test_the_first_symbol_returns():
    for between in ("ordered", "random"):
        task = RememberedSymbol(7, between)
        sequences = drawn(task)
        read, due = sequences.x.argmax(2), sequences.y.argmax(2)
        assert torch.equal(due[-1], read[0]) and set(read[0].tolist()) == {6, 7}
        assert torch.equal(read[1:], due[:-1]) and int(read[1:].max()) <= 5
        ordered = torch.equal(read[1:], torch.arange(6).unsqueeze(1).expand(6, 300))
        assert ordered == (between == "ordered")
        off = sequences.y.clone()
        off[2, 0, 0] += 0.26  # an error before the last step counts in 2a alone
        assert bool(task.right(off, sequences)[0]) == (between == "random")
        off[-1, 1, 6] += 0.2501
        assert not task.right(off, sequences)[1]


def test_distractors_end_with_one_in_ten():
    q, p = 9, 5
    sequences = drawn(DistractedSymbol(q, p), MANY)
    read, at = sequences.x.argmax(2), torch.arange(MANY)
    e, b, x = p, p + 1, p + 2
    assert bool((read[0] == b).all()) and bool((read[sequences.lengths - 1, at] == e).all())
    assert torch.equal(read[1] - x, sequences.y[sequences.lengths - 1, at].argmax(1))
    assert int(sequences.lengths.min()) == q + 3  # b, x or y, q distractors, e
    assert float(sequences.lengths.double().mean()) == pytest.approx(q + 13 - 1, abs=0.3)  # q + 14
    inside = torch.arange(len(read)).unsqueeze(1) < sequences.lengths - 1
    inside[:2] = False
    assert int(read[inside].max()) == p - 1
    counts = torch.bincount(sequences.lengths - q - 3)
    assert float(counts[1] / counts[0]) == pytest.approx(0.9, abs=0.06)


def test_only_the_first_elements_tell_two_sequences_apart():
    for noise in ("plain", "noisy inputs", "noisy targets"):
        sequences = drawn(TwoSequences(30, 3, noise), MANY)
        assert int(sequences.lengths.min()) == 30 and int(sequences.lengths.max()) == 33
        first, target = sequences.x[:3, :, 0], sequences.y.sum((0, 2))
        if noise == "noisy targets":
            for sign, mean in ((1, 0.2), (-1, 0.8)):
                chosen = target[first[0] == sign]
                assert float(chosen.mean()) == pytest.approx(mean, abs=0.01)
                assert float(chosen.var()) == pytest.approx(0.1, rel=0.05)
        else:
            signal = 2 * target - 1
            spread = float((first - signal).var())
            assert spread == pytest.approx(0.2 if noise == "noisy inputs" else 0.0, rel=0.05)
        assert float(sequences.x[3:30].var()) == pytest.approx(0.2, rel=0.02)


def test_two_sequences_are_solved_at_the_papers_edge():
    plain = TwoSequences(10, 1)
    sequences = drawn(plain, 256)
    assert solves(plain, (sequences.y - 0.0099).abs(), sequences)
    assert not solves(plain, (sequences.y - 0.0101).abs(), sequences)  # right, but not near enough
    noisy = TwoSequences(10, 1, "noisy inputs")
    sequences = drawn(noisy, 256)
    output = sequences.y.clone()
    output[:, :5] = 1 - output[:, :5]
    assert solves(noisy, output, sequences)
    output[:, 5] = 1 - output[:, 5]
    assert not solves(noisy, output, sequences)


# ---- two numbers, orders ----


@pytest.mark.parametrize("task", (Adding(40), Multiplication(40)), ids=("adding", "multiplication"))
def test_marks_and_results(task: AbstractTask):
    sequences = drawn(task, MANY)
    numbers, markers = sequences.x.unbind(2)
    at = torch.arange(MANY)
    assert bool((markers[0] == -1).all()) and bool((markers[sequences.lengths - 1, at] == -1).all())
    assert float(numbers.amin()) >= (-1 if isinstance(task, Adding) else 0)
    marked = markers == 1
    assert set(marked.sum(0).tolist()) == {1, 2}  # one is hidden where it fell on the first pair
    assert not marked[20:].any() and int(marked[:10].sum(0).min()) == 0
    assert float((marked.sum(0) == 1).double().mean()) == pytest.approx(task.hidden, abs=0.01)
    both = marked.sum(0) == 2
    chosen = torch.where(marked, numbers, 0.0)
    if isinstance(task, Adding):
        expected = 0.5 + chosen.sum(0) / 4
        assert not numbers[0, ~both].any()
    else:
        expected = torch.where(marked, numbers, 1.0).prod(0)
        assert bool((numbers[0, ~both] == 1).all())
    assert torch.allclose(sequences.y[sequences.lengths - 1, at, 0], expected)
    late = marked[10:].sum(0)
    assert int(late.max()) == 1  # the first of the two is among the first ten
    off = sequences.y + 0.0399
    assert task.right(off, sequences).all() and not task.right(off + 0.0002, sequences).any()


def test_adding_asks_for_a_mean_error_and_multiplication_counts():
    adding, multiplication = Adding(30), Multiplication(30, wrong=13)
    sequences = drawn(adding, 2000)
    assert solves(adding, sequences.y + 0.0099, sequences)
    assert not solves(adding, sequences.y + 0.011, sequences)
    sequences = drawn(multiplication, 2000)
    output = sequences.y.clone()
    output[:, :12] += 1
    assert solves(multiplication, output, sequences)
    output[:, 12] += 1
    assert not solves(multiplication, output, sequences)


def test_modern_adding_has_a_mark_in_each_half():
    for length in (14, 15):
        sequences = drawn(ModernAdding(length))
        numbers, markers = sequences.x.unbind(2)
        half = length // 2
        assert bool((markers[:half].sum(0) == 1).all()) and bool((markers[half:].sum(0) == 1).all())
        assert torch.allclose(sequences.y[-1, :, 0], (numbers * markers).sum(0))


def test_the_order_is_the_class():
    for relevant, places in ((2, ((10, 20), (50, 60))), (3, ((10, 20), (33, 43), (66, 76)))):
        sequences = drawn(TemporalOrder(relevant), 2000)
        read, at = sequences.x.argmax(2), torch.arange(2000)
        assert bool((read[0] == 6).all()) and bool((read[sequences.lengths - 1, at] == 7).all())
        assert (int(sequences.lengths.min()), int(sequences.lengths.max())) == (100, 110)
        telling = (read == 4) | (read == 5)
        assert bool((telling.sum(0) == relevant).all())
        klass = torch.zeros(2000, dtype=torch.int64)
        for n, (low, high) in enumerate(places):
            place = telling.int().cumsum(0).eq(n + 1).int().argmax(0)
            assert (int(place.min()), int(place.max())) == (low, high)
            klass = 2 * klass + (read[place, at] == 5)
        assert torch.equal(sequences.y[sequences.lengths - 1, at].argmax(1), klass)
    sequences = drawn(ModernTemporalOrder(50), 2000)
    telling = sequences.x.argmax(2) >= 4
    assert telling.nonzero()[:, 0].unique().tolist() == [*range(5, 10), *range(25, 30)]


def test_modern_order_allows_less_than_one_in_a_hundred_errors():
    task = ModernTemporalOrder(20)
    sequences = drawn(task, 1000)
    output = sequences.y.clone()
    output[:, :9] = output[:, :9].roll(1, 2)
    assert solves(task, output, sequences)
    output[:, 9] = output[:, 9].roll(1, 1)
    assert not solves(task, output, sequences)


# ---- timing, copying, digits ----


def test_spikes_are_measured_and_made():
    for what in ("measure", "generate"):
        sequences = drawn(Spikes(what, 4, 6), 50)
        spikes = (sequences.x if what == "measure" else sequences.y)[:, :, 0]
        for n in range(50):
            times = spikes[:, n].nonzero().flatten() + 1  # T(n), counted from 1
            more = times.diff(prepend=torch.tensor([0])) - 4
            assert len(times) == 6 and set(more.tolist()) <= {0, 1}
            assert int(times[-1]) == int(sequences.lengths[n])
            if what == "measure":
                assert torch.equal(sequences.y[times - 1, n, 0], more.float())
                assert torch.equal(sequences.due[:, n], spikes[:, n].bool())
            else:  # told from the step after one spike to the next spike
                starts = torch.cat((torch.tensor([0]), times[:-1]))
                for start, end, told in zip(starts, times, more, strict=True):
                    assert bool((sequences.x[start:end, n] == told).all())
        off = sequences.y + 0.48
        task = Spikes(what, 4, 6)
        assert task.right(off, sequences).all() and not task.right(off + 0.02, sequences).any()


def test_periodic_functions_repeat():
    cosine = drawn(PeriodicFunction("cosine", 4, 2), 1).y.flatten()
    assert torch.allclose(cosine, torch.tensor([0, 0.5, 1, 0.5] * 2), atol=1e-7)
    assert drawn(PeriodicFunction("rectangle", 4, 1), 1).y.flatten().tolist() == [0, 0, 1, 1]


def test_symbols_are_copied_after_the_signal():
    sequences = drawn(Copying(6))
    read, due = sequences.x.argmax(2), sequences.y.argmax(2)
    assert len(read) == 26 and torch.equal(read[:10], due[-10:])
    assert bool((due[:-10] == 8).all()) and int(read[:10].max()) == 7
    assert bool((read[15] == 9).all()) and int((read == 9).sum()) == 300
    blanks = torch.cat((read[10:15], read[16:]))
    assert bool((blanks == 8).all())


def test_digits_are_read_pixel_by_pixel():
    pytest.importorskip("sklearn")
    plain, permuted = SequentialDigits(), SequentialDigits(permuted=True)
    x, y = drawn(plain, 200), drawn(permuted, 200)
    assert x.x.shape == (64, 200, 1) and float(x.x.max()) == 1.0
    assert torch.equal(x.y, y.y) and not torch.equal(x.x, y.x)
    assert torch.equal(x.x.sort(0).values, y.x.sort(0).values)  # the same pixels in another order
    with pytest.raises(ArgumentError, match="count"):
        drawn(SequentialDigits(held_out=True), 361)


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"retrograde\[study\]"):
        drawn(SequentialDigits())


def test_arguments_are_checked():
    for wrong, name in (
        (lambda: RememberedSymbol(1), "lag"),
        (lambda: RememberedSymbol(5, "shuffled"), "between"),
        (lambda: TwoSequences(5, 6), "informative"),
        (lambda: Adding(21), "length"),
        (lambda: TemporalOrder(4), "relevant"),
        (lambda: Spikes("count"), "what"),
        (lambda: PeriodicFunction("sawtooth"), "shape"),
        (lambda: ContinualReber(0), "steps"),
    ):
        with pytest.raises(ArgumentError, match=name):
            wrong()


def test_an_answer_is_due_at_the_end_of_its_own_sequence():
    lengths = torch.tensor([2, 4])
    made = answered_last(torch.zeros(4, 2, 1), torch.tensor([[5.0], [6.0]]), lengths)
    assert made.y[:, :, 0].T.tolist() == [[0, 5, 0, 0], [0, 0, 0, 6]]
