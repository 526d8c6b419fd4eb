"""Which backend is in use, and which library is taken for ours."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import retrograde
from retrograde.compiled import library as loading
from retrograde.compiled import sources
from retrograde.errors import BackendError
from support.backends import BACKENDS, using

CSRC = Path(__file__).parents[2] / "csrc"

needs_library = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)


def test_the_environment_chooses():
    with using("eager"):
        assert retrograde.backend() == "eager"
        assert "RETROGRADE_BACKEND=eager asks for it" in retrograde.backend().note
    with using("fast"), pytest.raises(BackendError, match="one of eager, compiled; got 'fast'"):
        retrograde.backend()
    with using(None):
        assert retrograde.backend() == BACKENDS[-1]


def test_a_library_that_is_not_there_or_not_ours(tmp_path, monkeypatch):
    """Everything runs without it, and says how to have it; to ask for it is an error."""
    whole = Path(torch._C.__file__).read_bytes()
    for name, content, reason in (
        ("none.so", None, "was not built"),
        ("foreign.so", b"\x7fELF and nothing more", "no library of this"),
        ("half.so", whole[: len(whole) // 2], "no library of this"),  # its loader would crash
        ("torn.so", whole[:32] + b"\xff" * 8 + whole[40:64], "no library of this"),  # table at -1
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(loading, "PATH", path)
        with using(None):
            backend = retrograde.backend()
            assert backend == "eager" and reason in backend.note and "pip install" in backend.note
            retrograde.nn.GRU(2, 3, generation="gru-2014")(torch.zeros(4, 1, 2))
        with using("compiled"), pytest.raises(BackendError, match=reason):
            retrograde.backend()


@needs_library
def test_a_library_built_from_other_sources(monkeypatch):
    monkeypatch.setattr(sources, "expected", lambda: 1)
    with using(None):
        assert "another version" in retrograde.backend().note
    with using("compiled"), pytest.raises(BackendError, match="another version"):
        retrograde.backend()


def test_every_change_of_a_source_counts(tmp_path):
    copied = shutil.copytree(CSRC, tmp_path / "csrc")
    number = sources.number_of(copied)
    assert number == sources.number_of(CSRC)
    (copied / "notes.txt").write_text("no source")
    assert sources.number_of(copied) == number
    step = copied / "step.h"
    text = step.read_text()
    for change in (text + " ", text[1:], text.swapcase()):
        step.write_text(change)
        assert sources.number_of(copied) != number
    step.write_text(text)
    step.rename(copied / "stride.h")
    assert sources.number_of(copied) != number


def test_a_wheel_says_what_it_was_built_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BUILT_FROM", tmp_path / "built_from.txt")
    monkeypatch.setattr(sources, "CHECKOUT", CSRC)
    assert sources.expected() == sources.number_of(CSRC)
    sources.BUILT_FROM.write_text("12\n")
    assert sources.expected() == 12
    sources.BUILT_FROM.unlink()
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "csrc")
    with using(None):
        assert retrograde.backend() == "eager"


def test_fields_are_those_of_the_header():
    header = re.sub(r"/\*.*?\*/", "", (CSRC / "recurrence.h").read_text(), flags=re.DOTALL)
    for struct, fields in (
        ("pass", loading.FIELDS),
        ("online", loading.ONLINE),
        ("lesson", loading.LESSON),
    ):
        (body,) = re.findall(rf"struct {struct} \{{(.*?)\}};", header, re.DOTALL)
        assert tuple(re.findall(r"(\w+)\s*[,;]", body)) == fields
