"""Builds the CPU kernels: one source, once per instruction set; cpu.py picks one when it loads.

They are plain shared libraries with a C interface. Each is optional: without a working compiler
the package installs all the same, and scans on the CPU fall back to plain torch.
"""

import os
import platform
import shutil

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CSRC = "tread_ssm/scan/csrc"
HEADERS = ("vec", "scan", "conv", "product", "ssd", "gate")
# no -ffast-math: NaN must come through, and linking with it sets flush-to-zero process-wide
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
QUIET = ["-Wno-psabi", "-Wno-maybe-uninitialized"]  # the latter fires in GCC 12's own headers
LEVELS: dict[str, list[str]] = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS["avx2"] = ["-mavx2", "-mfma"]
    LEVELS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]


class BuildKernels(build_ext):
    """Keeps the object files of the levels apart: they come from the same source."""

    def build_extension(self, ext: Extension) -> None:
        shared = self.build_temp
        self.build_temp = os.path.join(shared, ext.name.rpartition(".")[2])
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared


class BuildPackage(build_py):
    """Puts configs/ into the package, where an installation finds its configurations by name."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout has them beside the package
            to = os.path.join(self.build_lib, "tread_ssm", "configs")
            shutil.copytree("configs", to, dirs_exist_ok=True)


setup(
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackage},
    ext_modules=[
        Extension(
            f"tread_ssm.scan._kernels_{level}",
            sources=[f"{CSRC}/kernels.cpp"],
            depends=[f"{CSRC}/{name}.h" for name in HEADERS],
            extra_compile_args=[*FLAGS, *QUIET, *flags],
            language="c++",
            optional=True,
        )
        for level, flags in LEVELS.items()
    ],
)
