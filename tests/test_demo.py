"""The main job: real data with its gaps in sight, the same numbers from the same seed."""

import hashlib
import json
import subprocess
import sys
from importlib.resources import files

import pytest

from retrograde.data import mauna_loa_co2
from retrograde.demo import run
from retrograde.report import Report
from retrograde.report.answer import answer
from retrograde.tasks import forecast
from support.type_checks import unchecked


def test_the_record_is_the_one_of_its_provenance():
    folder = files("retrograde.data")
    digest = hashlib.sha256((folder / "mauna_loa_co2.csv").read_bytes()).hexdigest()
    assert digest in (folder / "PROVENANCE.md").read_text()


def test_missing_weeks_are_on_the_line_between_their_neighbours():
    record = mauna_loa_co2()
    assert {(b - a).days for a, b in zip(record.dates, record.dates[1:], strict=False)} == {7}
    week = next(i for i, day in enumerate(record.dates) if day.isoformat() == "1958-05-10")
    assert bool(record.missing[week]) and not bool(record.missing[week - 1 : week].any())
    before, after = record.ppm[week - 1], record.ppm[week + 1]
    assert float(record.ppm[week]) == pytest.approx(float(before + after) / 2)
    assert bool(record.ppm.isfinite().all())


def test_nobody_is_scored_on_a_missing_week():
    record, task = mauna_loa_co2(), forecast.load()
    unknown = record.missing[1:] | record.missing[:-1]
    change = (record.ppm.diff() / task.unit).float()
    for start in (0, 20, 700):
        window = slice(start + 1, start + 1 + forecast.WEEKS)
        assert task.train.y[start, :, 0].equal(change[window])
        assert not bool((task.train.scored[start, :, 0] & unknown[window]).any())
        assert not bool(task.train.scored[start, : forecast.YEAR].any())
    assert not bool(task.train.scored[:, :, 0].all(1).any())


def test_every_held_out_week_is_scored_once_and_none_was_trained_on():
    record, task = mauna_loa_co2(), forecast.load()
    split = next(i for i, d in enumerate(record.dates) if d.year >= forecast.FIRST_TEST_YEAR)
    change = (record.ppm.diff() / task.unit).float()
    scored = task.test.y[task.test.scored]
    weeks = len(task.test.x) * (forecast.WEEKS - forecast.YEAR)
    first = split + 1 + forecast.YEAR
    assert scored.equal(change[first : first + weeks])
    assert task.train.y[-1, -1, 0] == change[split - 1]


def test_the_naive_forecasts():
    """No change: the RMS of the changes. Last year's: the change 52 weeks before."""
    record, task = mauna_loa_co2(), forecast.load()
    split = next(i for i, d in enumerate(record.dates) if d.year >= forecast.FIRST_TEST_YEAR)
    change = record.ppm.diff()
    first, weeks = split + 1 + forecast.YEAR, 52 * len(task.test.x)
    truth, year_ago = change[first:][:weeks], change[first - 52 :][:weeks]
    naive = task.naive
    assert naive["no change"] == pytest.approx(float(truth.square().mean().sqrt()), rel=1e-5)
    error = float((truth - year_ago).square().mean().sqrt())
    assert naive["last year's change"] == pytest.approx(error, rel=1e-5)


SENTENCES = (
    "RNN: no, its gradient reaches back 36 steps, short of last year's season (52 steps), and "
    "-0.1% of the gradient comes from there and beyond. A window of 20 steps keeps the bias of "
    "its gradient within 0.1 (fresh: 4); one of 52 has a bias of 0.00139.",
    "LSTM: no, its gradient reaches back 40 steps, short of last year's season (52 steps), and "
    "0.4% of the gradient comes from there and beyond. A window of 27 steps keeps the bias of "
    "its gradient within 0.1 (fresh: 5); one of 52 has a bias of 0.00407.",
)
"""What the quick demo finds with seed 3."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the command as a user types it, in a folder and a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "retrograde", "demo", "--quick", "--seed", "3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return folder, done


@pytest.fixture(scope="module")
def again():
    """The same once more, in this process."""
    with unchecked():
        return run(seed=3, quick=True, progress=False)


def test_the_same_seed_gives_the_same_numbers(demo, again, tmp_path):
    folder, _ = demo
    again.to_json(tmp_path / "again.json")
    files = (folder / "retrograde-demo.json", tmp_path / "again.json")
    one, other = (json.loads(file.read_text()) for file in files)
    assert one == other


def test_every_processor_says_the_same_sentences(again):
    """To the last digit: `make test-portability` asks under other instruction sets, too."""
    assert again.sentences == SENTENCES
    assert all(layer.residual < 1e-12 for layer in again.layers)


def test_the_page_shows_how_the_horizon_grew(demo, again):
    """At each epoch, from the weights it had: fresh ones look back over a few steps."""
    page = (demo[0] / "retrograde-demo.html").read_text()
    for name, growth in again.growth.items():
        assert growth.weights == ("fresh", "epoch 1", "epoch 2")
        assert growth.window[0] < growth.window[1] and growth.reach[0] < growth.reach[1]
        assert growth.reach[-1] == next(x.reach for x in again.layers if x.name == name)
        assert f"How the horizon of {name} grew" in page


def test_the_demo_says_what_it_found_and_nothing_else(demo):
    folder, done = demo
    assert done.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == [
        "retrograde-demo.html",
        "retrograde-demo.json",
    ]
    report = Report.from_json(folder / "retrograde-demo.json")
    text = " ".join(done.stdout.split())
    naive = forecast.load().naive["no change"]
    assert [layer.name for layer in report.layers] == ["RNN", "LSTM"]
    assert answer(report).lead[:2] == report.sentences, "the page answers its title first"
    for layer, sentence in zip(report.layers, report.sentences, strict=True):
        assert sentence in text
        assert float(layer.figures["test error (RMSE)"].split()[0]) < naive
        assert [lags.start for lags in layer.by_lag.lags] == [0, 13, 52]
    serious = {finding.rule for finding in report.findings if finding.severity != "info"}
    assert serious <= {"vanishing", "near-lags-dominate", "forget-gate-too-short"}  # of a short run
    for finding in report.findings:
        assert finding.rule in text and finding.layer in ("RNN", "LSTM")
    assert (folder / "retrograde-demo.html").stat().st_size < 2_000_000


def test_another_seed_gives_other_numbers():
    weights = [forecast.forecasters(seed)["LSTM"].readout.weight for seed in (0, 1)]
    assert not weights[0].equal(weights[1])
