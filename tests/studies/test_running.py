"""A study goes on where it was stopped, in whatever way and on however many machines it is run."""

import json
import multiprocessing
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from retrograde.errors import ArgumentError, InputError
from retrograde.studies import STUDIES, Machine, Part, Results, Trial, merged, running
from retrograde.studies.running import Plan, Work, run
from retrograde.studies.trials import Trials
from support import processes
from support.small_study import COUNTING, HARD, count, killed

PLAN = Plan(COUNTING)
HERE = Machine("a processor", "2.13", "0.1", "eager")


def trials(results: Results) -> dict[str, tuple[Trial, ...]]:
    """By row, the rows in any order."""
    return {part.row: results.trials(part.row) for part in results.parts}


def test_a_study_is_run_written_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, told, seen = tmp_path / "out.json", [], []
    found = run(PLAN, out, progress=lambda *progress: seen.append(progress), told=told.append)
    assert Results.from_json(out) == found
    assert [trial.seed for trial in found.trials("first")] == [0, 1, 2]
    assert [trial.solved for trial in found.trials("second")] == [True, False]
    assert list(tmp_path.iterdir()) == [out], "what was kept meanwhile is gone"
    assert told[0].startswith("first, seed 0: 1 of 1 solved after 5 sequences")
    assert seen[-1][:2] == (5000, 5000)
    first, second = COUNTING.rows
    failing = replace(COUNTING, rows=(replace(first, run=None), replace(second, run=None)))
    assert run(replace(PLAN, study=failing), out) == found
    more = run(Plan(COUNTING, ("first",), trials=4), out)
    assert [trial.seed for trial in more.trials("first")] == [0, 1, 2, 3]
    assert more.trials("second") == found.trials("second")
    later = run(Plan(COUNTING, ("second",), seed=7, trials=2), tmp_path / "later.json")
    assert [trial.seed for trial in later.trials("second")] == [7, 8] and len(later.parts) == 1


def test_a_killed_process_leaves_a_study_that_goes_on_bit_for_bit(tmp_path: Path):
    """Of two processes one is killed (-9); afterwards this one goes on with both trials."""
    marker, out = tmp_path / "killed", tmp_path / "out.json"
    with pytest.raises(InputError, match="ended with code -9.*the same command goes on"):
        run(Plan(killed(marker)), out, processes=2)
    assert marker.exists() and any((tmp_path / "out.json.parts").iterdir())
    found = run(Plan(killed(marker)), out)
    whole = run(Plan(killed(marker)), tmp_path / "whole.json")
    assert trials(found) == trials(whole) and len(found.trials("hard")) == 2
    assert found.trials("hard")[0].figures != found.trials("hard")[1].figures


def test_several_machines_take_a_share_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a folder that they share, and with files that are brought together."""
    whole = run(PLAN, tmp_path / "whole.json")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "shared.json").exists()
        run(PLAN, tmp_path / "shared.json")
        run(PLAN, tmp_path / f"of-{rank}.json")
        assert not (tmp_path / f"of-{rank}.json").exists(), "it is not complete"
    assert trials(Results.from_json(tmp_path / "shared.json")) == trials(whole)
    parts = [tmp_path / f"of-{rank}.json.parts" for rank in (0, 1)]
    both = running.merge(COUNTING, parts, tmp_path / "both.json")
    assert trials(both) == trials(whole)
    again = running.merge(COUNTING, [tmp_path / "whole.json"], tmp_path / "both.json")
    assert trials(again) == trials(whole), "each trial once"


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, running.OutOfTimeError])
def test_what_is_through_is_kept_when_a_study_is_stopped(tmp_path: Path, stopped):
    out = tmp_path / "out.json"

    def stops(seeds, budget, checkpoint=None, progress=None):
        if seeds != (1,):
            return count(seeds, budget)
        raise stopped

    first, second = COUNTING.rows
    plan = replace(PLAN, study=replace(COUNTING, rows=(replace(first, run=stops), second)))
    if stopped is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run(plan, out)
    else:
        run(plan, out)
    assert [trial.seed for trial in Results.from_json(out).trials("first")] == [0]
    assert run(PLAN, out) == run(PLAN, tmp_path / "whole.json")


def test_the_time_is_over(tmp_path: Path):
    found = run(PLAN, tmp_path / "out.json", minutes=0)
    assert found.parts == () and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_sent_to_another_process(name):
    assert pickle.loads(pickle.dumps(running._by_name(STUDIES[name]))) == name


def test_rows_are_shared_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of a study whose functions cannot be sent; copies that have loaded torch take them,
    and new processes in the test of one that is killed.
    """
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": processes.copies()}.get)
    plan = Plan(STUDIES["ladder"], ("rnn-5",), trials=2, budget=1)
    assert run(plan, tmp_path / "two.json", processes=2) == run(plan, tmp_path / "one.json")


