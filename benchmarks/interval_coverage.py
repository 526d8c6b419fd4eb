"""Of 1,000 draws of the signs, how many intervals of `flow.sizes` hold the size that they are for?

The sizes of all contributions are known, as each loss step has a row of its own elsewhere. Signs
are of no effect where the interval is a point; such bins are left out.
"""

import sys

import torch
from _measure import answer
from torch import Tensor, nn

import retrograde
from retrograde.decomposition.sizes import ALL, LagSizes, relative_bins
from retrograde.engine import Entries, Unrolled, unroll
from retrograde.engine.merging import merged_rows

RELATIVE = 16
DRAWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
NETWORKS = {
    "LSTM, B=2": (nn.LSTM, 2, 400, 1),
    "LSTM, B=2, a loss at every third step": (nn.LSTM, 2, 600, 3),
    "RNN, B=1": (nn.RNN, 1, 400, 1),
    "GRU, B=8": (nn.GRU, 8, 300, 1),
}
"""The layer, the samples, the steps, and how far apart the steps with a loss are."""


def a_pass(layer: type[nn.RNNBase], batch: int, steps: int, every: int) -> retrograde.Recorded:
    """A pass of a small network whose gradients reach far."""
    torch.manual_seed(0)
    model = layer(2, 3)
    with torch.no_grad():
        if isinstance(model, nn.LSTM):
            model.bias_ih_l0[3:6] += 1
        elif isinstance(model, nn.GRU):
            model.bias_ih_l0[3:6] += 2
        else:
            model.weight_hh_l0.copy_(0.99 * nn.init.orthogonal_(torch.empty(3, 3)))
            model.weight_ih_l0 *= 0.1
    given = torch.randn(steps, batch, 3)
    given[torch.arange(steps) % every > 0] = 0
    with retrograde.record(model) as recording:
        (model(torch.randn(steps, batch, 2))[0] * given).sum().backward()
    return recording.only()


def exact_sums(recorded: retrograde.Recorded, whole: Unrolled, entries: Entries) -> Tensor:
    """The sums of squares by bin, each pair (t, k) at the lag of the row that t is in at step k."""
    lags = relative_bins(RELATIVE, len(whole))
    squares = torch.exp2(2 * retrograde.decompose(recorded, max_rows=10**6).by_time().log2).flip(0)
    before = torch.cat((torch.zeros(1, len(whole), dtype=torch.float64), squares.cumsum(0)))
    starts = torch.tensor([bin_.start for bin_ in lags[1:]])
    total = torch.zeros(len(lags), dtype=torch.float64)
    for span in merged_rows(whole, entries, torch.Generator()):
        assert span.signed is not None
        stop = span.signed.entries.cumsum(0)
        own = before[stop][:, span.steps] - before[stop - span.signed.entries][:, span.steps]
        bins = torch.bucketize(span.lags.clamp(min=0), starts, right=True)
        total.index_add_(0, bins[span.lags >= 0], own[span.lags >= 0])
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for network, (layer, batch, steps, every) in NETWORKS.items():
        recorded = a_pass(layer, batch, steps, every)
        whole = unroll(recorded.cell, recorded.x, recorded.initial)
        entries = Entries.merging(recorded.direct, RELATIVE)
        exact, generator = exact_sums(recorded, whole, entries), torch.Generator().manual_seed(0)
        inside, widths, ratios = [], [], []
        for _ in range(DRAWS):
            found = LagSizes(entries, steps, tuple(recorded.cell.parameters))
            for span in merged_rows(whole, entries, generator):
                found.update(span)
            sizes = found.result()
            (low, high), root = sizes.interval[ALL], torch.log2(exact / sizes.count) / 2
            inside.append((low - 1e-5 <= root) & (root <= high + 1e-5))
            widths.append(high - low)
            ratios.append(torch.exp2(2 * (sizes.log2[ALL] - root)))
        width = torch.stack(widths).median(0).values
        some = (width > 0) & (exact > 0)
        covered = torch.stack(inside).double().mean(0)[some]
        ratio = torch.stack(ratios)[:, some]
        rows.append(
            {
                "network": network,
                "bins": int(some.sum()),
                "held in the worst bin": round(float(covered.min()), 3),
                "in all": round(float(covered.mean()), 3),
                "width of the interval, factor": round(float(torch.exp2(width[some].median())), 2),
                "widest": round(float(torch.exp2(width[some].max())), 2),
                "mean of estimates over exact": round(float(ratio.mean()), 4),
                "largest standard deviation": round(float(ratio.std(0).max()), 2),
            }
        )
        print(rows[-1], flush=True)
    answer(__file__, f"Intervals that hold the size, of {DRAWS} draws: 0.95 is promised", rows)
