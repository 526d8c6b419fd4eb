"""What is known of the weights of one recurrent layer, as data."""

from dataclasses import dataclass

from retrograde.cells.position import Position
from retrograde.spectra.weights.initialisations import Likeness
from retrograde.spectra.weights.kinds import Kind


@dataclass(frozen=True)
class GateWeights:
    """The recurrent matrix of one gate, R_g, shape [H, H]; times the projection, R_g M, if any.

    Attributes:
        gate: its name; "between gates" is weight_gg, shape [3H, 3H].
        spectral_radius: max |lambda|; None if a weight is not finite.
        largest_singular_value: ||R_g||_2; None if a weight is not finite.
        frobenius_norm: ||R_g||_F; None if a weight is not finite.
        limit: 1/gamma of the activation function behind it, 4 for a sigmoid, 1 for the cell input;
            None where that is not known. A bound it is for a plain RNN only: see WeightBound.
        exact: False if the first two are estimates, which they are beyond 1024 units.

    Example:
        >>> import torch
        >>> from retrograde.spectra import inspect_weights
        >>> gates = inspect_weights(torch.nn.LSTM(2, 3)).layers[0].gates
        >>> [(gate.gate, gate.limit) for gate in gates]
        [('input', 4.0), ('forget', 4.0), ('cell', 1.0), ('output', 4.0)]
    """

    gate: str
    spectral_radius: float | None
    largest_singular_value: float | None
    frobenius_norm: float | None
    limit: float | None
    exact: bool = True


@dataclass(frozen=True)
class WeightBound:
    """What the largest singular value of a plain RNN says of its gradients.

    The Jacobian of a step is R diag(phi'), and |phi'| is gamma at most: below 1/gamma every step
    shortens the adjoint, so that it vanishes (sufficient); it can only explode above 1/gamma
    (necessary, far from sufficient). Pascanu et al. (2013), section 2.1.

    Attributes:
        nonlinearity: phi; shapes do not tell it, so that weights alone have a bound for each.
        gamma: the largest slope of phi.
        limit: 1/gamma.
        vanishes: ||R||_2 < 1/gamma, gradients vanish for certain.
        may_explode: ||R||_2 > 1/gamma, they may.

    Example:
        >>> import torch
        >>> from retrograde.spectra import inspect_weights
        >>> bound = inspect_weights(torch.nn.RNN(2, 3)).layers[0].bounds[0]
        >>> bound.nonlinearity, bound.gamma, bound.limit
        ('tanh', 1.0, 1.0)
    """

    nonlinearity: str
    gamma: float
    limit: float
    vanishes: bool
    may_explode: bool


@dataclass(frozen=True)
class BiasHorizon:
    """How long the state is kept where inputs and state are 0, as the biases of its gate have it.

    The gate stands at f = sigma(b_ih + b_hh) then (torch has two biases, and adds them up), and
    forgets within 1/(1 - f) = 1 + exp(b_ih + b_hh) steps. Inputs and states move the gate away from
    this, and the weights decide how far.

    Attributes:
        gate: "forget" for an LSTM, "update" for a GRU; "input" where f = 1 - i.
        bias: smallest, median and largest sum of its biases over the units.
        steps: the same of the horizon, in steps.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.spectra import inspect_weights
        >>> gru = torch.nn.GRU(2, 3)
        >>> retrograde.nn.initialise(gru, "forget-bias", value=3.0)
        >>> horizon = inspect_weights(gru).layers[0].horizon
        >>> horizon.gate, round(horizon.steps[1], 1)
        ('update', 21.1)
    """

    gate: str
    bias: tuple[float, float, float]
    steps: tuple[float, float, float]


@dataclass(frozen=True)
class LayerWeights:
    """One layer and direction of a recurrent module.

    Attributes:
        name: of the module, as in the model; its kind where that is the model itself.
        position: its layer and direction in the module; None for a cell.
        kind: what it is, as far as that is known.
        input_size: I, the number of input features; None if weight_ih is missing.
        hidden_size: H, the number of units.
        projection: P, the size of what a projected LSTM hands on; None for others.
        bias: whether there are biases.
        dtype: of the weights.
        gates: the recurrent matrix, gate by gate.
        bounds: of a plain RNN, for each nonlinearity that it may have.
        horizon: None where no bias says it.
        likenesses: which initialisations its parts look like; none if a weight is not finite.
        non_finite: the weights that hold a NaN or an infinity, and where the first one is.

    Example:
        >>> import torch
        >>> from retrograde.spectra import inspect_weights
        >>> layer = inspect_weights(torch.nn.LSTM(2, 3)).layers[0]
        >>> layer.name, layer.input_size, layer.hidden_size, layer.dtype
        ('LSTM', 2, 3, 'float32')
    """

    name: str
    position: Position | None
    kind: Kind
    input_size: int | None
    hidden_size: int
    projection: int | None
    bias: bool
    dtype: str
    gates: tuple[GateWeights, ...]
    bounds: tuple[WeightBound, ...]
    horizon: BiasHorizon | None
    likenesses: tuple[Likeness, ...]
    non_finite: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """Of the weights' names, such as "_l1_reverse"; empty for a cell."""
        return "" if self.position is None else self.position.suffix
