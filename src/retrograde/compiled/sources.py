"""Which C sources the library belongs to: a number that follows from every character of them.

Structs, numbers of cells and layouts of tensors are agreed on by hand between csrc/ and this
folder, and a library built from other sources would read something else than what it is given.
setup.py runs this file, which imports nothing of the package.
"""

from hashlib import sha256
from pathlib import Path

CHECKOUT = Path(__file__).parents[3] / "csrc"
"""The sources beside an editable installation."""

BUILT_FROM = Path(__file__).with_name("_built_from.txt")
"""Where a wheel has the number of those that it was built from."""


def number_of(csrc: Path) -> int:
    """The number of the sources in a folder, less than 2^60."""
    digest = sha256()
    for file in sorted(csrc.glob("*.[ch]")):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return int(digest.hexdigest()[:15], 16)


def expected() -> int:
    """The number of the sources that this version of the package belongs to.

    Raises:
        OSError: if there are neither sources nor a wheel's file.
    """
    if BUILT_FROM.is_file() or not CHECKOUT.is_dir():
        return int(BUILT_FROM.read_text())
    return number_of(CHECKOUT)
