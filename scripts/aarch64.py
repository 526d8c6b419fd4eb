"""Does the compiled backend do on a 64-bit ARM processor what it does here?

    python scripts/aarch64.py [option of pytest ...]

Its tests run here as usual, but the library is compiled for ARM and runs in an emulator: a proxy
(tests/support/aarch64) passes every call on to it, and the emulated process reads and writes the
memory of this one. Without the compiler or the emulator nothing is tested, and a line says so.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from installation import wheel

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "build" / "aarch64"
SUPPORT = ROOT / "tests" / "support" / "aarch64"

COMPILER = "aarch64-linux-gnu-gcc"
# The memset of that processor uses no `dc zva`, of which qemu 7.2 loses some where it faults.
MEMSET = "GLIBC_TUNABLES=glibc.cpu.name=kunpeng920"
EMULATOR = ("qemu-aarch64", "-E", MEMSET, "-L", "/usr/aarch64-linux-gnu")
NEEDED = {COMPILER: "gcc-aarch64-linux-gnu", EMULATOR[0]: "qemu-user", "cc": "gcc"}
"""Programs, and the Debian packages that have them."""


def build() -> None:
    """The package with the proxy in place of the library, and the library for ARM beside it."""
    shutil.rmtree(BUILT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel(Path(folder), CC=COMPILER)).extractall(BUILT)
    place = BUILT / "retrograde" / "compiled" / "_recurrence.so"
    library, worker = BUILT / "aarch64.so", BUILT / "worker"
    place.rename(library)
    warnings = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
    subprocess.run([COMPILER, *warnings, SUPPORT / "worker.c", "-o", worker, "-ldl"], check=True)
    words = ",".join(f'"{word}"' for word in (*EMULATOR, worker, library))
    proxy = ("-shared", "-fPIC", f"-DWORKER={words}", SUPPORT / "proxy.c", "-o", place, "-pthread")
    subprocess.run(["cc", *warnings, *proxy], check=True)


def main(options: list[str]) -> int:
    missing = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if sys.platform != "linux":
        missing = ["Linux"]
    if missing:
        print(f"skipped: it needs {', '.join(missing)}")
        return 0
    build()
    environment = {"PYTHONPATH": str(BUILT), "RETROGRADE_BACKEND": "compiled"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/compiled", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
