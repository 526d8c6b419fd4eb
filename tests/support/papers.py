"""One step of each LSTM generation, written down from the papers without the package."""

import torch

from retrograde.cells import generations


def by_gate(cell):
    """The weights of an LSTM as `reference_step` takes them."""
    gates = generations[cell.generation].gates
    W, R = cell.weight_ih.chunk(len(gates)), cell.weight_hh.chunk(len(gates))
    b = (cell.bias_ih + cell.bias_hh).chunk(len(gates))
    p = {}
    if cell.weight_ch is not None:
        seeing = [g for g in ("input", "forget", "output") if g in gates]
        p = dict(zip(seeing, cell.weight_ch.chunk(len(seeing)), strict=True))
    return {g: (W[n], R[n], b[n], p.get(g)) for n, g in enumerate(gates)} | {"gg": cell.weight_gg}


def reference_step(row, w, x, h, c, before, met=lambda a: a):
    """One step of a generation, from what the paper says of it; w[gate] = (W, R, b, p).

    `met` is handed every pre-activation, and what it returns is used.
    """
    seen_gates = {}
    if row == "fgr":
        seen_gates = dict(zip("ifo", (before @ w["gg"].T).chunk(3, -1), strict=True))

    def a(gate, seen):
        W, R, b, p = w[gate]
        through_gates = seen_gates.get(gate[0], 0) if gate != "cell" else 0
        return met(x @ W.T + h @ R.T + b + (0 if p is None else p * seen) + through_gates)

    g = {
        "niaf": lambda v: v,
        "cec": lambda v: 4 / (1 + torch.exp(-v)) - 2,
        "lstm-1997": lambda v: 4 / (1 + torch.exp(-v)) - 2,
    }.get(row, torch.tanh)
    squash = {
        "noaf": lambda v: v,
        "cec": lambda v: 2 / (1 + torch.exp(-v)) - 1,
        "lstm-1997": lambda v: 2 / (1 + torch.exp(-v)) - 1,
    }.get(row, torch.tanh)
    i = 1 if row in ("cec", "nig") else torch.sigmoid(a("input", c))
    f = 1
    if row == "cifg":
        f = 1 - i
    elif row not in ("cec", "lstm-1997", "nfg"):
        f = torch.sigmoid(a("forget", c))
    c = f * c + i * g(a("cell", 0))
    o = 1 if row in ("cec", "nog") else torch.sigmoid(a("output", c))
    parts = (o * squash(c), c) + ((i, f, o) if row == "fgr" else ())
    return torch.cat(parts, -1)
