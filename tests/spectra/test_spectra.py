"""Spectra against closed forms, products in many digits, and trajectories that are perturbed."""

import math
import warnings
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.cells import GRU, LSTM, Elman, SideBySide, Stacked, from_function
from retrograde.cells.gates import ACTIVATIONS
from retrograde.engine import Boundary, unroll
from retrograde.errors import ArgumentError, NonFiniteError, UnsupportedModelError
from retrograde.spectra import Chain
from retrograde.spectra.bounds import bounds, without_bounds
from retrograde.spectra.exponents import exponents
from retrograde.spectra.memory import memory_of
from retrograde.spectra.singular import singular_values
from support.conformance import EXACT
from support.problems import PROBLEMS, B, T

pytestmark = pytest.mark.usefixtures("unchecked")  # very many small steps

BY_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def elman(weight, activation="identity", bias=None):
    return Elman(torch.zeros(len(weight), 1, dtype=torch.float64), weight, bias, None, activation)


def lstm(inputs, hidden, scale, seed=0):
    shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden)}
    return LSTM(**{name: scale * draw(*shape, seed=seed) for name, shape in shapes.items()})


def chain_of(cell, steps=T, batch=B, seed=2, scale=1.0, initial=None):
    x = scale * draw(steps, batch, cell.input_size, seed=seed)
    if initial is None:
        initial = 0.5 * draw(batch, cell.state_size, seed=seed + 1)
    return Chain.of(unroll(cell, x, initial))


def linear_chain(jacobians):
    """A chain of these Jacobians: each is read as the input of its step."""
    size = jacobians.shape[1]

    def step(w, x, s):
        return torch.einsum("bij,bj->bi", w["one"] * x.unflatten(1, (size, size)), s)

    one = {"one": torch.ones((), dtype=torch.float64)}
    cell = from_function(step, one, input_size=size * size, state=size)
    return Chain.of(unroll(cell, jacobians.flatten(1).unsqueeze(1)))


def by_autograd(chain):
    """J_k of every step, [T, B, S, S], one sample at a time."""
    whole = chain.unrolled

    def of(k, b):
        def step(state):
            return whole.cell.step(whole.x[k, b : b + 1], state.unsqueeze(0)).state[0]

        return torch.autograd.functional.jacobian(step, whole.states[k, b])

    rows = [torch.stack([of(k, b) for b in range(chain.batch)]) for k in range(len(chain))]
    return torch.stack(rows)


def multiplied(jacobians):
    product = torch.eye(jacobians.shape[-1], dtype=jacobians.dtype)
    for jacobian in jacobians:
        product = jacobian @ product
    return product


def quietly(call):
    """On a sequence that is too short for the leading exponent to settle."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the leading exponent")
        return call()


# --- the chain, for every cell ------------------------------------------------------------------


@BY_PROBLEM
def test_jacobians_and_their_products(problem):
    chain = chain_of(problem.make())
    exact = by_autograd(chain)
    v, w = draw(2, B, chain.size, seed=5), draw(2, B, chain.size, seed=6)
    for k in range(T):
        torch.testing.assert_close(chain.dense(k), exact[k], **EXACT)
        pushed, pulled = chain.push(k, v), chain.pull(k, w)
        torch.testing.assert_close(pushed, torch.einsum("bij,nbj->nbi", exact[k], v), **EXACT)
        torch.testing.assert_close(pulled, torch.einsum("bij,nbi->nbj", exact[k], w), **EXACT)
    torch.testing.assert_close(chain.product().plain(), multiplied(exact), **EXACT)
    middle = chain.between(1, 4)
    torch.testing.assert_close(middle.product().plain(), multiplied(exact[1:4]), **EXACT)
    norms = torch.linalg.matrix_norm(exact, ord=2)
    torch.testing.assert_close(chain.step_norms(), norms, **EXACT)


@BY_PROBLEM
def test_exponents_and_singular_values(problem):
    chain = chain_of(problem.make())
    exact = by_autograd(chain)
    found = quietly(lambda: exponents(chain, chain.size, 0))
    logs = torch.linalg.slogdet(exact).logabsdet.mean(0)
    total = found.each.sum(1)
    lost = total == -math.inf
    torch.testing.assert_close(total[~lost], logs[~lost], atol=1e-9, rtol=0)
    smallest = torch.linalg.svdvals(exact)[..., -1].amin(0)
    assert (smallest[lost] < 1e-13).all()  # where a step has lost rank, and nowhere else
    torch.testing.assert_close(total, chain.log_abs_det().mean(0), atol=1e-9, rtol=0)
    assert torch.equal(found.curve[-1], found.each) and found.steps.tolist() == [1, 2, 3, 4, 5]
    assert not found.curve.isnan().any()
    sums = torch.stack([*found.participation.values()]).sum(0)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    for length in (1, 2):
        direct = torch.linalg.svdvals(multiplied(exact[T - length :]))
        ours = singular_values(chain, [length])[0].exp2()
        # svdvals itself is exact to eps of the largest one only
        torch.testing.assert_close(ours, direct, rtol=0, atol=1e-13 * float(direct.max()))


def test_the_leading_directions_are_those_of_the_whole_spectrum():
    chain = chain_of(lstm(2, 3, 1.0), steps=200)
    few, whole = exponents(chain, 2, 20), exponents(chain, 6, 20)
    torch.testing.assert_close(few.each, whole.each[:, :2], **EXACT)
    for name, part in few.participation.items():
        torch.testing.assert_close(part, whole.participation[name][:, :2], **EXACT)
    # Together the first n grow as the volume that they span: an identity of QR, at any length.
    short = chain_of(lstm(2, 3, 1.0), steps=6)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    start = torch.linalg.qr(torch.stack(start, 1)).Q
    images = multiplied(by_autograd(short)).mT @ start
    volume = torch.linalg.det(images.mT @ images).log() / 2
    torch.testing.assert_close(exponents(short, 2, 0).each.sum(1) * 6, volume, **EXACT)


# --- closed forms -------------------------------------------------------------------------------


def test_a_linear_recurrence_grows_by_its_eigenvalues():
    """Not normal: its singular values in one step are others."""
    values = torch.tensor([1.1, -0.9, 0.6, 0.25], dtype=torch.float64)
    basis = draw(4, 4, seed=3)
    weight = basis @ values.diag() @ basis.inverse()
    chain = chain_of(elman(weight), steps=400, batch=1)
    logs = values.abs().log().unsqueeze(0)
    assert (torch.linalg.svdvals(weight).log() - logs).abs().max() > 0.1
    torch.testing.assert_close(exponents(chain, 4, 150).each, logs, **EXACT)
    torch.testing.assert_close(exponents(chain, 2, 150).each, logs[:, :2], **EXACT)
    ours = singular_values(chain, [200, 400])
    long_run = (ours[1] - ours[0]) * math.log(2) / 200  # what the basis adds is the same in both
    torch.testing.assert_close(long_run, logs, **EXACT)


def test_a_complex_pair_grows_by_its_modulus():
    turn = 0.8 * torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    weight = torch.block_diag(turn, torch.tensor([[0.3]], dtype=torch.float64))
    cell = elman(draw(3, 3, seed=2) @ weight @ draw(3, 3, seed=2).inverse())
    found = exponents(chain_of(cell, steps=600, batch=1), 3, 50)
    expected = torch.tensor([0.8, 0.8, 0.3], dtype=torch.float64).log()
    # Between the two of a pair QR goes round with the angle: 1/T of one turn is left over.
    torch.testing.assert_close(found.mean, expected, atol=2 / 500, rtol=0)
    pair = found.mean[:2].sum()
    torch.testing.assert_close(pair, expected[:2].sum(), atol=2 / 500, rtol=0)


def test_an_orthogonal_recurrence_keeps_everything():
    weight = torch.linalg.qr(draw(5, 5)).Q
    chain = chain_of(elman(weight), steps=300)
    zero = torch.zeros(B, 5, dtype=torch.float64)
    torch.testing.assert_close(exponents(chain, 5, 0).each, zero, **EXACT)
    torch.testing.assert_close(singular_values(chain, [300])[0], zero, **EXACT)
    assert [bound.measured for bound in bounds(chain, 0)] == ["keeps", "keeps"]


def test_a_scalar_cell_has_the_mean_logarithm_of_its_slopes():
    w = -1.7
    cell = Elman(*(torch.full((1, 1), v, dtype=torch.float64) for v in (0.4, w)))
    x = draw(50, B, 1)
    h, logs = torch.zeros(B, 1, dtype=torch.float64), []
    for x_k in x:
        h = torch.tanh(0.4 * x_k + w * h)
        logs.append((w * (1 - h * h)).abs().log())
    chain = Chain.of(unroll(cell, x))
    found = exponents(chain, 1, 5)
    torch.testing.assert_close(found.each, torch.stack(logs[5:-5]).mean(0), **EXACT)
    total = torch.stack(logs).sum(0) / math.log(2)
    torch.testing.assert_close(singular_values(chain, [50])[0], total, **EXACT)


def gates_of(cell, x):
    """Gates and cell states of a plain LSTM at every step, once more."""
    hidden = cell.weight_hh.shape[1]
    h = c = torch.zeros(x.shape[1], hidden, dtype=x.dtype)
    found = []
    for x_k in x:
        a = x_k @ cell.weight_ih.T + h @ cell.weight_hh.T
        i, f, g, o = a.chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        found.append((f, o, c))
    return [torch.stack(each) for each in zip(*found, strict=True)]


def test_the_sum_rule_of_an_lstm_in_closed_form():
    """By the Schur complement of the cell's block: prod f * prod o (1 - o) tanh(c) * det R_o."""
    cell, x = lstm(2, 4, 0.8), draw(40, B, 2)
    f, o, c = gates_of(cell, x)
    through_output = torch.linalg.slogdet(cell.weight_hh[12:]).logabsdet
    slopes = (o * (1 - o) * c.tanh()).abs().log()
    expected = (f.log() + slopes).sum(2).mean(0) + through_output
    found = exponents(Chain.of(unroll(cell, x)), 8, 0)
    torch.testing.assert_close(found.each.sum(1), expected, atol=1e-9, rtol=0)


