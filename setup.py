"""Builds the compiled backend (csrc/) where there is a C compiler; pyproject.toml has the rest.

The library is plain C, reached through ctypes: it belongs to no version of Python or torch. Where
it cannot be built the package is complete without it, and `retrograde.backend()` says so.
"""

import os
import platform
import re
import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LEVELS = re.findall(r"(?:^|\s)-O(\S*)", os.environ.get("CFLAGS", ""))
"""Of optimisation, as the environment asks for them. Distributions ask for 2 whatever they build;
any other level is meant."""

OPTIONS = [
    *("-std=gnu11", "-fvisibility=hidden", "-Wno-psabi", "-Wall", "-Wextra"),
    *(["-O3"] if LEVELS[-1:] in ([], ["2"]) else []),
    *([] if LEVELS else ["-g0"]),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
"""None of them changes what arithmetic means, as -ffast-math would."""

SETS: dict[str, list[str]] = {"baseline": []}
"""Instruction sets beside that of every processor of its kind, and what the compiler is told."""
if platform.machine() in ("x86_64", "AMD64"):
    SETS["avx2"] = ["-mavx2", "-mfma"]
    SETS["avx512"] = [
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"),
        "-mprefer-vector-width=512",
    ]

SOURCES = runpy.run_path("src/retrograde/compiled/sources.py")
"""The number that package and library know each other by."""

TYPES = {"float": [], "double": ["-DRETROGRADE_DOUBLE"]}


class Build(build_ext):
    """Compiles kernels.c once for each instruction set and type."""

    def build_extension(self, ext: Extension) -> None:
        number = SOURCES["number_of"](Path("csrc"))
        objects, built = list[str](), [f"-DRETROGRADE_SOURCES={number}"]
        for name, options in SETS.items():
            try:
                for kind, definition in TYPES.items():
                    define = f"-DRETROGRADE_NAME=retrograde_{name}_{kind}"
                    more = [*options, *definition, define]
                    objects += self._compiled(ext, "kernels", f"{name}_{kind}", more)
                built.append(f"-DRETROGRADE_{name.upper()}")
            except CompileError:
                if name == "baseline":
                    raise
                # The compiler is older than the set, or compiles for another kind of processor.
                self.warn(f"{ext.name} is built without {name}")
        objects += self._compiled(ext, "library", "", built)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=ext.libraries
        )
        if not self.inplace:
            beside = Path(self.get_ext_fullpath(ext.name)).with_name(SOURCES["BUILT_FROM"].name)
            beside.write_text(f"{number}\n")

    def _compiled(self, ext: Extension, file: str, folder: str, options: list[str]) -> list[str]:
        return self.compiler.compile(
            [f"csrc/{file}.c"],
            output_dir=os.path.join(self.build_temp, folder),
            extra_postargs=[*OPTIONS, *options],
            depends=ext.depends,
        )

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class Wheel(bdist_wheel):
    """For any version of Python on this kind of machine."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


LIBRARY = Extension(
    "retrograde.compiled._recurrence",
    ["csrc/kernels.c", "csrc/library.c"],
    depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
    libraries=["m"],
    optional=True,
)

# Microsoft's compiler has no vector extensions.
built = sys.platform != "win32"
setup(
    ext_modules=[LIBRARY] if built else [],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel} if built else {},
)
