"""Calls of the library's on-line training: what goes in is checked here, and nowhere else."""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.compiled.library import ONLINE, Library
from retrograde.compiled.passes import GATES

FUNCTIONS = {"[0, 1]": 2, "identity": 3, "[-2, 2]": 4, "[-1, 1]": 5}
"""The papers' functions by their range, as numbers of csrc/recurrence.h."""

BIASED = {"cells": 1, "gates": 2, "outputs": 4}


@dataclass(frozen=True)
class Plan:
    """The networks of one call, as `retrograde.tasks.blocks.Blocks` plans them.

    Attributes:
        inputs, outputs, blocks, size, gates, fed_back, skip: of the plan.
        cell_input, cell_output, output: the ranges of its functions.
        biased: the units with biases, from "cells", "gates" and "outputs".
        each_step: the weights change after each answer, not after each sequence.
        peepholes: gates see the state of their cell; blocks have one cell each.
    """

    inputs: int
    outputs: int
    blocks: int
    size: int
    gates: tuple[str, ...]
    fed_back: int
    skip: bool
    biased: frozenset[str]
    cell_input: str
    cell_output: str
    output: str
    each_step: bool
    peepholes: bool


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one network learns.

    Attributes:
        hidden, output: its weights, [U, D] and [O, C + I + 1]; they are changed. D counts the
            inputs, what is fed back, the bias, and with peepholes the state of the cell.
        x: the inputs [T, N, I], or the numbers of those that are 1, [T, N].
        y: the answers to learn, [T, N, O].
        due: where they are due, [T, N].
        lengths: steps of each sequence, [N].
        rate: the learning rate.
        possible: the outputs that may be active, [T, N, O]. A sequence ends after the first step at
            which one of them is not more active than all others; None for no such end.
        state: [C + F + P * C * D], what it goes on from, which is changed; None for zeros before
            each sequence.
        decay: what the rate is multiplied by after each step of a sequence.
        momentum: what remains of the last change at the next one.
        by_hidden, by_output: what momentum has gathered, as the weights; they are changed. None
            without momentum.
        limit: a sequence ends with the first answer that errs by as much; 0 for no such end.
        begins: the steps before which the state is set to zero, [T, N].
    """

    hidden: Tensor
    output: Tensor
    x: Tensor
    y: Tensor
    due: Tensor
    lengths: Tensor
    rate: float
    possible: Tensor | None = None
    state: Tensor | None = None
    decay: float = 1.0
    momentum: float = 0.0
    by_hidden: Tensor | None = None
    by_output: Tensor | None = None
    limit: float = 0.0
    begins: Tensor | None = None


def learn(
    library: Library, plan: Plan, lessons: Sequence[Lesson]
) -> tuple[list[Tensor], list[Tensor]]:
    """Train networks, each on its own sequences one after the other.

    Numbers below the normal range of the type count as 0.

    Returns:
        The answers of each network, [T, N, O], zero where none is due or the sequence had ended;
        and how many steps of each sequence came before its end, [N].

    Raises:
        MemoryError: where there is not enough.
    """
    dtype = lessons[0].hidden.dtype
    answers = [torch.zeros(lesson.y.shape, dtype=dtype) for lesson in lessons]
    before = [torch.zeros_like(lesson.lengths) for lesson in lessons]
    held = list[Tensor]()  # until the call is over
    fields = list[int]()
    for lesson, given, steps in zip(lessons, answers, before, strict=True):
        fields += _fields(plan, lesson, given, steps, held)
    of_lessons = (ctypes.c_int64 * len(fields))(*fields)
    values = (ctypes.c_int64 * len(ONLINE))(
        *(plan.blocks, plan.size, sum(GATES[gate] for gate in plan.gates)),
        *(plan.inputs, plan.outputs, plan.fed_back, int(plan.skip)),
        sum(BIASED[units] for units in plan.biased),
        *(FUNCTIONS[each] for each in (plan.cell_input, plan.cell_output, plan.output)),
        int(plan.each_step),
        int(plan.peepholes),
        *(len(lessons), *library.threads),
        ctypes.addressof(of_lessons),
    )
    if library.learn[dtype](values):
        raise MemoryError("there is not enough memory for networks of this size")
    return answers, before


def _fields(
    plan: Plan, lesson: Lesson, answers: Tensor, before: Tensor, held: list[Tensor]
) -> list[int]:
    """Those of `struct lesson`, held against each other and against the plan."""
    cells, dtype = plan.blocks * plan.size, lesson.hidden.dtype
    units = cells + plan.blocks * len(plan.gates)
    seen = plan.inputs + plan.fed_back + 1 + plan.peepholes
    steps, count = lesson.due.shape
    traces = cells * (2 + ("forget" in plan.gates)) * seen

    def address(tensor: Tensor | None, kind: torch.dtype, *shape: int) -> int:
        if tensor is None:
            return 0
        assert tensor.shape == torch.Size(shape) and tensor.is_cpu, (tensor.shape, shape)
        held.append(tensor.to(kind).contiguous())
        return held[-1].data_ptr()

    def changed(tensor: Tensor | None, *shape: int) -> int:
        found = address(tensor, dtype, *shape)
        assert tensor is None or found == tensor.data_ptr()
        return found

    lengths = lesson.lengths
    assert plan.gates[0] == "input" and plan.fed_back in (0, cells, units)
    assert not count or 0 <= int(lengths.min()) <= int(lengths.max()) <= steps
    assert lesson.state is None or count == 1
    assert plan.size == 1 or not (plan.peepholes or lesson.momentum)
    assert plan.gates == ("input", "forget", "output") or not plan.peepholes
    assert bool(lesson.momentum) == (lesson.by_hidden is not None) == (lesson.by_output is not None)
    symbols = not lesson.x.is_floating_point()
    if symbols and lesson.x.numel():
        least, most = torch.aminmax(lesson.x)
        assert 0 <= int(least) <= int(most) < plan.inputs
    x = address(lesson.x, torch.int64 if symbols else dtype, *lesson.x.shape)
    assert lesson.x.shape == (steps, count) + (() if symbols else (plan.inputs,))

    def number(value: float) -> int:
        found: int = struct.unpack("q", struct.pack("d", value))[0]
        return found

    of_outputs = plan.outputs, cells + plan.inputs + 1
    return [
        changed(lesson.hidden, units, seen),
        changed(lesson.output, *of_outputs),
        changed(lesson.by_hidden, units, seen),
        changed(lesson.by_output, *of_outputs),
        changed(lesson.state, cells + plan.fed_back + traces),
        *(number(lesson.rate), number(lesson.decay), number(lesson.momentum)),
        count,
        *((0, x) if symbols else (x, 0)),
        address(lesson.y, dtype, steps, count, plan.outputs),
        address(lesson.due, torch.bool, steps, count),
        address(lengths, torch.int64, count),
        address(lesson.possible, torch.bool, steps, count, plan.outputs),
        number(lesson.limit),
        address(lesson.begins, torch.bool, steps, count),
        changed(answers, steps, count, plan.outputs),
        before.data_ptr(),
    ]
