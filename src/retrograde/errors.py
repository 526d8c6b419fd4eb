"""Every error that Retrograde raises on purpose, so that one `except` can catch them all, and what
it warns of with a class of its own.

Each message says what was expected, what arrived and what to do about it.
"""


class RetrogradeError(Exception):
    """The root of the tree; the command line prints its message and exits with 2.

    Example:
        >>> import torch, retrograde
        >>> try:
        ...     retrograde.diagnose(torch.nn.Linear(2, 3), None, lambda model, batch: None)
        ... except retrograde.RetrogradeError as error:
        ...     print(type(error).__name__)
        UnsupportedModelError
    """


class ArgumentError(RetrogradeError, ValueError):
    """An argument has a value that the call cannot use.

    Example:
        >>> import retrograde
        >>> try:
        ...     retrograde.clipping.GlobalNorm(-1.0)
        ... except retrograde.errors.ArgumentError as error:
        ...     print(isinstance(error, ValueError))
        True
    """


class UnsupportedModelError(RetrogradeError):
    """The model holds no recurrent layer, or holds one in a form that is not yet taken apart."""


class RecordingError(RetrogradeError):
    """What was recorded is not one forward and one backward pass through a recurrent layer."""


class NonFiniteError(RetrogradeError):
    """A NaN or an infinity stands where the decomposition needs a number.

    Attributes:
        place: where the first one is, a `NonFinite`, if it was found in a recorded pass.
    """

    def __init__(self, message: str, place: object = None):
        super().__init__(message)
        self.place = place


class ClippingError(RetrogradeError, RuntimeError):
    """Clipping was asked for at a moment when it has no effect, or another one than is meant."""


class SecondDerivativeError(RetrogradeError, RuntimeError):
    """A derivative written out by hand was to be differentiated once more."""


class MissingExtraError(RetrogradeError, ImportError):
    """An optional dependency is not installed; the message says how to install it."""


class InputError(RetrogradeError):
    """A file or function named on the command line cannot be used."""


class VoidDecompositionWarning(UserWarning):
    """The parts do not add up to the gradient as well as the precision of the pass allows.

    They are then the parts of another gradient; what rests on them is void.

    Example:
        >>> import warnings, retrograde
        >>> with warnings.catch_warnings():  # from here on a void decomposition is an error
        ...     warnings.simplefilter("error", retrograde.VoidDecompositionWarning)
    """