def test_the_carousel_alone_is_the_forget_gate():
    cell, x = lstm(2, 3, 0.8), draw(300, 1, 2)
    bias = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    # Well apart, so that the iteration finds one after the other within the transient.
    cell = replace(cell, bias_ih=torch.cat((bias * 0, bias, bias * 0, bias * 0)))
    plain = replace(cell, weight_ih=torch.cat((cell.weight_ih, cell.bias_ih.unsqueeze(1)), 1))
    f, _, _ = gates_of(plain, torch.cat((x, torch.ones(300, 1, 1, dtype=x.dtype)), 2))
    recorded = retrograde.record_cell(cell, x, lambda h, s: h.sum())
    alone = retrograde.spectrum(recorded, transient=140).carousel
    expected = f[140:-140].log().mean((0, 1)).sort(descending=True).values
    torch.testing.assert_close(alone.exponents.mean[:3], expected, atol=1e-9, rtol=0)
    assert (alone.exponents.mean[3:] == -math.inf).all()  # h leads nowhere
    assert alone.residual == 0  # both sides are -inf
    torch.testing.assert_close(alone.participation["c"][:3], torch.ones(3, dtype=x.dtype))
    assert (alone.singular_values().condition == math.inf).all()


def test_the_steady_state_is_found_in_the_layer_that_grows():
    """What comes back lies where the slowest layer can carry it; a lower one feeds the upper."""
    slow, fast = elman(0.9 * torch.eye(2).double()), elman(0.5 * torch.eye(3).double())
    fast = replace(fast, weight_ih=draw(3, 2))
    spectrum = retrograde.spectrum(
        retrograde.record_cell(Stacked((slow, fast)), draw(200, 1, 1), lambda h, s: h.sum()),
        transient=60,
    )
    part = spectrum.participation
    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(part["h_l0"][:2], ones, **EXACT)
    torch.testing.assert_close(part["h_l1"][:2], 0 * ones, **EXACT)
    torch.testing.assert_close(part["h_l0"] + part["h_l1"], torch.ones(5, dtype=torch.float64))
    logs = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(spectrum.exponents.mean, logs, **EXACT)


# --- many digits --------------------------------------------------------------------------------


def as_mp(tensor):
    return mpmath.matrix(tensor.tolist())


def mp_map(function, *columns):
    rows = zip(*(list(column) for column in columns), strict=True)
    return mpmath.matrix([function(*row) for row in rows])


def mp_sigmoid(a):
    return 1 / (1 + mpmath.exp(-a))


