"""Run the user's code: load it, move it to its device, and silence it if asked to."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator

import torch

from retrograde.cli import device as devices
from retrograde.cli import subject as subjects
from retrograde.cli.subject import Subject
from retrograde.cli.terminal import progress


@contextlib.contextmanager
def working(
    target: str, seed: int, threads: int | None, device: str | None, quiet: bool
) -> Iterator[tuple[Subject, Callable[[int, int, str], None]]]:
    """Work on what the user's function returns, with a bar of progress.

    Yields:
        Model, batch and loss, on the device if one was named, and what moves the bar.
    """
    set_threads(threads)
    place = None if device is None else devices.find(device)
    with _hushed(quiet), progress(f"loading {target}", quiet) as tell:
        subject = subjects.load(target, seed)
        yield subject if place is None else devices.move(subject, place), tell


def set_threads(threads: int | None) -> None:
    """Set the number of threads that torch computes with, if the user gave one."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Without what the user's code prints and warns of, if it is to be quiet."""
    if not quiet:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
