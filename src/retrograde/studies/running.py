"""Running a study: trial after trial, in one process or several, each kept when it is through.

What is done lies in files: one for each run of trials, beside their checkpoints, in a folder named
after the results. A command that was stopped, killed or out of time goes on from them, and several
machines that share the folder, or whose files are brought together, take a share each.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from retrograde import _checks, _files
from retrograde.diagnosis.examine import Progress
from retrograde.errors import InputError, RetrogradeError
from retrograde.studies import STUDIES
from retrograde.studies.outcomes import Machine, Part, Results, merged
from retrograde.studies.study import Study, Trial

MOST_SEED = 2**32 - 1
"""The largest seed of a trial."""

ROUNDED = 100
"""A budget may be rounded up to a multiple of this."""

FINE = 1000
"""Parts of a trial in which progress is told."""

Told = Callable[[str], object]
"""Is told a line when trials are through."""


class OutOfTimeError(Exception):
    """The time that was given is over; what was done is kept."""


@dataclass(frozen=True)
class Work:
    """Trials that are run side by side.

    Attributes:
        row: whose they are.
        seeds: of the trials.
        budget: of each.
    """

    row: str
    seeds: tuple[int, ...]
    budget: int

    @property
    def name(self) -> str:
        """By which its files are called: the row, and the seeds as in 0-3+5."""
        runs = list[list[int]]()
        for seed in sorted(self.seeds):
            if runs and seed == runs[-1][-1] + 1:
                runs[-1].append(seed)
            else:
                runs.append([seed])
        of_runs = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
        return f"{self.row}.{'+'.join(of_runs)}"

    @property
    def words(self) -> str:
        """The same for a reader."""
        seeds = f"seeds {self.seeds[0]} to {self.seeds[-1]}"
        return f"{self.row}, {seeds if len(self.seeds) > 1 else f'seed {self.seeds[0]}'}"


@dataclass(frozen=True)
class Folder:
    """Where the work on results is kept until they are complete.

    Attributes:
        out: the file of the results.
    """

    out: Path

    @property
    def parts(self) -> Path:
        """The folder of what is done and of checkpoints."""
        return self.out.with_name(f"{self.out.name}.parts")

    def create(self) -> None:
        """Create it.

        Raises:
            InputError: if that cannot be done.
        """
        _files.check_writable(self.out)
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot create {_files.named(self.parts)}: {_files.why(error)}"
            ) from None

    def checkpoint(self, work: Work) -> Path:
        """The file for the state of some trials."""
        return self.parts / f"{work.name}.pt"

    def keep(self, results: Results, work: Work) -> None:
        """Keep trials that are through; another command may have removed the folder."""
        self.create()
        results.to_json(self.parts / f"{work.name}.json")
        self.checkpoint(work).unlink(missing_ok=True)

    def clear(self, works: Iterable[Work]) -> None:
        """Remove what was kept of some work, and the folder where nothing else is in it.

        Another command may be at work on other trials of the same results.
        """
        for work in works:
            for name in (f"{work.name}.json", f"{work.name}.pt"):
                (self.parts / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.parts.rmdir()

    def found(self, study: Study) -> Results:
        """All trials that are through.

        Raises:
            InputError: if a file cannot be read, or is of another study.
        """
        files = ([self.out] if self.out.exists() else []) + sorted(self.parts.glob("*.json"))
        return _read(study, files)


@dataclass(frozen=True)
class Plan:
    """What is to be run of a study.

    Attributes:
        study: which.
        rows: the names of its rows; all of them if empty.
        trials: of each row, as many as the row has if None.
        seed: of the first trial; the others have the following ones.
        budget: of each trial, that of its row if None.
    """

    study: Study
    rows: tuple[str, ...] = ()
    trials: int | None = None
    seed: int = 0
    budget: int | None = None

    def __post_init__(self) -> None:
        _checks.fields(
            self,
            trials=lambda name, value: _checks.optional_whole(name, value),
            seed=lambda name, value: _checks.whole(name, value, least=0),
            budget=lambda name, value: _checks.optional_whole(name, value),
        )
        for name in self.rows:
            self.study.row(name)

    def wanted(self) -> Iterator[Work]:
        """All trials, those of a row together."""
        for row in self.study.rows:
            if not self.rows or row.name in self.rows:
                seeds = tuple(range(self.seed, self.seed + (self.trials or row.trials)))
                yield Work(row.name, seeds, self.budget or row.budget)

    def portions(self, workers: int = 1) -> Iterator[Work]:
        """The same in the portions in which they are run, so small that all workers have some."""
        wanted = list(self.wanted())
        each = sum(len(work.seeds) for work in wanted) // workers
        most = max(1, min(self.study.together, each))
        for work in wanted:
            for first in range(0, len(work.seeds), most):
                yield replace(work, seeds=work.seeds[first : first + most])

    def missing(self, found: Results, of: Sequence[Work] | None = None) -> list[Work]:
        """What has not been run yet, of some portions or of all.

        Raises:
            InputError: if trials were run with another budget.
        """
        missing = []
        budgets = {part.row: part.budget for part in found.parts}
        for work in self.portions() if of is None else of:
            other = budgets.get(work.row, work.budget)
            if other != work.budget:
                raise InputError(
                    f"the trials of {work.row} that are there had a budget of {other} "
                    f"{self.study.counts}, not {work.budget}; give --budget {other}, or another "
                    "file with --out"
                )
            done = {trial.seed for trial in found.trials(work.row)}
            if seeds := tuple(seed for seed in work.seeds if seed not in done):
                missing.append(replace(work, seeds=seeds))
        return missing


def launched() -> tuple[int, int]:
    """This process among those that torchrun or its like has started, and how many they are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def run(
    plan: Plan,
    out: Path,
    processes: int = 1,
    minutes: float | None = None,
    progress: Progress | None = None,
    told: Told | None = None,
) -> Results:
    """Run what is missing of a study, and write its results.

    Args:
        plan: what is wanted.
        out: the file of the results; it is read first where it is there.
        processes: how many work side by side on this machine.
        minutes: after which to stop; what is done is kept.
        progress: called with (done, in all, what is going on).
        told: called with a line when trials are through.

    Returns:
        All trials that are through; the plan is complete if none are missing.

    Raises:
        InputError: if files cannot be used.
    """
    folder = Folder(out)
    folder.create()
    rank, ranks = launched()
    ours = list(plan.portions(processes * ranks))[rank::ranks]
    work = plan.missing(folder.found(plan.study), ours)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    try:
        if processes == 1 or len(work) < 2:
            _here(plan.study, work, folder, until, progress, told)
        else:
            _in_processes(
                plan.study, work, folder, min(processes, len(work)), until, progress, told
            )
    except OutOfTimeError:
        pass
    finally:
        found = folder.found(plan.study)
        complete = not plan.missing(found)
        if found.parts and (ranks == 1 or complete):
            found.to_json(out)
        if ranks == 1 and complete:
            folder.clear([*work, *plan.portions(processes)])
    return found


