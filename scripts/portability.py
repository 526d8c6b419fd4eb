"""Does anything that is printed or tested hang on the processor?

    python scripts/portability.py              all settings
    python scripts/portability.py NAME...      some of them

Each setting runs the executed pages, the numerics and the demo with other instructions, as an older
or another maker's processor would; the last one (tests/support/another_processor) moves the results
of sums and curves itself, for all the processors that this one cannot play. A setting that this
machine does not have is skipped, and the reason is printed.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent

PAGES = ["tests/test_docs.py"]
DEMO = ["tests/test_demo.py"]
NUMERICS = [
    f"tests/{folder}/test_{name}.py"
    for folder, names in {
        "cells": "cells from_function generations",
        "clipping": "clipping_inside",
        "decomposition": "decompose non_finite routes",
        "engine": "engine scaling",
        "nn": "nn",
        "recording": "forms",
        "spectra": "spectra",
        "tasks": "clipping_study trial_set",
    }.items()
    for name in names.split()
] + ["src/retrograde"]  # the examples of the docstrings

LEVELS = ("DEFAULT", "AVX2", "AVX512")
"""What torch calls the instruction sets of x86 processors, each with those before it."""


def instructions(aten: str, onednn: str, mkl: str) -> dict[str, str]:
    """Instruction sets of the three libraries that do torch's arithmetic on x86."""
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_CBWR": mkl}


PLAIN = instructions("default", "SSE41", "COMPATIBLE")
AVX2 = instructions("avx2", "AVX2", "AVX2")
AVX512 = instructions("avx512", "AVX512_CORE", "AVX512")

SETTINGS: dict[str, tuple[dict[str, str], int]] = {
    "plain": (PLAIN, 1),
    "plain-2": (PLAIN, 2),
    "avx2": (AVX2, 1),
    "avx2-2": (AVX2, 2),
    "avx512": (AVX512, 1),
    "avx512-2": (AVX512, 2),
    "own-2": ({}, 2),
    "another-processor": ({"RETROGRADE_TEST_ULPS": "2"}, 1),
}
"""By name: environment variables, and threads. `make test` is this processor's own with one."""


def missing(environment: dict[str, str], threads: int) -> str | None:
    """Why this machine does not have a setting; None if it does."""
    level = environment.get("ATEN_CPU_CAPABILITY", "").upper()
    if level and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the instruction set {level} is x86's, and this is {platform.machine()}"
    if level and LEVELS.index(level) > LEVELS.index(torch.backends.cpu.get_cpu_capability()):
        return f"this processor has no {level}, or torch was not built for it"
    if threads > (os.cpu_count() or 1):
        return f"it takes {threads} processors, and there is {os.cpu_count()}"
    return None


def run(name: str) -> bool:
    """Whether everything passes under a setting."""
    chosen, threads = SETTINGS[name]
    reason = missing(chosen, threads)
    if reason:
        print(f"{name}: skipped, {reason}", flush=True)
        return True
    print(f"{name}: {chosen or 'as it is'}, threads: {threads}", flush=True)
    environment = {**os.environ, **chosen, "RETROGRADE_TEST_THREADS": str(threads)}
    if "RETROGRADE_TEST_ULPS" in chosen:
        folders = [
            str(ROOT / "tests" / "support" / "another_processor"),
            os.environ.get("PYTHONPATH", ""),
        ]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    # The second thread of tests this small has hardly anything to do: it is to wait asleep, so that
    # two workers with two threads each are as fast on two processors as with one.
    environment |= {"OMP_WAIT_POLICY": "passive"}
    workers = str(min(2, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", workers]
    command += ["--dist", "worksteal", *PAGES, *DEMO, *NUMERICS]
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code < 0:
        print(f"{name}: pytest was ended by signal {-code}")
    return code == 0


if __name__ == "__main__":
    asked = sys.argv[1:] or list(SETTINGS)
    unknown = [name for name in asked if name not in SETTINGS]
    if unknown:
        sys.exit(f"no setting {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    failed = [name for name in asked if not run(name)]
    if failed:
        sys.exit(f"something hangs on the processor under: {', '.join(failed)}")
