"""The command line as a user meets it: exit codes, messages, no traceback of ours."""

import collections
import json
import os
import sys
import time

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import retrograde
from retrograde.cli import device, main
from retrograde.cli.subject import Subject
from retrograde.diagnosis import Finding
from retrograde.errors import InputError
from retrograde.report import Report
from support import processes

USER = """
import random
import sys
import time
from dataclasses import dataclass

import numpy
import torch
from torch import nn

@dataclass
class Size:  # dataclasses look their own module up
    hidden: "int" = 3

def good():
    torch.manual_seed(0)
    return nn.LSTM(2, 3), torch.randn(6, 2, 2), lambda model, x: model(x)[0].sum()

def no_tuple():
    return nn.LSTM(2, 3)

def no_model():
    return 1, 2, 3

def needs_arguments(x):
    return x

def raises():
    return {}["the user's key"]

def loss_raises():
    def loss(model, x):
        raise ZeroDivisionError("in the user's loss")
    return nn.LSTM(2, 3), None, loss

def no_layer():
    return nn.Linear(2, 3), torch.ones(1, 2), lambda model, x: model(x).sum()

def nan_weight():
    model = nn.LSTM(2, 3)
    with torch.no_grad():
        model.weight_ih_l0[1, 0] = torch.nan
    return model, torch.ones(4, 1, 2), lambda model, x: model(x)[0].sum()

def leaves():
    sys.exit(0)

def forgets():
    model = nn.RNN(2, 3)
    with torch.no_grad():
        model.weight_hh_l0.mul_(0.01)
    return model, torch.randn(80, 2, 2), lambda model, x: model(x)[0][-1].sum()

def draws():
    torch.manual_seed(torch.initial_seed())
    print("drew", torch.rand(1).item(), numpy.random.rand(), random.random())
    return good()

def sleeps():
    open("started", "w").close()
    time.sleep(60)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "broken.py").write_text("import does_not_exist_anywhere\n")
    torch.save(torch.nn.LSTM(2, 3).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["retrograde", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    for name in ("user", "broken", "retrograde_user_user"):
        sys.modules.pop(name, None)


@pytest.fixture
def diagnosed(monkeypatch):
    """What `diagnose` was called with, and the severities that it is to find."""
    seen = {"severities": ()}

    def instead(*subject, **settings):
        seen.update(settings, subject=subject)
        findings = (Finding("a-rule", severity, None, "Found.") for severity in seen["severities"])
        return Report("Title", (), tuple(findings))

    monkeypatch.setattr("retrograde.report.diagnose", instead)
    return seen


def test_a_module_is_named_as_python_imports_it(run, diagnosed):
    assert run("diagnose", "user:good") == run("diagnose", "user.py:good")
    assert isinstance(diagnosed["subject"][0], torch.nn.LSTM)


def test_threads(run, diagnosed):
    before = torch.get_num_threads()
    try:
        assert run("diagnose", "user.py:good", "--threads", "3")[0] == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert run("diagnose", "user.py:good", "--threads", "0")[0] == 2


def test_a_lag_beyond_the_sequence_is_told_without_trying_anything(run):
    code, out, _ = run("diagnose", "user.py:good", "--needs-lag", "6")
    assert code == 1
    assert "longer than the sequence" in out and "trained" not in out


def test_the_version(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out == f"retrograde {retrograde.__version__}, torch {torch.__version__}\n"


def test_diagnose_prints_and_writes(run, tmp_path):
    files = ("--html", "a.html", "--json", "a.json")
    code, out, err = run("diagnose", "user.py:good", "--fail-on", "never", *files)
    assert (code, err) == (0, "")
    assert "The gradient reaches back" in out
    assert "wrote a.html" in out and "wrote a.json" in out
    assert json.loads((tmp_path / "a.json").read_text())["layers"][0]["steps"] == 6
    assert "vegaEmbed" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("user.py", "expected FILE.py:FUNCTION, as in train.py:example, or PACKAGE.MODULE:FUNCT"),
        ("missing.py:good", "there is no file missing.py"),
        ("user.py:missing", "user.py has no function 'missing'"),
        ("user.py:forget", "user.py has no function 'forget' (did you mean 'forgets'?)"),
        ("user:missing", "user has no function 'missing'"),
        ("user.model:good", "No module named 'user.model'; 'user' is not a package"),
        ("nowhere.at_all:good", "there is no module 'nowhere', and no file 'nowhere.at_all'"),
        ("net.pt:good", "net.pt is a checkpoint of torch.save; give a Python file"),
        ("user.py:number", "user.py has no function 'number'"),
        ("user.py:no_tuple", "must return a tuple (model, batch, loss_fn)"),
        ("user.py:no_model", "it returned (int, int, int)"),
        ("user.py:no_layer", "Linear holds no recurrent layer"),
        ("user.py:leaves", "your code ended the program (sys.exit, code 0)"),
    ],
)
def test_unusable_input_is_a_message_and_exit_code_2(run, target, sentence):
    code, out, err = run("diagnose", target)
    assert code == 2
    assert sentence in " ".join(err.split())
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("user.py:raises", 'KeyError: "the user\'s key"'),
        ("user.py:loss_raises", "ZeroDivisionError: in the user's loss"),
        ("user.py:needs_arguments", "missing 1 required positional argument"),
        ("broken.py:good", "No module named 'does_not_exist_anywhere'"),
        ("broken:good", "No module named 'does_not_exist_anywhere'"),
        ("user:raises", 'KeyError: "the user\'s key"'),
    ],
)
def test_the_users_own_traceback_and_nothing_of_ours(run, target, line):
    code, _, err = run("diagnose", target)
    assert code == 2
    assert line in err
    assert "your code raised an exception" in err
    assert "retrograde/" not in err and "importlib" not in err


@pytest.mark.parametrize(
    "command",
    [
        ("diagnose", "user.py:raises", "--html"),
        ("diagnose", "user.py:raises", "--json"),
        ("demo", "--html"),
        ("demo", "--json"),
        ("compare", "missing.json", "missing.json", "--html"),
    ],
)
def test_an_unwritable_path_is_found_before_the_work(run, command):
    code, _, err = run(*command, "no/such/folder.x")
    assert code == 2
    assert err == (
        "error: cannot write no/such/folder.x: there is no folder no/such; create it first\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("diagnose", "user.py:raises", "--html", "same", "--json", "./same"),
        ("compare", "a.json", "b.json", "--html", "b.json"),
    ],
)
def test_no_file_is_written_over_another(run, command):
    code, _, err = run(*command)
    assert code == 2
    assert "is named twice; give every file a name of its own" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--threshold", "reach_fraction"), "--threshold takes NAME=VALUE with a number, as in"),
        (("--threshold", "reach_fraction=x"), "got 'reach_fraction=x'"),
        (("--threshold", "reach_fraction=nan"), "got 'reach_fraction=nan'"),
        (("--threshold", "no=1"), "there is no threshold 'no'; there are: reach_fraction, "),
        (("--threshold", "reach_fracton=1"), "(did you mean 'reach_fraction'?)"),
        (("--device", "no"), "cannot use the device 'no': Expected one of cpu, cuda"),
        (("--device", "meta"), "cannot use the device 'meta': tensors on it hold no numbers"),
    ],
)
def test_options_are_checked_before_the_work(run, options, sentence):
    code, _, err = run("diagnose", "user.py:raises", *options)
    assert code == 2
    assert sentence in err and "your code" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(run):
    code, _, err = run("diagnose", "user.py:good", "--device", "cuda:1")
    assert code == 2
    assert "cannot use the device 'cuda:1'" in err and "available here: cpu" in err


def test_an_unknown_layer_is_a_message_with_those_there_are(run):
    code, _, err = run("diagnose", "user.py:good", "--layer", "no")
    assert code == 2
    assert "'no'" in err and "LSTM" in err


def test_options_reach_diagnose(run, diagnosed):
    options = "--needs-lag 7 --layer LSTM --no-remedies --try-training 3 --budget 9 --seed 5"
    thresholds = ("--threshold", "conflict=-0.2", "--threshold", "far_share=2e-3")
    options += " --spectrum"
    code, _, err = run("diagnose", "user.py:good", *options.split(), *thresholds)
    assert (code, err) == (0, "")
    model, batch, loss_fn = diagnosed.pop("subject")
    assert isinstance(model, torch.nn.LSTM) and loss_fn(model, batch).ndim == 0
    diagnosed.pop("progress")(1, 2, "a step")
    assert diagnosed == {
        "severities": (),
        "cells": None,
        "needs_lag": 7,
        "layer": "LSTM",
        "thresholds": {"conflict": -0.2, "far_share": 2e-3},
        "remedies": None,
        "budget": 9.0,
        "try_training": 3,
        "spectrum": True,
        "seed": 5,
    }


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        ((), "train"),
        (("--remedies", "pass"), "pass"),
        (("--remedies", "train"), "train"),
        (("--remedies", "none"), None),
        (("--no-remedies",), None),
    ],
)
def test_what_is_done_with_remedies(run, diagnosed, words, remedies):
    code, _, err = run("diagnose", "user.py:good", *words)
    assert (code, err) == (0, "")
    assert diagnosed["remedies"] == remedies and diagnosed["budget"] == 60.0


def test_a_loader_is_moved_batch_by_batch():
    def batches(seed):
        return torch.ones(seed), {"y": torch.ones(1)}

    for source in (batches, [batches(3)].__iter__()):
        moved = device.move(Subject(torch.nn.LSTM(1, 2), source, print), torch.device("meta"))
        x, rest = moved.batch(3) if callable(moved.batch) else next(moved.batch)
        assert x.device.type == rest["y"].device.type == "meta" and len(x) == 3


@pytest.mark.parametrize("fail_on", ["info", "warning", "error", "never", None])
@pytest.mark.parametrize(
    "severities", [(), ("info",), ("warning", "info"), ("error",), ("info", "error")]
)
def test_findings_decide_the_exit_code(run, diagnosed, severities, fail_on):
    diagnosed["severities"] = severities
    code, out, _ = run(
        "diagnose", "user.py:good", *(("--fail-on", fail_on) if fail_on else ()), "--json", "a.json"
    )
    order = ("info", "warning", "error", "never")
    bound = order.index(fail_on or "warning")
    assert code == int(any(order.index(severity) >= bound for severity in severities))
    assert out.count("a-rule") == len(severities)
    assert len(Report.from_json("a.json").findings) == len(severities)


def test_a_model_that_forgets_is_a_finding(run):
    code, out, _ = run("diagnose", "user.py:forgets", "--needs-lag", "40", "--no-remedies")
    assert code == 1
    assert "vanishing" in out


def test_a_weight_that_is_nan_is_a_finding(run):
    code, out, err = run("diagnose", "user.py:nan_weight", "--remedies", "pass")
    assert (code, err) == (1, "")
    assert "non-finite" in out


def test_quiet_prints_nothing_and_writes(run, diagnosed, folder):
    diagnosed["severities"] = ("error",)
    assert run("diagnose", "user.py:draws", "--quiet", "--json", "a.json") == (1, "", "")
    assert (folder / "a.json").exists()
    code, out, err = run("diagnose", "user.py:raises", "--quiet")
    assert (code, out) == (2, "") and "KeyError" in err


def test_the_seed_is_set_before_the_function_is_called(run, diagnosed):
    first, second, other = (
        run("diagnose", "user.py:draws", "--seed", seed)[1].splitlines()[0]
        for seed in ("3", "3", "4")
    )
    assert first == second != other
    torch.manual_seed(3)
    assert first.split()[1] == str(torch.rand(1).item())


Pair = collections.namedtuple("Pair", "x y")


def test_a_batch_is_moved_whatever_it_is_made_of():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    batch = {"pair": Pair(torch.ones(1), [torch.ones(1), "words"]), "packed": (packed, None, 3)}
    subject = Subject(torch.nn.Linear(2, 1), batch, torch.nn.CrossEntropyLoss(torch.ones(1)))
    moved = device.move(subject, torch.device("meta"))
    assert moved.model.weight.is_meta and moved.loss_fn is subject.loss_fn
    assert isinstance(moved.batch["pair"], Pair) and moved.batch["pair"].x.is_meta
    assert moved.batch["pair"].y[0].is_meta and moved.batch["pair"].y[1] == "words"
    found, *rest = moved.batch["packed"]
    assert isinstance(found, PackedSequence) and found.data.is_meta and rest == [None, 3]
    assert not found.batch_sizes.is_meta
    assert not batch["pair"].x.is_meta


def test_what_cannot_be_moved_is_said():
    class Stuck:
        def to(self, device):
            raise RuntimeError("stuck here")

    subject = Subject(torch.nn.Linear(2, 1), [Stuck()], print)
    with pytest.raises(InputError, match="cannot move model and batch to cpu: stuck here"):
        device.move(subject, torch.device("cpu"))


def test_the_device_cpu_is_there(run, diagnosed):
    assert run("diagnose", "user.py:good", "--device", "cpu")[0] == 0


def test_compare(run, folder):
    for number, target in enumerate(("good", "forgets")):
        run("diagnose", f"user.py:{target}", "--no-remedies", "--json", f"{number}.json")
    code, out, err = run("compare", "0.json", "1.json", "--html", "page.html")
    assert (code, err) == (0, "")
    assert "From 0.json to 1.json" in out and "Only in 0.json: LSTM" in out
    assert "wrote page.html" in out
    assert "Only in 1.json: RNN" in (folder / "page.html").read_text()
    code, out, _ = run("compare", "0.json", "0.json", "--fail-on", "worse")
    assert code == 0 and "Nothing changed." in out


def test_compare_fails_on_what_is_worse(run, folder):
    for name, scale in (("long", 1.0), ("short", 0.01)):
        recurrent = torch.nn.RNN(2, 3)
        with torch.no_grad():
            recurrent.weight_hh_l0.copy_(scale * 0.95 * torch.eye(3))
        report = retrograde.diagnose(
            recurrent,
            torch.randn(40, 2, 2),
            lambda model, x: model(x)[0][-1].sum(),
            remedies=None,
            needs_lag=20,
        )
        report.to_json(f"{name}.json")
    assert run("compare", "long.json", "short.json")[0] == 0
    assert run("compare", "long.json", "short.json", "--fail-on", "worse")[0] == 1
    assert run("compare", "short.json", "long.json", "--fail-on", "worse")[0] == 0


def test_compare_takes_reports_only(run, folder):
    (folder / "old.json").write_text('{"schema": "retrograde-report/1"}')
    for name, sentence in (
        ("user.py", "cannot read user.py"),
        ("missing.json", "there is no file missing.json"),
        ("old.json", "another version of retrograde wrote it"),
        ("net.pt", "cannot read net.pt: it is a checkpoint of torch.save"),
    ):
        code, out, err = run("compare", name, name)
        assert (code, out) == (2, "")
        assert sentence in err and "Traceback" not in err


def test_explain(run):
    code, out, _ = run("explain")
    assert code == 0
    assert "vanishing" in out and "exploding" in out
    code, out, _ = run("explain", "vanishing")
    assert code == 0 and "vanishing" in out.lower()
    code, out, err = run("explain", "no-rule")
    assert (code, out) == (2, "")
    assert "'no-rule'" in err and "vanishing" in err
    assert "did you mean 'vanishing'?" in run("explain", "vanishng")[2]


def test_a_fault_of_ours_is_no_finding(run, monkeypatch):
    def instead(*subject, **settings):
        raise AssertionError("our own mistake")

    monkeypatch.setattr("retrograde.report.diagnose", instead)
    code, _, err = run("diagnose", "user.py:good")
    assert code == 70
    assert "our own mistake" in err and "a fault of retrograde; please report it" in err


def test_out_of_memory_is_said_plainly(run, monkeypatch):
    def instead(*subject, **settings):
        raise MemoryError

    monkeypatch.setattr("retrograde.report.diagnose", instead)
    code, _, err = run("diagnose", "user.py:good")
    assert code == 2
    assert "out of memory; a smaller batch" in err and "Traceback" not in err


def test_help_names_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "diagnose", "compare", "explain", "explore"):
        assert command in out


@pytest.mark.parametrize(
    "command",
    [
        ("demo", "--seed", "-1"),
        ("diagnose", "user.py:good", "--needs-lag", "0"),
        ("diagnose", "user.py:good", "--fail-on", "everything"),
        ("diagnose",),
        ("compare", "a.json"),
    ],
)
def test_a_wrong_option_is_usage(run, command):
    code, _, err = run(*command)
    assert code == 2
    assert "Usage" in err and "Traceback" not in err


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"there is still no {path}")


SLOW_TO_WRITE = """
import pathlib, time

