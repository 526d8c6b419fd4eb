"""What do all truncations K = 1 .. T cost, against the parts by lag in octave bins?

A scan along the lags forms the part of every lag, each a matrix product over all rows, where
`by_lag` forms one for each bin; it ends at the lag from which on no contribution counts. How far
that is depends on the network: in a fresh one a few dozen steps, in one that forgets nothing all T.

The end is no approximation beyond rounding: all later parts together have at most the sum of the
norms of their contributions, and that is below the last bit of the gradient's norm, for every
parameter. An earlier end would show in the curve.

At lag l the T - l rows of B samples go once through the recurrent weights and make one product with
the inputs for each weight: 2 (T - l) B G H (I + 2 H) operations with G gates. Over the 200 lags of
an LSTM that forgets nothing these are 31.6 GFLOP, 0.32 to 0.35 s at the 90 to 100 GFLOP/s of one
core, where `by_lag` takes 0.22 s on a quiet machine: 1.5 times as long before anything else is
done. Nothing saves these products: the part of a lag is a product whose left side (the adjoints) is
another one at each lag, and the norm of what is missing needs its entries. "least" is what they
alone would take, at the rate that torch reaches in one product of this size, over the time of
`by_lag`: where that is above the target, no order of the work meets it.

Memory is what the peak rises above the memory in use during the scan, in a fresh process.
"""

import ctypes
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from _measure import Size, Spread, answer, interleaved, ratios
from memory_and_length import resident
from torch import nn

import retrograde
from retrograde.decomposition import Flow
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import Lags

SIZE = Size(T=200, B=16, I=64, H=64)
TARGET, ROUNDS, THREADS = 1.3, 5, 1
NETWORKS = {
    "LSTM, fresh": (nn.LSTM, 0.0),
    "LSTM, forget bias 8": (nn.LSTM, 8.0),
    "GRU, fresh": (nn.GRU, 0.0),
    "RNN, fresh": (nn.RNN, 0.0),
}


def flow_of(name: str, size: Size) -> Flow:
    """A decomposed pass, its loss at every step."""
    kind, bias = NETWORKS[name]
    torch.manual_seed(0)
    model = kind(size.I, size.H)
    if bias:
        retrograde.nn.initialise(model, "forget-bias", value=bias)
    x, output_adjoint = torch.randn(size.T, size.B, size.I), torch.randn(size.T, size.B, size.H)
    with retrograde.record(model) as recording:
        (model(x)[0] * output_adjoint).sum().backward()
    flow = retrograde.decompose(recording)
    assert flow.gradient and flow.lags_that_count
    return flow


def all_truncations(flow: Flow) -> None:
    flow._truncated.clear()
    flow.truncated("sliding")


def operations(flow: Flow) -> float:
    """Floating-point operations in the products of all lags that count."""
    weights = {name: p.numel() for name, p in flow.unrolled.cell.parameters.items() if p.ndim > 1}
    each = sum(weights.values()) + sum(n for name, n in weights.items() if "hh" in name)
    rows = sum(flow.steps - lag for lag in range(flow.lags_that_count))
    return 2.0 * rows * SIZE.B * each


def rate(gates: int) -> float:
    """Operations a second in a product of adjoints and inputs."""
    adjoints, inputs = torch.randn(SIZE.T * SIZE.B, gates), torch.randn(SIZE.T * SIZE.B, 2 * SIZE.H)
    seconds = []
    for _ in range(20):
        start = time.process_time()
        adjoints.T @ inputs
        seconds.append(time.process_time() - start)
    return 2.0 * adjoints.numel() * inputs.shape[1] / min(seconds)


def memory(name: str, steps: int) -> float:
    """Megabytes that the scan takes beyond the decomposed pass."""
    torch.set_num_threads(THREADS)
    all_truncations(flow_of(name, Size(T=40, B=SIZE.B, I=SIZE.I, H=SIZE.H)))
    flow = flow_of(name, Size(T=steps, B=SIZE.B, I=SIZE.I, H=SIZE.H))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    all_truncations(flow)
    return (resident("VmHWM") - before) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    rows: list[dict[str, object]] = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for name in NETWORKS:
            flow = flow_of(name, SIZE)
            lags = Lags(lag_bins("octaves", SIZE.T))
            seconds = interleaved(
                {
                    "by lag": lambda flow=flow, lags=lags: lags.parts(flow.unrolled, flow.entries),
                    "all K": lambda flow=flow: all_truncations(flow),
                },
                ROUNDS,
                clock=time.process_time,
            )
            times = ratios(seconds["all K"], seconds["by lag"])
            rows.append(
                {
                    "network": name,
                    "lags that count": flow.lags_that_count,
                    "by lag, s": Spread.of(seconds["by lag"]),
                    "all K, s": Spread.of(seconds["all K"]),
                    "times by lag": times,
                    "GFLOP": round(operations(flow) / 1e9, 1),
                    "least": round(
                        operations(flow)
                        / rate(len(flow.unrolled.cell.parameters["weight_hh_l0"]))
                        / Spread.of(seconds["by lag"]).median,
                        2,
                    ),
                    "target": TARGET,
                    "met": times.median <= TARGET,
                    "MB, T=200": round(fresh.submit(memory, name, SIZE.T).result()),
                    "gradient, MB": round(
                        sum(p.numel() for p in flow.unrolled.cell.parameters.values()) * 4e-6, 2
                    ),
                }
            )
    answer(__file__, f"{SIZE}: what do all truncations cost?", rows)
