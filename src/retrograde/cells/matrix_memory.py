"""Recurrences whose state is a matrix, written by an outer product at each step.

    S_k = a_k * S_{k-1} + k_k (x) v_k            h_k from q_k S_k

Each entry of S leads to itself alone. S is held row by row, a row for each entry of the key.

References: Songlin Yang, Bailin Wang, Yikang Shen, Rameswar Panda and Yoon Kim, "Gated Linear
Attention Transformers with Hardware-Efficient Training", ICML (2024), arXiv 2312.06635, section 4;
Maximilian Beck et al., "xLSTM: Extended Long Short-Term Memory" (2024), arXiv 2405.04517, section
2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import CellStep, affine
from retrograde.cells.edges import Diagonal, Edge, Weight, biases, weights
from retrograde.cells.gates import CONSTANT, SIGMOID, Gate
from retrograde.cells.graph import Graph
from retrograde.cells.linear import AbstractLinear, in_rows, spread


class AbstractMatrixMemory(AbstractLinear):
    """What both have in common: queries, keys and values, and a matrix with a row for each key."""

    weight_q: Float[Tensor, "..."]
    weight_k: Float[Tensor, "..."]
    weight_v: Float[Tensor, "..."]

    @property
    def keys(self) -> int:
        """K, the size of queries and keys."""
        return self.weight_q.shape[0]

    @property
    def input_size(self) -> int:
        return self.weight_q.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.weight_v.shape[0]

    def project_each(self, x: Input) -> tuple[Projected, ...]:
        """Query, key and value."""
        return tuple(
            affine(x, each, None) for each in (self.weight_q, self.weight_k, self.weight_v)
        )

    def matrix(self, name: str, step: CellStep, memory: "Memory") -> list[Edge]:
        """The edges of a matrix M_k = kept M_{k-1} + by k (x) v, which q reads: row by row."""
        q, k, v, at = memory.q, memory.k, memory.v, self.slots[name]
        before, after = (in_rows(s[..., at], self.keys) for s in (step.previous, step.state))
        edges: list[Edge] = []
        for row in range(self.keys):
            q_i, k_i = (part[..., row : row + 1].expand_as(v) for part in (q, k))
            own = f"{name}{row}"
            edges += [
                Diagonal(f"{own}-", own, memory.kept[..., row, :], "carousel"),
                Diagonal(memory.gate.format(row=row), own, before[..., row, :]),
                *([Diagonal(memory.writer, own, k_i * v)] if memory.writer else []),
                Diagonal(f"k{row}", own, memory.by * v, "key"),
                Diagonal("v", own, memory.by * k_i, "value"),
                Diagonal(own, f"{own}+"),
                Diagonal(own, memory.reader, memory.scale * q_i, "readout"),
                Diagonal(f"q{row}", memory.reader, memory.scale * after[..., row, :], "query"),
            ]
        return edges


@dataclass(frozen=True, eq=False)
class Memory:
    """What a step does to a matrix.

    Attributes:
        q, k, v: the query, the key, the value.
        kept: by what each entry is multiplied, [..., K, H].
        gate: the node of that factor; {row} stands for the row.
        by: what is written is multiplied by this.
        writer: the node of `by`, if it is a gate.
        reader: the node that reads the matrix.
        scale: what is read is multiplied by this.
    """

    q: Float[Tensor, "*L K"]
    k: Float[Tensor, "*L K"]
    v: Float[Tensor, "*L H"]
    kept: Float[Tensor, "*L K H"]
    gate: str
    reader: str
    by: Float[Tensor, "*L 1"] | float = 1.0
    writer: str = ""
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class GatedLinearAttention(AbstractMatrixMemory):
    """One head of gated linear attention: the gate keeps each row of S by a factor of its own.

        q = W_q x_k     k = W_k x_k     v = W_v x_k     alpha = sigma(V W_alpha x_k + b)^(1/tau)
        S_k = diag(alpha) S_{k-1} + k (x) v             h_k = scale * S_k^T q

    with K keys and H values; the state is (h, S), and no step reads h. Inside a step `readout`,
    `query`, `key` and `value` are the ways of the gradient to S, q, k and v.

    Args:
        weight_q, weight_k: shape [K, I].
        weight_v: shape [H, I].
        weight_alpha_in: W_alpha, shape [R, I].
        weight_alpha: V, shape [K, R].
        bias_alpha: b, shape [K], or None.
        tau: 16 in the paper, so that gates are near 1.
        scale: of the output; K^(-1/2) in the paper's code.

    Raises:
        ArgumentError: for weights that do not fit together, or a root that is not positive.

    Example:
        >>> import torch
        >>> from retrograde.cells import GatedLinearAttention
        >>> one = torch.ones(1, 1)
        >>> cell = GatedLinearAttention(one, one, one, one, 0 * one, tau=1.0)
        >>> cell.step(torch.full((1,), 2.0), torch.tensor([0.0, 4.0])).state  # 4/2 + 2*2
        tensor([12.,  6.])
    """

    weight_q: Float[Tensor, "..."]
    weight_k: Float[Tensor, "..."]
    weight_v: Float[Tensor, "..."]
    weight_alpha_in: Float[Tensor, "..."]
    weight_alpha: Float[Tensor, "..."]
    bias_alpha: Float[Tensor, "..."] | None = None
    tau: float = 16.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _checks.fields(self, tau=_checks.positive, scale=_checks.number)
        self.check()

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        rank = self.weight_alpha_in.shape[0]
        return attention_shapes(inputs, hidden, self.keys, rank)

    @property
    def slots(self) -> Mapping[str, slice]:
        width = self.hidden_size
        return {"h": slice(0, width), "S": slice(width, width * (1 + self.keys))}

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("alpha", SIGMOID),)

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (*self.gates, Gate("kept", CONSTANT, "forget", keeps="S"))

    def project(self, x: Input) -> Projected:
        rank = affine(x, self.weight_alpha_in, None)
        alpha = affine(rank, self.weight_alpha, self.bias_alpha)
        return torch.cat((rank, alpha, *self.project_each(x)), -1)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        keys, width = self.keys, self.hidden_size
        sizes = [self.weight_alpha_in.shape[0], keys, keys, keys, width]
        rank, alpha, q, k, v = torch.split(projected, sizes, -1)
        kept = torch.nn.functional.logsigmoid(alpha).div(self.tau).exp()
        before = in_rows(state[..., self.slots["S"]], keys)
        S = kept.unsqueeze(-1) * before + k.unsqueeze(-1) * v.unsqueeze(-2)
        h = self.scale * (q.unsqueeze(-1) * S).sum(-2)
        inside = {"alpha": alpha.sigmoid(), "rank": rank, "q": q, "k": k, "v": v}
        wide = kept.repeat_interleave(width, -1)
        return CellStep(x, state, torch.cat((h, S.flatten(-2)), -1), {**inside, "kept": wide})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; dS_i are those of row i, from h and from later steps.

        dS_i <- dS_i + scale q_i dh          dq_i = scale <dh, S_i>        dk_i = <dS_i, v>
        dalpha_i = <dS_i, S_{k-1},i>         dv = sum_i k_i dS_i           dS_{k-1},i = alpha_i dS_i
        """
        keys, width, x = self.keys, self.hidden_size, step.x
        alpha, rank, q, k, v, kept = step.activations.values()
        kept = in_rows(kept, keys)
        rows = range(keys)
        edges: list[Edge] = [
            *weights("weight_alpha_in", self.weight_alpha_in, "x", ("rank",), x),
            *weights("weight_alpha", self.weight_alpha, "rank", ("a.alpha",), rank),
            *biases("bias_alpha", self.bias_alpha, ("a.alpha",)),
            Diagonal("a.alpha", "kept", kept[..., 0] * (1 - alpha) / self.tau),
            *weights("weight_q", self.weight_q, "x", ("q",), x),
            *weights("weight_k", self.weight_k, "x", ("k",), x),
            *weights("weight_v", self.weight_v, "x", ("v",), x),
            *(
                edge
                for name in ("kept", "q", "k")
                for edge in spread(name, [f"{name}{row}" for row in rows], keys, width, x)
            ),
        ]
        memory = Memory(q, k, v, kept, "kept{row}", "h+", scale=self.scale)
        return self.in_rows([*edges, *self.matrix("S", step, memory)], "S", keys)