def test_400_steps_of_a_tanh_network_in_200_digits():
    torch.manual_seed(0)
    cell = Elman(draw(3, 2, seed=1), 0.9 * draw(3, 3, seed=2), activation="tanh")
    x = 0.7 * draw(400, 1, 2)
    with mpmath.workdps(200):
        W, R, h = as_mp(cell.weight_ih), as_mp(cell.weight_hh), mpmath.zeros(3, 1)
        product = mpmath.eye(3)
        for x_k in x:
            h = mp_map(mpmath.tanh, W * as_mp(x_k.T) + R * h)
            product = mpmath.diag([1 - y * y for y in h]) * R * product
        _, values, _ = mpmath.svd(product)
        expected = [float(mpmath.log(s, 2)) for s in values]
    ours = singular_values(Chain.of(unroll(cell, x)), [400])[0, 0]
    assert 100 < expected[0] - expected[-1] < 600  # beyond what float64 holds, within 200 digits
    # 400 steps of rounding in states and factors: relative to 1, so absolute in the logarithm
    assert ours.tolist() == pytest.approx(expected, abs=1e-9)


def test_a_long_window_takes_few_rotations(monkeypatch):
    torch.manual_seed(0)
    spectrum = retrograde.spectrum(nn.LSTM(2, 16), torch.randn(300, 2, 2))
    expected = spectrum.singular_values([300]).log2
    monkeypatch.setattr("retrograde.spectra.singular.SWEEPS", 5)
    few = spectrum.singular_values([300]).log2
    assert torch.equal(few, expected)


def test_400_steps_of_an_lstm_in_700_digits():
    """With the one-step Jacobian of [h; c] written out, after Greff et al. (2017), section II-B."""
    H = 2
    cell, x = lstm(2, H, 1.0, seed=4), draw(400, 1, 2)
    with mpmath.workdps(700):  # the singular values lie hundreds of digits apart
        W, R = as_mp(cell.weight_ih), as_mp(cell.weight_hh)
        blocks = [R[g * H : (g + 1) * H, :] for g in range(4)]
        h, c, product = mpmath.zeros(H, 1), mpmath.zeros(H, 1), mpmath.eye(2 * H)
        for x_k in x:
            a = W * as_mp(x_k.T) + R * h
            i, f, o = (mp_map(mp_sigmoid, a[g * H : (g + 1) * H]) for g in (0, 1, 3))
            g = mp_map(mpmath.tanh, a[2 * H : 3 * H])
            slopes = (
                mp_map(lambda i, g: g * i * (1 - i), i, g),
                mp_map(lambda f, c: c * f * (1 - f), f, c),
                mp_map(lambda i, g: i * (1 - g * g), i, g),
            )
            c_by_h = sum(
                (mpmath.diag(list(s)) * block for s, block in zip(slopes, blocks, strict=False)),
                mpmath.zeros(H),
            )
            c_by_c = mpmath.diag(list(f))
            c = mp_map(lambda i, f, g, c: f * c + i * g, i, f, g, c)
            read = mpmath.diag(list(mp_map(lambda o, c: o * (1 - mpmath.tanh(c) ** 2), o, c)))
            gate = mp_map(lambda o, c: mpmath.tanh(c) * o * (1 - o), o, c)
            h = mp_map(lambda o, c: o * mpmath.tanh(c), o, c)
            jacobian = mpmath.zeros(2 * H)
            jacobian[:H, :H] = read * c_by_h + mpmath.diag(list(gate)) * blocks[3]
            jacobian[:H, H:] = read * c_by_c
            jacobian[H:, :H], jacobian[H:, H:] = c_by_h, c_by_c
            product = jacobian * product
        values = mpmath.svd(product, compute_uv=False)
        expected = [float(mpmath.log(s, 2)) for s in values]
    ours = singular_values(Chain.of(unroll(cell, x)), [400])[0, 0]
    assert expected[0] - expected[-1] > 700
    assert ours.tolist() == pytest.approx(expected, abs=1e-9)
    assert float(Chain.of(unroll(cell, x)).product().log2_norms()) == pytest.approx(
        expected[0], abs=0.5
    )


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 25), st.floats(0, 14), st.integers(0, 10**6))
def test_products_of_any_graded_matrices(size, steps, octaves, seed):
    """Rows and columns of very different sizes, in no order, some exactly triangular."""
    generator = torch.Generator().manual_seed(seed)

    def orders():
        return 2 ** (octaves * torch.rand(steps, size, generator=generator, dtype=torch.float64))

    jacobians = torch.randn(steps, size, size, generator=generator, dtype=torch.float64)
    jacobians = orders().unsqueeze(2) * jacobians / orders().unsqueeze(1)
    if seed % 3 == 0:
        jacobians = jacobians.tril()  # as in a stack of layers
    sizes = torch.linalg.svdvals(jacobians)
    condition = float((sizes[:, 0] / sizes[:, -1]).max())
    assume(condition < 1e9)
    with mpmath.workdps(400):
        product = mpmath.eye(size)
        for jacobian in jacobians:
            product = as_mp(jacobian) * product
        expected = [float(mpmath.log(s, 2)) for s in mpmath.svd(product, compute_uv=False)]
    ours = singular_values(linear_chain(jacobians), [steps])[0, 0].tolist()
    # Each step of QR is right to eps beside its largest factor; 20 for sizes and the logarithm.
    assert ours == pytest.approx(expected, abs=20 * steps * 2**-52 * condition + 1e-11)


# --- what was published, and what perturbations do ----------------------------------------------


