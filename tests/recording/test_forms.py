"""Every way torch runs a recurrence: exact in each, and the same where two mean the same."""

import contextlib
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import retrograde
from support.forms import (
    CELLS,
    EXACT,
    INPUTS,
    KINDS,
    RESETS,
    B,
    D,
    H,
    T,
    exact,
    parts_of,
    recorded,
    sequence,
)
from support.type_checks import unchecked

CLOSE = {"atol": 1e-9, "rtol": 1e-9}  # float64; sums of parts that nearly cancel lose some digits


def any_loss(output, state, seed=9):
    """Uses every step of the output and every part of the last state, each with other weights."""
    tensors = [output, *parts_of(state)]
    return sum((t * sequence(*t.shape, seed=seed + i)).sum() for i, t in enumerate(tensors))


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    if options["num_layers"] > 1:
        options["dropout"] = draw(st.sampled_from([0.0, 0.4]))
    if kind == "LSTM" and draw(st.booleans()):
        options["proj_size"] = 3
    torch.manual_seed(0)
    return KINDS[kind](INPUTS, H, **options, dtype=D)


def initial_state(layer):
    rows = layer.num_layers * (1 + layer.bidirectional)
    h = sequence(rows, B, getattr(layer, "proj_size", 0) or H, seed=3)
    return (h, sequence(rows, B, H, seed=4)) if isinstance(layer, nn.LSTM) else h


FEW = settings(max_examples=25)  # each is a few passes


@FEW
@given(layer=layers(), given_state=st.booleans())
def test_any_layer(layer, given_state):
    x = sequence(B, T, INPUTS) if layer.batch_first else sequence(T, B, INPUTS)
    hx = initial_state(layer) if given_state else None
    with unchecked():
        flow = exact(layer, lambda: any_loss(*layer(x, hx)))
    assert set(flow.parameters) == {name for name, _ in layer.named_parameters()}
    assert flow.recorded.x.shape == (T, B, INPUTS)


@FEW
@given(layer=layers(), lengths=st.lists(st.integers(1, T), min_size=B, max_size=B))
def test_any_packed_layer(layer, lengths):
    lengths[1] = T
    x = sequence(B, T, INPUTS) if layer.batch_first else sequence(T, B, INPUTS)

    def run():
        packed = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
        output, state = layer(packed, initial_state(layer))
        return any_loss(pad_packed_sequence(output, layer.batch_first)[0], state)

    with unchecked():
        exact(layer, run)


@FEW
@given(layer=layers(), steps=st.integers(1, T))
def test_a_packed_batch_is_its_samples_one_by_one(layer, steps):
    """Parts by lag of a ragged batch are the sums of those of its samples, each on its own."""
    layer.dropout, layer.batch_first = 0.0, False
    x, lengths = sequence(T, 2, INPUTS), [T, steps]

    def packed():
        output, _ = layer(pack_padded_sequence(x, lengths))
        return pad_packed_sequence(output)[0].square().sum()

    def single(i):
        return exact(layer, lambda: layer(x[: lengths[i], i : i + 1])[0].square().sum())

    with unchecked():
        whole, alone = exact(layer, packed), [single(0), single(1)]
    for name in whole.parameters:
        parts = whole.by_lag(name, bins="every").parts()
        expected = torch.zeros_like(parts)
        for flow in alone:
            own = flow.by_lag(name, bins="every").parts()
            expected[: len(own)] += own
        torch.testing.assert_close(parts, expected, **CLOSE)


