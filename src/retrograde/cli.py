"""The command line: `retrograde demo` and `retrograde diagnose FILE.py:FUNCTION`.

Exit codes: 0 healthy, 2 unusable input.
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console

from retrograde.errors import InputError, MissingExtraError, RetrogradeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See how gradients travel back through time in recurrent networks.",
)

Html = Annotated[Path | None, typer.Option("--html", help="Write a page that opens offline.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers.")]


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Train for two epochs only.")] = False,
    html: Annotated[Path, typer.Option(help="Where to write the page.")] = Path(
        "retrograde-demo.html"
    ),
    json: Annotated[Path, typer.Option(help="Where to write the numbers.")] = Path(
        "retrograde-demo.json"
    ),
) -> None:
    """Train two small forecasters of CO2 and show how far back their gradients reach."""
    _check_outputs(html, json)
    try:
        from retrograde import demo as main_job
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the demo trains with Lightning, and {error.name} is not installed; install it with "
            "pip install 'retrograde[demo]'"
        ) from error
    console = _console()
    report = main_job.run(seed, quick, progress=console.is_terminal)
    console.print(report)
    _write(report, html, json)


@app.command()
def diagnose(
    target: Annotated[str, typer.Argument(metavar="FILE.py:FUNCTION")],
    html: Html = None,
    json: Json = None,
) -> None:
    """Show how far back in time the gradients of your own model reach.

    FUNCTION takes nothing and returns (model, batch, loss_fn); loss_fn(model, batch) returns the
    scalar loss.
    """
    _check_outputs(html, json)
    model, batch, loss_fn = _subject(target)
    from retrograde.report import diagnose as report_on

    report = report_on(model, batch, _users(loss_fn))
    _console().print(report)
    _write(report, html, json)


def main() -> None:
    """Run the command line; errors that a user can act on are a message and exit code 2."""
    try:
        app()
    except RetrogradeError as error:
        Console(stderr=True, highlight=False).print("error:", str(error), markup=False)
        sys.exit(2)


def _console() -> Console:
    """The terminal, or 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _check_outputs(*paths: Path | None) -> None:
    from retrograde.report.output import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)


def _write(report: Any, html: Path | None, json: Path | None) -> None:
    for path, write in ((html, report.to_html), (json, report.to_json)):
        if path is not None:
            write(path)
            print(f"wrote {path}")


def _subject(target: str) -> tuple[Any, Any, Callable[..., Any]]:
    """Load FILE.py, call FUNCTION and check what it returns."""
    file, _, name = target.rpartition(":")
    if not file or not name:
        raise InputError(f"expected FILE.py:FUNCTION, as in train.py:example; got {target!r}")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {file}; give the path of a Python file")
    function = getattr(_load(path), name, None)
    if not callable(function):
        raise InputError(
            f"{file} has no function {name!r}; define it to take nothing and return "
            "(model, batch, loss_fn)"
        )
    result = _users(function)()
    import torch

    if not (isinstance(result, tuple) and len(result) == 3):
        raise InputError(_wrong_form(name, f"{type(result).__name__}"))
    model, batch, loss_fn = result
    if not isinstance(model, torch.nn.Module) or not callable(loss_fn):
        kinds = ", ".join(type(part).__name__ for part in result)
        raise InputError(_wrong_form(name, f"({kinds})"))
    return model, batch, loss_fn


def _wrong_form(name: str, arrived: str) -> str:
    return (
        f"{name}() must return a tuple (model, batch, loss_fn) with a torch.nn.Module and a "
        f"function of (model, batch); it returned {arrived}"
    )


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    _users(spec.loader.exec_module)(module)
    return module


def _users(function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function; if it raises, the user's own traceback is the message."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except RetrogradeError:
            raise
        except Exception as error:
            trace = _below_us(error.__traceback__)
            lines = traceback.format_exception(type(error), error.with_traceback(trace), trace)
            raise InputError("your code raised an exception\n" + "".join(lines)) from None

    return call


def _below_us(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that starts in the user's file."""
    own = str(Path(__file__).parent)
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith((own, "<frozen importlib")):
            return trace
        trace = trace.tb_next
    return None