def test_the_published_counter_example_to_the_spectral_radius():
    """W = [[8, 8], [-8, -8]] has radius 0; at x* the Jacobian is W diag(tanh'(x*)) = [[8, 6], ...].

    The fixed point is unstable: over 10 steps rounding grows by 2^10, and stays below 1e-11.
    """
    weight = torch.tensor([[8.0, 8.0], [-8.0, -8.0]], dtype=torch.float64)
    fixed = torch.tensor([0.0, math.atanh(0.5)], dtype=torch.float64)
    bias = fixed - weight @ fixed.tanh()

    def step(w, x, s):
        return s.tanh() @ w["W"].T + w["b"]

    # The state of the paper is the pre-activation; that of a plain network is its tanh.
    own = from_function(step, {"W": weight, "b": bias}, input_size=1, state=2)
    chain = chain_of(own, steps=10, batch=1, initial=fixed.unsqueeze(0))
    found = singular_values(chain, [1, 2, 5, 10])[:, 0]
    published = torch.tensor([14.14, 28.3, 226, 7241], dtype=torch.float64)
    torch.testing.assert_close(found[:, 0].exp2(), published, rtol=2e-3, atol=0)  # as printed
    jacobian = torch.tensor([[8.0, 6.0], [-8.0, -6.0]], dtype=torch.float64)
    for row, k in zip(found, (1, 2, 5, 10), strict=True):
        exact = torch.linalg.matrix_norm(torch.linalg.matrix_power(jacobian, k), ord=2).log2()
        torch.testing.assert_close(row[0], exact, atol=1e-8, rtol=0)
        assert row[1] == -math.inf  # J has rank 1

    plain = elman(weight, "tanh", bias=bias)
    recorded = retrograde.record_cell(
        plain, draw(10, 1, 1), lambda h, s: h.sum(), fixed.tanh().unsqueeze(0)
    )
    spectrum = retrograde.spectrum(recorded)
    assert spectrum.exponents.mean.tolist() == pytest.approx([math.log(2), -math.inf], abs=1e-9)
    assert spectrum.residual == 0
    largest, radius = spectrum.bounds
    assert largest.value == pytest.approx(16) and largest.says is None and largest.holds is None
    assert radius.value == pytest.approx(0, abs=1e-6) and radius.threshold == 1
    assert radius.says == "vanishes" and radius.measured == "explodes" and radius.holds is False
    assert largest.proven and not radius.proven
    slopes = torch.tensor([1.0, 0.75], dtype=torch.float64).diag()
    assert radius.largest_step == pytest.approx(
        float(torch.linalg.matrix_norm(slopes @ weight, ord=2)), abs=1e-8
    )
    assert spectrum.eigenvalues["recurrent"].abs().max() < 1e-6


def random_network(gain, hidden, seed=1):
    """Independent normal weights of variance gain^2 / H, without input or bias."""
    return elman(gain * draw(hidden, hidden, seed=seed) / hidden**0.5, "tanh")


@pytest.mark.parametrize("gain, sign", [(3.0, 1), (2.0, 1), (0.8, -1)])
def test_large_random_networks_are_chaotic_above_a_gain_of_1(gain, sign):
    """Sompolinsky, Crisanti and Sommers (1988), for H to infinity."""
    chain = chain_of(random_network(gain, 100), steps=400, batch=1)
    leading = exponents(chain, 1, 50).leading
    assert sign * leading > 0.05
    if sign > 0:
        grown = float(chain.between(300, 400).product().log2_norms())
        assert grown > 0.5 * 100 * leading / math.log(2)


def test_the_leading_exponent_is_how_trajectories_part():
    """Two trajectories, the second brought near again at every step; no derivative is taken.

    The first is that of the chain: in chaos one of other roundings would soon be another.
    """
    cell, steps, apart = random_network(2.5, 60), 3000, 1e-7
    chain = chain_of(cell, steps=steps, batch=1)
    x, states = chain.unrolled.x, chain.unrolled.states
    near = states[0] + apart * nn.functional.normalize(draw(1, 60, seed=9))
    logs = []
    for x_k, h in zip(x, states[1:], strict=True):
        near = cell.step(x_k, near).state
        distance = (near - h).norm()
        logs.append(math.log(float(distance) / apart))
        near = h + (near - h) * (apart / distance)
    grown = sum(logs[300:-300]) / (steps - 600)
    # Forwards and backwards the directions differ: of the mean over N steps, O(1/N) at both ends.
    assert exponents(chain, 1, 300).leading == pytest.approx(grown, abs=5 / (steps - 600))


@pytest.mark.parametrize("make", [PROBLEMS[6].make, PROBLEMS[8].make], ids=["gru", "lstm-3-layers"])
def test_a_push_is_what_a_perturbation_becomes(make):
    cell = make()
    chain = chain_of(cell, steps=12)
    v = draw(1, B, chain.size, seed=7)
    pushed = v
    for k in range(12):
        pushed = chain.push(k, pushed)
    x, start, eps = chain.unrolled.x, chain.unrolled.states[0], 1e-6
    ends = [unroll(cell, x, start + sign * eps * v[0]).states[-1] for sign in (1, -1)]
    measured = (ends[0] - ends[1]) / (2 * eps)  # central differences: eps^2, and rounding / eps
    torch.testing.assert_close(pushed[0], measured, atol=1e-8, rtol=1e-6)


# --- bounds -------------------------------------------------------------------------------------


def test_the_steepest_slopes_are_those_of_the_functions():
    a = torch.linspace(-40, 40, 16001, dtype=torch.float64)
    for name, one in ACTIVATIONS.items():
        slope = one.derivative(one.function(a))
        assert float(slope.max()) == pytest.approx(one.largest_slope, abs=1e-12)
        assert one.name == name


@settings(max_examples=25)
@given(
    st.integers(1, 5),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.floats(0.05, 3),
    st.integers(0, 1000),
)
def test_the_sufficient_condition_is_never_broken(hidden, activation, gain, seed):
    """And what says that gradients vanish says so of every step."""
    weight = gain * draw(hidden, hidden, seed=seed)
    chain = chain_of(elman(weight, activation), steps=20, seed=seed)
    largest, radius = bounds(chain, 2)
    assert largest.value == pytest.approx(float(torch.linalg.svdvals(weight)[0]))
    assert radius.value == pytest.approx(float(torch.linalg.eigvals(weight).abs().max()))
    assert largest.threshold == 1 / ACTIVATIONS[activation].largest_slope and largest.proven
    assert (largest.says == "vanishes") == (largest.value < largest.threshold)
    assert largest.holds in (True, None)
    assert radius.proven == (activation == "identity")
    assert largest.largest_step <= largest.value / largest.threshold * (1 + 1e-9)
    assert largest.measured == ("vanishes" if largest.exponent < 0 else "explodes")


def test_every_layer_is_held_against_its_own_growth():
    """An upper layer that explodes says nothing of the one below.

    Two estimates from other starts differ by about 2.5 / steps in a chaotic network, whose course
    hangs on the processor: by 0.003 at most over 800 steps, by 0.015 over 200.
    """
    below, above = random_network(0.5, 30), random_network(3.0, 80, seed=2)
    above = replace(above, weight_ih=0.1 * draw(80, 30))
    chain = chain_of(Stacked((below, above)), steps=800, batch=1)
    found = {(bound.route, bound.rule): bound for bound in bounds(chain, 20)}
    alone = exponents(chain_of(below, steps=800, batch=1), 1, 20)
    lower, upper = (found[route, "spectral radius"] for route in ("recurrent_l0", "recurrent_l1"))
    assert lower.measured == "vanishes" and upper.measured == "explodes"
    assert lower.exponent < alone.leading + 0.05
    assert upper.exponent == pytest.approx(exponents(chain, 1, 20).leading, abs=0.01)


