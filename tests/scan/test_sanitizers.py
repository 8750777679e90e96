"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

A copy of the package gets kernels that are compiled with both, and random calls of every operation
run there in a process of its own. What reads or writes beside a tensor ends that process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tests.scan.random_calls import OPERATIONS
from tread_ssm.scan.selective import cpu

ROOT = Path(__file__).parents[2]
# As in setup.py, but for the optimisation: what is inlined is found with fewer details.
FLAGS = ("-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-ffp-contract=fast", "-Wno-psabi")
SETS = {
    "base": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
}
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def runtime() -> str:
    """What must be loaded first: AddressSanitizer, and the C++ library, whose throw it replaces."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    names = ("libasan.so", "libstdc++.so")
    found = [run(["g++", f"-print-file-name={n}"], ROOT).stdout.strip() for n in names]
    missing = [name for name, path in zip(names, found, strict=True) if path == name]
    if missing:
        pytest.skip(f"this g++ has no {missing[0]}")
    return " ".join(found)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> Path:
    """A folder with the package, its kernels compiled with sanitizers, and tests of the scans."""
    library = cpu.library()
    level = "base" if library is None else library[0]
    folder = tmp_path_factory.mktemp("sanitized")
    ignored = shutil.ignore_patterns("_kernels_*", "__pycache__")
    for part in ("tread_ssm", "tests/scan"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "tests/__init__.py", folder / "tests")
    kernels = folder / f"tread_ssm/scan/_kernels_{level}{EXTENSION_SUFFIXES[0]}"
    source = str(folder / "tread_ssm/scan/csrc/kernels.cpp")
    command = ["g++", *FLAGS, *SETS[level], *SANITIZERS, source, "-o", str(kernels)]
    built = run(command, folder)
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-300:]}")
    return folder


def sanitized(package: Path, runtime: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in that folder; memory that Python itself never gives back is no leak."""
    return run(
        [sys.executable, *arguments],
        package,
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="2",
    )


@pytest.mark.slow
def test_random_calls_stay_inside_their_tensors(package: Path, runtime: str) -> None:
    done = sanitized(package, runtime, "-m", "tests.scan.random_calls", "150")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["150"] * len(OPERATIONS)


@pytest.mark.slow
def test_a_read_beside_a_tensor_would_be_found(package: Path, runtime: str) -> None:
    """The kernel of exp2, told that 16 numbers were 32."""
    code = (
        "import ctypes, torch; from tread_ssm.scan.selective import cpu; "
        "x = torch.zeros(16); p = ctypes.c_void_p(x.data_ptr()); "
        "cpu.library()[1].exp2_array(p, p, ctypes.c_int64(32))"
    )
    done = sanitized(package, runtime, "-c", code)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
