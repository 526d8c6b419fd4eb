"""Recurrences run in the data type of their weights, whatever autocast would choose.

They write in place, which autocast leaves alone, and their parts sum to the gradient only where all
of them are computed alike.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def under_autocast(device: torch.device) -> bool:
    """Whether torch chooses the precision of each operation there by itself."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """In it every operation has the precision of what it is given."""
    if not under_autocast(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
