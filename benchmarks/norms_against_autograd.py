"""All T(T+1)/2 norms of weight_ih and weight_hh: how much faster than autograd can give them?

What a user can do today is to run the LSTM step by step, each step with its own copy of the
weights, so that the gradient of a copy is the contribution of that step. One call of autograd per
entry step t then gives C[t,0..t]. The same with 16 entry steps in one batched call
(`is_grads_batched`) is the quickest use of autograd that we found. Retrograde's pass gives the
norms of all four parameters; `decompose` gives shares, lags and the residual as well. What the
matrix products of the norms would take alone, at the rate of one large product, is the least time
they can take.
"""

from collections.abc import Iterator

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, lstm_pass, ratios
from torch import Tensor, nn

import retrograde
from retrograde.decomposition.by_time import ContributionNorms
from retrograde.engine import Entries, fold, unroll

TARGETS = {Size(T=200, B=16, I=32, H=64): 40, Size(T=100, B=32, I=64, H=128): 15}
ROUNDS = 5
WEIGHTS = ("weight_ih_l0", "weight_hh_l0")
AT_ONCE = 16


def unrolled_with_copies(model: nn.LSTM, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """h_t of every step, and the copies of both weights, step by step: W_0, R_0, W_1, R_1, ..."""
    W, R, b_ih, b_hh = (weight.detach() for weight in model.parameters())
    h = c = x.new_zeros(x.shape[1], model.hidden_size)
    hidden, copies = [], []
    for x_k in x:
        W_k, R_k = W.clone().requires_grad_(), R.clone().requires_grad_()
        a = nn.functional.linear(x_k, W_k, b_ih) + nn.functional.linear(h, R_k, b_hh)
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hidden.append(h)
        copies += [W_k, R_k]
    return hidden, copies


def by_autograd(
    model: nn.LSTM, x: Tensor, output_adjoint: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Norms [2, T, T] by one call of autograd per entry step; `dtype` is what squares sum in."""
    hidden, copies = unrolled_with_copies(model, x)
    norms = torch.zeros(2, len(x), len(x), dtype=dtype)
    for t, (h, g) in enumerate(zip(hidden, output_adjoint, strict=True)):
        grads = torch.autograd.grad((g * h).sum(), copies[: 2 * t + 2], retain_graph=True)
        sizes = torch.stack([torch.linalg.vector_norm(grad, dtype=dtype) for grad in grads])
        norms[:, t, : t + 1] = sizes.view(-1, 2).T
    return norms


def by_batched_autograd(model: nn.LSTM, x: Tensor, output_adjoint: Tensor) -> Tensor:
    """The same with AT_ONCE entry steps in each call."""
    hidden, copies = unrolled_with_copies(model, x)
    norms = torch.zeros(2, len(x), len(x))
    for steps in torch.arange(len(x)).split(AT_ONCE):
        stop = int(steps[-1]) + 1
        direct = output_adjoint.new_zeros(len(steps), stop, *output_adjoint.shape[1:])
        direct[torch.arange(len(steps)), steps] = output_adjoint[steps]
        grads = torch.autograd.grad(
            torch.stack(hidden[:stop]),
            copies[: 2 * stop],
            direct,
            retain_graph=True,
            is_grads_batched=True,
        )
        sizes = torch.stack([torch.linalg.vector_norm(grad, dim=(1, 2)) for grad in grads], -1)
        norms[:, steps, :stop] = sizes.view(len(steps), stop, 2).permute(2, 0, 1)
    return norms


def by_retrograde(recorded: retrograde.Recorded) -> dict[str, Tensor]:
    """The forward pass and the norms of every parameter, as `decompose` gets them."""
    unrolled = unroll(recorded.cell, recorded.x, recorded.initial)
    entries = Entries.of(recorded.direct)
    norms = ContributionNorms(entries, len(unrolled), recorded.cell.parameters)
    fold(unrolled, entries, [norms])
    return norms.result()


def check(norms: Tensor, log2: dict[str, Tensor]) -> None:
    """Both ways must agree, where float32 holds autograd's norm without loss."""
    ours = torch.stack([log2[name] for name in WEIGHTS])
    worst = float((ours - torch.log2(norms))[norms > 1e-30].abs().max())
    if not worst < 0.01:
        raise SystemExit(f"the norms differ by up to {worst} in log2; nothing was timed")


def operations(size: Size) -> int:
    """Of the products that the norms cannot do without: 2 for each multiplication and addition.

    Each row of each sample goes back through two products with matrices of H x H, of delta_h and of
    delta_c + delta_h dc/dh; then the samples' adjoints of 4H numbers are multiplied by each other.
    """
    T, B, H = size.T, size.B, size.H
    pulled_back = T * (T - 1) // 2 * B * 2 * H * H
    of_samples = T * (T + 1) // 2 * (B * (B + 1) // 2) * 4 * H
    return 2 * (pulled_back + of_samples)


def rows(size: Size, target: float) -> Iterator[dict[str, object]]:
    model, x, output_adjoint, recorded = lstm_pass(size)
    check(by_autograd(model, x, output_adjoint, torch.float64), by_retrograde(recorded))
    peer, batched = "autograd, step by step", f"autograd, {AT_ONCE} steps at once"
    ours, full = "norms of all parameters", "retrograde.decompose"
    least, large = "the products alone", torch.randn(1024, 1024)
    seconds = interleaved(
        {
            peer: lambda: by_autograd(model, x, output_adjoint),
            batched: lambda: by_batched_autograd(model, x, output_adjoint),
            ours: lambda: by_retrograde(recorded),
            full: lambda: retrograde.decompose(recorded),
            least: lambda: large @ large,
        },
        ROUNDS,
    )
    seconds[least] = [each * operations(size) / (2 * 1024**3) for each in seconds[least]]
    for name, values in seconds.items():
        faster = ratios(seconds[peer], values)
        yield {
            "size": str(size),
            "way": name,
            "seconds": Spread.of(values),
            "times as fast": faster,
            "target": target if name == ours else None,
            "met": faster.median >= target if name == ours else None,
        }


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    answer(
        __file__,
        "All norms of C[t,k]: how much faster than autograd?",
        [row for size, target in TARGETS.items() for row in rows(size, target)],
    )
