"""supar's variational LSTM, as it is: a batch that shrinks or grows, one mask on h at all steps."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

lstm = pytest.importorskip("supar.modules.lstm", reason="run `make test-integrations` (supar)")

from plain_loop import agrees, agrees_or_is_said_to_end, plain_loop, same_training  # noqa: E402

import retrograde  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

LENGTHS, INPUTS, H = (9, 7, 7, 2), 3, 5


def model(**options):
    torch.manual_seed(0)
    return lstm.VariationalLSTM(INPUTS, H, num_layers=2, **{"dropout": 0.3} | options)


def sentences(dtype=torch.float64, lengths=LENGTHS):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(max(lengths), len(lengths), INPUTS, generator=random, dtype=dtype)
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def loss(model, words, hx=None):
    output, (h, c) = model(words, hx)
    return output.data.square().sum() + (h * c).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, (2, 9, 7, 7), (6, 6)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_lag_is_that_of_a_plain_loop(bidirectional, lengths, training):
    lstms = model(bidirectional=bidirectional).double().train(training)
    words = sentences(lengths=lengths)

    def run():
        torch.manual_seed(3)
        return loss(lstms, words)

    with retrograde.record(lstms) as recording:
        run().backward()
    assert len(recording) == 2 * (1 + bidirectional)
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.steps == max(lengths)
        agrees(flow, plain_loop(lstms.get_submodule(name), run))


def test_a_state_that_is_handed_on():
    """The second call goes on where the first one ended, each sentence at its own length.

    Its first state is gathered from the last steps of the sentences, which lie in several calls.
    """
    lstms, words = model(bidirectional=True).double(), sentences()
    longest, lengths = max(LENGTHS), torch.tensor(LENGTHS)

    def run():
        torch.manual_seed(3)
        output, hx = lstms(words)
        return output.data.square().sum() + loss(lstms, words, hx)

    with retrograde.record(lstms) as recording:
        run().backward()
    for name in recording:
        late = longest - lengths if name.startswith("b") else torch.zeros_like(lengths)

        def offsets(call, batch, late=late):
            again, step = divmod(call, longest)
            return (again * lengths + step - late)[:batch]

        agrees_or_is_said_to_end(
            retrograde.decompose(recording[name]),
            plain_loop(lstms.get_submodule(name), run, offsets),
        )


def test_the_training_is_the_same_to_the_last_bit():
    words = sentences(torch.float32)
    same_training(lambda: model(bidirectional=True), lambda lstms: loss(lstms, words))
