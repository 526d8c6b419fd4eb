"""Scripts as new users write them after the README: they run alone, and say what is wrong.

The notebook is tests/test_notebook.py.
"""

import copy
import runpy
import sys
from pathlib import Path

import pytest
import torch

import retrograde

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script as `python script.py` does; gives its variables and what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        names = runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        printed = capsys.readouterr()
        assert not printed.err
        return names, " ".join(printed.out.split())

    return run


def as_found(model):
    """No hook and no gradient is left, and it may be copied."""
    copy.deepcopy(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return model.training and all(p.grad is None for p in model.parameters())


def short(*results):
    return all(len(repr(result).splitlines()) <= 10 for result in results)


def test_a_packed_classifier_reads_the_last_words_only(script):
    names, printed = script("packed_classifier")
    report = names["report"]
    assert [f.rule for f in report.findings][:2] == ["forget-gate-too-short", "vanishing"]
    assert {f.layer for f in report.findings} == {"lstm"}
    best = report.findings[0].trials[0]
    assert best.remedy in ("chrono", "forget-bias") and best.closer
    assert best.code in printed and "retrograde.nn.initialise(model.lstm" in best.code
    assert as_found(names["model"]) and short(report, *report.findings)

    treated = copy.deepcopy(names["model"])  # the printed line, run as it stands, does what it says
    exec(best.code, {"model": treated, "torch": torch, "retrograde": retrograde})
    again = (treated, names["batch"], names["loss_fn"])
    cured = retrograde.diagnose(*again, needs_lag=50, remedies=None)
    assert "forget-gate-too-short" not in {f.rule for f in cured.findings}


def test_an_encoder_and_a_decoder_with_teacher_forcing(script):
    names, printed = script("translator")
    recording = names["recording"]
    assert list(recording) == ["encoder", "decoder"]
    for layer in recording.values():
        flow = retrograde.decompose(layer)
        assert flow.steps == 15 and flow.residual < 1e-5
        assert f"reach {flow.reach} of 14 steps" in printed
        assert short(flow, layer)
    # the loss enters the encoder by its last state alone, and the decoder at every step
    assert retrograde.decompose(recording["encoder"]).entries.steps.tolist() == [14]
    assert len(retrograde.decompose(recording["decoder"]).entries) == 15
    assert short(recording)


def test_a_relu_network_explodes(script):
    names, printed = script("exploding")
    report = names["report"]
    assert report.findings[0].rule == "exploding" and not report.ok
    growth = report.findings[0].evidence[0]
    assert growth.value > growth.threshold
    assert report.findings[0].message in printed
    assert as_found(names["model"]) and short(report)


def test_a_loop_that_writes_to_tensorboard(script, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names, printed = script("tensorboard_loop", str(tmp_path))
    assert printed == "History of 5 looks, blocks 0 to 40; layers: gru"
    assert names["losses"][-1] < 0.5 * names["losses"][0]
    events = EventAccumulator(str(tmp_path)).Reload()
    read = [(event.step, event.value) for event in events.Scalars("retrograde/gru/reach")]
    assert read == names["monitor"].history.of("gru", "reach")
