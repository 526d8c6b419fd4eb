"""stanza's LSTMs, as they are.

`PackedLSTM` and `HighwayLSTM` with recurrent dropout keep the states of a shrinking batch sample by
sample in lists and join them again at every step; the parser's stack pops back to earlier states.
"""

import pytest
import torch
from torch import nn

packed_lstm = pytest.importorskip(
    "stanza.models.common.packed_lstm", reason="run `make test-integrations` (stanza)"
)

from plain_loop import agrees, agrees_or_is_said_to_end, plain_loop, same_training  # noqa: E402
from stanza.models.common.hlstm import HighwayLSTM  # noqa: E402
from stanza.models.common.seq2seq_modules import LSTMAttention  # noqa: E402
from stanza.models.constituency.lstm_tree_stack import LSTMTreeStack  # noqa: E402

import retrograde  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

LENGTHS, INPUTS, H = [8, 6, 6, 2], 3, 5


def sentences(dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    return torch.randn(max(LENGTHS), len(LENGTHS), INPUTS, generator=random, dtype=dtype)


def highway(bidirectional=True, dropout=0.3, layers=2):
    torch.manual_seed(0)
    return HighwayLSTM(
        INPUTS, H, layers, bidirectional=bidirectional, dropout=0.2, rec_dropout=dropout, pad=True
    )


def loss(model, words):
    output, (h, c) = model(words, LENGTHS)
    return output.square().sum() + (h * c).sum()


def recorded(model, run):
    with retrograde.record(model) as recording:
        run().backward()
    return {name: retrograde.decompose(recording[name]) for name in recording}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_lag_of_recurrent_dropout_is_that_of_a_plain_loop(bidirectional, training):
    model, words = highway(bidirectional).double().train(training), sentences()

    def run():
        torch.manual_seed(3)
        return loss(model, words)

    flows = recorded(model, run)
    assert len(flows) == 2 * (1 + bidirectional)
    for name, flow in flows.items():
        assert flow.steps == max(LENGTHS)
        agrees(flow, plain_loop(model.get_submodule(name), run))


def test_the_same_in_torchs_own_layers():
    """Without dropout inside they take nn.LSTM; in eval mode both do the same computation."""
    words, found = sentences(), []
    for dropout in (0.0, 0.3):
        model = highway(False, dropout).double().eval()
        for number, layer in enumerate(model.lstm):
            cell = layer.lstm if dropout == 0 else layer.lstm.cells[0]
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for weight in cell.parameters():
                    weight.copy_(torch.randn(weight.shape, generator=generator) / 3)
        flows = recorded(model, lambda model=model: loss(model, words))
        found.append([(f.steps, f.reach, f.by_lag(bins="every").share) for f in flows.values()])
    for layers, cells in zip(*found, strict=True):
        assert layers[:2] == cells[:2]
        torch.testing.assert_close(layers[2], cells[2], rtol=1e-9, atol=1e-12)


def test_every_lag_of_their_decoder_is_that_of_a_plain_loop():
    torch.manual_seed(0)
    model = LSTMAttention(INPUTS, H, batch_first=False).double()
    words, context = sentences(), torch.randn(len(LENGTHS), 4, H).double()
    start = (context[:, 0], context[:, 1])

    def run():
        output, (h, c) = model(words, start, context)
        return output.square().sum() + (h * c).sum()

    (flow,) = recorded(model, run).values()
    assert flow.steps == max(LENGTHS)
    agrees(flow, plain_loop(model.lstm_cell, run))


def stack_of_trees(layers=1):
    torch.manual_seed(0)
    return LSTMTreeStack(INPUTS, H, layers, 0.0, True, nn.Identity(), None)


# Each step pops so many nodes of each of the three stacks, and then pushes one.
POPS = [(0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 2), (1, 0, 0), (0, 1, 0), (2, 1, 0)]


def parse(model, words, pops=POPS):
    """What the shift-reduce parser does to its stacks, a batch of three sentences side by side."""
    stacks, total = [model.initial_state()] * 3, 0.0
    for x, popped in zip(words, pops, strict=False):
        stacks = [_popped(stack, count) for stack, count in zip(stacks, popped, strict=True)]
        stacks = model.push_states(stacks, [None] * 3, x[:3].unsqueeze(0))
        total = total + torch.stack([model.output(stack) for stack in stacks]).square().sum()
    return total


def _popped(stack, count):
    for _ in range(count):
        stack = stack.pop()
    return stack


@pytest.mark.parametrize("layers", [1, 2])
def test_every_lag_of_stacks_that_only_grow_is_that_of_a_plain_loop(layers):
    model, words = stack_of_trees(layers).double(), sentences()

    def run():
        return parse(model, words, [(0, 0, 0)] * len(words))

    (flow,) = recorded(model, run).values()
    agrees(flow, plain_loop(model.lstm, run))


@pytest.mark.parametrize("layers", [1, 2])
def test_stacks_that_pop_back_to_earlier_states(layers):
    """Several calls go on from one state, and one call from the states of several."""
    model, words = stack_of_trees(layers).double(), sentences()

    def run():
        return parse(model, words)

    (flow,) = recorded(model, run).values()
    agrees_or_is_said_to_end(flow, plain_loop(model.lstm, run))


@pytest.mark.parametrize("dropout", [0.3, 0.0])
def test_the_training_is_the_same_to_the_last_bit(dropout):
    words = sentences(torch.float32)
    same_training(lambda: highway(dropout=dropout, layers=1), lambda model: loss(model, words))


def test_the_training_of_stacks_is_the_same_to_the_last_bit():
    words = sentences(torch.float32)
    same_training(stack_of_trees, lambda model: parse(model, words))