@dataclass(frozen=True, eq=False)
class MLSTM(AbstractMatrixMemory):
    """One head of the mLSTM: exponential input gate, matrix memory C and a normaliser n.

        q = W_q x_k     k = K^(-1/2) W_k x_k     v = W_v x_k     o = sigma(W_o x_k + b_o)
        i = exp(w_i x_k + b_i)                   f = sigma(w_f x_k + b_f)
        C_k = f C_{k-1} + i k (x) v              n_k = f n_{k-1} + i k
        h_k = o * C_k^T q / max(|<n_k, q>|, 1)

    The state is (h, n, C), and no step reads h. Packages hold C and n in units of exp(m), m a
    running maximum; h and all gradients are the same, as h does not depend on m. Here they are
    plain numbers: i beyond the range of its data type is refused when the pass is decomposed.

    Args:
        weight_q, weight_k: shape [K, I].
        weight_v, weight_o: shape [H, I].
        weight_if: w_i and w_f, shape [2, I].
        bias_o: shape [H], or None.
        bias_if: shape [2], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import MLSTM
        >>> one, none = torch.ones(1, 1), torch.zeros(2, 1)
        >>> cell = MLSTM(one, one, one, 0 * one, none)
        >>> cell.step(torch.full((1,), 2.0), torch.tensor([0.0, 4.0, 8.0])).state  # f = 1/2, i = 1
        tensor([1., 4., 8.])
    """

    weight_q: Float[Tensor, "..."]
    weight_k: Float[Tensor, "..."]
    weight_v: Float[Tensor, "..."]
    weight_o: Float[Tensor, "..."]
    weight_if: Float[Tensor, "..."]
    bias_o: Float[Tensor, "..."] | None = None
    bias_if: Float[Tensor, "..."] | None = None

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return mlstm_shapes(inputs, hidden, self.keys)

    @property
    def slots(self) -> Mapping[str, slice]:
        h, keys = self.hidden_size, self.keys
        return {
            "h": slice(0, h),
            "n": slice(h, h + keys),
            "C": slice(h + keys, h + keys + h * keys),
        }

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (
            Gate("input", None, "input"),
            Gate("forget", SIGMOID, "forget", keeps="n"),
            Gate("output", SIGMOID, "output"),
        )

    def project(self, x: Input) -> Projected:
        gates = affine(x, self.weight_if, self.bias_if), affine(x, self.weight_o, self.bias_o)
        return torch.cat((*gates, *self.project_each(x)), -1)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        keys, width = self.keys, self.hidden_size
        i, f, o, q, k, v = torch.split(projected, [1, 1, width, keys, keys, width], -1)
        i, f, o, k = i.exp(), f.sigmoid(), o.sigmoid(), k * keys**-0.5
        n = f * state[..., self.slots["n"]] + i * k
        before = in_rows(state[..., self.slots["C"]], keys)
        C = f.unsqueeze(-1) * before + (i * k).unsqueeze(-1) * v.unsqueeze(-2)
        read, along = (q.unsqueeze(-1) * C).sum(-2), (n * q).sum(-1, keepdim=True)
        h = o * read / along.abs().clamp(min=1)
        inside = {"input": i, "forget": f, "output": o, "q": q, "k": k, "v": v}
        new = torch.cat((h, n, C.flatten(-2)), -1)
        return CellStep(x, state, new, {**inside, "read": read, "along": along})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas, with r = C^T q, d = max(|<n, q>|, 1) and s the sign of <n, q> where d > 1.

        dr = dh o / d              e = d<n,q> = -s <dh, o r> / d^2      do = dh r / d
        dC_i <- dC_i + q_i dr      dn <- dn + q e                       dq_i = <C_i, dr> + n_i e
        df = <dC, C_{k-1}> + <dn, n_{k-1}>         di = <dC, k (x) v> + <dn, k>
        """
        keys, width, x = self.keys, self.hidden_size, step.x
        i, f, o, q, k, v, read, along = step.activations.values()
        n_before, n = (s[..., self.slots["n"]] for s in (step.previous, step.state))
        size = along.abs().clamp(min=1)
        sign = torch.where(along.abs() > 1, along.sign(), 0)
        names = [f"{{}}{row}" for row in range(keys)]
        ones, scale = x.new_ones(keys, 1), keys**-0.5
        edges: list[Edge] = [
            *weights("weight_if", self.weight_if, "x", ("a.input", "a.forget"), x),
            *biases("bias_if", self.bias_if, ("a.input", "a.forget")),
            *weights("weight_o", self.weight_o, "x", ("a.output",), x),
            *biases("bias_o", self.bias_o, ("a.output",)),
            *weights("weight_q", self.weight_q, "x", ("q",), x),
            *weights("weight_k", self.weight_k, "x", ("a.k",), x),
            *weights("weight_v", self.weight_v, "x", ("v",), x),
            Diagonal("a.input", "i", i),
            Diagonal("a.forget", "f", SIGMOID.derivative(f)),
            Diagonal("a.k", "k", x.new_full((keys,), scale)),
            *spread("i", ["i.C"], 1, width, x),
            *spread("f", ["f.C"], 1, width, x),
            *spread("i", ["i.n"], 1, keys, x),
            *spread("f", ["f.n"], 1, keys, x),
            *spread("q", [name.format("q") for name in names], keys, width, x),
            *spread("k", [name.format("k") for name in names], keys, width, x),
            Diagonal("n-", "n", f.expand_as(n), "carousel.normaliser"),
            Diagonal("f.n", "n", n_before),
            Diagonal("i.n", "n", k),
            Diagonal("k", "n", i.expand_as(k)),
            Diagonal("n", "n+"),
            Diagonal("n", "products", q, "readout.normaliser"),
            Diagonal("q", "products", n),
            Weight("products", "along", ones.T, slice(0, 1)),
            Diagonal("along", "size", sign),
            *spread("size", ["size.h"], 1, width, x),
            Diagonal("size.h", "h+", -o * (read / size) / size),
            Diagonal("a.output", "h+", read / size * SIGMOID.derivative(o)),
        ]
        kept = f.unsqueeze(-1).expand(*v.shape[:-1], keys, width)
        memory = Memory(q, k, v, kept, "f.C", "read", by=i, writer="i.C")
        read_out = Diagonal("read", "h+", o / size)
        return self.in_rows([*edges, *self.matrix("C", step, memory), read_out], "C", keys)


def _of_each(inputs: int, hidden: int, keys: int) -> dict[str, tuple[int, ...]]:
    """The weights of query, key and value."""
    rows = {"weight_q": keys, "weight_k": keys, "weight_v": hidden}
    return {name: (count, inputs) for name, count in rows.items()}


def attention_shapes(inputs: int, hidden: int, keys: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The weights of a head of gated linear attention."""
    return {
        **_of_each(inputs, hidden, keys),
        "weight_alpha_in": (rank, inputs),
        "weight_alpha": (keys, rank),
        "bias_alpha": (keys,),
    }


def mlstm_shapes(inputs: int, hidden: int, keys: int) -> dict[str, tuple[int, ...]]:
    """The weights of a head of an mLSTM."""
    return {
        **_of_each(inputs, hidden, keys),
        "weight_o": (hidden, inputs),
        "weight_if": (2, inputs),
        "bias_o": (hidden,),
        "bias_if": (2,),
    }
