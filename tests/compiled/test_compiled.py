"""The compiled backend against the eager one, which the rest of the suite holds against torch."""

import pytest
import torch

import retrograde
from retrograde.cells.generations import TABLE
from retrograde.compiled import library as loading
from retrograde.errors import BackendError
from support.type_checks import unchecked

needs_library = pytest.mark.skipif(
    retrograde.backend() != "compiled", reason="the compiled backend was not built"
)

ELMAN = ("tanh", "relu", "sigmoid", "identity", "4*sigmoid-2", "2*sigmoid-1")
KINDS = [
    *(("LSTM", {"generation": row.name}) for row in TABLE if not row.gate_recurrence),
    *(("GRU", {"generation": name}) for name in ("gru-torch", "gru-2014")),
    *(("RNN", {"nonlinearity": name}) for name in ELMAN),
]
SIZES = ((5, 3, 2, 4), (7, 13, 5, 19), (1, 1, 1, 1))  # T, B, I, H: no multiple of anything


@pytest.fixture
def use(monkeypatch):
    """Chooses a backend by name, as the environment does; None takes the choice back."""

    def choose(name):
        if name is None:
            monkeypatch.delenv(loading.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(loading.VARIABLE, name)
        loading._found.cache_clear()
        loading.library.cache_clear()

    yield choose
    monkeypatch.undo()
    loading._found.cache_clear()
    loading.library.cache_clear()


def drawn(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everything(kind, options, dtype, sizes, change=lambda x: x, **more):
    """Outputs, states, activations, and the gradients of a loss on all of them."""
    T, B, inputs, H = sizes
    torch.manual_seed(0)
    module = getattr(retrograde.nn, kind)(inputs, H, **options, dtype=dtype, **more)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.3)
    count, layers = len(module.cells()[0].slots), len(module.cells())
    x = change(drawn(B, T, inputs, dtype=dtype, seed=1)).transpose(0, 1).requires_grad_()
    hx = [drawn(layers, B, H, dtype=dtype, seed=2 + n).requires_grad_() for n in range(count)]
    output, last, inside = module(x, tuple(hx) if count > 1 else hx[0], return_activations=True)
    results = [output, *(last if count > 1 else [last])]
    results += [layer[name] for layer in inside for name in sorted(layer)]
    loss = sum((r * drawn(*r.shape, dtype=dtype, seed=n)).sum() for n, r in enumerate(results))
    return [*results, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])]


@needs_library
@pytest.mark.parametrize("kind, options", KINDS, ids=lambda value: "-".join(value.values())
                         if isinstance(value, dict) else value)  # fmt: skip
def test_equals_the_eager_backend(kind, options, use):
    """States, activations and all gradients, relative to the largest number of each tensor."""
    # A few hundred sums in another order, and functions that differ in their last bit.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
        for sizes in SIZES:
            found = []
            for name in ("eager", "compiled"):
                use(name)
                with unchecked():
                    found.append(everything(kind, options, dtype, sizes, bidirectional=True))
            for eager, ours in zip(*found, strict=True):
                assert ours.shape == eager.shape
                largest = float(eager.detach().abs().max())
                torch.testing.assert_close(ours, eager, rtol=0, atol=tolerance * largest)


def test_the_environment_chooses(use):
    use("eager")
    assert retrograde.backend() == "eager"
    assert "RETROGRADE_BACKEND=eager asks for it" in retrograde.backend().note
    use("fast")
    with pytest.raises(BackendError, match="one of eager, compiled; got 'fast'"):
        retrograde.backend()
    use(None)
    assert retrograde.backend() in ("eager", "compiled")


def test_a_library_that_is_not_there_or_not_ours(use, tmp_path, monkeypatch):
    """Everything runs without it, and says how to have it; to ask for it is an error."""
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF and nothing more")
    for path, reason in ((tmp_path / "none.so", "was not built"), (foreign, "no library of this")):
        monkeypatch.setattr(loading, "PATH", path)
        use(None)
        backend = retrograde.backend()
        assert backend == "eager" and reason in backend.note and "pip install" in backend.note
        retrograde.nn.GRU(2, 3, generation="gru-2014")(torch.zeros(4, 1, 2))
        use("compiled")
        with pytest.raises(BackendError, match=reason):
            retrograde.backend()


@needs_library
def test_a_library_of_another_version(use, monkeypatch):
    monkeypatch.setattr(loading, "INTERFACE", 0)
    use(None)
    assert "another version" in retrograde.backend().note
