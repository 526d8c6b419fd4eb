"""The commands: their options, and what each calls."""

import os
import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markdown import Markdown
from rich.table import Table

from retrograde import _checks, _files, audits, diagnosis, horizons, studies
from retrograde import report as reporting
from retrograde._optional import optional
from retrograde.cli import exits, outputs, weights_file
from retrograde.cli import studies as studying
from retrograde.cli import subject as subjects
from retrograde.cli.options import (
    WITH_REMEDIES,
    Device,
    FailOn,
    FailOnChange,
    Html,
    Json,
    Kind,
    Past,
    Quiet,
    Remedies,
    Seed,
    Target,
    Threads,
    thresholds,
)
from retrograde.cli.terminal import progress, show
from retrograde.cli.working import set_threads, working
from retrograde.diagnosis.finding import SEVERITIES
from retrograde.explore import server
from retrograde.spectra import inspect_weights
from retrograde.studies import STUDIES, Results, StudyPage, running
from retrograde.studies.running import Plan
from retrograde.truncation.horizon import DELTA

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See how gradients travel back through time in recurrent networks.",
)


def _show_versions(asked: bool | None) -> None:
    if asked:
        print(f"retrograde {version('retrograde')}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool | None,
        typer.Option(
            "--version", is_eager=True, callback=_show_versions, help="Show the versions and exit."
        ),
    ] = None,
) -> None:
    pass


@app.command(help="Train two small forecasters of CO2 and show how far back their gradients reach.")
def demo(
    seed: Seed = 0,
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train for two epochs only.")] = False,
    html: Annotated[Path, typer.Option(help="Where to write the page.")] = Path(
        "retrograde-demo.html"
    ),
    json: Annotated[Path, typer.Option(help="Where to write the numbers.")] = Path(
        "retrograde-demo.json"
    ),
) -> None:
    outputs.check(html, json)
    set_threads(threads)
    with optional("the demo", "demo"):
        from retrograde import demo as main_job
    report = main_job.run(seed, quick, progress=sys.stdout.isatty())
    outputs.write(report, html, json)
    outputs.present(report, html, json)


@app.command(
    help="Say what is wrong with the gradients of your own model, and what helps.\n\n"
    "FUNCTION takes nothing and returns (model, batch, loss_fn); loss_fn(model, batch) "
    "returns the scalar loss. Your model is copied, and the copy is run. Exit codes: 0 "
    "healthy, 1 findings at or above --fail-on, 2 unusable input."
)
def diagnose(
    target: Target,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            metavar="SEVERITY",
            help="Exit with 1 if there is a finding at least this severe: info, warning, error or "
            "never.",
        ),
    ] = FailOn.WARNING,
    needs_lag: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The lag that matters to you, in steps.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Look at this layer only, named as in the report."),
    ] = None,
    html: Html = None,
    json: Json = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a threshold of a rule; may be repeated."),
    ] = None,
    remedies: Annotated[
        Remedies,
        typer.Option(
            help="Try remedies on copies of the model, by training them beside the original (a "
            "verdict) or by one backward pass (evidence, in seconds)."
        ),
    ] = Remedies.TRAIN,
    no_remedies: Annotated[
        bool, typer.Option("--no-remedies", help="The same as --remedies none.")
    ] = False,
    budget: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For all trainings together.")
    ] = 60.0,
    try_training: Annotated[
        int, typer.Option(min=0, metavar="N", help="Steps of each training; as many as fit if 0.")
    ] = 0,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum",
            help="Add the spectrum of the recurrence; takes minutes for a large state.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    outputs.check(html, json, reads=(subjects.file_of(target),))
    changed = thresholds(threshold or ())
    with working(target, seed, threads, device, quiet) as (subject, tell):
        report = reporting.diagnose(
            *subject.arguments,
            needs_lag=needs_lag,
            layer=layer,
            thresholds=changed,
            remedies=None if no_remedies else WITH_REMEDIES[remedies],
            budget=budget,
            try_training=try_training,
            spectrum=spectrum,
            seed=seed,
            progress=tell,
            cells=subject.cells,
        )
        tell(1, 1, "writing")
        outputs.write(report, html, json)
    outputs.present(report, html, json, quiet=quiet)
    counting = SEVERITIES[list(FailOn).index(fail_on) :]
    if any(finding.severity in counting for finding in report.findings):
        raise typer.Exit(exits.FINDINGS)


