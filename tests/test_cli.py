"""The command line as a user meets it: exit codes, messages, no traceback of ours."""

import json
import sys

import pytest

from retrograde.cli import main

USER = """
import torch
from torch import nn

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

number = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "broken.py").write_text("import does_not_exist_anywhere\n")
    monkeypatch.chdir(tmp_path)
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

    return call


def test_diagnose_prints_and_writes(run, tmp_path):
    code, out, _ = run("diagnose", "user.py:good", "--html", "a.html", "--json", "a.json")
    assert code == 0
    assert "LSTM: the gradient reaches back" in out
    assert "wrote a.html" in out and "wrote a.json" in out
    assert json.loads((tmp_path / "a.json").read_text())["layers"][0]["steps"] == 6
    assert "vegaEmbed" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("user.py", "expected FILE.py:FUNCTION, as in train.py:example; got 'user.py'"),
        ("missing.py:good", "there is no file missing.py"),
        ("user.py:missing", "user.py has no function 'missing'"),
        ("user.py:number", "user.py has no function 'number'"),
        ("user.py:no_tuple", "must return a tuple (model, batch, loss_fn)"),
        ("user.py:no_model", "it returned (int, int, int)"),
        ("user.py:no_layer", "Linear holds no recurrent layer"),
        ("user.py:nan_weight", "the weight weight_ih_l0 of 'LSTM' is nan first at row 1, column 0"),
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
    ],
)
def test_the_users_own_traceback_and_nothing_of_ours(run, target, line):
    code, _, err = run("diagnose", target)
    assert code == 2
    assert line in err
    assert "your code raised an exception" in err
    assert "retrograde/" not in err and "importlib" not in err


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_an_unwritable_path_is_found_before_the_work(run, option):
    code, _, err = run("diagnose", "user.py:raises", option, "no/such/folder.x")
    assert code == 2
    assert "there is no folder no/such" in err
    assert "your code" not in err  # the user's function was not even called


def test_help_names_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "demo" in out and "diagnose" in out


def test_a_wrong_option_is_usage(run):
    code, _, err = run("demo", "--seed", "-1")
    assert code == 2
    assert "Traceback" not in err
