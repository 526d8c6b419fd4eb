"""A part of the samples put together on its own is that part of the whole."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde.decomposition.replay import replay


@pytest.mark.parametrize("how", ["stack", "both directions", "packed", "called twice"])
def test_samples_alone_are_those_of_the_whole(how):
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, 2, bidirectional=how in ("both directions", "packed")).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    given = nn.utils.rnn.pack_padded_sequence(x, [6, 5, 5, 3, 2]) if how == "packed" else x
    recordings = []
    for _ in range(2):
        with retrograde.record(model) as recording:
            out, state = model(given)
            if how == "called twice":
                out, _ = model(x, state)
            data = out.data if how == "packed" else out
            (data * torch.arange(data.numel()).view_as(data)).sum().backward()
        recordings.append(recording)
    whole, apart = recordings[0]["LSTM"], recordings[1].passes[0].sample("LSTM", 2)
    assert apart.samples == (1, 3)
    whole = whole.part(apart.samples)
    for name in ("x", "initial", "direct", "inputs", "final", "lengths"):
        one, other = getattr(whole, name), getattr(apart, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)
    assert (apart.ran is not None) == (how == "both directions")
    if apart.ran is not None:  # they are kept for that very cell and those very inputs
        assert replace(apart, x=apart.x).ran is None
        again = replay(replace(apart)).states
        torch.testing.assert_close(apart.ran.states, again, rtol=1e-12, atol=1e-14)
    assert apart.gradients == {} and apart.boundaries.keys() == whole.boundaries.keys()
    torch.testing.assert_close(  # and nothing is lost for who asks for all of it
        recordings[1]["LSTM"].direct, recordings[0]["LSTM"].direct, rtol=0, atol=0
    )