@app.command(
    help="Say how long a window the gradients of your own model need.\n\n"
    "FUNCTION is that of diagnose: it takes nothing and returns (model, batch, loss_fn). Batches "
    "may be a DataLoader, an iterator or a function of a seed as well; with several, the window "
    "is the one that is enough in 90 % of them. Exit codes: 0, 2 unusable input."
)
def horizon(
    target: Target,
    batches: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of batches to look at.")
    ] = horizons.BATCHES,
    delta: Annotated[
        float, typer.Option(min=0, help="The bias that the gradient of a window may have.")
    ] = DELTA,
    kind: Annotated[
        Kind,
        typer.Option(
            metavar="KIND",
            help="Every loss step looks back over K steps (sliding), the state is detached every "
            "K steps (chunks), or the forward pass, too, starts K steps before the loss (window).",
        ),
    ] = Kind.SLIDING,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Look at this layer only, named as in the model."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Look at the model with these weights; repeat it, in order of training, to see "
            "how the horizon grows.",
        ),
    ] = None,
    training_steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="M", help="Steps of the training that the learnable lag is judged for."
        ),
    ] = horizons.TRAINING_STEPS,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="B", help="Samples of each of its batches; those of the batches seen."
        ),
    ] = None,
    past: Annotated[
        Past,
        typer.Option(
            metavar="PAST",
            help="What stands in for the past to see whether the model uses it: another-sample, "
            "mean or zeros.",
        ),
    ] = Past.ANOTHER_SAMPLE,
    html: Html = None,
    json: Json = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    outputs.check(html, json, reads=(*(checkpoint or ()), subjects.file_of(target)))
    with working(target, seed, threads, device, quiet) as (subject, tell):
        options: Any = {
            "kind": kind.value,
            "layer": layer,
            "most": batches,
            "training_steps": training_steps,
            "batch_size": batch_size,
            "past": past.value.replace("-", " "),
            "seed": seed,
            "progress": tell,
            "cells": subject.cells,
        }
        found = (
            horizons.over_training(*subject.arguments, weights_file.by_name(checkpoint), **options)
            if checkpoint
            else horizons.horizon(*subject.arguments, **options)
        )
        settings = reporting.Settings().of_run(subject.model, subject.batch, seed)
        report = reporting.HorizonReport.of(found, delta, settings)
        outputs.write(report, html, json)
    outputs.present(report, html, json, quiet=quiet)


@app.command(
    help="Compare what the recurrent layers of a model compute with what their step says: outputs, "
    "states and every gradient.\n\n"
    "FUNCTION takes nothing and returns (model, batch, loss_fn), or with declared cells (model, "
    "batch, loss_fn, cells). Exit codes: 0, 1 if something differs, 2 unusable input."
)
def audit(
    target: Target,
    length: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="T", help="A number of steps to try; repeat it for more."),
    ] = None,
    html: Html = None,
    json: Json = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    outputs.check(html, json, reads=(subjects.file_of(target),))
    with working(target, seed, threads, device, quiet) as (subject, _):
        found = audits.audit(*subject.arguments, cells=subject.cells, lengths=length, seed=seed)
        outputs.write(found, html, json)
    outputs.present(found, html, json, quiet=quiet)
    if not found.ok:
        raise typer.Exit(exits.FINDINGS)


@app.command(
    help="Say what got better from one report to another, what got worse, and what is the same.\n\n"
    "Exit codes: 0, 1 if something is worse and --fail-on is worse, 2 unusable input."
)
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A.json", help="What diagnose --json or horizon --json wrote.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The same, later.")],
    fail_on: Annotated[
        FailOnChange, typer.Option(help="Exit with 1 if a finding or a number is worse.")
    ] = FailOnChange.NEVER,
    html: Html = None,
) -> None:
    outputs.check(html, reads=(before, after))
    names = (str(before), str(after))
    comparison = reporting.compare(_read(before), _read(after), names)
    outputs.write(comparison, html)
    outputs.present(comparison, html)
    if fail_on == FailOnChange.WORSE and comparison.worse:
        raise typer.Exit(exits.FINDINGS)


