"""The main job on real input: two forecasters of Mauna Loa's CO2, and how far each looks back."""

from retrograde.decompose import decompose
from retrograde.record import record
from retrograde.report import Horizon, Layer, Report
from retrograde.tasks import forecast

EPOCHS, QUICK_EPOCHS = 10, 2
SEASONS = (0, 13, 52)
"""First lags of the groups in the table: a quarter, the rest of the year, last year and before."""


def run(seed: int, quick: bool, progress: bool) -> Report:
    """Train a plain RNN and an LSTM briefly, then take one held-out backward pass of each apart."""
    task = forecast.load()
    epochs = QUICK_EPOCHS if quick else EPOCHS
    layers, horizon = [], Horizon(forecast.YEAR, "last year's season")
    for name, model in forecast.forecasters(seed).items():
        forecast.train(model, task.train, epochs, seed, progress)
        model.zero_grad()
        with record(model) as recording:
            output = model(task.test.x)
            forecast.masked_loss(output, task.test.y, task.test.scored).backward()  # type: ignore[no-untyped-call]
        error = f"{task.error(output.detach()):.3f} ppm"
        figures = {"test error (RMSE)": error}
        layers.append(Layer.of(name, decompose(recording), SEASONS, horizon, figures=figures))
    naive = ", ".join(f"{name}: {error:.3f} ppm" for name, error in task.naive.items())
    return Report(
        "How far back do the gradients of two CO2 forecasters reach?",
        tuple(layers),
        horizon=horizon,
        notes=(
            f"Naive forecasts on the same held-out weeks: {naive}.",
            "Data: weekly CO2 at Mauna Loa, 1958-2001 (Keeling and Whorf 2004, public domain). 59 "
            "of 2284 weeks have no value; they are interpolated where they are fed in, and changes "
            "that touch them are never scored.",
            f"Task: forecast the next weekly change from windows of {forecast.WEEKS} weeks, scored "
            f"from week {forecast.YEAR + 1} of the window on; trained on windows before "
            f"{forecast.FIRST_TEST_YEAR} for {epochs} epochs, {forecast.HIDDEN} hidden units, seed "
            f"{seed}; the backward pass is that of the mean squared error on the "
            f"{len(task.test.x)} windows since then.",
        ),
    )