def test_a_gated_cell_has_a_threshold_for_every_gate_and_none_is_proven():
    chain = chain_of(SideBySide((lstm(2, 3, 1.0), GRU(draw(6, 1), draw(6, 2))), ("_a", "_b")))
    found = {b.route: b for b in bounds(chain, 0) if b.rule == "largest singular value"}
    assert {route: bound.threshold for route, bound in found.items()} == {
        **{f"recurrent.{gate}_a": 4 for gate in ("input", "forget", "output")},
        **{"recurrent.cell_a": 1, "recurrent.candidate_b": 1},
        **{f"recurrent.{gate}_b": 4 for gate in ("reset", "update")},
    }
    assert not any(bound.proven for bound in found.values())


@BY_PROBLEM
def test_bounds_and_memory_of_every_cell(problem):
    """Each has them or none; nothing in them is NaN."""
    chain = chain_of(problem.make())
    found = bounds(chain, 0)
    without = problem.name.startswith(("own", "linear"))
    assert bool(found) != without
    assert not without or without_bounds(chain.cell)
    routes = {bound.route for bound in found}
    assert routes <= set(chain.cell.recurrent_routes)
    assert not any(math.isnan(v) for b in found for v in (b.value, b.exponent, b.largest_step))
    memory = memory_of(chain, None)
    assert set(memory.time_constants) <= set(chain.cell.slots)
    assert all((constant > 0).all() for constant in memory.time_constants.values())
    states, inputs = (torch.zeros(T, B, dtype=torch.float64) for _ in range(2))
    exact = by_autograd(chain)
    for lag in range(T):
        product = multiplied(exact[T - lag :])
        states[lag] = torch.linalg.matrix_norm(product.expand(B, -1, -1))
        inputs[lag] = torch.linalg.matrix_norm(product @ by_input(chain, T - 1 - lag))
    for log2, sizes in ((memory.log2_state, states), (memory.log2_input, inputs)):
        mean = sizes.mean(1)
        torch.testing.assert_close(log2.exp2(), mean / mean[0], **EXACT)


def by_input(chain, k):
    """ds_k/dx_k of every sample, by autograd."""
    whole = chain.unrolled

    def of(b):
        def step(x):
            return whole.cell.step(x.unsqueeze(0), whole.states[k, b : b + 1]).state[0]

        return torch.autograd.functional.jacobian(step, whole.x[k, b])

    return torch.stack([of(b) for b in range(chain.batch)])


# --- memory -------------------------------------------------------------------------------------


def scalar(w):
    return elman(torch.full((1, 1), w, dtype=torch.float64))


def test_a_leaky_scalar_forgets_when_its_power_falls_to_a_hundredth():
    cell = replace(scalar(0.7), weight_ih=torch.ones(1, 1, dtype=torch.float64))
    recorded = retrograde.record_cell(cell, draw(40, 2, 1), lambda h, s: h.sum())
    memory = retrograde.spectrum(recorded).memory
    last = math.floor(math.log(0.01) / math.log(0.7))  # 0.7^12 is 1.4 %, 0.7^13 1 % less a little
    assert (memory.state, memory.input) == (last, last)
    expected = 0.7 ** torch.arange(40, dtype=torch.float64)
    torch.testing.assert_close(memory.log2_state.exp2(), expected, **EXACT)
    assert memory.reach == retrograde.decompose(recorded).reach and memory.agrees is True
    assert not memory.time_constants and not memory.by_gates


def test_a_loss_that_asks_for_what_is_forgotten_sooner_does_not_agree():
    weight = torch.tensor([[0.98, 0.0], [0.0, 0.1]], dtype=torch.float64)
    cell = replace(elman(weight), weight_ih=torch.ones(2, 1, dtype=torch.float64))
    recorded = retrograde.record_cell(cell, draw(100, 1, 1), lambda h, s: h[..., 1].sum())
    memory = retrograde.spectrum(recorded).memory
    assert memory.reach < 5 and memory.state == 99 and memory.agrees is False


def test_a_stretch_that_remembers_all_agrees_with_a_reach_beyond_it():
    one = torch.ones(1, 1, dtype=torch.float64)
    cell, x = Elman(one, 0.999 * one, activation="identity"), draw(40, 1, 1)
    recorded = retrograde.record_cell(cell, x, lambda h, s: h[-1].sum())
    memory = retrograde.spectrum(recorded, start=30).memory
    assert (memory.reach, memory.input) == (39, 9)
    assert memory.agrees


def test_time_constants_are_those_of_the_forget_gates():
    layer = nn.LSTM(2, 3).double()
    bias = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0[3:6] = bias
    memory = retrograde.spectrum(layer, draw(4, 2, 2)).memory
    expected = -1 / bias.sigmoid().log()
    torch.testing.assert_close(memory.time_constants["c_l0"], expected, **EXACT)
    torch.testing.assert_close(memory.by_gates["c_l0"], math.log(100) * expected, **EXACT)
    assert memory.reach is None and memory.agrees is None  # there was no loss

    gru = nn.GRU(2, 3, num_layers=2).double()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        gru.bias_hh_l1[3:6] = bias
    constants = retrograde.spectrum(gru, draw(4, 2, 2)).memory.time_constants
    torch.testing.assert_close(constants["h_l1"], expected, **EXACT)
    torch.testing.assert_close(constants["h_l0"], expected[:1].expand(3), **EXACT)
    bare = retrograde.nn.LSTM(2, 3, generation="lstm-1997")
    constants = retrograde.spectrum(bare, draw(4, 2, 2, dtype=torch.float32)).memory
    assert (constants.time_constants["c_l0"] == math.inf).all()


# --- what is looked at --------------------------------------------------------------------------


def test_a_layer_is_run_in_inference_mode_too():
    layer, x = nn.GRU(2, 3), torch.randn(12, 2, 2)
    expected = quietly(lambda: retrograde.spectrum(layer, x).exponents.leading)
    with torch.inference_mode():
        spectrum = retrograde.spectrum(layer, x.clone())
        assert quietly(lambda: spectrum.exponents.leading) == pytest.approx(expected, rel=1e-4)
        assert spectrum.memory.state > 0