def same_map(one, other, name, name_of_other):
    torch.testing.assert_close(one.by_time(name).norm, other.by_time(name_of_other).norm, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_lengths_are_a_plain_batch(kind):
    layer, x = KINDS[kind](INPUTS, H, 2, dtype=D), sequence(T, B, INPUTS)
    plain = exact(layer, lambda: layer(x)[0].square().sum())
    packed = exact(layer, lambda: layer(pack_padded_sequence(x, [T] * B))[0].data.square().sum())
    for name in plain.parameters:
        same_map(plain, packed, name, name)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_steps_that_the_loss_leaves_out_count_for_nothing(kind):
    layer, x = KINDS[kind](INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    lengths = [T, 4, 2]
    mask = (torch.arange(T).unsqueeze(1) < torch.tensor(lengths)).unsqueeze(-1)
    padded = exact(layer, lambda: (layer(x)[0] * mask).square().sum())
    packed = exact(layer, lambda: layer(pack_padded_sequence(x, lengths))[0].data.square().sum())
    for name in padded.parameters:
        same_map(padded, packed, name, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bidirectional_layer_of_which_one_direction_is_used_is_that_direction(kind):
    both = KINDS[kind](INPUTS, H, bidirectional=True, dtype=D)
    one, x = KINDS[kind](INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    for end, used, reads in (("", slice(0, H), x), ("_reverse", slice(H, 2 * H), x.flip(0))):
        names = {f"{name}": getattr(both, name + end) for name, _ in one.named_parameters()}
        one.load_state_dict(names)
        flow = exact(both, lambda used=used: both(x)[0][..., used].square().sum())
        plain = exact(one, lambda reads=reads: one(reads)[0].square().sum())
        for name in plain.parameters:
            same_map(flow, plain, name + end, name)
        assert flow.reach == plain.reach


class Loop(nn.Module):
    """A cell in the user's own loop; `between` does something to the state before each step."""

    def __init__(self, kind, between=lambda step, state: state):
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.between = CELLS[kind](INPUTS, H, dtype=D), between

    def forward(self, x, weights=None):
        """Outputs of all steps; with `weights`, each step has its own."""
        state, outputs = None, []
        for step, x_k in enumerate(x):
            if state is not None:
                parts = tuple(self.between(step, part) for part in parts_of(state))
                state = parts if len(parts) > 1 else parts[0]
            if weights is None:
                state = self.cell(x_k, state)
            else:
                state = torch.func.functional_call(self.cell, weights[step], (x_k, state))
            outputs.append(parts_of(state)[0])
        return torch.stack(outputs)


def contributions(loop, x, loss_at):
    """||C[t,k]|| by autograd, with a copy of the weights at every step."""
    own = [
        {n: p.detach().clone().requires_grad_() for n, p in loop.cell.named_parameters()} for _ in x
    ]
    outputs = loop(x, own)
    norms = {name: torch.zeros(len(x), len(x), dtype=D) for name in own[0]}
    for t in range(len(x)):
        for k in range(len(x)):
            wanted = list(own[k].values())
            gradients = torch.autograd.grad(
                loss_at(outputs, t), wanted, retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(own[k], gradients, strict=True):
                norms[name][t, k] = gradient.norm()
    return norms


def at_every_step(outputs, t):
    return outputs[t].square().sum()


BETWEEN = {
    "carried": lambda step, part: part,
    "through an operation": lambda step, part: part + 0.0,
    "reset": lambda step, part: part * RESETS[step],
    "replaced": lambda step, part: torch.where(RESETS[step] > 0, part, torch.full_like(part, 0.3)),
    "some units dropped": lambda step, part: part * (torch.arange(H) != step),
    "detached": lambda step, part: part.detach() if step in (2, 5) else part,
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("between", BETWEEN)
def test_a_cell_in_a_loop_of_the_users(kind, between):
    loop, x = Loop(kind, BETWEEN[between]), sequence(T, B, INPUTS)
    flow = exact(loop, lambda: loop(x).square().sum())
    for name, norms in contributions(loop, x, at_every_step).items():
        torch.testing.assert_close(flow.by_time(name).norm, norms, **CLOSE)
    told = {"detached": "detached before steps 2, 5", "reset": "replaced before steps 2, 4"}
    assert told.get(between, "") in " ".join(flow.recorded.notes)
    assert bool(flow.recorded.notes) == (between not in ("carried", "through an operation"))


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_in_a_loop_is_the_layer(kind):
    loop, x = Loop(kind), sequence(T, B, INPUTS)
    layer = KINDS[kind](INPUTS, H, dtype=D)
    layer.load_state_dict({f"{n}_l0": p for n, p in loop.cell.state_dict().items()})
    of_loop = exact(loop, lambda: loop(x)[3:].square().sum())
    of_layer = exact(layer, lambda: layer(x)[0][3:].square().sum())
    for name in of_loop.parameters:
        same_map(of_loop, of_layer, name, f"{name}_l0")
    assert (of_loop.reach, of_loop.half_life) == pytest.approx((of_layer.reach, of_layer.half_life))
    crossings = [flow.by_crossing().share for flow in (of_loop, of_layer)]
    torch.testing.assert_close(*crossings, atol=1e-9, rtol=0)


def test_only_h_is_detached():
    """h-detach: nothing comes back through h, the carousel goes on."""
    x = sequence(T, B, INPUTS)
    cell = nn.LSTMCell(INPUTS, H, dtype=D)

    def run():
        state, total = None, 0.0
        for x_k in x:
            state = cell(x_k, state and (state[0].detach(), state[1]))
            total = total + state[0].square().sum()
        return total

    flow = exact(cell, run)
    alone = flow.by_crossing(max_crossings=1).share
    assert float(alone[0].sum()) == pytest.approx(1) and float(alone[1].abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_layer_called_step_by_step(kind, reset):
    layer, x = KINDS[kind](INPUTS, H, 2, dtype=D), sequence(T, B, INPUTS)

    def stepwise():
        state, total = None, 0.0
        for step in range(T):
            if state is not None and reset:
                parts = tuple(part * RESETS[step] for part in parts_of(state))
                state = parts if len(parts) > 1 else parts[0]
            output, state = layer(x[step : step + 1], state)
            total = total + output.square().sum()
        return total

    flow = exact(layer, stepwise)
    assert flow.steps == T and flow.recorded.x.shape == x.shape
    if reset:
        assert float(flow.by_time().norm[2, 1]) > 0  # other samples go on
        assert list(flow.recorded.boundaries) == [2, 4]
    else:
        at_once = exact(layer, lambda: layer(x)[0].square().sum())
        for name in flow.parameters:
            same_map(flow, at_once, name, name)


def test_the_state_taken_from_the_output():
    """output[:, -1] instead of h_n: the same values, another tensor."""
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def run():
        first, _ = layer(x[:4])
        second, _ = layer(x[4:], first[-1:])
        return first.square().sum() + second.square().sum()

    flow = exact(layer, run)
    at_once = exact(layer, lambda: layer(x)[0].square().sum())
    for name in flow.parameters:
        same_map(flow, at_once, name, name)


def test_a_state_that_is_computed_anew_is_followed_to_there():
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    bridge = nn.Linear(H, H, dtype=D)

    def run():
        first, state = layer(x[:4])
        second, _ = layer(x[4:], bridge(state).tanh())
        return first.square().sum() + second.square().sum()

    flow = exact(layer, run)
    assert "before step 4 is computed from the one before" in flow.recorded.notes[0]
    assert float(flow.by_time().norm[4, 3]) == 0


def test_truncated_back_propagation_in_one_pass():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def run():
        first, state = layer(x[:4])
        second, _ = layer(x[4:], tuple(part.detach() for part in state))
        return first.square().sum() + second.square().sum()

    flow = exact(layer, run)
    assert flow.recorded.notes == (
        "the state was detached before step 4: nothing comes back from there",
    )
    assert float(flow.by_time().norm[4:, :4].max()) == 0
    assert float(flow.by_time().norm[5, 4]) > 0


def test_truncated_back_propagation_in_several_passes():
    layer, x, state = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS), None
    with retrograde.record(layer) as recording:
        for chunk in x.split(3):
            output, state = layer(chunk, state)
            output.square().sum().backward()
            state = tuple(part.detach() for part in state)
    first, second = recording.passes
    assert retrograde.decompose(first).residual < EXACT
    flow = retrograde.decompose(second)
    assert flow.residual < EXACT and flow.steps == 3
    assert "carried in from a call outside this backward pass" in flow.recorded.notes[0]
    with pytest.raises(retrograde.RetrogradeError, match=r"2 backward .*recording.passes\[0\]"):
        retrograde.decompose(recording)


def test_gradient_accumulation_and_retained_graphs_are_exact_for_each_pass():
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    with retrograde.record(layer) as recording:
        loss = layer(x)[0].square().sum()
        loss.backward(retain_graph=True)
        loss.backward(torch.tensor(3.0, dtype=D))
        layer(x + 1)[0].sum().backward()
    flows = [retrograde.decompose(one) for one in recording.passes]
    assert [bool(flow.residual < EXACT) for flow in flows] == [True] * 3
    weight = "weight_hh_l0"
    total = sum(flow.recorded.gradients[weight] for flow in flows)
    torch.testing.assert_close(total, layer.weight_hh_l0.grad)
    torch.testing.assert_close(3 * flows[0].by_time(weight).norm, flows[1].by_time(weight).norm)


def test_one_layer_used_twice_on_sequences_of_different_length():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def loss(reads):
        return layer(reads)[0].square().sum()

    both = exact(layer, lambda: loss(x) + loss(x[:4] + 1))
    parts = [exact(layer, lambda: loss(x)), exact(layer, lambda: loss(x[:4] + 1))]
    assert both.recorded.x.shape == (T, 2 * B, INPUTS)
    for name in both.parameters:
        expected = parts[0].by_lag(name, bins="every").parts()
        expected[:4] += parts[1].by_lag(name, bins="every").parts()
        together = both.by_lag(name, bins="every").parts()
        torch.testing.assert_close(together, expected, **CLOSE)


class Encoder2Decoder(nn.Module):
    """A state passes from one layer to another, and the decoder reads its own output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.LSTM(INPUTS, H, dtype=D)
        self.decoder, self.head = nn.LSTMCell(1, H, dtype=D), nn.Linear(H, 1, dtype=D)

    def forward(self, x):
        _, (h, c) = self.encoder(x)
        state, y, ys = (h[0], c[0]), x.new_zeros(x.shape[1], 1), []
        for _ in range(4):
            state = self.decoder(y, state)
            y = self.head(state[0])
            ys.append(y)
        return torch.stack(ys)


def test_an_encoder_and_a_decoder():
    """What the decoder gives to the encoder's last state enters there, at its last step."""
    model, x = Encoder2Decoder(), sequence(T, B, INPUTS)
    recording = recorded(model, lambda: model(x).square().sum())
    encoder, decoder = (retrograde.decompose(recording[n]) for n in ("encoder", "decoder"))
    assert encoder.residual < EXACT and decoder.residual < EXACT
    assert encoder.entries.steps.tolist() == [T - 1]
    assert "the state passes on to 'decoder'" in encoder.recorded.notes[0]
    assert decoder.entries.steps.tolist() == [0, 1, 2, 3]  # also through what it reads of itself


@pytest.mark.parametrize("kind", CELLS)
def test_training_a_loop_is_the_same_to_the_last_bit_when_it_is_recorded(kind):
    """The states of a loop are summed from several gradients; nothing changes their order."""
    results = []
    for watched in (False, True):
        loop, x = Loop(kind, BETWEEN["reset"]).float(), sequence(T, B, INPUTS).float()
        loop.between = lambda step, part: part * RESETS[step].float()
        head = nn.Linear(H, 1)
        with torch.no_grad():
            head.weight.fill_(0.1)
            head.bias.zero_()
        optimiser = torch.optim.Adam([*loop.parameters(), *head.parameters()], lr=0.1)
        for _ in range(20):
            optimiser.zero_grad()
            with retrograde.record(loop) if watched else contextlib.nullcontext():
                outputs = loop(x)
                (head(outputs).square().mean() + outputs[2:].abs().mean()).backward()
            optimiser.step()
        results.append([p.detach().clone() for p in loop.parameters()])
    assert all(map(torch.equal, *results))


def test_a_stack_of_cells_in_one_loop():
    torch.manual_seed(0)
    x = sequence(T, B, INPUTS)
    below, above = nn.LSTMCell(INPUTS, H, dtype=D), nn.GRUCell(H, H, dtype=D)
    model = nn.ModuleList([below, above])

    def run():
        state, h, total = None, None, 0.0
        for x_k in x:
            state = below(x_k, state)
            h = above(state[0], h)
            total = total + h.square().sum()
        return total

    recording = recorded(model, run)
    for layer in recording.values():
        flow = retrograde.decompose(layer)
        assert flow.residual < EXACT and flow.steps == T and not layer.notes


def test_a_state_that_two_calls_go_on_from():
    cell, x = nn.GRUCell(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def run():
        start = cell(x[0])
        one, other = cell(x[1], start), cell(x[2], start)
        return (cell(x[3], one) * other).sum()

    flow = exact(cell, run)
    assert flow.recorded.notes == (
        "a run starts at step 0 from a state that another call continues or reads as its input: "
        "what comes back to that state counts as given by the loss, and lags end there",
        "2 separate runs of the layer lie side by side as samples: lags do not cross from one to "
        "another",
    )


@pytest.mark.parametrize("kind", CELLS)
def test_one_unit_and_one_sample_whose_state_is_the_loss(kind):
    cell = CELLS[kind](INPUTS, 1, dtype=D)
    x = sequence(2, 1, INPUTS)
    with retrograde.record(cell) as recording:
        parts_of(cell(x[1], cell(x[0])))[0].backward(torch.full((1, 1), 3.0, dtype=D))
    assert retrograde.decompose(recording).residual < EXACT


def orthogonal(layer):
    return nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")


def weight_norm(layer):
    return nn.utils.parametrizations.weight_norm(layer, "weight_ih_l0")


def spectral_norm(layer):
    return nn.utils.parametrizations.spectral_norm(layer, "weight_hh_l0")


@pytest.mark.parametrize("parametrized", [orthogonal, weight_norm, spectral_norm])
@pytest.mark.parametrize("package", [nn, retrograde.nn])
def test_parametrized_weights(parametrized, package):
    torch.manual_seed(0)
    layer = parametrized(package.RNN(INPUTS, H, dtype=D))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    plain = exact(layer.eval(), lambda: layer(sequence(T, B, INPUTS))[0].square().sum())
    assert set(plain.parameters) >= {"weight_ih_l0", "weight_hh_l0"}
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_parametrized_cell_in_a_loop():
    loop, x = Loop("LSTM"), sequence(T, B, INPUTS)
    nn.utils.parametrizations.weight_norm(loop.cell, "weight_hh")
    assert exact(loop, lambda: loop(x).square().sum()).steps == T


def test_a_penalty_on_the_weights_is_told_apart():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    plain = exact(layer, lambda: layer(x)[0].square().sum())
    flow = exact(layer, lambda: layer(x)[0].square().sum() + layer.weight_hh_l0.square().sum())
    same_map(flow, plain, "weight_hh_l0", "weight_hh_l0")
    assert "weight_hh_l0 does not come through the layer" in flow.recorded.notes[0]


LOW = 0.1  # bfloat16 keeps 8 bits: a sum over six steps is known to a few per cent


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_autocast_is_taken_apart_in_float32(kind):
    torch.manual_seed(0)
    layer, x = kind(INPUTS, H), sequence(T, B, INPUTS).float()

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)[0].float().square().sum()

    if kind is nn.LSTM and "ONEDNN_MAX_CPU_ISA" in os.environ:
        try:
            run()
        except RuntimeError as error:
            pytest.skip(f"torch's LSTM needs more than ONEDNN_MAX_CPU_ISA allows: {error}")
    flow = retrograde.decompose(recorded(layer, run))
    assert flow.unrolled.states.dtype == torch.float32 and 1e-6 < flow.residual < LOW


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_low_precision_are_taken_apart_in_float32(dtype):
    torch.manual_seed(0)
    layer, x = nn.GRU(INPUTS, H, dtype=dtype), sequence(T, B, INPUTS).to(dtype)
    flow = retrograde.decompose(recorded(layer, lambda: layer(x)[0].float().square().sum()))
    assert flow.unrolled.states.dtype == torch.float32 and flow.residual < LOW


class Subclass(nn.LSTM):
    """Has arguments of its own, packs and scales its input, and then is the layer."""

    def forward(self, sequences, state=None, lengths=None):
        packed = pack_padded_sequence(2 * sequences, lengths, enforce_sorted=False)
        output, state = super().forward(packed, state)
        return {"output": pad_packed_sequence(output)[0], "state": state}


class Zoneout(nn.GRUCell):
    def forward(self, input, h):
        return 0.3 * h + 0.7 * super().forward(input, hx=h)


class Handwritten(nn.LSTM):
    def forward(self, x):
        return (x @ self.weight_ih_l0.T).tanh(), None


def test_a_subclass_is_seen_by_what_it_hands_to_the_layer_it_is():
    layer, plain, x = Subclass(INPUTS, H, dtype=D), nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, 2)
    forward = nn.LSTM.forward
    plain.load_state_dict(layer.state_dict())
    lengths = [T, 2, 4]
    flow = exact(layer, lambda: layer(x, lengths=lengths)["output"].square().sum())
    same = exact(plain, lambda: plain(pack(2 * x, lengths))[0].data.square().sum())
    for name in flow.parameters:
        same_map(flow, same, name, name)
    assert nn.LSTM.forward is forward


def pack(x, lengths):
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def test_a_subclass_that_does_more_with_its_state():
    cell, x, h = Zoneout(INPUTS, H, dtype=D), sequence(T, B, INPUTS), sequence(B, H, seed=5)

    def run():
        state = h
        for x_k in x:
            state = cell(x_k, state)
        return state.square().sum()

    exact(cell, run)


def test_a_subclass_that_is_no_such_layer_is_refused():
    layer = Handwritten(INPUTS, H, dtype=D)
    with pytest.raises(retrograde.RetrogradeError, match="Handwritten has a forward of its own"):
        exact(layer, lambda: layer(sequence(T, B, INPUTS))[0].sum())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers(reentrant):
    layer = nn.LSTM(INPUTS, H, dtype=D)
    x = sequence(T, B, INPUTS).requires_grad_()

    def run():
        output = torch.utils.checkpoint.checkpoint(
            lambda reads: layer(reads)[0], x, use_reentrant=reentrant
        )
        return output.square().sum()

    exact(layer, run)


@pytest.mark.parametrize("options", [{"num_layers": 2, "dropout": 0.3}, {"bidirectional": True}])
def test_our_modules(options):
    torch.manual_seed(0)
    layer = retrograde.nn.LSTM(INPUTS, H, generation="peephole", dtype=D, **options)
    x = sequence(T, B, INPUTS)
    exact(layer, lambda: any_loss(*layer(x)))
    used = recorded(layer, lambda: layer(x, return_activations=True)[2][0]["forget"].sum())
    with pytest.raises(retrograde.RetrogradeError, match="'LSTM': the loss uses what return_act"):
        retrograde.decompose(used)


def test_masks_that_cannot_be_drawn_again_are_refused(monkeypatch):
    layer, x = nn.LSTM(INPUTS, H, 2, dropout=0.5, dtype=D), sequence(T, B, INPUTS)
    recording = recorded(layer, lambda: layer(x)[0].square().sum())
    monkeypatch.setattr(torch, "dropout", lambda ones, p, train: ones)
    with pytest.raises(retrograde.RetrogradeError, match=r"'LSTM': its dropout=0.5 .*model.eval"):
        retrograde.decompose(recording)
