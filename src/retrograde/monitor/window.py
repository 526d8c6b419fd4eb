"""The window that a layer's gradient needs, and how far its signal goes, from one look."""

from dataclasses import replace

from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import Lags
from retrograde.decomposition.flow import unasked
from retrograde.engine import Entries
from retrograde.horizons.over_batches import TRAINING_STEPS
from retrograde.horizons.seen import rows_of
from retrograde.horizons.unexplained import Readout
from retrograde.recording import Recorded
from retrograde.truncation.signal import signal_of


def window(recorded: Recorded, delta: float, batch_size: int) -> dict[str, float]:
    """The scalars `window` and `learnable` of a part of a pass; without those that there are not.

    Args:
        recorded: the part; its samples are told apart, unless states pass between them.
        delta: the bias that the window may have.
        batch_size: the samples of a batch of the training.
    """
    flow = unasked(recorded)
    chosen = flow.horizon().window(delta)
    found = {} if chosen is None else {"window": float(chosen)}
    samples = recorded.x.shape[1]
    if samples < 3 or recorded.boundaries:
        return found
    lags = lag_bins("octaves", flow.steps)
    flows = [unasked(_sample(recorded, number)) for number in range(samples)]
    readout = Readout.fitted(flows)
    parts = [
        rows_of(Lags(lags).parts(one.unrolled, Entries.of(readout.left_of(one)))) for one in flows
    ]
    learnable = signal_of(lags, parts, 1).learnable(TRAINING_STEPS, batch_size)
    return found if learnable is None else found | {"learnable": float(learnable)}


def _sample(recorded: Recorded, number: int) -> Recorded:
    """One sample of a pass."""
    one = slice(number, number + 1)
    return replace(
        recorded,
        x=recorded.x[:, one],
        initial=recorded.initial[one],
        direct=recorded.direct[:, one],
        gradients={},
        reads=None if recorded.reads is None else recorded.reads[:, one],
        lengths=None if recorded.lengths is None else recorded.lengths[one],
        final=None,
    )
