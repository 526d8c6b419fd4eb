"""The recipes for experiment trackers run as the page shows them, and what was logged is there."""

import json
import re
from pathlib import Path

import pytest
import torch

import retrograde

PAGE = Path(__file__).parents[2] / "docs" / "watching-a-training-run.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # of the trackers' own deprecations

RECIPES = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(package, folder):
    """Run the recipe for a package; gives its namespace and what the monitor saw."""
    [recipe] = [text for text in RECIPES if text.startswith(f"import {package}\n")]
    model = torch.nn.LSTM(2, 3)
    seen = []

    def train(monitor):
        for _ in range(3):
            with monitor:
                model(torch.ones(5, 2, 2))[0].sum().backward()
        seen.extend(monitor.history)

    names = {"model": model, "train": train, "folder": str(folder), "retrograde": retrograde}
    exec(recipe, names)
    assert len(seen) == 3
    return names, seen


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("wandb", tmp_path)
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.read_bytes().count(b"retrograde/LSTM/reach") >= 3  # once a step


def test_mlflow_in_local_files(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    names, seen = run("mlflow", tmp_path)
    [found] = names["mlflow"].search_runs(output_format="list")
    assert found.data.metrics["retrograde/LSTM/reach"] == seen[-1]["retrograde/LSTM/reach"]


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    _, seen = run("trackio", tmp_path)
    import sqlite3

    [database] = tmp_path.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, _ in rows] == [0, 1, 2]
    logged = json.loads(rows[-1][1])
    assert logged["retrograde/LSTM/reach"] == seen[-1]["retrograde/LSTM/reach"]
