"""What of the gradient is the same over batches, and what is not, lag by lag.

    g_l^i = s_l + n_l^i        the part of lag l in batch i, with E n = 0

    ||s_l||^2  =  mean over i != j of <g_l^i, g_l^j>             the signal
    E||n_l||^2 =  mean over i of ||g_l^i||^2  -  ||s_l||^2       the noise of one batch

Batches are drawn independently, so that products between different ones hold no noise on average:
both estimates are unbiased (the square of the mean gradient is not: it holds 1/N of the noise).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two

INTERVAL = 0.95
"""The intervals hold so much of what the bootstrap draws."""

DRAWS = 1000
"""Bootstrap draws; the quantiles of an interval of 95 % are then the 25th from either end."""

LEVEL = 0.01
"""Where there is no signal at any lag, one is shown in this share of the cases."""

FEWEST_SHOWN = 8
"""The fewest batches that can show a signal: chance gives as much once in 2^7 cases."""

FLIPS = 4000
"""The number of sign vectors drawn for 13 batches or more; for fewer all of them are tried."""

ALIKE = 1e-9
"""Statistics that differ by no more than this are the same."""

FEWEST = 3
"""Fewer batches give no interval."""


@dataclass(frozen=True, eq=False)
class Signal:
    """Signal and noise of the gradient in bins of lags.

    Norms are those of the whole gradient, of all parameters as one vector.

    Attributes:
        lags: the lags of each bin.
        products: <g_l^i, g_l^j> of every two batches, in units of 4^exponent.
        exponent: of each bin.
        batch_size: the samples of each of the batches.

    Example:
        >>> import torch
        >>> from retrograde.truncation import Signal
        >>> parts = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2], [1.0, 0.1]])  # 4 batches
        >>> signal = Signal((range(0, 1),), (parts @ parts.T).double()[None], torch.zeros(1), 8)
        >>> round(float(signal.signal), 2), round(float(signal.noise), 2)
        (1.0, 0.17)
    """

    lags: tuple[range, ...]
    products: Float[Tensor, "M N N"]
    exponent: Int[Tensor, "M"] | Float[Tensor, "M"]
    batch_size: int

    @property
    def batches(self) -> int:
        """N, the number of batches."""
        return self.products.shape[1]

    @cached_property
    def _whole(self) -> tuple[Float[Tensor, "1 M"], Float[Tensor, "1 M"]]:
        return _estimates(self.products, self.products.new_ones(1, self.batches))

    @property
    def signal(self) -> Float[Tensor, "M"]:
        """||s_l||, the norm of what all batches share; 0 where its square is estimated below 0."""
        return self._whole[0].squeeze(0).clamp(min=0).sqrt() * torch.exp2(self.exponent.double())

    @property
    def noise(self) -> Float[Tensor, "M"]:
        """The root of E||n_l||^2, the size of what is another one in every batch."""
        return self._whole[1].squeeze(0).clamp(min=0).sqrt() * torch.exp2(self.exponent.double())

    @property
    def log2_size(self) -> Float[Tensor, "M"]:
        """log2 of the root of the mean of ||g_l^i||^2, signal and noise together."""
        own = torch.diagonal(self.products, dim1=1, dim2=2).mean(1)
        return torch.log2(own) / 2 + self.exponent.double()

    @property
    def size(self) -> Float[Tensor, "M"]:
        """2 to the power of `log2_size`; infinite beyond the range of float64."""
        return torch.exp2(self.log2_size)

    @property
    def nothing(self) -> bool:
        """Whether the parts are 0 in every bin and batch."""
        return not bool(self.products.any())

    def learnability(
        self, training_steps: int, batch_size: int | None = None
    ) -> Float[Tensor, "M"]:
        """Signal against the noise that is left when a training has averaged over its batches.

            learnability_l = ||s_l||^2 / (E||n_l||^2 * (B / B') / M)

        with B the samples of the batches seen, B' those of a batch in the training, and M its
        steps. Above 1 the sum of M gradients points along the signal of this lag more than along
        its noise. It assumes that samples are drawn independently, that the loss is a mean over
        them, and that the weights stay where they are: noise then falls as 1 / (B' M). Negative
        where the signal's square is estimated below 0, NaN where there is neither.

        Args:
            training_steps: M.
            batch_size: B'; that of the batches seen if None.

        Raises:
            ArgumentError: if either is not a positive integer.
        """
        return self._learnability(self._whole, training_steps, batch_size).squeeze(0)

    def interval(self, training_steps: int, batch_size: int | None = None) -> Float[Tensor, "M 2"]:
        """An interval of 95 % for the learnability of each bin, by bootstrap over batches.

        Batches are drawn with replacement; a batch drawn twice makes no product with itself. With
        normal noise it holds the truth in 88 to 99 % of the cases from 16 batches on, in 80 to 99 %
        with 8; with noise of heavy tails, whose size few batches show, in fewer. Where there is no
        signal its lower end lies above 0 in fewer than 2.5 % of the cases; `shown` asks for more.
        NaN for fewer than three batches.

        Raises:
            ArgumentError: as `learnability`.
        """
        if self.batches < FEWEST:
            return self.products.new_full((len(self.lags), 2), torch.nan)
        found = self._learnability(self._drawn, training_steps, batch_size)
        ends = found.new_tensor([(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        low, high = (
            torch.nanquantile(found, end, 0, interpolation=to)  # between infinities there is none
            for end, to in zip(ends, ("lower", "higher"), strict=True)
        )
        return torch.stack((low, high), 1)

    def learnable(self, training_steps: int, batch_size: int | None = None) -> int | None:
        """The learnability horizon: beyond this lag no signal is shown to be above its noise.

        It is the last lag of the farthest bin in which a signal is `shown`; -1 if a signal is
        `excluded` in every bin that has a part; None where neither is so, and more batches have to
        tell.

        Raises:
            ArgumentError: as `learnability`.
        """
        shown = torch.nonzero(self.shown(training_steps, batch_size))
        if len(shown):
            return self.lags[int(shown[-1])].stop - 1
        some = self.products.flatten(1).any(1)
        excluded = self.excluded(training_steps, batch_size)[some]
        return -1 if len(excluded) and bool(excluded.all()) else None

    def shown(self, training_steps: int, batch_size: int | None = None) -> Bool[Tensor, "M"]:
        """The bins whose learnability is above 1 by its interval, and whose signal is no chance.

        Raises:
            ArgumentError: as `learnability`.
        """
        above = self.interval(training_steps, batch_size)[:, 0] >= 1
        return above & (self.chance <= LEVEL)

    @cached_property
    def chance(self) -> Float[Tensor, "M"]:
        """How often a signal as clear as that of each bin would be found at some lag by chance.

            U_l(e) = sum over i != j of e_i e_j <g_l^i, g_l^j>      e_i = +1 or -1

        Where there is no signal and noise is as likely as its opposite, U(e) has the same
        distribution for all signs e. This is the share of the e for which the largest U of any bin,
        relative to its root mean square over e, is at least U(1, .., 1) of this one (a test by sign
        changes, exact for any number of batches; over bins as Westfall and Young 1993). At best it
        is 2^(1 - N).
        """
        count = self.batches
        if count <= FLIPS.bit_length():
            numbers = torch.arange(2 ** (count - 1)).unsqueeze(1)
            signs = 1.0 - 2 * ((numbers >> torch.arange(count)) & 1)
        else:
            generator = torch.Generator().manual_seed(0)
            signs = 2.0 * torch.randint(2, (FLIPS, count), generator=generator) - 1
            signs[0] = 1
        between = self.products * (1 - torch.eye(count)).to(self.products)
        found = torch.einsum("dn,mnk,dk->dm", signs.to(between), between, signs.to(between))
        found = torch.nan_to_num(found / (2 * between.square().sum((1, 2))).sqrt())
        found = torch.where(found.abs() < ALIKE, 0, found)
        largest = found.amax(1, keepdim=True)
        return (largest >= found[0] - ALIKE).double().mean(0)

    def excluded(self, training_steps: int, batch_size: int | None = None) -> Bool[Tensor, "M"]:
        """The bins whose learnability is below 1 by its interval, from 8 batches on.

        Not those that have no part.

        Raises:
            ArgumentError: as `learnability`.
        """
        below = self.interval(training_steps, batch_size)[:, 1] < 1
        return below & (self.batches >= FEWEST_SHOWN)

    def _learnability(
        self,
        estimates: tuple[Float[Tensor, "D M"], Float[Tensor, "D M"]],
        training_steps: int,
        batch_size: int | None,
    ) -> Float[Tensor, "D M"]:
        steps = _checks.whole("training_steps", training_steps)
        batch = _checks.optional_whole("batch_size", batch_size) or self.batch_size
        signal, noise = estimates
        return signal * steps * batch / self.batch_size / noise.clamp(min=0)

    @cached_property
    def _drawn(self) -> tuple[Float[Tensor, "D M"], Float[Tensor, "D M"]]:
        """The estimates for every draw of the bootstrap."""
        generator = torch.Generator().manual_seed(0)
        count = self.batches
        numbers = torch.randint(count, (DRAWS, count), generator=generator)
        times = self.products.new_zeros(DRAWS, count)
        times.scatter_add_(1, numbers, torch.ones_like(times))
        return _estimates(self.products, times[(times > 0).sum(1) > 1])


def _estimates(
    products: Float[Tensor, "M N N"], times: Float[Tensor, "D N"]
) -> tuple[Float[Tensor, "D M"], Float[Tensor, "D M"]]:
    """The squares of signal and noise, each batch counted a number of times."""
    own = torch.diagonal(products, dim1=1, dim2=2)
    every = torch.einsum("dn,mnk,dk->dm", times, products, times)
    between = every - times.square() @ own.T
    pairs = times.sum(1).square() - times.square().sum(1)
    signal = between / pairs.unsqueeze(1)
    return signal, times @ own.T / times.sum(1, keepdim=True) - signal


Binned = Sequence[Mapping[str, Scaled]]
"""The part of each bin of one batch: of every parameter one row."""


Gather = Callable[[Callable[[], Any]], list[Any]]
"""Puts a question to every process and returns their answers, by rank."""


def one_process(ask: Callable[[], Any]) -> list[Any]:
    """The answer of the only process."""
    return [ask()]


def signal_of(
    lags: tuple[range, ...],
    batches: Sequence[Binned],
    batch_size: int,
    answers: Gather = one_process,
) -> Signal:
    """Signal and noise from the parts of several batches.

    Args:
        lags: the lags of each bin.
        batches: the parts, those of this process.
        batch_size: the samples of each batch.
        answers: gathers those of all processes.
    """
    products, exponents = [], []
    for number in range(len(lags)):
        here = [{name: _on_cpu(row) for name, row in batch[number].items()} for batch in batches]
        there = [one for some in answers(partial(list, here)) for one in some]
        by_name = [[batch[name].normalised()[0] for batch in there] for name in there[0]]
        units = [torch.cat([row.log2_scale() for row in rows]) for rows in by_name]
        top = torch.stack(units).amax()
        top = torch.where(top == NO_EXPONENT, 0, top)
        total = torch.zeros(len(there), len(there), dtype=torch.float64)
        for rows, unit in zip(by_name, units, strict=True):
            values = torch.stack([row.values.flatten().double() for row in rows])
            values *= power_of_two((unit - top).clamp(min=-1022), values).unsqueeze(1)
            total += values @ values.T
        products.append(total)
        exponents.append(top)
    return Signal(lags, torch.stack(products), torch.stack(exponents), batch_size)


def _on_cpu(row: Scaled) -> Scaled:
    return Scaled(row.values.cpu(), row.exponent.cpu())
