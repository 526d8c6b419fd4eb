"""Mistakes of a first day: the message says what was expected, what came and what to do."""

import traceback

import pytest
import torch
from torch import nn

import retrograde
from retrograde.errors import ArgumentError, RecordingError, UnsupportedModelError

LSTM, X = nn.LSTM(2, 3), torch.ones(5, 2, 2)


def loss_fn(model, batch):
    return model(batch)[0].square().mean()


def recorded(run):
    with retrograde.record(LSTM) as recording:
        run()
    return recording


def backward():
    loss_fn(LSTM, X).backward()


def without_gradient(model, batch):
    with torch.no_grad():
        return loss_fn(model, batch)


def with_backward(model, batch):
    loss = loss_fn(model, batch)
    loss.backward()
    return loss


CALLS = {
    "a misspelt layer": (
        lambda: recorded(backward)["lstm"],
        (KeyError, "no layer 'lstm' (did you mean 'LSTM'?) in Recording('LSTM')"),
    ),
    "no backward pass": (
        lambda: retrograde.decompose(recorded(lambda: loss_fn(LSTM, X))),
        (RecordingError, "loss.backward() was not called while the pass was recorded"),
    ),
    "no forward pass": (
        lambda: retrograde.decompose(recorded(lambda: None)),
        (RecordingError, "it was not called while the pass was recorded; run the forward pass"),
    ),
    "a model where a recording belongs": (
        lambda: retrograde.decompose(LSTM),
        (ArgumentError, "has to run first: with retrograde.record(model) as recording: ..."),
    ),
    "no recurrent layer": (
        lambda: retrograde.diagnose(nn.Linear(2, 3), X, loss_fn),
        (UnsupportedModelError, "Linear holds no recurrent layer: expected an nn.LSTM, nn.GRU"),
    ),
    "no loss function": (
        lambda: retrograde.diagnose(LSTM, X),
        (ArgumentError, "got the module LSTM without a loss function"),
    ),
    "a criterion": (
        lambda: retrograde.diagnose(LSTM, X, nn.MSELoss()),
        (ArgumentError, "got the criterion MSELoss(), which knows neither. Wrap it: lambda model,"),
    ),
    "a loss of the model alone": (
        lambda: retrograde.diagnose(LSTM, X, lambda model: model(X)[0].sum()),
        (ArgumentError, "(model, batch) -> loss; got"),
    ),
    "a loss for each sample": (
        lambda: retrograde.diagnose(LSTM, X, lambda model, x: model(x)[0].sum((0, 2))),
        (ArgumentError, "must return the scalar loss as a tensor that depends on the model's"),
    ),
    "a loss without a gradient": (
        lambda: retrograde.diagnose(LSTM, X, without_gradient),
        (ArgumentError, "requires_grad=False"),
    ),
    "a loss that runs backward itself": (
        lambda: retrograde.diagnose(LSTM, X, with_backward),
        (ArgumentError, "call neither backward() nor an optimiser in it"),
    ),
    "arguments of the loss the other way round": (
        lambda: retrograde.diagnose(LSTM, X, lambda batch, model: model(batch)[0].sum()),
        (TypeError, "Retrograde called it as loss_fn(model, batch)"),
    ),
    "a batch of another precision": (
        lambda: retrograde.diagnose(LSTM, X.double(), loss_fn),
        (ValueError, "does not match weight dtype (torch.float32). Convert input"),
    ),
    "a batch on another device": (
        lambda: retrograde.diagnose(LSTM, X.to("meta"), loss_fn),
        (RuntimeError, "not at the same device, found input tensor at meta"),
    ),
    "a batch of other features": (
        lambda: retrograde.diagnose(LSTM, torch.ones(5, 2, 7), loss_fn),
        (RuntimeError, "Expected 2, got 7"),
    ),
    "a list of batches where one belongs": (
        lambda: retrograde.horizon(LSTM, [X, X], loss_fn),
        (AttributeError, "a list is one batch, iter(batches) is several"),
    ),
    "a recurrence of one's own": (
        lambda: retrograde.diagnose(nn.Bilinear(2, 3, 3), X, loss_fn),
        (UnsupportedModelError, "cells={MyCell: retrograde.Declaration()}, or record its step"),
    ),
    "a horizon of a criterion": (
        lambda: retrograde.horizon(LSTM, [X], nn.MSELoss()),
        (ArgumentError, "got the criterion MSELoss()"),
    ),
}


@pytest.mark.parametrize("mistake", CALLS)
def test_the_message_says_what_to_do(mistake):
    call, (kind, words) = CALLS[mistake]
    weights = [p.detach().clone() for p in LSTM.parameters()]
    with pytest.raises(kind) as caught:
        call()
    said = "".join(traceback.format_exception_only(caught.value))
    assert words in said
    assert all(map(torch.equal, weights, LSTM.parameters()))
    assert not LSTM._forward_hooks and not LSTM._forward_pre_hooks


def test_a_lag_longer_than_the_sequence_is_named_before_anything_is_tried():
    report = retrograde.diagnose(LSTM, X, loss_fn, needs_lag=30)
    (finding,) = report.findings
    assert finding.rule == "no-time" and not finding.trials
    assert "it takes 31 steps to hold it, and 'LSTM' reads 5" in finding.message
