"""One backward pass through one recurrent layer, as everything after the recording takes it."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde._notebook import card
from retrograde.cells import AbstractCell
from retrograde.engine import Boundary, Unrolled
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Recorded:
    """One backward pass through one recurrent layer or stack.

    Steps count in the order in which a direction reads its input, so that those of a reverse
    direction run backwards.
    Calls that continue a state follow each other in time; others (a layer used twice) lie side by
    side as further samples.

    Attributes:
        name: the layer's name in its model.
        cell: its weights, copied, as a cell.
        x: the layer's input, shape [T, B, I], in the order in which it was given.
        initial: its initial state (h of each layer, and c), shape [B, S].
        direct: dL/ds_t as the loss gives it, without what comes back through later steps,
            shape [T, B, S].
        gradients: autograd's own gradient of each parameter in this pass, as far as it came
            through this layer.
        reads: what the cell reads at each step, if that is not x alone: x in both directions, the
            layers below, the masks of a dropout.
        boundaries: the steps before which a state was detached, reset or replaced.
        lengths: the number of steps of each sample, None if all run to the end.
        notes: what a reader must know about this pass.
        lags_end: the steps before which the state was computed from the one before by something
            that the recursion does not pass: a linear map, a norm, a network; and those whose
            input was computed from the layer's own outputs. Lags end there.
        rounding: the relative rounding error (machine epsilon) of the arithmetic that the pass ran
            in; None for that of its gradients' data type.
        final: the state after the last step as the pass itself left it, shape [B, S], for the
            replayed one to be compared with; None where that is not known.
        against: what `gradients` are, if they are not autograd's of the pass that ran.
        samples: the numbers of these samples in the batch that ran, None for all of it.
        ran: this very cell run over these very inputs, where putting the pass together took that;
            None elsewhere.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(lstm) as recording:
        ...     lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> recorded = recording["LSTM"]
        >>> recorded.x.shape, recorded.h0.shape, recorded.direct.shape  # the state is (h, c)
        (torch.Size([5, 4, 2]), torch.Size([1, 4, 3]), torch.Size([5, 4, 6]))
        >>> recorded.gradients["weight_hh_l0"].shape  # autograd's, four gates
        torch.Size([12, 3])
    """

    name: str
    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    initial: Float[Tensor, "B S"]
    direct: Float[Tensor, "T B S"]
    gradients: Mapping[str, Tensor]
    reads: Float[Tensor, "T B R"] | None = None
    boundaries: Mapping[int, Boundary] = field(default_factory=dict)
    lengths: Int[Tensor, "B"] | None = None
    notes: tuple[str, ...] = ()
    lags_end: tuple[int, ...] = ()
    rounding: float | None = None
    final: Float[Tensor, "B S"] | None = None
    against: str = ""
    samples: tuple[int, ...] | None = None
    ran: Unrolled | None = field(default=None, init=False, repr=False)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters by name."""
        return self.cell.parameters

    @property
    def inputs(self) -> Float[Tensor, "T B R"]:
        """What the cell reads at each step."""
        return self.x if self.reads is None else self.reads

    def part(self, samples: int | Sequence[int]) -> "Recorded":
        """Some samples alone, without gradients: autograd only gives those of the whole batch.

        All of them where samples read each other's states (a batch in another order).

        Args:
            samples: the numbers of those samples; or how many of the first ones.

        Raises:
            ArgumentError: if `samples` is neither a positive integer nor numbers of samples.
        """
        batch = self.x.shape[1]
        if not isinstance(samples, list | tuple | range):
            samples = range(min(batch, _checks.whole("samples", samples)))
        elif not samples or not all(isinstance(n, int) and 0 <= n < batch for n in samples):
            raise ArgumentError(
                f"samples must be numbers of samples, each from 0 to {batch - 1}; "
                f"got {_checks.shown(samples)}"
            )
        if any(boundary.mixes_samples for boundary in self.boundaries.values()):
            return replace(self, gradients={})
        some = torch.tensor(samples, device=self.x.device)
        boundaries = {k: boundary.part(some) for k, boundary in self.boundaries.items()}
        before = range(batch) if self.samples is None else self.samples
        return replace(
            self,
            x=self.x[:, some],
            initial=self.initial[some],
            direct=self.direct[:, some],
            gradients={},
            reads=None if self.reads is None else self.reads[:, some],
            boundaries=boundaries,
            lengths=None if self.lengths is None else self.lengths[some],
            final=None if self.final is None else self.final[some],
            samples=tuple(before[sample] for sample in samples),
        )

    def of_loss(self, direct: Float[Tensor, "T B S"]) -> "Recorded":
        """The same pass of another loss, which gives `direct` to each state; without gradients."""
        return replace(self, direct=direct, gradients={}).with_run(self.ran)

    def with_run(self, ran: Unrolled | None) -> "Recorded":
        """The same with its cell run over its inputs. No copy or part has that."""
        found = copy(self)
        object.__setattr__(found, "ran", ran)
        return found

    def sample(self, count: int) -> "Recorded":
        """A part with some samples, evenly spread over the batch.

        Where one of these has no loss, they are spread over the samples that have one, and all of
        those are taken if they are fewer. `samples` of the part says which were taken; for the same
        pass they are the same.

        Args:
            count: how many.

        Raises:
            ArgumentError: if `count` is not a positive integer.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.RNN(1, 2)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(4, 9, 1))[0][:, 3:].sum().backward()  # 6 of 9 samples
            >>> recording["RNN"].sample(2).samples
            (4, 7)
        """
        return self.part(spread([self.direct], count))

    def __repr__(self) -> str:
        return f"Recorded {self.size_in_words}"

    def _repr_html_(self) -> str:
        return card(repr(self))

    @property
    def size_in_words(self) -> str:
        """Its name, and how large everything is."""
        steps, batch = self.x.shape[:2]
        enters = int(self.direct.flatten(1).any(1).sum())
        return (
            f"{self.name!r}: {steps} steps, batch of {batch}, state of {self.cell.state_size}; "
            f"the loss enters at {enters} step{'s' * (enters != 1)}"
        )

    @property
    def borders(self) -> Mapping[int, Boundary]:
        """`boundaries` under its earlier name, until 0.2."""
        return self.boundaries

    @property
    def output_adjoint(self) -> Float[Tensor, "T B H"]:
        """dL/dh_t of the layer's output, of both directions side by side, as the loss gives it."""
        return self.direct[..., self.cell.output]

    @property
    def h0(self) -> Float[Tensor, "layers B H"]:
        """The initial hidden states, as torch.nn takes them."""
        return self._initial("h")

    @property
    def c0(self) -> Float[Tensor, "layers B H"] | None:
        """The initial cell states, or None for a cell without them."""
        return self._initial("c") if any(name[0] == "c" for name in self.cell.slots) else None

    def _initial(self, letter: str) -> Tensor:
        slots = self.cell.slots.items()
        return torch.stack([self.initial[:, slot] for name, slot in slots if name[0] == letter])


def spread(given: Sequence[Float[Tensor, "_ B M"]], count: int) -> list[int]:
    """The numbers of samples evenly spread over a batch; where one of them has nothing, over those
    that have something, if any has.

    Of N samples the i-th of n is number (2 i + 1) N / (2 n), rounded down: from the middle of the
    i-th of n equal parts.

    Args:
        given: what the loss gives to the samples.
        count: how many there are to be.

    Raises:
        ArgumentError: if `count` is not a positive integer.
    """
    count, every = _checks.whole("count", count), range(given[0].shape[1])

    def have(samples: Sequence[int]) -> list[int]:
        some, found = list(samples), list[bool]()
        for steps in (slice(-1, None), slice(None)):  # most often the last step has a loss
            parts = [(one[steps, some] != 0).any(2).any(0) for one in given]
            found = torch.stack(parts).any(0).tolist()
            if all(found):
                break
        return [sample for sample, has in zip(some, found, strict=True) if has]

    first = _evenly(every, count)
    return first if have(first) == first else _evenly(have(every) or every, count)


def _evenly(samples: Sequence[int], count: int) -> list[int]:
    count = min(count, len(samples))
    return [samples[(2 * i + 1) * len(samples) // (2 * count)] for i in range(count)]