def test_what_another_command_keeps_stays(tmp_path: Path):
    """Two of them may be at work on other trials of the same results."""
    out, parts = tmp_path / "out.json", tmp_path / "out.json.parts"
    parts.mkdir()
    (parts / "first.7-9.pt").write_bytes(b"of another command")
    run(PLAN, out)
    assert [path.name for path in parts.iterdir()] == ["first.7-9.pt"]
    (parts / "first.7-9.pt").unlink()
    run(PLAN, out)
    assert not parts.exists()


def test_the_folder_is_there_again_after_another_command_removed_it(tmp_path: Path):
    """When all of its own trials were through."""
    out, parts = tmp_path / "out.json", tmp_path / "out.json.parts"

    def removed(done: int, total: int, _: str) -> None:
        if done < total:
            shutil.rmtree(parts, ignore_errors=True)

    plan = Plan(STUDIES["6a"], trials=2, budget=300)
    assert run(plan, out, progress=removed) == run(plan, tmp_path / "alone.json")


def test_work_on_other_seeds_has_another_name():
    """With results that were brought in between the first seed and the last, too."""
    seeds = (0, 1, 2), (0, 2), (2, 0), (0, 1, 2, 5, 6), (3,)
    names = [Work("first", of, 100).name for of in seeds]
    assert names == ["first.0-2", "first.0+2", "first.0+2", "first.0-2+5-6", "first.3"]


def test_other_settings_and_other_files_are_refused(tmp_path: Path):
    out = tmp_path / "out.json"
    run(PLAN, out)
    written = out.read_bytes()
    with pytest.raises(InputError, match="had a budget of 100 sequences, not 7; give --budget 100"):
        run(replace(PLAN, budget=7), out)
    with pytest.raises(InputError, match="holds results of the study counting, not of killed"):
        run(Plan(killed(tmp_path / "marker")), out)
    with pytest.raises(ArgumentError, match="no row of the study counting 'third'.*first, second"):
        Plan(COUNTING, ("third",))
    for value in (0, -1, 1.5, "many"):
        with pytest.raises(ArgumentError, match="trials"):
            Plan(COUNTING, trials=value)
    assert out.read_bytes() == written
    out.write_text(json.dumps({**json.loads(written), "schema": "retrograde-study/0"}))
    with pytest.raises(InputError, match="another version of retrograde wrote it"):
        run(PLAN, out)
    out.write_bytes(written[:-20])
    with pytest.raises(InputError, match="cannot read"):
        run(PLAN, out)
    (nothing := tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="there are no results in"):
        running.merge(COUNTING, [nothing], out)
    (tmp_path / "a.json.parts").touch()
    with pytest.raises(InputError, match="cannot create .*a.json.parts"):
        run(PLAN, tmp_path / "a.json")
    with pytest.raises(InputError, match="there is no folder"):
        run(PLAN, tmp_path / "nowhere" / "a.json")


@pytest.mark.parametrize(
    ("row", "budget", "trial", "words"),
    [
        ("third", 100, Trial(0, 5, True), "trials of third, a row that .* counting does not have"),
        ("first", 0, Trial(0, 0, False), "trials of first with a budget of 0 sequences"),
        ("first", 100, Trial(-3, 5, True), "a trial of first with the seed -3, not from 0 to"),
        ("first", 100, Trial(2**32, 5, True), "a trial of first with the seed 4294967296"),
        ("first", 100, Trial(0, 200, True), "a trial of first with 200 .* the budget was 100"),
    ],
)
def test_trials_that_no_run_writes_are_not_merged(tmp_path: Path, row, budget, trial, words):
    given, out = tmp_path / "given.json", tmp_path / "out.json"
    Results("counting", (Part(row, budget, HERE, (trial,)),)).to_json(given)
    with pytest.raises(InputError, match=f"given.json holds {words}.*give another file"):
        running.merge(COUNTING, [given], out)
    assert not out.exists()


def test_results_that_contradict_each_other_are_refused():
    one, other = Trial(0, 100, True), Trial(0, 200, True)
    results = [Results("s", (Part("r", 300, HERE, (trial,)),)) for trial in (one, other)]
    with pytest.raises(InputError, match="seed 0 of r came out differently"):
        merged(results)
    with pytest.raises(InputError, match="different studies: s and t"):
        merged([results[0], replace(results[0], study="t")])
    with pytest.raises(InputError, match="different budgets: 300 and 400"):
        merged([results[0], Results("s", (Part("r", 400, HERE, ()),))])
    elsewhere = replace(HERE, processor="another")
    more = Results("s", (Part("r", 300, elsewhere, (replace(one, seconds=9.0),)),))
    assert merged([results[0], more]) == results[0], "the first of two that are the same"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path):
    """No file may grow beyond 3000 bytes, as if there were no room for more."""
    checkpoint = tmp_path / "training.pt"
    Trials(HARD, (0,)).run(100, checkpoint)
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write .*training.pt"):
            Trials(HARD, (0,)).run(200, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before and list(tmp_path.iterdir()) == [checkpoint]
