"""The numbers printed in the texts that the project grew from, through the public API."""

import numpy as np
import pytest
import torch
from torch import nn

import retrograde
from retrograde.cells import Elman

PRINTED_COMPONENTS = [0.010906688399113558, 0.02478099846737857, 0.13901933055672275]
PRINTED_MATRICES = [  # dL3/dWx by use step 2, 1, 0; rows are inputs, columns the gates i, f, o, g
    """[[-0.02349287  0.00135057 -0.11156069 -0.05284914]
        [ 0.01024921 -0.00058921  0.04867045  0.02305643]
        [-0.00429567  0.00024695 -0.02039889 -0.00966347]]""",
    """[[-9.83990139e-03  6.78775168e-05 -1.10660923e-03  4.20773125e-04]
        [ 7.93641636e-03 -5.47469140e-05  8.92540613e-04 -3.39376441e-04]
        [-2.11067811e-02  1.45598602e-04 -2.37369846e-03  9.02566589e-04]]""",
    """[[-1.95768961e-05  0.00000000e+00  2.77411349e-05 -9.76467796e-03]
        [ 7.37299593e-06  0.00000000e+00 -1.04477887e-05  3.67754574e-03]
        [ 6.36561888e-06  0.00000000e+00 -9.02030083e-06  3.17508036e-03]]""",
]
TO_TORCH = [0, 1, 3, 2]  # the article's i, f, o, g as torch's i, f, g, o; the swap undoes itself


def seeds_003():
    """Its LSTM: random seed 1, N=1, D=3, T=3, H=1."""
    random = np.random.RandomState(1)
    x, h0, wx, wh, b = (random.randn(*s) for s in ((1, 3, 3), (1, 1), (3, 4), (1, 4), (4,)))
    dout = torch.from_numpy(random.randn(1, 3, 1))
    model = nn.LSTM(3, 1, batch_first=True).double()
    weights = {
        "weight_ih_l0": wx.T,
        "weight_hh_l0": wh.T,
        "bias_ih_l0": b,
        "bias_hh_l0": 0 * b,
    }
    model.load_state_dict({n: torch.from_numpy(w[TO_TORCH].copy()) for n, w in weights.items()})
    h0 = torch.from_numpy(h0).unsqueeze(0)
    with retrograde.record(model) as recording:
        output, _ = model(torch.from_numpy(x), (h0, torch.zeros_like(h0)))
        (output * dout).sum().backward()
    return retrograde.decompose(recording)


def test_seeds_003_components():
    flow = seeds_003()
    got = flow.by_time("weight_ih_l0").norm[2].tolist()
    assert got == pytest.approx(PRINTED_COMPONENTS, abs=1e-12, rel=0)
    assert flow.residual < 1e-12


def test_seeds_003_matrices():
    """To 1e-12 of the matrices behind the print: no printed digit differs."""
    flow = seeds_003()
    for k, printed in zip((2, 1, 0), PRINTED_MATRICES, strict=True):
        ours = flow.contribution("weight_ih_l0", t=2, k=k)[TO_TORCH].T.numpy()
        rows = printed.replace("[", " ").replace("]", " ").split("\n")
        numbers = np.array([[float(word) for word in row.split()] for row in rows])
        assert str(ours + 0.0) == str(numbers)
        # half a unit of the last printed digit: 9 digits of the largest entry, 8 after the point
        np.testing.assert_allclose(ours, numbers, rtol=0, atol=5.1e-9 if k == 2 else 5.1e-11)


def test_seeds_003_matrices_have_the_printed_norms():
    flow = seeds_003()
    for k, norm in enumerate(PRINTED_COMPONENTS):
        part = flow.contribution("weight_ih_l0", t=2, k=k)
        assert float(part.norm()) == pytest.approx(norm, abs=1e-12, rel=0)


def test_seeds_001_three_linear_steps():
    """dL3/dWx = delta (X3 + Ws X2 + Ws^2 X1) and dL3/dWs alike with S2, S1, S0, term by term."""
    wx, ws, wo, b1, b2, s0, y3 = 0.7, -0.9, 1.3, 0.2, -0.1, 0.5, 0.8
    xs = [0.4, -1.1, 0.6]
    states = [s0]
    for value in xs:
        states.append(wx * value + ws * states[-1] + b1)
    delta = -(y3 - (wo * states[3] + b2)) * wo

    def tensor(value):
        return torch.tensor(value, dtype=torch.float64)

    cell = Elman(tensor([[wx]]), tensor([[ws]]), tensor([b1]), activation="identity")
    x = tensor(xs).view(3, 1, 1)

    def loss(h, s):
        return 0.5 * (y3 - (wo * h[-1] + b2)).square().sum()

    flow = retrograde.decompose(retrograde.record_cell(cell, x, loss, tensor([[s0]])))
    for k in range(3):
        through = delta * ws ** (2 - k)
        for name, use in (("weight_ih", xs[k]), ("weight_hh", states[k]), ("bias_ih", 1.0)):
            part = flow.contribution(name, t=2, k=k)
            assert float(part) == pytest.approx(through * use, rel=1e-12)
            lag = flow.by_lag(name, "every").parts()[2 - k]
            assert float(lag) == pytest.approx(through * use, rel=1e-12)
    for name in ("weight_ih", "weight_hh"):
        terms = sum(flow.contribution(name, 2, k) for k in range(3))
        torch.testing.assert_close(terms, flow.recorded.gradients[name], atol=1e-12, rtol=0)
