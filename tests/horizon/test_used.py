"""The states with an older past replaced, against windows that are each run on their own."""

import pytest
import torch
from torch import nn

import retrograde
from retrograde.engine import unroll
from retrograde.horizons import used

T, B = 150, 3


@pytest.mark.parametrize("forget", (0.0, 12.0))
def test_windows_go_on_from_shorter_ones(monkeypatch, forget):
    """Of a network that forgets and of one that does not; in more calls than one."""
    monkeypatch.setattr(used, "TOGETHER", 64 * 40 * B * 8)
    torch.manual_seed(0)
    model = nn.LSTM(2, 4).double()
    retrograde.nn.initialise(model, "forget-bias", value=forget)
    with retrograde.record(model) as recording:
        model(torch.randn(T, B, 2, dtype=torch.float64))[0].sum().backward()
    unrolled = retrograde.decompose(recording).unrolled
    before, steps = unrolled.states.roll(1, 1), (0, 1, *range(3, 62, 3), 70, 140, T)
    found = list(used.windowed(unrolled, before, steps))
    for count, states in zip(steps, found, strict=True):
        for t in (0, 1, count - 1, count, T // 2, T - 1):
            if not 0 <= t < T:
                continue
            first = max(0, t + 1 - count)
            start = before[first] if count <= t else unrolled.states[0]
            expected = start
            if count:
                expected = unroll(unrolled.cell, unrolled.x[first : t + 1], start).states[-1]
            torch.testing.assert_close(states[t + 1], expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(found[-3], unrolled.states) == (forget == 0)  # forgotten after 70 steps
