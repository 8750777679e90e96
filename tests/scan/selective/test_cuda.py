"""The CUDA kernels' source against the float64 reference, on the CPU and, with one, on a GPU.

On the CPU the same scan.cu, compiled by g++ with host_cuda.cpp, takes the place of the launch;
all the rest of the backend runs as it is. What this cannot show: that the launch itself is right,
the rounding of the GPU's fast exponential and reciprocal, and its memory model.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.scan.selective.cases import (
    LONG_SCAN_CASES,
    SCAN_CASES,
    ScanCase,
    assert_scan_matches,
    poisoned_memory,
    run_with_gradients,
    scan_inputs,
    with_gradients,
)
from tread_ssm.scan import selective_scan
from tread_ssm.scan.inputs import ScanInputs
from tread_ssm.scan.selective import cuda, nvrtc

HERE = Path(__file__).parent
GPU = torch.cuda.is_available() and torch.version.hip is None
gpu = pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

ROUNDED = ("plain", "subset_per_sample", "dt_tiny")
"""Scan cases that also run in 16 bits."""

ODD = (
    ScanCase("blocks", batch=2, length=40, dim=150, visits=31, per_sample=True, gap=True),
    ScanCase("blocks_24", batch=1, length=33, dim=70, state=24),
    ScanCase("blocks_64", batch=1, length=30, dim=40, state=64, gate=False),
    ScanCase("exactly_a_chunk", batch=1, length=2 * cuda.CHUNK, dim=3),
)
"""More than one block of channels, in each number of threads a channel; whole chunks."""

LARGE = (
    ScanCase("large", batch=4, length=500, dim=200, visits=333, per_sample=True),
    ScanCase("large_gap", batch=16, length=366, dim=384, visits=238, per_sample=True, gap=True),
    ScanCase("column", batch=2, length=1024, dim=2048, visits=1024),
)
"""For a GPU only."""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory):
    """options -> the kernels as a library for this CPU."""
    folder = tmp_path_factory.mktemp("host_cuda")

    @cache
    def library(options: tuple[str, ...]) -> ctypes.CDLL:
        path = folder / f"{abs(hash(options))}.so"
        half = ["-mf16c"] if "-DELEMENT=16" in options else []
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", *half, *options]
        include = f"-I{Path(cuda.__file__).parents[1] / 'csrc'}"
        command = ["g++", *flags, include, str(HERE / "host_cuda.cpp"), "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(path))

    return library


@pytest.fixture
def on_cpu(build, monkeypatch: pytest.MonkeyPatch):
    """Let backend "cuda" run on CPU tensors; [False]: threads run from the first."""
    backwards = [False]

    def launch(source, name, options, blocks, threads, shared, values) -> None:
        assert source == cuda.source()
        packed = nvrtc.arguments(values)
        build(options).host_launch(name.encode(), blocks, threads, shared, packed, backwards[0])

    monkeypatch.setattr(nvrtc, "launch", launch)
    monkeypatch.setattr(cuda, "unavailable", lambda device, dtype: None)
    return backwards


@needs_compiler
@pytest.mark.parametrize("case", SCAN_CASES + ODD, ids=str)
def test_scan(case: ScanCase, on_cpu) -> None:
    assert_scan_matches(case, torch.float32, "cuda")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("case", LONG_SCAN_CASES, ids=str)
def test_long_scan(case: ScanCase, on_cpu) -> None:
    assert_scan_matches(case, torch.float32, "cuda")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in SCAN_CASES if c.name in ROUNDED], ids=str)
def test_scan_in_16_bits(case: ScanCase, dtype: torch.dtype, on_cpu) -> None:
    assert_scan_matches(replace(case, length=min(case.length, 63)), dtype, "cuda")


@needs_compiler
@pytest.mark.parametrize("case", ODD[:3], ids=str)
def test_the_order_in_which_threads_run_changes_nothing(case: ScanCase, on_cpu) -> None:
    results = []
    for on_cpu[0] in (False, True):
        with poisoned_memory():
            inputs = scan_inputs(case, torch.float32)
            results.append(run_with_gradients(selective_scan, inputs, backend="cuda"))
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@needs_compiler
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
def test_nan_in_nan_out(name: str, on_cpu) -> None:
    inputs = scan_inputs(ScanCase("small", batch=1, length=5, dim=7, state=3), torch.float32)
    inputs[name][0, 2, 1] = torch.nan
    nan = selective_scan(**inputs, backend="cuda").isnan()
    want = selective_scan(**inputs, backend="reference").isnan()
    assert want.any() and torch.equal(nan, want)


@needs_compiler
def test_unvisited_tokens_are_not_read(on_cpu) -> None:
    case = ScanCase("subset", batch=1, length=40, dim=5, visits=30)
    inputs = scan_inputs(case, torch.float32)
    want = run_with_gradients(selective_scan, inputs, backend="cuda")
    unvisited = sorted(set(range(case.length)) - set(inputs["order"].tolist()))
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name][:, unvisited] = torch.nan
    got = run_with_gradients(selective_scan, inputs, backend="cuda")
    for name in want:
        assert torch.equal(got[name], want[name]), name


@needs_compiler
def test_operators_pass_opcheck(on_cpu) -> None:
    case = ScanCase("small", batch=1, length=3, dim=3, state=2, visits=2)
    x = ScanInputs(**with_gradients(scan_inputs(case, torch.float32)))
    torch.library.opcheck(torch.ops.tread_ssm.scan_forward, (*x, "cuda"))


def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_device = torch.device("cuda")
    assert "NVIDIA" in str(cuda.unavailable(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(torch.version, "hip", None)
    assert "float64" in str(cuda.unavailable(gpu_device, torch.float64))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (99, 0))
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    monkeypatch.setattr(nvrtc, "architecture", lambda capability: None)
    assert "99.0 is newer than" in str(cuda.unavailable(gpu_device, torch.float32))

    def missing() -> None:
        raise OSError("libnvrtc.so.13 was not found")

    monkeypatch.setattr(nvrtc, "library", missing)
    assert "not found" in str(cuda.unavailable(gpu_device, torch.float32))


def test_too_large_a_sample_is_refused() -> None:
    u = torch.empty(1, 2**20, 2**10, device="meta")
    with pytest.raises(ValueError, match=r"4294967296 bytes a sample"):
        cuda.scan_forward(ScanInputs(u, *[u] * 4, None, None, None, None, None, True))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SCAN_CASES + LONG_SCAN_CASES + ODD + LARGE, ids=str)
def test_scan_on_a_gpu(case: ScanCase, dtype: torch.dtype) -> None:
    assert_scan_matches(case, dtype, "cuda", "cuda")


@gpu
@pytest.mark.gpu
def test_equal_bits_on_every_run_on_a_gpu() -> None:
    inputs = scan_inputs(LARGE[1], torch.bfloat16, "cuda")
    first = run_with_gradients(selective_scan, inputs, backend="cuda")
    for _ in range(5):
        again = run_with_gradients(selective_scan, inputs, backend="cuda")
        for name in first:
            assert torch.equal(first[name], again[name]), name


@gpu
@pytest.mark.gpu
def test_runs_on_the_current_stream_of_a_gpu() -> None:
    inputs = scan_inputs(LARGE[0], torch.float32, "cuda")
    want = selective_scan(**inputs, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        inputs["u"] = inputs["u"] * 2 / 2  # after the pause: a kernel elsewhere would not see it
        got = selective_scan(**inputs, backend="cuda")
    stream.synchronize()
    assert torch.equal(got, want)
