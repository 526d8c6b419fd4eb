"""Does the gradient reach through the layers? What the lowest receives, beside the highest."""

import math

from torch import Tensor

from retrograde.cells.leaves import leaves
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _chain(case: Case) -> list[str]:
    """The longest row of layers of which each reads what the one before returns."""
    reads = case.sight.reads
    chains: list[list[str]] = []
    for name in reads:
        subject = case.subjects.get(name)
        if subject is None or subject.place is not None:
            continue
        below = [
            chain
            for chain in chains
            if len(reads[chain[-1]]) == len(reads[name])
            and reads[chain[-1]][0].steps == reads[name][0].steps
            and reads[name][0].comes_from(reads[chain[-1]][0])
        ]
        chains.append([*max(below, key=len, default=[]), name])
    return max(chains, key=len, default=[])


def received(case: Case) -> dict[str, float]:
    """The norm of the gradient of each layer's weights, the lowest layer first.

    Layers of a stack, and modules that read each other's outputs step by step.
    """
    found: dict[str, float] = {}
    for name in _chain(case):
        subject = case.subjects[name]
        gradients = subject.recorded.gradients
        numbers = sorted(
            {leaf.position.layer for leaf in leaves(subject.recorded.cell) if leaf.position}
        )
        if len(numbers) < 2:
            found[name] = _norm(list(gradients.values()))
        for number in numbers if len(numbers) > 1 else ():
            own = [
                g
                for n, g in gradients.items()
                if n.removesuffix("_reverse").endswith(f"_l{number}")
            ]
            found[f"layer {number} of {name}"] = _norm(own)
    return found


def _look(case: Case) -> list[Finding] | NotApplicable:
    sizes = received(case)
    if len(sizes) < 2:
        return NotApplicable(
            "there is one recurrent layer"
            if len(case.sight.reads) < 2
            else "no recurrent layer reads the output of another step by step"
        )
    (low, first), *_, (high, last) = sizes.items()
    if not first or not last or not math.isfinite(first) or not math.isfinite(last):
        return NotApplicable("a layer got no gradient, or none that is finite")
    ratio = math.log2(first / last)
    limit = case.limits["depth_ratio"]
    if ratio >= limit:
        return []
    return [
        Finding(
            "vanishing-in-depth",
            "error",
            _chain(case)[0],
            f"The gradient vanishes in depth: {low} receives next to nothing of what {high} does, "
            f"{len(sizes) - 1} layers above it, and that is not a question of lags",
            (
                Evidence(
                    "gradient of the lowest over that of the highest layer",
                    ratio,
                    "powers of two",
                    limit,
                    "above",
                    "depth_ratio",
                ),
            ),
            (
                "Each layer passes on a part of what it receives, and the input moves the output "
                "as little",
            ),
            (
                "Add residual connections: x = x + layer(x)",
                "Use fewer layers, or larger gains on weight_ih",
            ),
        )
    ]


DEPTH = Experiment(
    "vanishing-in-depth",
    "The gradient vanishes in depth",
    "The norm of the gradient that the weights of the lowest layer receive, over that of the "
    "highest, in a stack or in layers that read one another step by step.",
    _look,
    thresholds=("depth_ratio",),
    replaces=("forget-gate-too-short", "vanishing", "near-lags-dominate"),
    kind="memory",
    remedies=("residual",),
)
