"""A plain ReLU network on the adding problem: the loss is huge and soon NaN. Why?"""

import torch
from torch import nn

import retrograde


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(2, 64, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(64, 1)
        for name, p in self.rnn.named_parameters():
            if "weight" in name:
                nn.init.xavier_normal_(p, gain=nn.init.calculate_gain("relu") * 1.3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


torch.manual_seed(0)
numbers = torch.rand(16, 60, 1)
marks = torch.zeros(16, 60, 1)
marks[:, 5] = marks[:, 30] = 1
x = torch.cat([numbers, marks], 2)
y = (numbers * marks).sum(1)

model = Adder()
loss = nn.functional.mse_loss(model(x), y)
loss.backward()
print("loss", loss.item(), "gradient", model.rnn.weight_hh_l0.grad.norm().item())
model.zero_grad()


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


report = retrograde.diagnose(model, (x, y), loss_fn, remedies="pass")
print(report)
