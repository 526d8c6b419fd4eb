"""From a recording to its `Flow`: run forward once more, in rows that suit length and memory."""

import warnings

from retrograde.decomposition.flow import Flow
from retrograde.decomposition.replay import replay
from retrograde.decomposition.residual import void_in_words
from retrograde.decomposition.resolution import rows_for
from retrograde.errors import VoidDecompositionWarning
from retrograde.recording import Recorded, Recording
from retrograde.recording.recording import the_one


def decompose(
    recording: Recording | Recorded, *, max_rows: int | None = None, relative: int | None = None
) -> Flow:
    """Take a recorded backward pass apart, exactly.

        C[t,k] = da_k (x) u_k   with   delta_{k-1} = J_k^T delta_k,   started by dL/dh_t alone

    Args:
        recording: what `record` recorded, if it holds one layer; else one of its values,
            `recording["encoder.lstm"]`.
        max_rows: how many rows the loss steps may take up. By default each of up to 1024 loss
            steps has its own; more share 512 rows in blocks of neighbouring steps. Sums over
            loss steps stay exact. Reach and half-life then know lags to the width of a block;
            parts by lag are found as with `relative`.
        relative: merge the rows of neighbouring loss steps as their lag grows, so that lags up to
            this number are exact and those beyond are known to 1/relative of themselves: about
            `relative * log2(T / relative)` rows, however long the sequence. Sums stay exact;
            instead of `by_time` there are `sizes` by lag. So by default (16) where the tables of
            `by_time` would take more than 2 GiB; `flow.entries.relative` says it.

    Returns:
        The `Flow`. Its losses are the ones that ran: a mean over the batch gives small numbers, a
        sum large ones.

    Raises:
        ArgumentError: if the recording holds several layers, for anything that is no recording, and
            for a `max_rows` or `relative` that is not a positive integer, or both of them.
        NonFiniteError: if a NaN or an infinity was recorded, with the first place (step, layer,
            gate, route) and the growth that led there, in words and as its `place`.

    Warns:
        VoidDecompositionWarning: if the residual is larger than the precision of the pass allows
            (see `Residual`), with the likely reason.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.RNN(1, 2)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(5, 1, 1))[0].sum().backward()
        >>> retrograde.decompose(recording).by_lag("weight_hh_l0").lags
        (range(0, 1), range(1, 2), range(2, 3), range(3, 5))
    """
    recorded = the_one(recording)
    flow = unasked(recorded, max_rows, relative)
    if not flow.residual.ok:  # the pass runs here, so that its errors are raised here
        words = void_in_words(recorded.name, flow.residual)
        warnings.warn(words, VoidDecompositionWarning, stacklevel=2)
    return flow


def unasked(recorded: Recorded, max_rows: int | None = None, relative: int | None = None) -> Flow:
    """The `Flow` of a recording to which no question was put yet, its residual neither."""
    entries = rows_for(recorded.direct, len(recorded.cell.parameters), max_rows, relative)
    return Flow(recorded, replay(recorded), entries)