def merge(study: Study, files: Sequence[Path], out: Path) -> Results:
    """Put the trials of several results into one file, with those that it has already.

    Args:
        study: whose they are.
        files: results, or folders of them.
        out: the file.

    Raises:
        InputError: if a file cannot be used, or two contradict each other.
    """
    given = [
        file
        for path in files
        for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    if not given:
        raise InputError(f"there are no results in {_checks.listed(map(_files.named, files))}")
    if out.exists():
        given = [out, *given]
    found = _read(study, given)
    found.to_json(out)
    return found


def _read(study: Study, files: Sequence[Path]) -> Results:
    """The trials in several files.

    Raises:
        InputError: if a file cannot be read, is of another study, or holds what no run of this one
            writes.
    """
    found = [Results.from_json(file) for file in files]
    for file, results in zip(files, found, strict=True):
        if results.study != study.name:
            raise InputError(
                f"{_files.named(file)} holds results of the study {results.study}, not of "
                f"{study.name}; give another file"
            )
        for part in results.parts:
            if wrong := _no_trials_of(study, part):
                raise InputError(f"{_files.named(file)} holds {wrong}; give another file")
    return merged([Results(study.name, ()), *found])


def _no_trials_of(study: Study, part: Part) -> str:
    """What is wrong with trials as results of a study; nothing if they can be some."""
    if part.row not in (row.name for row in study.rows):
        return f"trials of {part.row}, a row that the study {study.name} does not have"
    if part.budget < 1:
        return f"trials of {part.row} with a budget of {part.budget} {study.counts}"
    for trial in part.trials:
        if not 0 <= trial.seed <= MOST_SEED:
            return f"a trial of {part.row} with the seed {trial.seed}, not from 0 to {MOST_SEED}"
        if not 0 <= trial.sequences < part.budget + ROUNDED:
            return (
                f"a trial of {part.row} with {trial.sequences} {study.counts}, where the budget "
                f"was {part.budget}"
            )
    return ""


def do(study: Study, work: Work, folder: Folder, progress: Progress) -> tuple[Trial, ...]:
    """Run some trials, and keep what came out."""
    start = time.process_time()
    checkpoint = folder.checkpoint(work)
    trials = study.row(work.row).run(work.seeds, work.budget, checkpoint, progress)
    seconds = round((time.process_time() - start) / len(work.seeds), 3)
    timed = tuple(replace(trial, seconds=seconds) for trial in trials)
    part = Part(work.row, work.budget, Machine.here(), timed)
    folder.keep(Results(study.name, (part,)), work)
    return timed


def line(study: Study, work: Work, trials: Sequence[Trial]) -> str:
    """What is told when trials are through."""
    seconds = sum(trial.seconds for trial in trials)
    if study.found is not None:
        return f"{work.words}: {study.found(trials)}; {seconds:,.0f} s"
    solved = [trial for trial in trials if trial.solved]
    mean = sum(trial.sequences for trial in solved) / max(len(solved), 1)
    after = f" after {mean:,.0f} {study.counts} on average" if solved else ""
    return f"{work.words}: {len(solved)} of {len(trials)} solved{after}; {seconds:,.0f} s"


def _here(
    study: Study,
    work: Sequence[Work],
    folder: Folder,
    until: float | None,
    progress: Progress | None,
    told: Told | None,
) -> None:
    """One portion after the other, in this process."""
    bar = _Bar(work, progress)
    for some in work:
        trials = do(study, some, folder, _watched(bar.teller(some), until))
        bar.through(some)
        if told is not None:
            told(line(study, some, trials))


def _watched(progress: Progress, until: float | None) -> Progress:
    """The same, ending the work when the time is over."""

    def tell(done: int, total: int, what: str) -> None:
        progress(done, total, what)
        if until is not None and time.monotonic() > until:
            raise OutOfTimeError

    return tell


class _Bar:
    """How much is done of several portions of work."""

    def __init__(self, work: Sequence[Work], progress: Progress | None):
        self._progress = progress
        self._total = sum(len(some.seeds) for some in work)
        self._done = 0
        self._going: dict[str, float] = {}

    def teller(self, work: Work) -> Progress:
        """What is told the progress of a portion."""

        def tell(done: int, total: int, what: str) -> None:
            self.going(work, done / max(total, 1), what)

        return tell

    def going(self, work: Work, fraction: float, what: str) -> None:
        """A portion is done by a fraction."""
        self._going[work.name] = fraction * len(work.seeds)
        self._tell(f"{work.words}: {what}")

    def through(self, work: Work) -> None:
        """A portion is done."""
        self._going.pop(work.name, None)
        self._done += len(work.seeds)
        self._tell(f"{work.words}: done")

    def _tell(self, what: str) -> None:
        if self._progress is not None:
            done = self._done + sum(self._going.values())
            self._progress(round(FINE * done), FINE * self._total, what)


def _in_processes(
    study: Study,
    work: Sequence[Work],
    folder: Folder,
    processes: int,
    until: float | None,
    progress: Progress | None,
    told: Told | None,
) -> None:
    """Several processes, each of which takes the next portion when it is through with one.

    Raises:
        InputError: if a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    taken = context.Value("i", 0)
    running: dict[Connection, BaseProcess] = {}
    bar = _Bar(work, progress)
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            started = context.Process(
                target=_work, args=(_by_name(study), work, folder, taken, theirs), daemon=True
            )
            started.start()
            theirs.close()  # it ends with the process
            running[ours] = started
        while running:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            for each in wait(list(running), left):
                assert isinstance(each, Connection)
                _hear(study, each, running, bar, told)
            if until is not None and time.monotonic() > until:
                raise OutOfTimeError
    finally:
        for process in running.values():
            process.terminate()


def _hear(
    study: Study,
    connection: Connection,
    running: dict[Connection, BaseProcess],
    bar: _Bar,
    told: Told | None,
) -> None:
    """Take what a process has to say."""
    try:
        said = connection.recv()
    except EOFError:
        process = running.pop(connection)
        process.join()
        if process.exitcode:
            raise InputError(
                f"a process of the study ended with code {process.exitcode}, as it does when it "
                "is killed or memory is short; the same command goes on with what is left"
            ) from None
        return
    match said:
        case RetrogradeError():
            raise said
        case Work() as some, float() as fraction, str() as what:
            bar.going(some, fraction, what)
        case Work() as some, tuple() as trials:
            bar.through(some)
            if told is not None:
                told(line(study, some, trials))


def _by_name(study: Study) -> Study | str:
    """What goes to another process, since not every function of a study can."""
    return study.name if STUDIES.get(study.name) is study else study


def _work(
    sent: Study | str, work: Sequence[Work], folder: Folder, taken: Any, connection: Connection
) -> None:
    """What a process does: the next portion that nobody has taken, until there is none."""
    study = STUDIES[sent] if isinstance(sent, str) else sent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)
    try:
        while True:
            with taken.get_lock():
                place = taken.value
                taken.value += 1
            if place >= len(work):
                return
            some = work[place]

            def tell(done: int, total: int, what: str, some: Work = some) -> None:
                connection.send((some, done / max(total, 1), what))

            connection.send((some, do(study, some, folder, tell)))
    except RetrogradeError as error:
        connection.send(error)
    except BrokenPipeError:
        pass  # the first process is gone
