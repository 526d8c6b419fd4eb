"""The equations of each generation, to be typeset: the step, and its pull-back route by route.

Letters as in `retrograde.cells`: a pre-activation a, gates i, f, g, o (r, z, n in a GRU), and the
adjoint of x as delta^x. A prime is the slope of a gate's activation at its pre-activation, so that
i' = i (1 - i). The terms of the pull-back have the colours of their routes.
"""

from collections.abc import Iterable, Mapping

from retrograde.charts import SERIES
from retrograde.explore.lesson import Setting, cell_of

AFFINE = r"a &= W x_k + R\,h_{k-1} + b"

FORWARD = {
    "elman": (AFFINE, r"h_k &= \tanh(a)"),
    "cec": (
        AFFINE,
        r"g &= 4\,\sigma(a_g) - 2",
        r"c_k &= c_{k-1} + g",
        r"h_k &= \phi(c_k) = 2\,\sigma(c_k) - 1",
    ),
    "lstm-1997": (
        AFFINE,
        r"i, o &= \sigma(a_i), \sigma(a_o)",
        r"g &= 4\,\sigma(a_g) - 2",
        r"c_k &= c_{k-1} + i \odot g",
        r"h_k &= o \odot \phi(c_k), \quad \phi(c) = 2\,\sigma(c) - 1",
    ),
    "lstm-2000": (
        AFFINE,
        r"i, f, o &= \sigma(a_i), \sigma(a_f), \sigma(a_o)",
        r"g &= \tanh(a_g)",
        r"c_k &= f \odot c_{k-1} + i \odot g",
        r"h_k &= o \odot \phi(c_k), \quad \phi = \tanh",
    ),
    "lstm-2002": (
        AFFINE,
        r"i &= \sigma(a_i + p_i \odot c_{k-1})",
        r"f &= \sigma(a_f + p_f \odot c_{k-1})",
        r"g &= \tanh(a_g)",
        r"c_k &= f \odot c_{k-1} + i \odot g",
        r"o &= \sigma(a_o + p_o \odot c_k)",
        r"h_k &= o \odot \phi(c_k), \quad \phi = \tanh",
    ),
    "gru": (
        AFFINE,
        r"r, z &= \sigma(a_r), \sigma(a_z)",
        r"q &= R_n h_{k-1}",
        r"n &= \tanh(W_n x_k + b_n + r \odot q)",
        r"h_k &= (1 - z) \odot n + z \odot h_{k-1}",
    ),
}
"""The step of each generation, a line of an aligned environment each."""

LSTM_TERMS = {
    "carousel": ("c", r"f \odot \hat\delta^c_k"),
    "peephole.input": ("c", r"p_i \odot (\hat\delta^c_k \odot g \odot i')"),
    "peephole.forget": ("c", r"p_f \odot (\hat\delta^c_k \odot c_{k-1} \odot f')"),
    "recurrent.input": ("h", r"R_i^{\top}(\hat\delta^c_k \odot g \odot i')"),
    "recurrent.forget": ("h", r"R_f^{\top}(\hat\delta^c_k \odot c_{k-1} \odot f')"),
    "recurrent.cell": ("h", r"R_g^{\top}(\hat\delta^c_k \odot i \odot g')"),
    "recurrent.output": ("h", r"R_o^{\top}(\delta^h_k \odot \phi(c_k) \odot o')"),
}

WITHOUT_GATES = {
    "carousel": ("c", r"\hat\delta^c_k"),
    "recurrent.input": LSTM_TERMS["recurrent.input"],
    "recurrent.output": LSTM_TERMS["recurrent.output"],
}

TERMS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "elman": {"recurrent": ("h", r"R^{\top}(\delta^h_k \odot (1 - h_k^2))")},
    "cec": WITHOUT_GATES | {"recurrent.cell": ("h", r"R_g^{\top}(\hat\delta^c_k \odot g')")},
    "lstm-1997": WITHOUT_GATES | {"recurrent.cell": LSTM_TERMS["recurrent.cell"]},
    "lstm-2000": LSTM_TERMS,
    "lstm-2002": LSTM_TERMS,
    "gru": {
        "carousel": ("h", r"z \odot \delta^h_k"),
        "recurrent.reset": ("h", r"R_r^{\top}(\hat\delta^n_k \odot q \odot r')"),
        "recurrent.update": ("h", r"R_z^{\top}(\delta^h_k \odot (h_{k-1} - n) \odot z')"),
        "recurrent.candidate": ("h", r"R_n^{\top}(\hat\delta^n_k \odot r)"),
    },
}
"""For each route the part of the state before that it leads to, and its term."""

WITHIN = {
    "cec": r"\hat\delta^c_k &= \delta^c_k + \delta^h_k \odot \phi'(c_k)",
    "lstm-1997": r"\hat\delta^c_k &= \delta^c_k + \delta^h_k \odot o \odot \phi'(c_k)",
    "lstm-2000": r"\hat\delta^c_k &= \delta^c_k + \delta^h_k \odot o \odot \phi'(c_k)",
    "lstm-2002": r"\hat\delta^c_k &= \delta^c_k + \delta^h_k \odot o \odot \phi'(c_k) "
    r"+ p_o \odot \delta^h_k \odot \phi(c_k) \odot o'",
    "gru": r"\hat\delta^n_k &= \delta^h_k \odot (1 - z) \odot n'",
}
"""What lies inside the step, before the routes part."""


def colours(generation: str) -> dict[str, str]:
    """The colour of each route.

    They are those of the chart of routes; but the carousel has the one that "direct" has there, the
    strongest: on a hop nothing is direct.
    """
    routes = cell_of(Setting(generation, steps=2, hidden=1)).routes
    found = dict(zip(routes, SERIES[1:], strict=False))
    return found | {"carousel": SERIES[0]} if "carousel" in found else found


def forward(generation: str) -> str:
    """The step, as TeX in display mode."""
    return _aligned(FORWARD[generation])


def backward(generation: str) -> str:
    """The adjoint of the state before, a coloured term for each route, as TeX in display mode."""
    shade, terms = colours(generation), TERMS[generation]
    lines = [WITHIN[generation]] if generation in WITHIN else []
    for part in ("c", "h"):
        found = [
            rf"\textcolor{{{shade[route]}}}{{{terms[route][1]}}}"
            for route in shade
            if route in terms and terms[route][0] == part
        ]
        for number, term in enumerate(found):
            lines.append((r"&\quad + " if number else rf"\delta^{part}_{{k-1}} &= ") + term)
    return _aligned(lines)


def _aligned(lines: Iterable[str]) -> str:
    return r"\begin{aligned} " + r" \\ ".join(lines) + r" \end{aligned}"