def replace(self, target):
    assert self.stat().st_size > 0
    open("started", "w").close()
    time.sleep(60)

pathlib.Path.replace = replace
"""


@pytest.mark.parametrize("while_writing", [False, True])
def test_ctrl_c_leaves_nothing_behind(folder, while_writing):
    (folder / "a.json").write_text("what was there")
    (folder / "slow.py").write_text(USER + SLOW_TO_WRITE)
    before = {path.name for path in folder.iterdir()} | {"__pycache__", "started"}
    subject = "slow.py:good" if while_writing else "user.py:sleeps"
    files = ["--json", "a.json"] if while_writing else ["--json", "a.json", "--html", "a.html"]
    started = processes.start("retrograde", "diagnose", subject, "--no-remedies", *files)
    wait_for(folder / "started")
    started.interrupt()
    done = started.done(timeout=30)
    assert done.returncode == 130
    assert done.stdout + done.stderr == "interrupted; no file was left half-written\n"
    assert {path.name for path in folder.iterdir()} <= before
    assert (folder / "a.json").read_text() == "what was there"


@pytest.mark.parametrize(("options", "shown"), [((), True), (("--quiet",), False)])
def test_on_a_terminal_a_bar_moves_from_the_first_second(folder, options, shown):
    import pty

    ours, theirs = pty.openpty()
    started = processes.start(
        *("retrograde", "diagnose", "user.py:sleeps", *options),
        stderr=theirs,
        environment={"TERM": "xterm"},
    )
    os.close(theirs)
    wait_for(folder / "started")
    time.sleep(1)
    os.set_blocking(ours, False)
    try:
        seen = os.read(ours, 100_000).decode()
    except BlockingIOError:
        seen = ""
    started.interrupt()
    assert started.done(timeout=30).returncode == 130
    os.close(ours)
    assert ("loading user.py:sleeps" in seen and "0:00:0" in seen) == shown


def told(*command, **streams):
    """Exit code and standard error of the command in a process of its own."""
    done = processes.run("retrograde", *command, **streams)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "where", "why"),
    [
        (("explain", "vanishing"), "full", "No space left on device"),
        (("--help",), "full", "No space left on device"),
        (("explain",), "closed pipe", "Broken pipe"),
        (("explain",), "closed", "Bad file descriptor"),
    ],
)
def test_output_that_is_closed_or_full_is_a_message_and_exit_2(command, where, why):
    if where == "full":
        with open("/dev/full", "w") as full:
            found = told(*command, stdout=full)
    elif where == "closed":
        found = told(*command, stdout=processes.CLOSED)
    else:
        ours, theirs = os.pipe()
        os.close(ours)
        found = told(*command, stdout=theirs)
        os.close(theirs)
    assert found == (2, f"error: cannot write to standard output: {why}\n")


def test_files_are_written_before_anything_is_shown(folder):
    """What cannot be shown need not be done again."""
    command = ("inspect", "user.py:good", "--json", "a.json")
    with open("/dev/full", "w") as full:
        assert told(*command, stdout=full)[0] == 2
    assert json.loads((folder / "a.json").read_text())["layers"]


def test_errors_that_cannot_be_said_leave_the_exit_code():
    with open("/dev/full", "w") as full:
        assert told("explain", "nope", stderr=full)[0] == 2


LONG = "x" * 5000


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", LONG),
        ("inspect", LONG + ".safetensors"),
        ("inspect", LONG + ".py:f"),
        ("inspect", "user.py:good", "--json", LONG),
        ("diagnose", LONG + ".py:f"),
        ("diagnose", LONG),
        ("diagnose", LONG + ":" + LONG),
        ("diagnose", "user.py:" + LONG),
        ("diagnose", "user.py:good", "--html", LONG),
        ("diagnose", "user.py:good", "--json", f"{LONG}/a.json"),
        ("diagnose", "user.py:good", "--layer", LONG, "--no-remedies"),
        ("diagnose", "user.py:good", "--device", LONG),
        ("compare", LONG, LONG),
        ("compare", "user.py", "user.py", "--html", LONG),
        ("demo", "--html", LONG),
        ("explain", LONG),
    ],
)
def test_a_name_of_5000_characters_is_a_message_and_exit_2(run, command):
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "Traceback" not in err
    assert len(err) < 1500


def test_no_message_speaks_of_a_block_that_is_not_there(run, folder):
    (folder / "idle.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(loss):\n"
        "    model = nn.ModuleDict({'used': nn.LSTM(2, 3), 'idle': nn.GRU(2, 3)})\n"
        "    return model, torch.randn(6, 2, 2), loss\n"
        "def unused():\n"
        "    return make(lambda model, x: model['used'](x)[0].sum())\n"
        "def without():\n"
        "    return make(lambda model, x: model['used'].weight_hh_l0.sum())\n"
        "def detached():\n"
        "    def loss(m, x):\n"
        "        return m['used'](x)[0].detach().sum() * m['idle'].bias_hh_l0.sum()\n"
        "    return make(loss)\n"
    )
    said = []
    for command in (
        ("unused", "--layer", "idle"),
        ("unused", "--no-remedies", "--fail-on", "never"),
        ("without",),
        ("detached",),
    ):
        code, out, err = run("diagnose", f"idle.py:{command[0]}", *command[1:])
        assert code == (0 if "never" in command else 2)
        said.append(out + err)
    said.append("".join(map(str, run("inspect", "idle.py:unused"))))
    assert all("with`" not in text and "with block" not in text for text in said)
    assert "while the pass was recorded" in said[0]


def test_memory_that_torch_could_not_get_is_said_plainly(run, monkeypatch):
    """On the CPU torch raises a plain RuntimeError."""

    def instead(*subject, **settings):
        torch.empty(10**15)

    monkeypatch.setattr("retrograde.report.diagnose", instead)
    code, _, err = run("diagnose", "user.py:good")
    assert code == 2 and err.startswith("error: out of memory; ") and "Traceback" not in err


SURROGATES = """
import torch
from torch import nn

