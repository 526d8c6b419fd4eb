"""Signal and noise by lag: unbiased, and with intervals that cover, where the truth is known."""

import torch

from retrograde.truncation import Signal

SHARED = torch.tensor([1.0, -0.5, 0.0, 0.0, 0.25], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.0, 1.0, 0.2, 2.0], dtype=torch.float64)
TRUE_SIGNAL, TRUE_NOISE = SHARED.square().sum(), SCALE.square().sum()


def drawn(experiments, batches, shared=SHARED):
    """Signals of independent experiments, each of some batches, with a known truth."""
    noise = torch.randn(experiments, batches, 5, dtype=torch.float64)
    parts = shared + SCALE * noise
    return [Signal((range(1),), (one @ one.T)[None], torch.zeros(1), 8) for one in parts]


def test_signal_and_noise_are_unbiased():
    found = drawn(3000, 6)
    squares = torch.stack([torch.cat([s._whole[0][0], s._whole[1][0]]) for s in found])
    spread = squares.std(0) / len(found) ** 0.5
    off = (squares.mean(0) - torch.stack((TRUE_SIGNAL, TRUE_NOISE))).abs() / spread
    assert (off < 4).all()
    biased = torch.stack([s.products.mean() for s in found])  # the square of the mean gradient
    assert (biased.mean() - TRUE_SIGNAL) / spread[0] > 20


def test_intervals_cover_and_find_no_signal_where_there_is_none():
    truth = TRUE_SIGNAL / TRUE_NOISE * 100
    ends = torch.stack([one.interval(100)[0] for one in drawn(150, 16)])
    assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).double().mean() > 0.85
    nothing = drawn(150, 16, torch.zeros(5, dtype=torch.float64))
    assert torch.stack([one.interval(10**6)[0, 0] > 0 for one in nothing]).double().mean() < 0.05


def test_a_signal_is_shown_at_no_lag_where_there_is_none():
    """Noise of one direction and of heavy tails, alike at several lags, few batches."""
    found = 0
    for experiment in range(300):
        torch.manual_seed(experiment)
        parts = torch.randn(6, 8, 1, dtype=torch.float64) ** 3 + torch.randn(8, 1) ** 3
        products = parts @ parts.mT
        one = Signal(tuple(map(range, range(6), range(1, 7))), products, torch.zeros(6), 1)
        found += bool(one.shown(10**6).any())
    assert found <= 9  # 1 % of 300; more than 9 come once in 500 times


def test_the_signs_of_many_batches_are_drawn_and_of_few_all_tried():
    shared = drawn(1, 8, 4 * SHARED)[0]
    assert float(shared.chance) == 2**-7 and bool(shared.shown(10**6))
    assert not drawn(1, 7, 4 * SHARED)[0].shown(10**6).any()
    assert float(drawn(1, 20, 4 * SHARED)[0].chance) < 0.01
    assert (drawn(1, 8, SHARED * 0)[0].chance > 0.01).all()


def test_noise_falls_with_steps_and_samples():
    (one,) = drawn(1, 16)
    assert torch.allclose(one.learnability(40), 40 * one.learnability(1))
    assert torch.allclose(one.learnability(1, batch_size=80), 10 * one.learnability(1))
    assert drawn(1, 2)[0].interval(100).isnan().all()
