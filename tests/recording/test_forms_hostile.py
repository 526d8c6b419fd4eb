"""What users do around a layer that could mislead a recording: exact, or refused by name."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde
from support.forms import EXACT, INPUTS, B, D, H, T, exact, parts_of, recorded, sequence


def refused(model, run, sentence):
    with pytest.raises(retrograde.RetrogradeError, match=sentence):
        retrograde.decompose(recorded(model, run))


IN_PLACE = {
    "relu": lambda output: nn.functional.relu_(output),
    "a part": lambda output: output[..., 1:].mul_(0.5),
    "dropout": lambda output: nn.functional.dropout(output, 0.5, inplace=True),
}


@pytest.mark.parametrize("operation", IN_PLACE)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_an_output_that_is_a_view_is_changed_in_place(operation, options):
    """With batch_first the output is a view, and gets another node then."""
    layer, x = nn.LSTM(INPUTS, H, batch_first=True, dtype=D, **options), sequence(B, T, INPUTS)

    def run():
        output, (h_n, _) = layer(x)
        IN_PLACE[operation](output)
        return output.square().sum() + h_n.sum()

    exact(layer, run)


def test_results_of_an_unbatched_call_are_changed_in_place():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, INPUTS)

    def run():
        output, (h_n, c_n) = layer(x)
        return output.mul_(2).sum() + h_n.mul_(3).sum() + c_n.sum()

    exact(layer, run)


def test_packed_results_are_changed_in_place():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def run():
        output, (h_n, _) = layer(pack_padded_sequence(x, [3, 6, 2], enforce_sorted=False))
        return nn.functional.relu_(output.data).sum() + h_n.mul_(2).sum()

    exact(layer, run)


def test_an_unbatched_layer_called_step_by_step():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, INPUTS)

    def run():
        state, total = None, 0.0
        for step in range(T):
            output, state = layer(x[step : step + 1], state)
            total = total + output.square().sum()
        return total

    flow = exact(layer, run)
    assert flow.steps == T and not flow.recorded.notes


def loop(cell, between):
    """A loop in which `between` makes the next state of the one before."""

    def run():
        state, total = None, 0.0
        for x_k in sequence(4, B, INPUTS):
            state = cell(x_k, None if state is None else between(state))
            total = total + parts_of(state)[0].square().sum()
        return total

    return run


@pytest.mark.parametrize(
    "between",
    [
        lambda state: (state[1], state[0]),
        lambda state: (state[0], state[0]),
        lambda state: (state[0] * 1.0,) * 2,
    ],
    ids=["swapped", "h twice", "h twice through an operation"],
)
def test_one_part_of_a_state_is_given_for_another(between):
    cell = nn.LSTMCell(INPUTS, H, dtype=D)
    exact(cell, loop(cell, between))


def test_a_tensor_that_holds_the_states_of_several_cells():
    """Each goes on from its own part of it, with lags across all steps."""
    cells = nn.ModuleList([nn.GRUCell(width, H, dtype=D) for width in (INPUTS, H)])

    def run():
        states, total = sequence(2, B, H), 0.0
        for step in range(T):
            h, new = sequence(T, B, INPUTS)[step], []
            for cell, state in zip(cells, states, strict=True):
                h = cell(h, state)
                new.append(h)
            states = torch.stack(new) * (step != 3)
            total = total + h.square().sum()
        return total

    for layer in recorded(cells, run).values():
        flow = retrograde.decompose(layer)
        assert flow.residual < EXACT and flow.steps == T
        assert layer.notes == (
            "parts of the state were replaced before step 4: nothing comes back to them",
        )


def test_samples_that_weigh_little_and_share_a_state():
    """Sample 1 goes on from the state of sample 0, and nearly nothing comes back from it."""
    cell, x = nn.GRUCell(INPUTS, H, dtype=D), sequence(2, B, INPUTS)
    weight = torch.tensor([[1], [1e-4], [1]], dtype=D)

    def run():
        first = cell(x[0])
        second = cell(x[1], first[torch.tensor([0, 0, 2])])
        return first[[0, 2]].sum() + (second * weight).square().sum()

    exact(cell, run)


def clip(gradient):
    return gradient.clamp(-0.1, 0.1)


def test_hooks_of_the_users_on_weights_and_outputs():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    layer.weight_hh_l0.register_hook(clip)
    layer.register_forward_hook(lambda module, args, returned: (returned[0] * 2, returned[1]))

    def run():
        output, _ = layer(x)
        output.register_hook(clip)
        return output.square().sum()

    exact(layer, run)


def test_a_hook_on_an_output_itself():
    layer, x = nn.LSTM(INPUTS, H, dtype=D), sequence(T, B, INPUTS)

    def run():
        output, _ = layer(x)
        output.register_hook(clip)
        return output.square().sum()

    exact(layer, run)


@pytest.mark.parametrize("changes", [False, True])
def test_a_hook_on_a_state_may_look_on_but_not_change_it(changes):
    cell = nn.LSTMCell(INPUTS, H, dtype=D)

    def between(state):
        state[0].register_hook(clip if changes else lambda gradient: None)
        return state

    if changes:
        refused(
            cell,
            loop(cell, between),
            "'LSTMCell': a hook on its output or state, .* changes the gradient",
        )
    else:
        assert exact(cell, loop(cell, between)).steps == 4


def test_weights_computed_from_those_of_the_layer():
    """functional_call: the gradient of the computed weight, not also what it hands on."""
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    with retrograde.record(layer) as recording:
        for factor in (None, 1.1, None):
            weights = {n: w * (factor or 1) for n, w in layer.named_parameters()}
            penalty = weights["weight_hh_l0"].square().sum()
            functional = torch.func.functional_call(layer, weights, (x,)) if factor else layer(x)
            (functional[0].square().sum() + penalty).backward()
    assert [bool(retrograde.decompose(p).residual < EXACT) for p in recording.passes] == [True] * 3


def test_weights_changed_behind_autograds_back_between_passes():
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    with retrograde.record(layer) as recording:
        for _ in range(2):
            layer.zero_grad()
            layer(x)[0].square().sum().backward()
            for weight in layer.parameters():
                weight.data.sub_(0.1 * weight.grad)
    assert [bool(retrograde.decompose(p).residual < EXACT) for p in recording.passes] == [True] * 2


@pytest.mark.parametrize("training", [(True, False), (False, True)])
@pytest.mark.parametrize("carried", [False, True])
def test_a_dropout_that_acts_in_one_call_alone(training, carried):
    layer, x = nn.LSTM(INPUTS, H, 2, dropout=0.4, dtype=D), sequence(T, B, INPUTS)

    def run():
        first, state = layer.train(training[0])(x[:4])
        second, _ = layer.train(training[1])(x[4:], state if carried else None)
        return first.square().sum() + second.square().sum()

    exact(layer, run)


def test_a_dropout_that_is_switched_on_between_two_passes():
    layer = nn.LSTM(INPUTS, H, 2, dropout=0.0, dtype=D)
    with retrograde.record(layer) as recording:
        for layer.dropout in (0.0, 0.5):
            layer(sequence(T, B, INPUTS))[0].square().sum().backward()
    assert [bool(retrograde.decompose(p).residual < EXACT) for p in recording.passes] == [True] * 2


@pytest.mark.parametrize("tied", ["bias_ih_l0", "weight_hh_l1"])
def test_a_weight_that_one_layer_uses_twice_is_refused(tied):
    layer = nn.GRU(H, H, 2, dtype=D)
    other = {"bias_ih_l0": "bias_hh_l0", "weight_hh_l1": "weight_hh_l0"}[tied]
    setattr(layer, tied, getattr(layer, other))
    with (
        pytest.raises(retrograde.RetrogradeError, match=r"is also its \w+, and autograd"),
        retrograde.record(layer),
    ):
        pass


def test_a_penalty_on_gradients_is_refused():
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS).requires_grad_()

    def run():
        loss = layer(x)[0].square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + gradient.square().sum()

    refused(layer, run, "'GRU': the loss depends on it other than through its output and state")


def test_a_backward_pass_to_other_tensors_than_the_weights():
    """Refused by name, and no stop to a training loop."""
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS).requires_grad_()

    def run():
        layer(x)[0].square().sum().backward(inputs=[x])

    with retrograde.record(layer) as recording:
        run()
    with pytest.raises(retrograde.RetrogradeError, match="'GRU': autograd gave no gradient of its"):
        retrograde.decompose(recording)
    monitor = retrograde.Monitor(layer)
    with pytest.warns(UserWarning, match="autograd gave no gradient"), monitor:
        run()
    assert monitor.scalars["retrograde/unrecorded"] == 1


def test_a_pass_that_starts_at_a_node_of_the_graph():
    cell = nn.GRUCell(INPUTS, H, dtype=D)
    with retrograde.record(cell) as recording:
        loss = loop(cell, lambda state: state)()
        torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss))
    assert retrograde.decompose(recording).residual < EXACT


def test_a_model_is_copied_and_saved_inside_the_block():
    """A copy is another model: it can be made, its calls are not recorded, and it keeps no hook."""
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    with retrograde.record(layer) as recording:
        loss = layer(x)[0].square().sum()
        others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        for other in others:
            loss = loss + other(x + 1)[0].square().sum()
        loss.backward()
    flow = retrograde.decompose(recording)
    assert flow.residual < EXACT and not flow.recorded.notes


def test_models_in_several_threads():
    wrong, everyone = [], threading.Barrier(3)

    def work():
        cell = nn.GRUCell(INPUTS, H, dtype=D)
        everyone.wait()
        for _ in range(5):
            try:
                residual = exact(cell, loop(cell, lambda state: state)).residual
                assert residual < EXACT
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not hasattr(torch.autograd.backward, "__wrapped__")


def test_two_threads_in_one_block_that_forgets():
    """Each trains a loop of its own, and one forgets while the other's calls are followed."""
    cells, problems = nn.ModuleList(nn.GRUCell(INPUTS, H, dtype=D) for _ in "ab"), set()
    before = sys.getswitchinterval()

    def work(cell):
        for _ in range(60):
            loop(cell, lambda state: 0.5 * state + 0.25 * state)().backward()
            problems.update(each for each in recording.refused.values() if "failed" in each)

    try:
        sys.setswitchinterval(1e-6)
        with retrograde.record(cells, keep=3) as recording:
            threads = [threading.Thread(target=work, args=(cell,)) for cell in cells]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not problems and any(recording.passes)
    for of_pass in recording.passes:
        assert not of_pass.refused
        assert all(retrograde.decompose(recorded).residual.ok for recorded in of_pass.values())


def test_someone_else_wraps_backward_in_the_meantime(monkeypatch):
    layer, x = nn.GRU(INPUTS, H, dtype=D), sequence(T, B, INPUTS)
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)  # put back at the end
    with retrograde.record(layer) as recording:
        ours = torch.autograd.backward
        torch.autograd.backward = lambda *args, **kwargs: ours(*args, **kwargs)
        layer(x)[0].square().sum().backward()
    assert retrograde.decompose(recording).residual < EXACT
    exact(layer, lambda: layer(x)[0].square().sum())