def test_a_layer_is_run_as_it_is_and_left_as_it_was():
    layer = nn.LSTM(2, 3, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
    layer.weight_hh_l0.requires_grad_(False)
    x, drawn = torch.randn(4, 20, 2, requires_grad=True), torch.get_rng_state()
    spectrum = quietly(lambda: retrograde.spectrum(layer, x))
    assert spectrum.chain.size == 2 * 2 * 3 * 2 and len(spectrum.chain) == 20
    assert spectrum.chain.batch == 4
    assert torch.equal(torch.get_rng_state(), drawn) and x.grad is None
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert not layer.weight_hh_l0.requires_grad and layer.training

    plain = nn.GRU(2, 3)
    x = torch.randn(15, 2, 2)
    with retrograde.record(plain) as recording:
        plain(x)[0].square().sum().backward()
    first, second = (
        quietly(lambda a=a: retrograde.spectrum(*a).exponents.each)
        for a in ((recording,), (plain, x))
    )
    assert torch.equal(first, second)  # the loss has no part in it


def test_the_trajectory_is_the_one_that_ran_in_its_own_precision():
    """In a chaotic network float64 would soon be elsewhere."""
    torch.manual_seed(0)
    layer = nn.RNN(1, 40)
    nn.init.normal_(layer.weight_hh_l0, std=3 / 40**0.5)
    x = torch.randn(200, 1, 1)
    states = retrograde.spectrum(layer, x).chain.unrolled.states
    output = layer(x)[0].detach().double()
    assert states.dtype == torch.float64
    assert torch.equal(states.float().double(), states)  # float32 numbers, as they were
    elsewhere = layer.double()(x.double())[0].detach()
    assert (states[-1] - elsewhere[-1]).abs().max() > 0.1
    torch.testing.assert_close(states[1:20], output[:19], atol=1e-4, rtol=0)


def test_a_stretch_of_a_sequence_is_a_sequence():
    recorded = retrograde.record_cell(lstm(2, 3, 1.0), draw(30, B, 2), lambda h, s: h.sum())
    whole = retrograde.spectrum(recorded, transient=0, start=10, stop=22)
    assert len(whole.chain) == 12
    by_step = by_autograd(retrograde.spectrum(recorded).chain)
    torch.testing.assert_close(whole.chain.product().plain(), multiplied(by_step[10:22]), **EXACT)
    found = whole.singular_values([1, 2], stop=15, n=2)
    assert found.log2.shape == (2, B, 2) and found.stop == 15
    exact = [torch.linalg.svdvals(multiplied(by_step[15 - length : 15])) for length in (1, 2)]
    for ours, direct in zip(found.plain, exact, strict=True):
        torch.testing.assert_close(ours, direct[:, :2], **EXACT)
    for condition, direct in zip(found.condition, exact, strict=True):
        torch.testing.assert_close(condition, (direct[:, 0] / direct[:, -1]).log2())
    assert whole.singular_values().lengths == (1, 2, 4, 8, 12)


def test_nothing_passes_a_border_and_a_stretch_across_one_is_refused():
    recorded = retrograde.record_cell(lstm(2, 3, 1.0), draw(30, B, 2), lambda h, s: h.sum())
    fresh = draw(B, 6, seed=8)
    carried = torch.tensor([True, False, True]).unsqueeze(1).expand(B, 6)
    boundaries = {
        12: Boundary.detached(fresh, carried),
        20: Boundary.detached(fresh, carried & False),
    }
    recorded = replace(recorded, boundaries=boundaries)
    with pytest.raises(ArgumentError, match=r"before step 12, 20.*start=20, stop=30"):
        retrograde.spectrum(recorded)
    between = retrograde.spectrum(recorded, start=12, stop=20).chain
    assert torch.equal(between.unrolled.states[0, 1], fresh[1])
    own = unroll(recorded.cell, recorded.x[12:20], between.unrolled.states[0])
    torch.testing.assert_close(between.product().plain(), Chain.of(own).product().plain())
    retrograde.spectrum(recorded, stop=12)


def test_padding_is_refused():
    layer = nn.GRU(2, 3)
    x = torch.randn(9, 3, 2)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([9, 6, 5]))
    with retrograde.record(layer) as recording:
        layer(packed)[0].data.sum().backward()
    with pytest.raises(ArgumentError, match="end after 5 to 9 steps.*Choose stop=5"):
        retrograde.spectrum(recording)
    assert len(retrograde.spectrum(recording, stop=5).chain) == 5


def test_dead_units_lose_rank_and_nothing_becomes_nan():
    """Two of five units of a ReLU network are off at every step; a third for half the time."""
    weight = 0.7 * draw(5, 5).abs()
    weight[:2] = -weight[:2]
    cell = elman(weight, "relu")
    drive = torch.ones(40, 2, 1, dtype=torch.float64)
    cell = replace(cell, weight_ih=torch.tensor([-9.0, -9, 0, 0, 0]).double().unsqueeze(1))
    initial = torch.ones(2, 5, dtype=torch.float64)
    recorded = retrograde.record_cell(cell, drive, lambda h, s: h.sum(), initial)
    spectrum = retrograde.spectrum(recorded)
    assert (spectrum.exponents.mean[:3] > -5).all()
    assert (spectrum.exponents.mean[3:] == -math.inf).all()
    found = spectrum.singular_values([1, 40])
    assert (found.log2[..., 3:] == -math.inf).all() and found.log2[..., :3].isfinite().all()
    assert (found.condition == math.inf).all()
    assert spectrum.residual == 0
    assert not any(part.isnan().any() for part in spectrum.participation.values())
    assert (spectrum.exponents.spread[3:] == 0).all()

    silent = replace(cell, weight_ih=torch.full((5, 1), -90.0, dtype=torch.float64))
    recorded = retrograde.record_cell(silent, drive, lambda h, s: h.sum(), initial)
    nothing = retrograde.spectrum(recorded)  # all units off: the Jacobians are 0
    assert (nothing.exponents.mean == -math.inf).all() and nothing.exponents.settled
    assert (nothing.singular_values().log2 == -math.inf).all() and nothing.residual == 0
    assert (nothing.singular_values().condition == math.inf).all()
    memory = nothing.memory
    assert memory.state == 0 and not memory.log2_input.isnan().any()
    assert {bound.measured for bound in nothing.bounds} == {"vanishes"}


