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


class BackendError(RetrogradeError):
    """RETROGRADE_BACKEND asks for a backend that there is not.

    Example:
        >>> import retrograde
        >>> issubclass(retrograde.errors.BackendError, retrograde.RetrogradeError)
        True
    """


class UnsupportedModelError(RetrogradeError):
    """The model holds no recurrent layer, or holds one in a form that is not yet taken apart.

    Example:
        >>> import torch, retrograde
        >>> try:
        ...     retrograde.diagnose(torch.nn.Linear(2, 3), None, lambda model, batch: None)
        ... except retrograde.errors.UnsupportedModelError as error:
        ...     print("no recurrent layer" in str(error))
        True
    """


class RecordingError(RetrogradeError):
    """What was recorded is not one forward and one backward pass through a recurrent layer.

    Example:
        >>> import torch, retrograde
        >>> try:
        ...     with retrograde.record(torch.nn.GRU(2, 3)) as recording:
        ...         pass  # no forward, no backward pass
        ... except retrograde.errors.RecordingError:
        ...     print("nothing was recorded")
        nothing was recorded
    """


class NonFiniteError(RetrogradeError):
    """A NaN or an infinity stands where the decomposition needs a number.

    Args:
        message: what is wrong, where and what to do.

    Attributes:
        place: where the first one is, a `NonFinite`, if it was found in a recorded pass.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1)
        >>> model(torch.tensor([[torch.nan]])).sum().backward()
        >>> try:
        ...     retrograde.clipping.clip(model, retrograde.clipping.GlobalNorm(1.0))
        ... except retrograde.errors.NonFiniteError:
        ...     print("a gradient is not finite")
        a gradient is not finite
    """

    def __init__(self, message: str, place: object = None):
        super().__init__(message)
        self.place = place


class ClippingError(RetrogradeError, RuntimeError):
    """Clipping was asked for at a moment when it has no effect, or another one than is meant.

    Example:
        >>> import torch, retrograde
        >>> policy = retrograde.clipping.GlobalNorm(1.0)
        >>> clipper = retrograde.clipping.Clipper(torch.nn.GRU(2, 3), policy)
        >>> try:
        ...     clipper()
        ... except retrograde.errors.ClippingError:
        ...     print("there is no gradient yet")
        there is no gradient yet
    """


class SecondDerivativeError(RetrogradeError, RuntimeError):
    """A derivative written out by hand was to be differentiated once more.

    Example:
        >>> import torch, retrograde
        >>> x = torch.ones(5, 1, 2, requires_grad=True)
        >>> output, _ = retrograde.nn.LSTM(2, 3, generation="peephole")(x)
        >>> (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        >>> try:
        ...     first.sum().backward()
        ... except retrograde.errors.SecondDerivativeError:
        ...     print("only the first derivative is written out")
        only the first derivative is written out
    """


class MissingExtraError(RetrogradeError, ImportError):
    """An optional dependency is not installed; the message says how to install it.

    Example:
        >>> from retrograde.errors import MissingExtraError
        >>> issubclass(MissingExtraError, ImportError)
        True
    """


class InputError(RetrogradeError):
    """A file or function named on the command line cannot be used.

    Example:
        >>> import retrograde
        >>> try:
        ...     retrograde.load("nowhere.safetensors")
        ... except retrograde.errors.InputError:
        ...     print("there is no such file")
        there is no such file
    """


class VoidDecompositionWarning(UserWarning):
    """The parts do not add up to the gradient as well as the precision of the pass allows.

    They are then the parts of another gradient; what rests on them is void.

    Example:
        >>> import warnings, retrograde
        >>> with warnings.catch_warnings():  # from here on a void decomposition is an error
        ...     warnings.simplefilter("error", retrograde.VoidDecompositionWarning)
    """