def odd():
    model = nn.ModuleDict({"a\\udce9": nn.LSTM(2, 3), "b\\ud800": nn.GRU(2, 3)})
    return model, torch.randn(30, 2, 2), lambda m, x: m["a\\udce9"](x)[0][-1].square().mean()
"""


def test_half_a_surrogate_pair_in_a_name_is_written_out(run, folder):
    (folder / "odd.py").write_text(SURROGATES)
    files = ("--html", "a.html", "--json", "a.json")
    code, out, err = run("diagnose", "odd.py:odd", "--fail-on", "never", "--no-remedies", *files)
    assert (code, err) == (0, "")
    assert r"a\udce9" in out and r"a\udce9" in (folder / "a.html").read_text()
    assert "a?" in (folder / "a.json").read_text()
    code, out, err = run("compare", "a.json", "a.json", "--html", "b.html")
    assert (code, err) == (0, "") and (folder / "b.html").read_text()
    code, out, err = run("inspect", "odd.py:odd", "--json", "c.json")
    assert (code, err) == (0, "") and r"a\udce9" in out and r"b\ud800" in out
    assert "a?" in (folder / "c.json").read_text()
    code, _, err = run("diagnose", "odd.py:odd", "--layer", "b\ud800")
    assert code == 2 and r"b\ud800" in err


def test_studies_are_listed(run):
    code, out, _ = run("study", "list")
    assert code == 0
    for words in ("2a", "The adding problem", "claims"):
        assert words in out
    assert run("study")[1] == out


def test_a_study_is_run_shown_and_gone_on_with(run, folder):
    some = ("study", "1", "--row", "1-4x1-0.5", "--budget", "100", "--out", ".")
    code, out, _ = run(*some, "--trials", "1", "--html", "page.html")
    assert code == 0 and "1-4x1-0.5, seed 0: 0 of 1 solved" in out
    assert "0 % of 1" in out and "9,500" in out and "wrote 1.json" in out
    assert "9,500" in (folder / "page.html").read_text()
    code, out, _ = run(*some, "--trials", "2", "--quiet")
    assert code == 0 and out == ""
    code, out, _ = run("study", "1", "--show", "--out", "1.json")
    assert code == 0 and "0 % of 2" in out and "wrote" not in out
    code, out, _ = run("study", "1", "--merge", "1.json", "--out", "merged.json")
    assert code == 0 and (folder / "merged.json").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("nonesuch",), "there is no study 'nonesuch'; there are: 1, 2a"),
        (("1", "--row", "x"), "there is no row of the study 1 'x'; there are: 1-4x1-0.1"),
        (("1", "--out", "nowhere/x.json"), "there is no folder nowhere"),
        (("1", "--out", "other.json"), "other.json is no report: expected schema"),
        (("1", "--show", "--out", "nothing.json"), "there is no file nothing.json"),
        (("1", "--merge", "nothing.json"), "there is no file nothing.json"),
    ],
)
def test_what_a_study_cannot_use_is_a_message(run, folder, options, sentence):
    (folder / "other.json").write_text('{"schema": "retrograde-study/0"}')
    code, out, err = run("study", *options)
    assert code == 2 and sentence in err and "Traceback" not in err


def test_a_study_that_is_interrupted_says_how_to_go_on(run, folder, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("retrograde.studies.running.do", interrupted)
    code, _, err = run("study", "1", "--row", "1-4x1-0.5")
    assert code == 130 and "what is done is kept; the same command goes on" in err
