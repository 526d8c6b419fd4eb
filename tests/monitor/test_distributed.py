"""The monitor under DistributedDataParallel: rank 0 looks, nobody waits, and all stay in step."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SECONDS = 120
"""Far more than the run takes: a rank that waits for another must fail, not hang."""

WORKER = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import torch.distributed as dist
import retrograde

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0])

def train(watched):
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = retrograde.Monitor(model, every=5)
    torch.manual_seed(100 + dist.get_rank())  # each rank has its own share of the batch
    scalars, residual = [], None
    for step in range(20):
        x = torch.randn(4, 9, 3)
        optimiser.zero_grad()
        if watched:
            with monitor:
                model(x).square().mean().backward()
            scalars.append(monitor.scalars)
            if monitor.recording:
                residual = float(retrograde.decompose(monitor.recording["rnn"]).residual)
        else:
            model(x).square().mean().backward()
        optimiser.step()
    return model.module.state_dict(), torch.get_rng_state(), scalars, residual

torch.set_num_threads(1)
dist.init_process_group("gloo")
results = {how: train(how == "watched") for how in ("plain", "watched")}
torch.save(results, f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def run(folder: Path) -> list[dict]:
    """Two gloo processes on this machine; what each of them has at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = folder / "worker.py"
    script.write_text(WORKER)
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=os.environ | there | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=SECONDS)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch is built without gloo"
)
def test_two_ranks_stay_in_step_and_only_the_first_looks(tmp_path):
    ranks = run(tmp_path)
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
