"""The main job on real input: two forecasters of Mauna Loa's CO2, and how far each looks back."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from retrograde.decomposition import decompose
from retrograde.diagnosis import RULES, Check, Finding, limits
from retrograde.diagnosis.examine import examine
from retrograde.diagnosis.order import in_order
from retrograde.diagnosis.training import ONE_PASS
from retrograde.recording import record
from retrograde.report import Growth, Layer, NeededLag, Report, Settings
from retrograde.tasks import forecast
from retrograde.truncation import Horizon
from retrograde.truncation.horizon import DELTA

EPOCHS, QUICK_EPOCHS = 4, 2
PRECISION = torch.float64
"""Training multiplies rounding, which is each processor's own, by up to 100,000 an epoch. After
four epochs in float64 it has come to 1e-9, and all processors say the same sentences; after ten
it is a tenth, and one says "yes" where another says "hardly"."""
SEASONS = (0, 13, 52)
"""First lags of the groups in the table: a quarter, the rest of the year, last year and before."""


def run(seed: int, quick: bool, progress: bool) -> Report:
    """Train a plain RNN and an LSTM briefly, then diagnose a held-out backward pass of each."""
    task = forecast.load(PRECISION)
    epochs = QUICK_EPOCHS if quick else EPOCHS
    horizon = NeededLag(forecast.YEAR, "last year's season")
    layers: list[Layer] = []
    findings: list[Finding] = []
    checks: list[Check] = []
    growth: dict[str, Growth] = {}

    for name, model in forecast.forecasters(seed, PRECISION).items():
        kept = forecast.train(model, task.train, epochs, seed, progress)
        found = examine(model, task.test, _loss, limits(), needs_lag=horizon.lag, seed=seed)
        subject = found.subjects["recurrent"]
        assert subject.flow is not None
        growth[name] = _growth(model, task.test, kept, subject.flow.horizon())
        figures = {"test error (RMSE)": f"{task.error(model(task.test.x).detach()):.3f} ppm"}
        series = [each.series for each in subject.activities]
        layers.append(Layer.of(name, subject.flow, SEASONS, horizon, series, figures))
        findings += [replace(finding, layer=name) for finding in found.findings]
        checks += [replace(check, layer=check.layer and name) for check in found.checks]
    naive = ", ".join(f"{name}: {error:.3f} ppm" for name, error in task.naive.items())
    return Report(
        "How far back do the gradients of two CO2 forecasters reach?",
        tuple(layers),
        in_order(findings),
        horizon=horizon,
        notes=(
            "Window and reach hold at the weights that they were measured at, on the held-out "
            "windows; `retrograde horizon` says more.",
            f"Naive forecasts on the same held-out weeks: {naive}.",
            "Data: weekly CO2 at Mauna Loa, 1958-2001 (Keeling and Whorf 2004, public domain). 59 "
            "of 2284 weeks have no value; they are interpolated where they are fed in, and changes "
            "that touch them are never scored.",
            f"Task: forecast the next weekly change from windows of {forecast.WEEKS} weeks, scored "
            f"from week {forecast.YEAR + 1} of the window on; trained on windows before "
            f"{forecast.FIRST_TEST_YEAR} for {epochs} epochs, {forecast.HIDDEN} hidden units, seed "
            f"{seed}; the backward pass is that of the mean squared error on the "
            f"{len(task.test.x)} windows since then.",
            *([ONE_PASS] if any(finding.trials for finding in findings) else []),
        ),
        settings=Settings(
            seed=seed, needs_lag=horizon.lag, rules=tuple(RULES), thresholds=limits()
        ),
        checks=tuple(dict.fromkeys(checks)),
        growth=growth,
    )


def _growth(
    model: forecast.Forecaster,
    windows: forecast.Windows,
    kept: Mapping[str, Mapping[str, Tensor]],
    last: Horizon,
) -> Growth:
    """Window and reach at the weights that were kept; those of the last are known already."""
    horizons = []
    for weights in list(kept.values())[:-1]:
        earlier = deepcopy(model)
        earlier.load_state_dict(weights)
        with record(earlier) as recording:
            torch.autograd.backward(_loss(earlier, windows))
        horizons.append(decompose(recording).horizon())
    horizons.append(last)
    return Growth(
        tuple(kept),
        tuple(each.window(DELTA) for each in horizons),
        tuple(each.reach for each in horizons),
        DELTA,
        last.bias_at(forecast.YEAR),
    )


def _loss(model: nn.Module, windows: forecast.Windows) -> Tensor:
    return forecast.masked_loss(model(windows.x), windows.y, windows.scored)
