"""How long does a knob of `retrograde explore` take to be answered, at T=100 H=32?

The whole computation behind one move: the pass, what the picture shows of it, the chart's
specification and the words below; drawing it is the browser's. In one thread and in processor time,
so that a busy neighbour does not count.
"""

import itertools
import time
from collections.abc import Callable

import torch
from _measure import Spread, answer, interleaved

from retrograde.explore import examples, proof, unrolled
from retrograde.explore.lesson import GENERATIONS, Setting
from retrograde.explore.showing import pictures
from retrograde.explore.views import VIEWS

TARGET = 0.3
"""Seconds."""

ROUNDS = 5


POSITIONS = itertools.count(1)


def moves(act: Callable[[float], None]) -> Callable[[], None]:
    """An act at positions of a knob that nothing was asked for before."""
    return lambda: act(next(POSITIONS) / 1000)


def drawn(chart: object) -> None:
    for picture in pictures(chart):
        picture._mime_()


def of_view(name: str, generation: str) -> Callable[[], None]:
    def act(bias: float) -> None:
        setting = Setting(generation, recurrent_scale=1 + bias)
        drawn(VIEWS[name].draw(setting))
        VIEWS[name].answer(setting)

    return moves(act)


def two_networks(bias: float) -> None:
    pair = proof.with_equal_norms(Setting(forget_bias=5 + bias), Setting(forget_bias=bias))
    for one in pair:
        drawn(one.flow.chart())


def step_by_step(bias: float) -> None:
    setting = Setting(steps=12, forget_bias=bias)
    unrolled.both(setting, 3), unrolled.table(setting, 3), unrolled.in_words(setting, 3)


def exploding(bias: float) -> None:
    setting = Setting(steps=60, recurrent_scale=6 + bias, forget_bias=3.0, every_step=False)
    examples.growth_in_markdown(setting), examples.growth_in_words(setting)
    drawn(VIEWS["crossings"].draw(setting))


if __name__ == "__main__":
    torch.set_num_threads(1)
    acts = {
        f"{view}, {generation}": of_view(view, generation)
        for view in VIEWS
        for generation in GENERATIONS.values()
    }
    acts["two networks, one norm"] = moves(two_networks)
    acts["step by step, T=12"] = moves(step_by_step)
    acts["why an LSTM explodes, T=60"] = moves(exploding)
    seconds = interleaved(acts, ROUNDS, clock=time.process_time)
    rows: list[dict[str, object]] = []
    for what, taken in seconds.items():
        spent = Spread.of(taken)
        rows.append(
            {
                "what": what,
                "seconds": spent,
                "target (seconds)": TARGET,
                "met": spent.median <= TARGET,
            }
        )
    answer(__file__, "How long does a knob take to be answered?", rows)
