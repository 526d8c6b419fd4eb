"""A pass that lies on another device: every tensor is made there, and none goes to the library.

There is no GPU in CI. What a GPU refuses, tensors of two devices in one operation, a stand-in
refuses as well (support/another_device.py).
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde.clipping import GlobalNorm, PreActivationValue
from retrograde.compiled.passes import in_use
from retrograde.compiled.program import plain
from retrograde.decomposition.rounding import changed
from support.another_device import DEVICE, There, another_device
from support.type_checks import unchecked

QUESTIONS = {
    "residual": lambda flow: flow.residual.ok,
    "by lag": lambda flow: flow.by_lag("weight_hh_l0").share,
    "by bins": lambda flow: flow.by_lag("weight_hh_l0", (0, 3, 11)).share,
    "by every lag": lambda flow: flow.by_lag("weight_hh_l0", "every").log2,
    "by input": lambda flow: flow.by_lag("input").log2,
    "by route": lambda flow: flow.by_route().share,
    "by crossing": lambda flow: flow.by_crossing(None, 2).share,
    "by unit": lambda flow: flow.by_unit().share,
    "by parameter": lambda flow: flow.by_parameter().share,
    "reach": lambda flow: flow.reach,
    "half-life": lambda flow: flow.half_life,
    "horizon": lambda flow: flow.horizon().bias,
    "horizon of chunks": lambda flow: flow.horizon("chunks").bias,
    "summary": lambda flow: flow.summary().carousel,
    "without": lambda flow: flow.without(flow.routes[0]).by_lag("weight_hh_l0").share,
    "clipped at the end": lambda flow: flow.clipped(GlobalNorm(0.1)).kept(),
    "clipped inside": lambda flow: flow.clipped(PreActivationValue(0.01)).cosine(),
    "one contribution": lambda flow: flow.contribution("weight_hh_l0", 9, 7),
    "overflow": lambda flow: flow.non_finite is None,
}
TABLES = {
    "by time": lambda flow: flow.by_time().log2,
    "shares by time": lambda flow: flow.by_time("weight_hh_l0").share,
    "parts by time": lambda flow: flow.by_time("weight_hh_l0").parts(),
}
SIZES = {"sizes": lambda flow: flow.sizes.log2["weight_hh_l0"]}

PASSES = {
    "LSTM": (nn.LSTM(2, 3), 2, {}, QUESTIONS | TABLES),
    "merged rows": (retrograde.nn.LSTM(2, 3), 2, {"relative": 2}, QUESTIONS | SIZES),
    "blocks of a stack": (nn.GRU(2, 3, 2, bidirectional=True), 40, {"max_rows": 7}, TABLES),
}


def numbers(found) -> torch.Tensor:
    if isinstance(found, There):
        found = found.here
    return torch.as_tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_on_another_device_is_taken_apart_there(name):
    model, batch, rows, questions = PASSES[name]
    torch.manual_seed(0)
    with retrograde.record(model) as recording:
        model(torch.randn(12, batch, 2))[0].sum().backward()
    here = recording.only()
    there = replace(
        changed(here, There),
        gradients={name: There(gradient) for name, gradient in here.gradients.items()},
        final=There(here.final),
    )
    flow = retrograde.decompose(here, **rows)
    with unchecked(), another_device():
        moved = retrograde.decompose(there, **rows)
        assert moved.unrolled.x.device == moved.by_lag().log2.device == DEVICE
        found = {question: ask(moved) for question, ask in questions.items()}
    for question, ask in questions.items():
        torch.testing.assert_close(
            numbers(found[question]),
            numbers(ask(flow)),
            rtol=1e-3,  # two backends, in float32; a share is a small part of cancelling ones
            atol=1e-4,
            equal_nan=True,
            msg=lambda text, question=question: f"{question}: {text}",
        )


def test_the_stand_in_refuses_what_a_gpu_refuses():
    there, here = There(torch.ones(3)), torch.ones(3)
    with another_device():
        assert (there + 1).tolist() == [2, 2, 2] and there[torch.tensor([0])].device == DEVICE
        for wrong in (lambda: there + here, lambda: here[There(torch.tensor([0]))]):
            with pytest.raises(RuntimeError, match="to be on the same device"):
                wrong()


def test_the_library_is_not_given_what_lies_elsewhere():
    here, there = torch.ones(2, 3), torch.ones(2, 3, device="meta")
    assert in_use(there) is in_use(here, there) is None
    assert plain(here, torch.float32) and not plain(there, torch.float32)
