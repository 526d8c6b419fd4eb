"""Loading the library, and which backend is in use."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from retrograde import _checks
from retrograde.compiled import sources
from retrograde.errors import BackendError

VARIABLE = "RETROGRADE_BACKEND"
NAMES = ("eager", "compiled")

PATH = Path(__file__).with_name("_recurrence.so")
"""Where setup.py puts it."""

FIELDS = (
    *("cell", "gates", "activation", "state_activation"),
    *("steps", "samples", "inputs", "hidden", "parts", "reverse"),
    *("parallel", "x", "x_step", "x_sample"),
    *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch", "weight_gg"),
    *("h_0", "c_0", "gates_0", "h", "c", "h_n", "c_n", "kept"),
    *("by_h", "by_c", "by_kept", "by_h_step", "by_h_sample", "by_c_step", "by_c_sample"),
    *("by_h_n", "by_c_n", "by_x"),
    *("by_weight_ih", "by_weight_hh", "by_bias_ih", "by_bias_hh", "by_weight_ch", "by_weight_gg"),
    *("by_h_0", "by_c_0", "by_gates_0", "truncated", "limit", "clipped"),
)
"""Those of `struct pass` in csrc/recurrence.h, in its order."""

ONLINE = (
    *("blocks", "size", "gates", "inputs", "outputs", "fed_back", "skip", "biased"),
    *("cell_input", "cell_output", "output", "each_step", "peepholes"),
    *("networks", "parts", "parallel", "lessons"),
)
"""Those of `struct online`."""

LESSON = (
    *("hidden", "output", "by_hidden", "by_output", "state", "rate", "decay", "momentum"),
    *("sequences", "x", "symbols", "y", "due", "lengths"),
    *("possible", "limit", "begins", "answers", "before"),
)
"""Those of `struct lesson`."""

HOW = (
    "To have it, install again from a checkout where there is a C compiler (gcc or clang): "
    f"pip install --no-deps {'--editable .' if sources.CHECKOUT.is_dir() else '.'}"
)
"""pip builds what is in a folder each time, and keeps nothing that it once built of it."""


class Backend(str):
    """The name of a backend, "eager" or "compiled".

    Attributes:
        note: in a line, why it is in use; for "eager", how to get the other one.

    Example:
        >>> import retrograde
        >>> retrograde.backend() in ("eager", "compiled")
        True
    """

    note: str

    def __new__(cls, name: str, note: str) -> "Backend":
        backend = super().__new__(cls, name)
        backend.note = note
        return backend


@dataclass(frozen=True, eq=False)
class Library:
    """The library as it is loaded, with the widest instruction set of this processor.

    Attributes:
        forward, backward: its passes; take the address of the fields, and give 0, or 1 where there
            was not enough memory.
        learn: the on-line training of 1997, called in the same way.
        scan: the backward recursion of many rows, called in the same way (compiled/scan.py).
        crossings: the same with rows told apart by crossings (compiled/crossings.py).
        routes: what comes back from steps by each route (compiled/routes.py).
        sizes: how large what they make of parameters is (compiled/sizes.py).
        sums: what they make of parameters, summed; 2 where it needs room (compiled/sums.py).
        vector: the bytes of a vector.
        instructions: the name of the instruction set.
        parallel: the address of torch's own loop over threads, 0 where torch has none.
        process: the number of the process that loaded it.
    """

    forward: Mapping[torch.dtype, Callable[[object], int]]
    backward: Mapping[torch.dtype, Callable[[object], int]]
    learn: Mapping[torch.dtype, Callable[[object], int]]
    scan: Mapping[torch.dtype, Callable[[object], int]]
    crossings: Mapping[torch.dtype, Callable[[object], int]]
    routes: Mapping[torch.dtype, Callable[[object], int]]
    sizes: Mapping[torch.dtype, Callable[[object], int]]
    sums: Mapping[torch.dtype, Callable[[object], int]]
    vector: int
    instructions: str
    parallel: int
    process: int

    @property
    def threads(self) -> tuple[int, int]:
        """How many threads a pass may use, and the address of torch's loop over them, 0 for none.

        A process that was forked after the library was in use has one: threads of OpenMP do not
        outlive a fork, and torch would wait for them forever.
        """
        if not self.parallel or os.getpid() != self.process:
            return 1, 0
        return torch.get_num_threads(), self.parallel


def backend() -> Backend:
    """What computes recurrences of `retrograde.nn`: "compiled" or "eager".

    "compiled" is a C library that is built when the package is installed from source with a C
    compiler at hand; it computes whole passes of LSTMs, GRUs and plain RNNs in float32 and float64
    on the CPU. "eager" is loops of torch operations, and computes everything else in any case. The
    environment variable RETROGRADE_BACKEND, read at first use, chooses one.

    Returns:
        Its name. Its attribute `note` says why it is in use, and how to get the other one.

    Raises:
        BackendError: where RETROGRADE_BACKEND=compiled asks for a library that is not there or does
            not belong to this version, or names something else.

    Example:
        >>> import retrograde
        >>> retrograde.backend() in ("eager", "compiled")
        True
    """
    found = _found()
    if isinstance(found, str):
        return Backend("eager", found)
    return Backend("compiled", f"{PATH.name} for {found.instructions}")


@cache
def library() -> Library | None:
    """The library, None where the eager backend is in use."""
    found = _found()
    return None if isinstance(found, str) else found


@cache
def _found() -> Library | str:
    """The library, or why it is not used."""
    asked = os.environ.get(VARIABLE, "")
    if asked and asked not in NAMES:
        raise BackendError(f"{VARIABLE} must be one of {', '.join(NAMES)}; got {asked!r}")
    if asked == "eager":
        return f"{VARIABLE}=eager asks for it"
    try:
        return _loaded(PATH)
    except BackendError as error:
        if asked:
            raise
        return str(error)


def _loaded(path: Path) -> Library:
    """The library in a file, with the widest instruction set that this processor has.

    Raises:
        BackendError: if it cannot be loaded, or belongs to another version of this package.
    """
    if sys.maxsize < 2**32:
        raise BackendError("the compiled backend needs a 64-bit processor")
    if not path.is_file():
        raise BackendError(f"the compiled backend was not built. {HOW}")
    try:
        if _cut_short(path):
            raise OSError("the file is cut short")
        opened = ctypes.CDLL(str(path))
        opened.retrograde_interface.restype = ctypes.c_int64
        built_from, expected = opened.retrograde_interface(), sources.expected()
    except (OSError, AttributeError, ValueError) as error:
        raise BackendError(
            f"{path.name} is no library of this package: {_checks.shown(str(error))}. {HOW}"
        ) from None
    if built_from != expected:
        raise BackendError(f"{path.name} was built for another version of this package. {HOW}")
    return _of(opened, len(_instruction_sets(opened)) - 1)


def _cut_short(path: Path) -> bool:
    """Whether an ELF file ends before what is loaded of it: the loader would end the process."""
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
            return False
        (start,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(start)
        table = file.read(size * count)
    if size != 56 or len(table) < size * count:
        return True
    ends = [at + length for _, _, at, _, _, length, _, _ in struct.iter_unpack("<IIQQQQQQ", table)]
    return path.stat().st_size < max(ends, default=0)


def _instruction_sets(opened: ctypes.CDLL) -> tuple[str, ...]:
    """Those that this processor has, narrow ones first."""
    opened.retrograde_set.restype = ctypes.c_char_p
    names: list[str] = []
    while (name := opened.retrograde_set(ctypes.c_int64(len(names)))) is not None:
        names.append(name.decode())
    return tuple(names)


def _of(opened: ctypes.CDLL, number: int) -> Library:
    """An opened library with one of its instruction sets."""

    def functions(name: str) -> Mapping[torch.dtype, Callable[[object], int]]:
        function = opened[f"retrograde_{name}"]
        function.restype = ctypes.c_int64
        which = ctypes.c_int64(number)

        def of(is_double: int) -> Callable[[object], int]:
            return partial(function, which, ctypes.c_int64(is_double))

        return {torch.float32: of(0), torch.float64: of(1)}

    return Library(
        forward=functions("forward"),
        backward=functions("backward"),
        learn=functions("learn"),
        scan=functions("scan"),
        crossings=functions("crossings"),
        routes=functions("routes"),
        sizes=functions("sizes"),
        sums=functions("sums"),
        vector=opened.retrograde_bytes(ctypes.c_int64(number)),
        instructions=_instruction_sets(opened)[number],
        parallel=_parallel(),
        process=os.getpid(),
    )


def _parallel() -> int:
    """The address of torch_parallel_for, from torch 2.10 on; 0 where there is none."""
    try:
        function = ctypes.CDLL(None).torch_parallel_for
    except (OSError, AttributeError):
        folder = Path(torch.__file__).parent / "lib"
        for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
            try:
                function = ctypes.CDLL(str(folder / name)).torch_parallel_for
                break
            except (OSError, AttributeError):
                continue
        else:
            return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
