"""An encoder and a decoder with teacher forcing: does the decoder teach the encoder anything?"""

import random

import torch
from torch import nn

import retrograde

START = 0


class Seq2Seq(nn.Module):
    def __init__(self, words=12, size=24):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.encoder = nn.GRU(size, size)
        self.decoder = nn.GRUCell(size, size)
        self.out = nn.Linear(size, words)

    def forward(self, source, target, teacher_forcing=0.5):
        _, h = self.encoder(self.embed(source))
        h = h.squeeze(0)
        token, logits = torch.full_like(target[0], START), []
        for step in range(len(target)):
            h = self.decoder(self.embed(token), h)
            logits.append(self.out(h))
            teach = random.random() < teacher_forcing
            token = target[step] if teach else logits[-1].argmax(1)
        return torch.stack(logits)


random.seed(0)
torch.manual_seed(0)
model = Seq2Seq()
source = torch.randint(1, 12, (15, 8))
target = source.flip(0)

with retrograde.record(model) as recording:
    logits = model(source, target)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    loss.backward()

print(recording)
for name in recording:
    flow = retrograde.decompose(recording[name])
    print(name)
    print(flow.summary())
