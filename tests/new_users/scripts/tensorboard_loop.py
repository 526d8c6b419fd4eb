"""A forecaster trained in a plain loop; how far back it learns goes to TensorBoard."""

import sys
import tempfile

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import retrograde


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.gru(x)[0])


logdir = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
torch.manual_seed(0)
waves = torch.sin(torch.arange(41.0) / 3 + torch.rand(32, 1) * 6).unsqueeze(2)
x, y = waves[:, :-1], waves[:, 1:]

model = Forecaster()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
writer = SummaryWriter(logdir)


def log(scalars, step):
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)


monitor = retrograde.Monitor(model, every=10, log=log)
losses = []
for step in range(41):
    optimizer.zero_grad()
    with monitor:
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
    writer.add_scalar("loss", losses[-1], step)
writer.close()
print(monitor.history)
