"""Spectrum: what the recurrence would do with any gradient, not only with that of one loss."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from retrograde import _checks
from retrograde._notebook import card
from retrograde.cells import Cut, unclipped
from retrograde.decomposition import decompose
from retrograde.decomposition.replay import replay
from retrograde.errors import ArgumentError, UnsupportedModelError
from retrograde.nn import AbstractRecurrent
from retrograde.nn.sequence import Sequences
from retrograde.recording import Recorded, Recording, record
from retrograde.recording.recording import the_one
from retrograde.spectra import bounds as rules
from retrograde.spectra.bounds import Bound, Radius
from retrograde.spectra.exponents import Exponents, exponents
from retrograde.spectra.jacobians import Chain
from retrograde.spectra.memory import Memory, memory_of
from retrograde.spectra.singular import SingularValues, singular_values

TRANSIENT = 10
"""Unless the caller says otherwise, 1/TRANSIENT of the steps is left out at each end."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The Jacobians of one recurrent layer (or stack) along a trajectory, and what they do.

    Made by `spectrum`, whose docstring has an example. Each answer is computed when it is first
    asked for, in float64.

    Attributes:
        recorded: the pass whose trajectory it is.
        chain: its one-step Jacobians, dense or as products with vectors.
        start: the step of the sequence at which the chain begins.
        n: how many leading directions `exponents` follows.
        transient: how many steps at each end they leave out.
        has_loss: whether the pass had a loss, so that its reach can be compared.

    Example:
        >>> import torch, retrograde
        >>> rnn = torch.nn.RNN(2, 3)
        >>> with retrograde.record(rnn) as recording:
        ...     rnn(torch.ones(40, 1, 2))[0].sum().backward()
        >>> spectrum = retrograde.spectrum(recording)
        >>> spectrum.exponents.each.shape, spectrum.residual < 1e-5
        (torch.Size([1, 3]), True)
    """

    recorded: Recorded
    chain: Chain
    start: int
    n: int
    transient: int
    has_loss: bool

    def __repr__(self) -> str:
        size = self.chain.size
        return f"Spectrum of {self.recorded.name!r}: {len(self.chain)} Jacobians of {size} x {size}"

    def _repr_html_(self) -> str:
        return card(
            repr(self),
            lambda: f"leading exponent {self.exponents.leading:.3g} nats per step",
            lambda: self.exponents.chart(),
        )

    @cached_property
    def exponents(self) -> Exponents:
        """The n leading Lyapunov exponents, in nats per step.

        Of the first and the last `transient` steps nothing is used. Warns (UserWarning) if the
        leading exponent still moves: the sequence or the transient is too short for it.
        """
        found = exponents(self.chain, self.n, self.transient)
        if not found.settled:
            warnings.warn(
                f"the leading exponent, {found.leading:.3g} nats per step, still moved by "
                f"{found.unsettled:.2g} over the second half of its {int(found.steps[-1])} steps: "
                f"the sequence is short for it, or a transient of {self.transient} steps at each "
                "end too few. Look at the convergence curve, .exponents.chart(), and take a longer "
                "sequence or transient",
                stacklevel=3,  # 2 is the cache of this property
            )
        return found

    @cached_property
    def residual(self) -> float:
        """How far the sum rule is missed, in nats per step: at most rounding.

            sum_i lambda_i = mean over k of ln |det J_k|

        The largest difference over the batch. Where rank is lost both sides are -inf, which agrees;
        inf if only one of them is, at a step whose condition is at the very edge of float64.

        Raises:
            ArgumentError: if not all exponents were asked for.
        """
        if self.n < self.chain.size:
            raise ArgumentError(
                f"the sum rule needs all {self.chain.size} exponents; this spectrum has the "
                f"leading {self.n}. Leave n out"
            )
        counted = self.chain.between(self.transient, len(self.chain) - self.transient)
        expected = counted.log_abs_det().mean(0)
        total = self.exponents.each.sum(1)
        return float(torch.where(total == expected, 0, total - expected).abs().max())

    def singular_values(
        self, lengths: Sequence[int] | None = None, stop: int | None = None, n: int | None = None
    ) -> SingularValues:
        """Singular values of the products J_{stop-1} ... J_{stop-length}, for windows of steps.

        How much of a gradient at the end of a window is left at its start, at most (the largest),
        at least (the smallest) and in between. Every one is found to full relative precision,
        however far they lie apart, at the cost of a QR factorisation of the whole state a step.

        Args:
            lengths: of the windows, in steps; by default 1, 2, 4, ... and all steps.
            stop: the step after the last one of every window; by default the end.
            n: how many of the largest to give. All of them are computed.

        Raises:
            ArgumentError: for a window that is longer than there are steps before `stop`, a `stop`
                outside, or an n that is not from 1 to the size of the state.
        """
        end = self.start + len(self.chain)
        stop = end if stop is None else _checks.whole("stop", stop, least=None)
        if not self.start < stop <= end:
            raise ArgumentError(f"stop must lie from {self.start + 1} to {end}; got {stop}")
        most = stop - self.start
        if lengths is None:
            lengths = [2**e for e in range(most.bit_length()) if 2**e < most] + [most]
        lengths = _checks.whole_numbers("lengths", lengths)
        wrong = [length for length in lengths if not 1 <= length <= most]
        if wrong or not lengths:
            raise ArgumentError(
                f"windows must hold from 1 to {most} steps, those from {self.start} to {stop}; got "
                f"{wrong or 'none'}. Shorten the window or record a longer sequence"
            )
        n = _known_size(n, self.chain.size)
        log2 = singular_values(self.chain.between(0, most), lengths)
        least = log2[..., -1]
        condition = torch.where(least.isfinite(), log2[..., 0] - least, torch.inf)
        return SingularValues(tuple(lengths), stop, log2[..., :n], condition)

    @property
    def participation(self) -> Mapping[str, Float[Tensor, "n"]]:
        """The part of each leading direction that lies in each slot of the state, by slot.

        Slots are h and c of each layer. Direction i is the i-th that the gradient turns into on its
        way back, orthogonal to those before it; its squares are averaged over steps and batch. They
        sum to 1 over the slots. They depend on the units of h and c, as every angle between them.
        """
        return {name: part.mean(0) for name, part in self.exponents.participation.items()}

    def without(self, *routes: str) -> "Spectrum":
        """The same trajectory with some routes cut everywhere, as in `Flow.without`.

        Raises:
            ArgumentError: for an unknown route; the message lists those of this cell.
        """
        cell = Cut(self.chain.cell, frozenset(_checks.names("routes", routes)))
        return replace(self, chain=self.chain.with_cell(cell))

    @property
    def carousel(self) -> "Spectrum":
        """What the routes that cross no recurrent weights would do alone.

        Of an LSTM the carousel (and its peepholes), with h read from it; of a plain network there
        is none, and every direction is lost.
        """
        return self.without(*self.chain.cell.recurrent_routes)

    @cached_property
    def eigenvalues(self) -> Mapping[str, Complex[Tensor, "H"]]:
        """Of every recurrent matrix by route, the largest modulus first; see `Bound` for their use.

        Empty for a cell made from a function, which does not tell which weights are recurrent.
        """
        return rules.eigenvalues(self.chain.cell)

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """What is said of recurrent matrices in general, beside what the recurrence does here.

        Empty where no rule is known to apply; `without_bounds` says why.
        """
        return rules.bounds(self.chain, self.transient)

    @property
    def without_bounds(self) -> tuple[str, ...]:
        """Why layers or routes have no bounds, a sentence for each; empty if all have them."""
        return rules.without_bounds(self.chain.cell)

    @cached_property
    def radii(self) -> tuple[Radius, ...]:
        """The spectral radius of each recurrent matrix beside its layer's exponent, the quick part
        of `bounds`.
        """
        return rules.radii(self.chain, self.transient)

    @cached_property
    def memory(self) -> Memory:
        """How long the recurrence remembers, by its gates and by its Jacobians, in steps.

        Takes the recorded loss apart once, for its reach; leave the loss out by giving a module.
        """
        reach = decompose(self.recorded).reach if self.has_loss else None
        return memory_of(self.chain, reach)

    @property
    def horizons(self) -> Memory:
        """The earlier name of `memory`, until 0.2."""
        return self.memory


def spectrum(
    subject: Recording | Recorded | nn.Module,
    x: Tensor | None = None,
    *,
    n: int | None = None,
    transient: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Spectrum:
    """What a recurrence would do with any gradient: the spectrum of its Jacobians.

        ds_end/ds_start = J_end ... J_{start+1}      J_k = ds_k/ds_{k-1}, of h and c of all layers

    A flow shows what happened to the gradient of one loss; this shows what happens to every
    direction of the state, along the same trajectory. A policy that clips inside back-propagation
    has no part in it.

    Args:
        subject: what `record` recorded, if it holds one layer, or one of its values; or a recurrent
            layer of torch.nn or retrograde.nn, which is run over `x` from a state of zeros.
        x: the input of a layer, in its own layout, [T, B, I] or [B, T, I]; only with a layer.
        n: how many leading exponents to follow, from 1 to S, the size of the state; all if None.
            Following few costs in proportion.
        transient: steps that the exponents leave out at each end: at the start the state has not
            settled, and at the end, where it begins, the iteration has not found its directions. A
            tenth of the steps if None.
        start: the first step to look at.
        stop: the step after the last one to look at; the end of the sequence if None.

    Returns:
        The `Spectrum`. Memory beyond the recording and its states does not grow with T.

    Raises:
        ArgumentError: for an n or a stretch that does not fit; a stretch across a step before which
            the state was detached or reset, or into the padding of a shorter sample; an x without a
            layer, or a layer without one.
        NonFiniteError: for a pass in which a NaN or an infinity stands, with its place.
        UnsupportedModelError: for a module that is not a recurrent layer.

    References:
        Pascanu, Mikolov and Bengio (2013), equations 5 and 6, for the product (its Jacobian has a
        transpose too many); `Exponents`, `SingularValues` and `Bound` have their own.

    Example:
        >>> import torch, retrograde
        >>> rnn = torch.nn.RNN(1, 2)
        >>> _ = torch.nn.init.orthogonal_(rnn.weight_hh_l0), torch.nn.init.zeros_(rnn.bias_hh_l0)
        >>> _ = torch.nn.init.zeros_(rnn.bias_ih_l0)
        >>> quiet = retrograde.spectrum(rnn, torch.zeros(20, 1, 1))
        >>> quiet.exponents.mean.abs().max() < 1e-6  # an orthogonal recurrence keeps all norms
        tensor(True)
        >>> quiet.memory.state  # and forgets nothing
        19
    """
    recorded = _recorded(subject, x)
    unrolled = replay(recorded)
    unrolled = replace(unrolled, cell=unclipped(unrolled.cell), factors=())
    start, stop = (
        _checks.whole("start", start, least=None),
        len(unrolled) if stop is None else _checks.whole("stop", stop, least=None),
    )
    if recorded.lengths is not None and stop > int(recorded.lengths.min()):
        least, most = recorded.lengths.aminmax()
        raise ArgumentError(
            f"the samples of {recorded.name!r} end after {int(least)} to {int(most)} steps, and "
            f"what follows is padding, not a recurrence; got stop={stop}. Choose stop={int(least)}"
        )
    chain = Chain.of(unrolled, start, stop)
    transient = (
        len(chain) // TRANSIENT
        if transient is None
        else _checks.whole("transient", transient, least=None)
    )
    if not 0 <= 2 * transient < len(chain):
        raise ArgumentError(
            f"the transient is left out at each end, and a step must remain of {len(chain)}: "
            "expected "
            f"0 to {(len(chain) - 1) // 2}; got {transient!r}"
        )
    n = _known_size(n, chain.size)
    return Spectrum(recorded, chain, start, n, transient, isinstance(subject, Recording | Recorded))


def _known_size(n: int | None, size: int) -> int:
    if n is None:
        return size
    words = f"an integer from 1 to {size}, the size of the state (h and c of all layers)"
    return _checks.whole("n", n, 1, size, words)


@torch.inference_mode(False)
def _recorded(subject: Recording | Recorded | nn.Module, x: Tensor | None) -> Recorded:
    """The pass to look at; a layer is copied, and run with a loss that only serves to record it."""
    if not isinstance(subject, nn.Module):
        if x is not None:
            raise ArgumentError(
                "a recording holds its own input; leave x out, or give the layer itself with x"
            )
        return the_one(subject)
    if not isinstance(subject, nn.RNNBase | AbstractRecurrent):
        raise UnsupportedModelError(
            f"expected a recurrent layer of torch.nn or retrograde.nn that reads whole sequences; "
            f"got {type(subject).__name__}. Record a model around one with retrograde.record, and "
            "give its recording"
        )
    if x is None:
        raise ArgumentError("a layer needs an input to run over: spectrum(layer, x)")
    if not isinstance(x, Tensor):
        raise ArgumentError(
            f"x must be a tensor; got {type(x).__name__}. Record a pass over anything else with "
            "retrograde.record, and give its recording"
        )
    dtype = next(subject.parameters()).dtype
    x = _checks.tensor("x", x, dtype=dtype)
    Sequences.of(x, subject.input_size, subject.batch_first, dtype)
    layer = copy.deepcopy(subject).requires_grad_(True)
    drawn_on = [x.device] if x.is_cuda else []
    with torch.enable_grad(), torch.random.fork_rng(drawn_on), record(layer) as recording:
        layer(x.detach().clone())[0].sum().backward()
    return recording.only()