def test_a_product_across_a_step_that_loses_rank_loses_it_for_good():
    """Step 1 leaves two dimensions, step 4 three others: the product has two."""
    jacobians = draw(6, 4, 4)
    jacobians[1, :2] = 0
    jacobians[4, 2] = 0
    chain = linear_chain(jacobians)
    log2 = singular_values(chain, [1, 3, 6])
    direct = torch.linalg.svdvals(multiplied(jacobians))
    assert torch.isfinite(log2[:, 0]).sum(1).tolist() == [4, 3, 2]
    torch.testing.assert_close(log2[2, 0].exp2(), direct, rtol=1e-9, atol=1e-12)
    assert (exponents(chain, 4, 0).each.isfinite().sum(1) == 2).all()

    # One step loses what the other one keeps; the direction that replaced it is arbitrary.
    keeps = torch.tensor([[1, 1, 1, 1], [0, 3, 5, 7], [2, 4, 0, 8]], dtype=torch.float64)
    chain = linear_chain(keeps.diag_embed())
    log2 = singular_values(chain, [1, 2, 3])[:, 0]
    direct = torch.tensor([[8, 4, 2, 0], [56, 12, 0, 0], [56, 12, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(log2, direct.log2(), **EXACT)
    assert (exponents(chain, 4, 0).each.isfinite().sum(1) == 2).all()


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_relu_networks_that_lose_rank_as_they_run(seed):
    """Units that switch off and on: how many directions are left, and how large they are."""
    weight = 1.3 * draw(6, 6, seed=seed + 50) / 6**0.5
    cell = Elman(draw(6, 2, seed=seed), weight, 0.5 * draw(6, seed=seed + 9), None, "relu")
    chain = chain_of(cell, steps=80, batch=1, seed=seed + 3)
    jacobians = by_autograd(chain)[:, 0]
    found = singular_values(chain, [5, 80])[:, 0]
    for length, ours in zip((5, 80), found.tolist(), strict=True):
        with mpmath.workdps(400):
            product = mpmath.eye(6)
            for jacobian in jacobians[-length:]:
                product = as_mp(jacobian) * product
            values = mpmath.svd(product, compute_uv=False)
            left = [s for s in values if s > values[0] * mpmath.mpf(10) ** -300]
            expected = [float(mpmath.log(s, 2)) for s in left]
        assert 0 < len(left) < 6
        assert ours == pytest.approx(expected + [-math.inf] * (6 - len(left)), abs=1e-11)


def blocks_that_lose_rank(steps):
    """Two systems side by side; the first loses one of its three dimensions now and then."""
    first, second = draw(steps, 3, 3, seed=3), 0.7 * draw(steps, 3, 3, seed=4)
    off = torch.randint(0, 15, (steps,), generator=torch.Generator().manual_seed(5))
    for k, unit in enumerate(off.tolist()):
        if unit < 3 and k < steps - 10:
            first[k, unit] = 0
    both = [torch.block_diag(*pair) for pair in zip(first, second, strict=True)]
    return first, second, torch.stack(both)


def test_rank_that_one_of_two_systems_loses_is_not_taken_from_the_other():
    """After some steps every direction lies in one of the two, those that are lost in between."""
    first, second, both = blocks_that_lose_rank(80)
    log2 = singular_values(linear_chain(both), [2, 80])[:, 0]
    assert log2[0].isfinite().all() and log2[1].isfinite().sum() == 5
    with mpmath.workdps(300):
        expected = []
        for jacobians in (first, second):
            product = mpmath.eye(3)
            for jacobian in jacobians:
                product = as_mp(jacobian) * product
            values = mpmath.svd(product, compute_uv=False)
            expected += [float(mpmath.log(s, 2)) for s in values if s > mpmath.mpf(10) ** -200]
    assert log2[1, :5].tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-9)

    first, second, both = blocks_that_lose_rank(600)
    alone = [exponents(linear_chain(part), 3, 0).each for part in (first, second)]
    together = exponents(linear_chain(both), 6, 0).each
    # The same in the long run: what the random start and each loss leave is of the order of 1/T.
    expected = torch.cat(alone, 1).sort(1, descending=True).values
    assert torch.equal(together == -math.inf, expected == -math.inf)
    torch.testing.assert_close(together[:, :5], expected[:, :5], atol=10 / 600, rtol=0)


def test_a_leading_direction_can_be_the_one_that_is_lost():
    """By then the directions are the axes, in the order of their growth."""
    growth = torch.tensor([1.5, 0.5, 1.2, 0.9], dtype=torch.float64)
    diagonals = growth.repeat(120, 1)
    diagonals[20, 0] = diagonals[10, 3] = 0
    chain = linear_chain(diagonals.diag_embed())
    log2 = singular_values(chain, [95, 105, 120])[:, 0]
    sizes = diagonals.log2()
    before, *after = (
        sizes[120 - length :].sum(0).sort(descending=True).values for length in (95, 105, 120)
    )
    torch.testing.assert_close(log2[0], before, atol=1e-12, rtol=0)
    for row, expected in zip(log2[1:], after, strict=True):
        # What the random start had of the others went with the direction that is lost: one bit.
        # Below 2^-52 of the largest the rounding of that one step may leave more than there was.
        known = (expected == -torch.inf) | (expected > expected[0] - 52)
        torch.testing.assert_close(row[known], expected[known], atol=1, rtol=0)
        assert bool((row[~known] < row[0] - 52).all())
    found = exponents(chain, 4, 0).each[0]
    assert found.isfinite().tolist() == [True, True, False, False]
    torch.testing.assert_close(found[:2].sum(), (growth[1] * growth[2]).log(), atol=0.1, rtol=0)


def test_a_sample_whose_units_are_all_off_does_not_speak_for_the_others():
    cell = elman(torch.tensor([[1.5]], dtype=torch.float64), "relu")
    initial = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    x = torch.zeros(20, 3, 1, dtype=torch.float64)
    spectrum = retrograde.spectrum(retrograde.record_cell(cell, x, lambda h, s: h.sum(), initial))
    assert spectrum.exponents.each[1, 0] == -math.inf
    assert spectrum.exponents.leading == pytest.approx(math.log(1.5)) and spectrum.exponents.settled
    assert all(bound.measured == "explodes" for bound in spectrum.bounds)


# --- refusals and charts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 7}, "n must be an integer from 1 to 6, the size of the state"),
        ({"n": 0}, "n must be an integer from 1 to 6"),
        ({"n": True}, "n must be an integer from 1 to 6.*; got True"),
        ({"n": 1.5}, "n must be an integer"),
        ({"transient": 30 / 10}, "transient must be an integer; got 3.0"),
        ({"start": 1.0}, "start must be an integer"),
        ({"stop": 20.0}, "stop must be an integer"),
        ({"transient": 15}, "expected 0 to 14; got 15"),
        ({"transient": -1}, "expected 0 to 14; got -1"),
        ({"start": 30}, "0 <= start < stop <= 30.*start=30"),
        ({"stop": 31}, "0 <= start < stop <= 30.*stop=31"),
        ({"x": torch.zeros(3, 1, 2)}, "a recording holds its own input"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    recorded = retrograde.record_cell(lstm(2, 3, 1.0), draw(30, B, 2), lambda h, s: h.sum())
    with pytest.raises(ArgumentError, match=message):
        retrograde.spectrum(recorded, **options)


def test_windows_that_do_not_fit():
    recorded = retrograde.record_cell(lstm(2, 3, 1.0), draw(30, B, 2), lambda h, s: h.sum())
    spectrum = retrograde.spectrum(recorded, n=2, start=4)
    for options, message in (
        ({"lengths": [2, 27]}, r"from 1 to 26 steps, those from 4 to 30; got \[27\]"),
        ({"lengths": [5], "stop": 8}, r"from 1 to 4 steps, those from 4 to 8; got \[5\]"),
        ({"lengths": []}, "got none"),
        ({"lengths": [0]}, r"got \[0\]"),
        ({"lengths": [26 / 2]}, "lengths must be a sequence of integers; got \\[13.0\\]"),
        ({"stop": 4}, "stop must lie from 5 to 30; got 4"),
        ({"n": 9}, "n must be an integer from 1 to 6"),
    ):
        with pytest.raises(ArgumentError, match=message):
            spectrum.singular_values(**options)
    with pytest.raises(ArgumentError, match="needs all 6 exponents.*Leave n out"):
        spectrum.residual  # noqa: B018
    with pytest.raises(ArgumentError, match="no route 'nonsense'"):
        spectrum.without("nonsense")


def test_what_is_no_recurrent_layer():
    for module in (nn.Linear(2, 2), nn.LSTMCell(2, 3), nn.Sequential(nn.LSTM(2, 3))):
        with pytest.raises(UnsupportedModelError, match="expected a recurrent layer"):
            retrograde.spectrum(module, torch.zeros(3, 1, 2))
    with pytest.raises(ArgumentError, match=r"spectrum\(layer, x\)"):
        retrograde.spectrum(nn.LSTM(2, 3))
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(3, 1, 2), [3])
    with pytest.raises(ArgumentError, match="x must be a tensor; got PackedSequence.*record"):
        retrograde.spectrum(nn.LSTM(2, 3), packed)
    layer = nn.LSTM(2, 3)
    with pytest.raises(NonFiniteError), torch.no_grad():
        layer.weight_hh_l0[0, 0] = math.nan
        retrograde.spectrum(layer, torch.zeros(3, 1, 2))


def test_a_short_sequence_is_warned_of():
    """The first steps of a trajectory that starts far from where it settles."""
    cell = elman(torch.tensor([[4.0]], dtype=torch.float64), "tanh")
    x = torch.zeros(24, 1, 1, dtype=torch.float64)
    initial = torch.full((1, 1), 1e-12, dtype=torch.float64)
    recorded = retrograde.record_cell(cell, x, lambda h, s: h.sum(), initial)
    with pytest.warns(UserWarning, match=r"2 steps at each end too few.*exponents\.chart"):
        retrograde.spectrum(recorded).exponents  # noqa: B018


def test_charts_show_the_numbers():
    recorded = retrograde.record_cell(lstm(2, 9, 1.0), draw(40, B, 2), lambda h, s: h.sum())
    spectrum = retrograde.spectrum(recorded)
    chart = quietly(lambda: spectrum.exponents).chart().to_dict()
    text = str(chart)
    assert f"{float(spectrum.exponents.mean[0]):.3f}"[:5] in text
    assert "12 of 18 directions" in text
    found = spectrum.singular_values([1, 40])
    text = str(found.chart().to_dict())
    for value in found.log2.mean(1)[:, 0].tolist():
        assert str(round(value, 4)) in text
    lost = spectrum.carousel.singular_values([3]).chart().to_dict()
    assert "12 of 18 directions; 6 of these are lost" in str(lost)  # all 9 behind the carousel's
    nothing = spectrum.without(*spectrum.chain.cell.routes).singular_values([3])
    assert "nothing to draw" in str(nothing.chart().to_dict())


def test_a_policy_inside_back_propagation_has_no_part_in_it():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(2, 3, dtype=torch.float64), torch.randn(12, 2, 2, dtype=torch.float64)
    free = retrograde.spectrum(lstm, x)
    retrograde.nn.clip_inside(lstm, retrograde.clipping.StateNorm(1e-3))
    held = retrograde.spectrum(lstm, x)
    torch.testing.assert_close(held.exponents.mean, free.exponents.mean)
    with retrograde.record(lstm) as recording:
        lstm(x)[0].sum().backward()
    recorded = retrograde.spectrum(recording)
    torch.testing.assert_close(recorded.exponents.mean, free.exponents.mean)


def test_memories_side_by_side():
    torch.manual_seed(0)
    x, lstm = torch.randn(30, 2, 1), nn.LSTM(1, 4)
    before = retrograde.spectrum(lstm, x).memory
    retrograde.nn.initialise(lstm, "forget-bias", value=3.0)
    after = retrograde.spectrum(lstm, x).memory
    chart = retrograde.spectra.compare({"before": before, "after": after}).to_dict()
    rows = [row.split(",") for row in chart["layer"][0]["data"]["values"].splitlines()[1:]]
    shown = {(name, int(lag)): float(log2) for name, lag, log2 in rows}
    assert shown["after", 20] == pytest.approx(float(after.log2_state[20]), abs=1e-3)
    assert shown["before", 5] == pytest.approx(float(before.log2_state[5]), abs=1e-3)
    one = before.chart().to_dict()["layer"][0]["data"]["values"]
    assert f"one input,3,{round(float(before.log2_input[3]), 3)}" in one


def test_earlier_names_stay():
    assert retrograde.spectra.Horizons is retrograde.spectra.Memory
    assert retrograde.report.Horizon is retrograde.report.NeededLag
    spectrum = retrograde.spectrum(nn.LSTM(2, 3), draw(4, 2, 2).float())
    assert spectrum.horizons is spectrum.memory
