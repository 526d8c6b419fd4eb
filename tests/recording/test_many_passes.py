"""Recording many passes at once: what each costs does not grow with those before it.

Work is counted in bytecodes that the package runs, and not in time.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import retrograde

PACKAGE = str(Path(retrograde.__file__).parent)


class Bytecodes:
    """How many bytecodes of the package ran."""

    def __init__(self):
        self.count = 0

    def _trace(self, frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            return self._trace
        self.count += event == "opcode"
        return self._trace if frame.f_trace_opcodes else None

    @contextmanager
    def counted(self):
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)


class Loop(nn.Module):
    """A loop of cells that goes on from a mix of the state before and after a step."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(2, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[1], 3)
        for x_k in x:
            h = 0.75 * self.cell(x_k, h) + 0.25 * h
        return h


class Layer(nn.Module):
    """A layer of torch over a layer of ours, in two directions."""

    def __init__(self):
        super().__init__()
        self.below = nn.GRU(2, 3, bidirectional=True)
        self.above = retrograde.nn.LSTM(6, 2, generation="lstm-1997")

    def forward(self, x):
        return self.above(self.below(x)[0])[0]


class Stream(nn.Module):
    """Windows of one sequence: each begins with the detached state of the one before."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(2, 3)
        self.state = None

    def forward(self, x):
        out, state = self.layer(x, self.state)
        self.state = tuple(part.detach() for part in state)
        return out


class Penalised(nn.Module):
    """A layer whose weights the loss uses as well, with an initial state to be learnt."""

    def __init__(self):
        super().__init__()
        self.layer, self.h0 = nn.GRU(2, 3), nn.Parameter(torch.ones(1, 2, 3))

    def forward(self, x):
        return self.layer(x, self.h0)[0] + self.layer.weight_hh_l0.square().sum()


@pytest.mark.parametrize("kind", [Loop, Layer, Stream, Penalised])
def test_a_pass_costs_the_same_however_many_there_were(kind):
    torch.manual_seed(0)
    model, x, work = kind(), torch.randn(4, 2, 2), []
    with retrograde.record(model) as recording:
        for _ in range(24):
            bytecodes = Bytecodes()
            with bytecodes.counted():
                model(x).sum().backward()
            work.append(bytecodes.count)
    assert len(recording.passes) == 24
    assert work[-1] <= 1.02 * work[11]  # the first ones find out what later ones know


def test_putting_many_passes_together_costs_as_much_as_they_are():
    def work(passes):
        model, bytecodes = nn.GRU(2, 3), Bytecodes()
        with retrograde.record(model):
            for _ in range(passes):
                model(torch.ones(4, 2, 2))[0].sum().backward()
            sys.settrace(bytecodes._trace)
            sys._getframe().f_trace = None
        sys.settrace(None)
        return bytecodes.count

    twelve, more, most = work(12), work(24), work(36)
    assert most - more <= 1.02 * (more - twelve)
