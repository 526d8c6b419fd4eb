"""A review classifier that guesses: which word did it read, the last ones or the first?"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde


class ReviewClassifier(nn.Module):
    def __init__(self, vocabulary=50, classes=3):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(32, classes)

    def forward(self, tokens, lengths):
        embedded = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, (h_n, _) = self.lstm(packed)
        return self.fc(h_n[-1])


torch.manual_seed(1)
lengths = torch.randint(20, 61, (24,))
lengths[0] = 60
tokens = torch.randint(4, 50, (24, 60))
labels = torch.randint(0, 3, (24,))
tokens[:, 0] = labels + 1  # the first word says it all
tokens[torch.arange(60) >= lengths[:, None]] = 0

model = ReviewClassifier()
batch = {"tokens": tokens, "lengths": lengths, "labels": labels}


def loss_fn(model, batch):
    logits = model(batch["tokens"], batch["lengths"])
    return nn.functional.cross_entropy(logits, batch["labels"])


report = retrograde.diagnose(model, batch, loss_fn, needs_lag=50, remedies="pass")
print(report)
