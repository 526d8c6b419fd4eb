"""The processes of a data-parallel run: what each found, and the mean of it over all of them."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from retrograde import _checks
from retrograde.engine.scaling import NO_EXPONENT, Scaled, times_power_of_two
from retrograde.errors import ArgumentError, RecordingError

Answer = TypeVar("Answer")

distributed: Any = torch.distributed


@dataclass(frozen=True)
class Processes:
    """The processes of a group of `torch.distributed`. Every method is a collective operation.

    Attributes:
        group: the group, None for the default one.

    Raises:
        ArgumentError: where no group is initialised, for anything that is none, and in a process
            that is not in it.
    """

    group: Any = None

    def __post_init__(self) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ArgumentError(
                "all_reduce needs the processes of a data-parallel run: start the script with "
                "torchrun and call torch.distributed.init_process_group() first"
            )
        outside = distributed.GroupMember.NON_GROUP_MEMBER  # what new_group gives to the others
        if self.group is outside:
            raise ArgumentError("this process does not belong to the group given to all_reduce")
        if self.group is not None:
            _checks.instance("group", self.group, distributed.ProcessGroup, "a process group")

    @property
    def count(self) -> int:
        """How many there are."""
        return int(distributed.get_world_size(self.group))

    @property
    def rank(self) -> int:
        """The number of this one."""
        return int(distributed.get_rank(self.group))

    def answers(self, ask: Callable[[], Answer]) -> list[Answer]:
        """What each process answers, by rank.

        A process that fails raises its own error, and so do all others: none is left waiting.

        Raises:
            RecordingError: if another process failed, with its rank and reason.
        """
        answer, error = None, None
        try:
            answer = ask()
        except Exception as failed:
            error = failed
        told: list[Any] = [None] * self.count
        words = None if error is None else f"{type(error).__name__}: {error}"
        distributed.all_gather_object(told, (words, answer), group=self.group)
        if error is not None:
            raise error
        for rank, (reason, _) in enumerate(told):
            if reason is not None:
                raise RecordingError(f"the process of rank {rank} failed with {reason}")
        return [answer for _, answer in told]

    def agree(self, what: str, ask: Callable[[], tuple[Hashable, Answer]]) -> Answer:
        """What this process found, if one thing about it is the same in all of them.

        Args:
            what: that thing, for the message.
            ask: returns it, and what was found.

        Raises:
            ArgumentError: if it differs, in every process.
            RecordingError: if another process failed.
        """
        found: list[Answer] = []

        def alike() -> Hashable:
            same, answer = ask()
            found.append(answer)
            return same

        answers = self.answers(alike)
        for rank, other in enumerate(answers):
            if other != answers[0]:
                raise ArgumentError(
                    f"{what} must be the same in all processes; "
                    f"rank 0 has {answers[0]}, rank {rank} has {other}"
                )
        return found[0]

    def mean(self, rows: Scaled) -> Scaled:
        """The mean of each row over the processes, on the largest exponent that any of them has."""
        top = self._all_reduced(rows.log2_scale(), distributed.ReduceOp.MAX)
        top = torch.where(top == NO_EXPONENT, 0, top)
        values = times_power_of_two(rows.values, (rows.exponent - top).clamp(max=0))
        return Scaled(self.mean_of(values), top)

    def mean_of(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return self._all_reduced(values, distributed.ReduceOp.SUM) / self.count

    def _all_reduced(self, values: Tensor, operation: Any) -> Tensor:
        """A copy, reduced where the group can reach it: NCCL only sees what is on a GPU."""
        reachable = values.is_cuda or distributed.get_backend(self.group) != "nccl"
        copy = values.detach().to(values.device if reachable else "cuda", copy=True).contiguous()
        distributed.all_reduce(copy, operation, group=self.group)
        return copy.to(values.device)
