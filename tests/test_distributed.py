"""Two processes that train together: the monitor keeps them in step, and `all_reduce` adds up what
each of them has."""

import socket
from pathlib import Path

import pytest
import torch

import retrograde
from support import data_parallel, processes

SECONDS = 120
"""Far more than the run takes: a rank that waits for another must fail, not hang."""

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch is built without gloo"
)


@pytest.fixture(scope="module", name="ranks")
def _ranks(tmp_path_factory):
    """Two gloo processes on this machine; what each of them has at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        processes.start(
            *(Path(data_parallel.__file__), folder),
            environment=there | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            done = rank.done(timeout=SECONDS)
            assert done.returncode == 0, done.stderr
    finally:
        for rank in ranks:
            rank.process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_stay_in_step_and_only_the_first_looks(ranks):
    weights = ranks[0]["plain"][0]
    for rank in ranks:
        for how in ("plain", "watched"):
            for name, weight in weights.items():
                assert weight.equal(rank[how][0][name]), (how, name)
        assert rank["plain"][1].equal(rank["watched"][1])  # the random state
    first, second = (rank["watched"][2] for rank in ranks)
    assert not any(second)
    assert [step for step, scalars in enumerate(first) if scalars] == [0, 5, 10, 15]
    assert "retrograde/rnn/reach" in first[0]  # and not retrograde/module.rnn/reach
    assert all(scalars["retrograde/unrecorded"] == 0 for scalars in first if scalars)
    assert ranks[0]["watched"][3] < 1e-5  # the residual against rank 0's own gradient


@pytest.mark.parametrize(
    ("problem", "rounding"),
    [(data_parallel.ordinary, 1e-12), (data_parallel.beyond_the_range, 1e-4)],
)
def test_two_processes_find_the_parts_of_the_whole_batch(ranks, problem, rounding):
    model, x, weights = problem()
    flow = data_parallel.flow_of(model, x, weights)
    whole, curves = data_parallel.answers(flow), data_parallel.horizons(flow)
    if problem is data_parallel.beyond_the_range:
        assert whole[-2][1].min() < -200  # no float32 holds this
    for rank in ranks:
        found, (residual, bound, note), gradients, horizons = rank[problem.__name__]
        torch.testing.assert_close(horizons, curves, rtol=rounding, atol=rounding)
        for here, there in zip(found, whole, strict=True):
            assert here[0] == there[0]
            torch.testing.assert_close(here[1:], there[1:], rtol=rounding, atol=rounding)
        assert residual < bound < 0.01, note
        for name, parameter in model.rnn.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad)
            own = found[1 + list(gradients).index(name)][3].sum(0)
            torch.testing.assert_close(own, gradients[name])  # what the optimiser is given


def test_two_processes_find_the_horizon_of_the_batches_of_both(ranks):
    numbers, facts = data_parallel.windows()
    assert facts[0] == 8
    for rank in ranks:
        found, same = rank["windows"]
        assert same == facts
        torch.testing.assert_close(found, numbers, rtol=1e-7, atol=1e-10)


def test_processes_whose_sequences_are_of_different_lengths(ranks):
    model, x, weights = data_parallel.ordinary()
    flows = [
        data_parallel.flow_of(model, x[3 * rank :][:3, :steps], weights[3 * rank :][:3, :steps])
        for rank, steps in enumerate((9, 12))
    ]
    short, long = (flow.by_lag("weight_hh_l0", bins="every").parts() for flow in flows)
    mean = long.clone()
    mean[:9] += short
    for rank in ranks:
        found, steps, gradients, horizons = rank["lengths"]
        missing = [mean[k:].sum(0).norm() for k in range(1, 12)]
        own = horizons[3 * (1 + [*gradients].index("weight_hh_l0"))].squeeze(0)
        torch.testing.assert_close(
            own[:-1], torch.stack(missing) / mean.sum(0).norm(), rtol=1e-9, atol=1e-12
        )
        assert steps == 12
        torch.testing.assert_close(found[-3][3], mean / 2, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found[-3][3].sum(0), gradients["weight_hh_l0"])


def test_what_differs_between_processes_is_refused_in_all_of_them(ranks):
    first, second = (rank["refused"] for rank in ranks)
    for what, words in {
        "weights": "ArgumentError: all_reduce needs the same weights in all processes; "
        "weight_hh_l0 of rank 1 differs",
        "other models": "ArgumentError: all_reduce=True needs the same model in all processes; ",
        "sizes": r"ArgumentError: all_reduce needs the same layer in all processes",
        "question": "ArgumentError: the question must be the same in all processes",
        "kind": "ArgumentError: kind must be the same in all processes; rank 0 has sliding",
        "group": "ArgumentError: group must be a process group; got 'gloo'",
        "bins": "ArgumentError: the question must be the same in all processes",
    }.items():
        assert first[what].startswith(words)
        assert second[what] == first[what]
    assert first["one fails"].startswith("RecordingError: the process of rank 1 failed with")
    assert second["one fails"].startswith("ArgumentError: no parameter 'bias'")


def test_all_reduce_needs_a_process_group():
    flow, model = data_parallel.of_another_size(0), torch.nn.GRU(2, 3)
    with pytest.raises(retrograde.errors.ArgumentError, match="torchrun"):
        flow.all_reduce()
    with pytest.raises(retrograde.errors.ArgumentError, match="torchrun"):
        retrograde.horizon(model, torch.ones(4, 2, 2), lambda m, x: m(x)[0].sum(), all_reduce=True)
