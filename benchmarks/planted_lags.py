"""Does `horizon` find a lag that was planted, in a fresh network and in one that has learned it?

The answer lies L steps back in white noise; in the first-order autoregression ("none") nothing lies
further back than the present. Lags are told in octave bins, so that the last lag of the bin of L is
what is to be found.
"""

from collections.abc import Callable

import torch
from _measure import answer
from torch import Tensor, nn

import retrograde

BATCH, HIDDEN, BATCHES = 32, 24, 12
LAGS = {None: (60, 200), 5: (24, 300), 20: (60, 800), 80: (130, 1500)}
"""By lag: the steps of a sequence, and those of the training."""


class Model(nn.Module):
    def __init__(self, lag: int | None):
        super().__init__()
        self.lstm, self.readout = nn.LSTM(1, HIDDEN), nn.Linear(HIDDEN, 1)
        if lag is not None:
            retrograde.nn.initialise(self.lstm, "chrono", horizon=2 * max(3, lag))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.lstm(x)[0])


def batches(lag: int | None, steps: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Input and answer, [T, B, 1] each."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(steps + (lag or 1), BATCH, 1, generator=generator)
        if lag is not None:
            return noise[lag:], noise[:-lag]
        series = [noise[0]]
        for now in noise[1:]:
            series.append(0.6 * series[-1] + now)
        return torch.stack(series[:-1]), torch.stack(series[1:])

    return drawn


def loss_fn(lag: int | None) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """The mean squared error of the steps whose answer is in view."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1])[lag or 0 :].square().mean()

    return loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for planted, (steps, updates) in LAGS.items():
        torch.manual_seed(0)
        model, draw, loss = Model(planted), batches(planted, steps), loss_fn(planted)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for state in ("fresh", "trained"):
            for update in range(updates if state == "trained" else 0):
                optimiser.zero_grad()
                value = loss(model, draw(10_000 + update))
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            horizon = retrograde.horizon(model, draw, loss, most=BATCHES)
            assert horizon.used is not None
            rows.append(
                {
                    "planted lag": planted or "none",
                    "its bin": next(
                        (each.stop - 1 for each in horizon.used.bins if planted in each), None
                    )
                    if planted
                    else None,
                    "network": state,
                    "loss": round(float(horizon.used.losses[:, -1].mean()), 3),
                    "used": horizon.used.lag,
                    "reached": horizon.reach,
                    "window": horizon.window(),
                    "learnable": horizon.learnable,
                }
            )
            print(rows[-1], flush=True)
    answer(__file__, "Is the planted lag found?", rows)
