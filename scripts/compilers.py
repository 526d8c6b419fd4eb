"""Is the library right as other compilers build it, and as gcc does at every level of optimisation?

    python scripts/compilers.py [option of pytest ...]

Each builds a wheel, and the tests of the compiled backend run on it. Compilers that are not there
are named and left out.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from installation import wheel

ROOT = Path(__file__).parent.parent

LEVELS = {"gcc": ("-O0", "-O1", "-O2", "-Os"), "clang": ("-O0", "-O2"), "musl-gcc": ("-O2",)}
"""CFLAGS by compiler. A build with musl is loaded beside the C library of this machine."""

LIBRARIES = {"musl-gcc": f"/usr/lib/{platform.machine()}-linux-musl"}
"""Where a C library lies that the loader does not find by itself."""

LOADS = "import retrograde; print(retrograde.backend())"
"""Fails where the library cannot be loaded, for which the tests are only skipped."""


def main(options: list[str]) -> int:
    failed = list[str]()
    for compiler, levels in LEVELS.items():
        if not shutil.which(compiler):
            print(f"{compiler}: skipped, it is not there")
            continue
        for level in levels:
            print(f"{compiler} {level}", flush=True)
            with tempfile.TemporaryDirectory() as name:
                built = wheel(Path(name), CC=compiler, CFLAGS=level)
                package = Path(name) / "package"
                zipfile.ZipFile(built).extractall(package)
                environment = {"PYTHONPATH": str(package), "RETROGRADE_BACKEND": "compiled"}
                if compiler in LIBRARIES:
                    environment["LD_LIBRARY_PATH"] = LIBRARIES[compiler]
                tests = ("-m", "pytest", "-q", "tests/compiled", *options)
                codes = (
                    subprocess.run(
                        [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}
                    ).returncode
                    for command in (("-c", LOADS), tests)
                )
                if any(codes):  # tests of what cannot be loaded are not run
                    failed.append(f"{compiler} {level}")
    if failed:
        print("failed:", ", ".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
