"""Tacotron 2's decoder of speechbrain, as it is: dropout on h between steps, c handed on itself."""

import sys
import types

import pytest
import torch

pytest.importorskip("hyperpyyaml", reason="run `make test-integrations` (speechbrain)")
try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):
    # The torchaudio of the package index is built for CUDA and does not load beside a torch for
    # CPUs. speechbrain wants its name when it is imported, and no function of it in the decoder.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    sys.modules["torchaudio"].__version__ = "2.11.0"
Tacotron2 = pytest.importorskip(
    "speechbrain.lobes.models.Tacotron2", reason="run `make test-integrations` (speechbrain)"
)

from plain_loop import EXACT, FLOAT32, agrees, plain_loop, same_training  # noqa: E402

import retrograde  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

CHANNELS, FRAMES, LETTERS, B = 3, 10, 6, 2
LAYERS = ("attention_rnn", "decoder_rnn")


def decoder(dropout=0.3):
    torch.manual_seed(0)
    return Tacotron2.Decoder(
        n_mel_channels=CHANNELS,
        encoder_embedding_dim=4,
        attention_dim=4,
        attention_location_n_filters=2,
        attention_location_kernel_size=3,
        attention_rnn_dim=5,
        decoder_rnn_dim=6,
        prenet_dim=4,
        p_attention_dropout=dropout,
        p_decoder_dropout=dropout,
    )


def inputs(dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    memory = torch.randn(B, LETTERS, 4, generator=random, dtype=dtype)
    frames = torch.randn(B, CHANNELS, FRAMES, generator=random, dtype=dtype)
    return memory, frames, torch.tensor([LETTERS, LETTERS - 2])


def loss(model, memory, frames, lengths):
    """Theirs, but for the postnet: the spectrogram, and the gate that says where it ends."""
    spectrogram, gate, _ = model(memory, frames, lengths)
    ends = torch.zeros_like(gate)
    ends[:, -1] = 1
    return torch.nn.functional.mse_loss(
        spectrogram, frames
    ) + torch.nn.functional.binary_cross_entropy_with_logits(gate, ends)


@pytest.mark.parametrize("dropout", [0.3, 0.0])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_lag_is_that_of_a_plain_loop(layer, dropout):
    model, data = decoder(dropout).double(), inputs()

    def run():
        torch.manual_seed(3)  # for the dropout, also that of their prenet, which is always on
        return loss(model, *data)

    with retrograde.record(model) as recording:
        run().backward()
    assert set(recording) == set(LAYERS)
    flow = retrograde.decompose(recording[layer])
    assert flow.steps == FRAMES
    agrees(flow, plain_loop(getattr(model, layer), run))


def test_in_its_own_data_type():
    model, data = decoder(), inputs(torch.float32)
    with retrograde.record(model) as recording:
        loss(model, *data).backward()
    for layer in LAYERS:
        assert retrograde.decompose(recording[layer]).residual < FLOAT32


def test_the_training_is_the_same_to_the_last_bit():
    data = inputs(torch.float32)
    same_training(decoder, lambda model: loss(model, *data))


def test_no_lag_is_told_where_none_is():
    """A decoder whose states are cut between the steps: everything is at lag 0."""
    model, data = decoder().double(), inputs()
    decode = model.decode

    def cut(x, *state):
        *states, weights, cumulated, context, memory, processed, mask = state
        states = [part.detach() for part in states]
        return decode(x, *states, weights, cumulated, context, memory, processed, mask)

    model.decode = cut
    with retrograde.record(model) as recording:
        loss(model, *data).backward()
    for layer in LAYERS:
        flow = retrograde.decompose(recording[layer])
        assert flow.residual < EXACT and flow.reach == 0