@app.command(
    help="Report what recurrent weights tell by themselves: norms, bounds, horizons, "
    "initialisation.\n\n"
    "WEIGHTS is a state dict or a checkpoint, as .safetensors, .pt or .pth, or a .keras or .h5 "
    "file of Keras; nothing in it is run. Or give FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION as "
    "for diagnose, to inspect its model."
)
def inspect(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A file, or FILE.py:FUNCTION.")],
    json: Json = None,
) -> None:
    path = Path(weights)
    file, _, function = weights.rpartition(":")
    is_code = file.endswith(".py") or subjects.is_module(file)
    called = bool(function) and is_code and not os.path.exists(path)
    outputs.check(json, reads=(Path(file) if called else path,))
    with progress(f"reading {weights}", quiet=False):
        source = subjects.load(weights, seed=0).model if called else weights_file.read(path)
        found = inspect_weights(source)
    if json is not None:
        text = dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        _files.write_text(json, text + "\n")
    outputs.present(found, json)


@app.command(help="Explain a rule: what it looks for, its thresholds and where they come from.")
def explain(
    rule: Annotated[str | None, typer.Argument(help="A rule; without it, all are listed.")] = None,
) -> None:
    if rule is not None:
        show(Markdown(diagnosis.explain(rule)))
        return
    listing = Table("rule", "what it finds", box=None, pad_edge=False)
    for name, found in diagnosis.RULES.items():
        listing.add_row(name, found.title)
    show(listing)
    show("retrograde explain RULE says more.")


@app.command(
    help="Show the lecture in your browser: back-propagation through time, seen.\n\n"
    "It runs on this machine and needs no network. Ctrl-C ends it."
)
def explore(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where to listen on this machine.")
    ] = server.PORT,
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", "--headless", help="Print the address, open no browser."),
    ] = False,
    threads: Threads = None,
) -> None:
    set_threads(threads)
    server.serve(port, browser=not no_browser)


@app.command(
    help="Run a published experiment again, and show what came out beside what was printed.\n\n"
    "NAME is one of those that retrograde study list names. Trials are kept as soon as they are "
    "through, and the state of the others now and then: the same command goes on after it was "
    "stopped or killed. Under torchrun each process takes its share of the trials."
)
def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study, or list.")] = studying.LIST,
    row: Annotated[
        list[str] | None, typer.Option(help="Run this row of the table; repeat it for more.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Trials of each row; as many as it has if not given."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="SEQUENCES",
            help="A trial fails after so many sequences; those of its row if not given.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after so many minutes; the same command goes on."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="Seed of the first trial; the next ones follow."),
    ] = 0,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes on this machine.")
    ] = 1,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The results, or a folder for them; retrograde-study-NAME.json if not given.",
        ),
    ] = None,
    html: Html = None,
    showing: Annotated[
        bool,
        typer.Option(
            "--show", help="Run nothing: show the results in FILE, or those of the package."
        ),
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULTS",
            help="Run nothing: put the trials of these results, or of a folder of them, into FILE.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    if name == studying.LIST:
        show(studying.listing())
        return
    chosen = STUDIES[_checks.existing("study", name, STUDIES)]
    plan = Plan(chosen, tuple(row or ()), trials, seed, budget)
    place = studying.results_file(name, out)
    outputs.check(html, reads=(place, *(merge or ())))
    set_threads(threads)
    if showing:
        found = studies.results(name) if out is None else Results.from_json(place)
    elif merge:
        found = running.merge(chosen, merge, place)
    else:
        found = studying.run(plan, place, processes, minutes, quiet)
    page = StudyPage.of(chosen, found)
    outputs.write(page, html)
    kept = place if place.exists() and not showing else None
    outputs.present(page, kept, html, quiet=quiet)


def _read(path: Path) -> reporting.Report | reporting.HorizonReport:
    """The report in a file, of the kind that it says it is."""
    if _files.kind(path) == _files.HORIZON:
        return reporting.HorizonReport.from_json(path)
    return reporting.Report.from_json(path)


def main() -> None:
    """Run the command line."""
    exits.run(app)
