"""What do Lyapunov exponents cost, against the QR factorisations and products that they need?

The products are those of a dense Jacobian with Q, one a step, the factorisations those of the
result, in float64 as in the package. The leading 16 are held against all of them. Then the memory:
in fresh processes (as in memory_and_length.py), what the exponents take beyond the trajectory, and
the trajectory with its states beyond the recording. Linux only.
"""

import ctypes
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, lstm_pass, ratios
from memory_and_length import resident

import retrograde
from retrograde.spectra.exponents import exponents
from retrograde.spectra.singular import singular_values

SIZE = Size(T=1000, B=1, I=8, H=128)
FEW = 16
ROUNDS = 3
LENGTHS = (1000, 4000)


def beyond(steps: int) -> tuple[float, float]:
    """Megabytes of the trajectory beyond the recording, and of all exponents beyond that."""
    torch.set_num_threads(THREADS)
    small = Size(T=40, B=4, I=8, H=16)
    exponents(retrograde.spectrum(lstm_pass(small)[-1]).chain, 32, 4)
    recorded = lstm_pass(Size(T=steps, B=4, I=8, H=16))[-1]
    before = settled()
    chain = retrograde.spectrum(recorded).chain
    trajectory = resident("VmHWM") - before
    before = settled()
    exponents(chain, chain.size, steps // 10)
    return trajectory / 1e6, (resident("VmHWM") - before) / 1e6


def settled() -> int:
    """The resident memory, freed memory handed back and the peak reset."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


if __name__ == "__main__":
    torch.set_num_threads(1 if "--one-thread" in sys.argv else THREADS)
    chain = retrograde.spectrum(lstm_pass(SIZE)[-1]).chain
    jacobian = chain.dense(SIZE.T // 2).mT.contiguous()
    start = torch.linalg.qr(torch.randn(1, chain.size, chain.size, dtype=torch.float64)).Q

    def needed() -> None:
        q = start
        for _ in range(SIZE.T):
            q = torch.linalg.qr(jacobian @ q).Q

    seconds = interleaved(
        {
            "QR and products": needed,
            "all exponents": lambda: exponents(chain, chain.size, SIZE.T // 10),
            f"leading {FEW}": lambda: exponents(chain, FEW, SIZE.T // 10),
            "all singular values": lambda: singular_values(chain, [SIZE.T]),
        },
        ROUNDS,
    )
    targets = {"all exponents": ("QR and products", 3), f"leading {FEW}": ("all exponents", 1 / 5)}
    rows: list[dict[str, object]] = []
    for name, values in seconds.items():
        against, target = targets.get(name, ("QR and products", None))
        times = ratios(values, seconds[against])
        rows.append(
            {
                "what": name,
                "seconds": Spread.of(values),
                "times": times,
                "of": against,
                "target": target,
                "met": times.median <= target if target else None,
            }
        )
    answer(__file__, f"{SIZE}, state {chain.size}: what do exponents cost?", rows)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for steps, (trajectory, more) in zip(LENGTHS, fresh.map(beyond, LENGTHS), strict=True):
            print(f"T={steps}: trajectory {trajectory:.1f} MB, all exponents {more:.1f} MB more")
