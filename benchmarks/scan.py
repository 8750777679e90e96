"""Speed and memory of the selective scan: against other implementations and against its floor.

    python benchmarks/scan.py                       # prints, and writes results/scan_<device>.json
    python benchmarks/scan.py --device cuda

Times are medians of interleaved runs, forward + backward with gradients of every argument. The CPU
part compares with mambapy's pscan and with the plain loop over time (once: it takes seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan import causal_conv, choose_backend, selective_scan
from tread_ssm.scan.dispatch import unavailable
from tread_ssm.scan.order import rank_table
from tread_ssm.scan.selective import cpu

CPU_SHAPES = ((8, 64, 384, 16), (8, 256, 384, 16), (8, 1024, 384, 16), (4, 256, 2048, 16))
LOOP_SHAPE = (8, 256, 384, 16)
GPU_SHAPES = ((256, 183, 2048, 16), (256, 366, 2048, 16), (256, 1230, 2048, 16))
GPU_BANDWIDTH = 4.3e12  # bytes/s that a copy reaches on an H200
GPU_EXPONENTIALS = 132 * 16 * 1.98e9  # special-function units: 16 per clock and multiprocessor

Shape = tuple[int, int, int, int]
Call = Callable[[], object]


def make_inputs(
    shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a Mamba block sees them at initialisation."""
    batch, length, dim, state = shape
    g = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, device=device)

    u, delta, z = (
        normal(batch, length, dim),
        normal(batch, length, dim) - 3,
        normal(batch, length, dim),
    )
    B, C = normal(batch, length, state), normal(batch, length, state)
    A = -torch.arange(1, state + 1.0).repeat(dim, 1)
    moved = [x.to(device, dtype) for x in (u, delta, B, C, z)]
    wide = [x.to(device) for x in (A, torch.ones(dim), 0.1 * normal(dim))]
    u, delta, B, C, z = moved
    return [x.requires_grad_() for x in (u, delta, wide[0], B, C, wide[1], z, wide[2])]


def pscan_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """The scan as mambapy computes it: a Blelloch scan over (B, L, D, N) tensors."""
    from mambapy.pscan import pscan

    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    h = pscan(decay, (dt * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def loop_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """The textbook loop: index, step, append. Its backward is quadratic in L."""
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    x = (dt * u).unsqueeze(-1) * B.unsqueeze(2)
    h = torch.zeros_like(x[:, 0])
    ys = []
    for k in range(u.shape[1]):
        h = decay[:, k] * h + x[:, k]
        ys.append((h * C[:, k].unsqueeze(1)).sum(-1))
    return (torch.stack(ys, 1) + D * u) * F.silu(z)


def grid_columns(length: int) -> int:
    """The largest divisor of the length up to 16."""
    return next(c for c in range(16, 0, -1) if length % c == 0)


def column_order(length: int) -> Tensor:
    """Columns of a grid 16 wide (or as wide as divides the length)."""
    columns = grid_columns(length)
    return rank_table("column", (length // columns, columns)).argsort()


def zigzag_order(length: int) -> Tensor:
    """A serpentine along columns of the same grid."""
    columns = grid_columns(length)
    return rank_table("zigzag_1", (length // columns, columns)).argsort()


def gradient_call(function: Callable[..., Tensor], inputs: list[Tensor], **options: object) -> Call:
    """Forward and backward of `function`, with the gradient of every input."""
    g = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*inputs, **options), inputs, g)


def forward_call(function: Callable[..., Tensor], inputs: list[Tensor]) -> Call:
    def call() -> None:
        with torch.no_grad():
            function(*inputs)

    return call


def medians(calls: dict[str, Call], repeats: dict[str, int], in_a_row: int = 1) -> dict[str, float]:
    """Median milliseconds of each call; the runs are interleaved, after one that does not count.

    A run is `in_a_row` calls, waited for once: on a GPU the next is prepared while one runs.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for turn in range(max(repeats.values())):
        for name, call in calls.items():
            every = max(repeats.values()) // repeats[name]
            if turn % every == 0:
                synchronise()
                start = time.perf_counter()
                for _ in range(in_a_row):
                    call()
                synchronise()
                times[name].append(1e3 * (time.perf_counter() - start) / in_a_row)
    return {name: statistics.median(t) for name, t in times.items()}


def synchronise() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


# CPU -------------------------------------------------------------------------------------------


def cpu_rates() -> tuple[float, float]:
    """(bytes/s of a 64 MiB copy, read and write counted; exponentials/s of the kernels' own, in
    cache, one thread times the number of threads)."""
    source = torch.rand(1 << 24)
    target = torch.empty_like(source)
    small = torch.rand(1 << 15)
    out = torch.empty_like(small)
    ms = medians(
        {
            "copy": lambda: target.copy_(source),
            "exp": lambda: [cpu.exp2(small, out) for _ in range(200)],
        },
        {"copy": 15, "exp": 15},
    )
    exps = 200 * small.numel() / ms["exp"] * 1e3 * torch.get_num_threads()
    return 8 * source.numel() / ms["copy"] * 1e3, exps


def floor_ms(
    shape: Shape, bytes_per_element: int, bandwidth: float, exps: float
) -> dict[str, float]:
    """Least time of forward and of forward + backward: bytes, exponentials, and the larger.

    Forward: u, delta, z in, y out, one exponential per state-step. Backward: u, delta, z, grad y
    in, three gradients out, and each exponential again.
    """
    batch, length, dim, state = shape
    row = batch * length * dim * bytes_per_element
    one = batch * length * dim * state / exps
    result = {}
    for name, rows, times in (("forward", 4, 1), ("both", 11, 2)):
        result[f"{name}_bytes"] = 1e3 * rows * row / bandwidth
        result[f"{name}_exponentials"] = 1e3 * times * one
        result[name] = max(result[f"{name}_bytes"], result[f"{name}_exponentials"])
    return result


def cpu_speed(shape: Shape, bandwidth: float, exps: float, repeats: int) -> dict[str, object]:
    """One row of the table."""
    x = make_inputs(shape)
    calls = {
        "forward": forward_call(selective_scan, x),
        "both": gradient_call(selective_scan, x),
        "column": gradient_call(selective_scan, x, order=column_order(shape[1])),
        "zigzag": gradient_call(selective_scan, x, order=zigzag_order(shape[1])),
        "chunked": gradient_call(selective_scan, x, backend="chunked"),
        "pscan": gradient_call(pscan_scan, x),
    }
    slow = max(1, repeats // 8)
    counts = {name: slow if name in ("pscan", "chunked") else repeats for name in calls}
    ms = medians(calls, counts)
    if shape == LOOP_SHAPE:
        start = time.perf_counter()
        gradient_call(loop_scan, x)()
        ms["loop"] = 1e3 * (time.perf_counter() - start)
    floor = floor_ms(shape, 4, bandwidth, exps)
    return {
        "shape": shape,
        "ms": ms,
        "floor_ms": floor,
        "share_of_floor": {k: floor[k] / ms[k] for k in ("forward", "both")},
        "times_faster_than": {
            k: ms[k] / ms["both"] for k in ("chunked", "pscan", "loop") if k in ms
        },
        "order_costs": {k: ms[k] / ms["both"] for k in ("column", "zigzag")},
    }


def peak_memory_mb(name: str, shape: Shape) -> float:
    """Peak resident memory of one forward + backward beyond its inputs, in a fresh process."""
    command = [sys.executable, __file__, "--measure-memory", name, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(name: str, shape: Shape) -> float:
    """See peak_memory_mb; Linux only (resets the process's high-water mark)."""
    function = {"ours": selective_scan, "pscan": pscan_scan}[name]
    gradient_call(function, make_inputs((1, 16, 16, 16)))()  # code and thread stacks
    call = gradient_call(function, make_inputs(shape))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    kept = call()  # gradients included: they are part of the cost
    peak = _status_kb("VmHWM")
    assert kept is not None
    return (peak - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def block_share(batch: int = 8, tokens: int = 366, dim: int = 384) -> dict[str, float]:
    """Milliseconds of matrix products and of scan + convolution inside one Mamba block.

    A DiM block (expand 2, d_conv 3, d_state 16, dt rank dim / 16), forward + backward; each
    operator's time is taken where it runs, between the others, by torch's profiler.
    """
    inner, state, rank = 2 * dim, 16, -(-dim // 16)
    g = torch.Generator().manual_seed(0)

    def weight(*size: int) -> Tensor:
        return (torch.randn(size, generator=g) * size[-1] ** -0.5).requires_grad_()

    w_in, w_x, w_dt = weight(2 * inner, dim), weight(rank + 2 * state, inner), weight(inner, rank)
    w_out, w_conv, norm = weight(dim, inner), weight(inner, 3), torch.ones(dim, requires_grad=True)
    A = (-torch.arange(1, state + 1.0).repeat(inner, 1)).requires_grad_()
    D, bias = torch.ones(inner, requires_grad=True), torch.full((inner,), -4.0, requires_grad=True)
    x = torch.randn(batch, tokens, dim, generator=g).requires_grad_()
    order = column_order(tokens)

    def block() -> None:
        u, z = F.linear(F.rms_norm(x, (dim,), norm), w_in).chunk(2, -1)
        u = causal_conv(u, w_conv, order=order)
        low, B, C = F.linear(u, w_x).split([rank, state, state], -1)
        y = selective_scan(u, F.linear(low, w_dt), A, B, C, D, z, bias, order=order)
        (x + F.linear(y, w_out)).square().mean().backward()

    block()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(8):
            block()
    ms = {"products": 0.0, "scan": 0.0, "conv": 0.0}
    for event in profile.key_averages():
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm"):
            ms["products"] += event.self_cpu_time_total / 8e3
        for kind in ("scan", "conv"):
            if event.key.startswith(f"tread_ssm::{kind}_"):
                ms[kind] += event.cpu_time_total / 8e3
    return {**ms, "scan_and_conv_over_products": (ms["scan"] + ms["conv"]) / ms["products"]}


def cpu_report(repeats: int) -> dict[str, object]:
    """Everything that is measured on a CPU."""
    bandwidth, exps = cpu_rates()
    rows = [cpu_speed(shape, bandwidth, exps, repeats) for shape in CPU_SHAPES]
    memory = {}
    for shape in CPU_SHAPES:
        ours, other = peak_memory_mb("ours", shape), peak_memory_mb("pscan", shape)
        memory[str(shape)] = {"ours_mb": ours, "pscan_mb": other, "ratio": ours / other}
    return {
        "copy_gb_per_s": bandwidth / 1e9,
        "exponentials_per_ns": exps / 1e9,
        "speed": rows,
        "peak_extra_memory": memory,
        "block": block_share(),
        "gpu": "not run: no CUDA device" if not torch.cuda.is_available() else "see --device cuda",
    }


# GPU -------------------------------------------------------------------------------------------


def mamba_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    columns: int | None = None,
) -> Tensor:
    """mamba-ssm's kernel on channel-first tensors; `columns` of a grid: along these.

    For that it needs transposed copies: the cheapest there are, for an index_select would
    add up its gradient by atomics.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if columns is not None:
        u, delta, B, C, z = (transposed(t, columns) for t in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
    return y if columns is None else transposed(y, y.shape[-1] // columns)


def transposed(x: Tensor, columns: int) -> Tensor:
    """A grid with this many columns, row by row along the last axis -> column by column."""
    return x.unflatten(-1, (-1, columns)).transpose(-1, -2).flatten(-2)


def that_run(calls: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """(calls that run, errors of the others): one that fails must not cost the session the rest."""
    good, errors = {}, {}
    for name, call in calls.items():
        try:
            call()
            synchronise()
            good[name] = call
        except Exception as error:  # whatever a kernel or a compiler may raise
            errors[name] = f"{type(error).__name__}: {error}"[:500]
    return good, errors


def gpu_speed(shape: Shape, repeats: int) -> dict[str, object]:
    """Forward and forward + backward in bf16, without and with a column order, by each backend."""
    ours = make_inputs(shape, "cuda", torch.bfloat16)
    order = column_order(shape[1]).cuda()
    backends = [
        b for b in ("triton", "cuda") if unavailable(b, ours[0].device, ours[0].dtype) is None
    ]
    calls: dict[str, Call] = {}
    for backend in backends:
        scan = partial(selective_scan, backend=backend)
        calls |= {
            f"{backend}_forward": forward_call(scan, ours),
            f"{backend}_both": gradient_call(scan, ours),
            f"{backend}_both_column": gradient_call(scan, ours, order=order),
        }
    if find_spec("mamba_ssm") and find_spec("selective_scan_cuda"):
        theirs = [
            (x.detach().transpose(1, 2).contiguous() if x.ndim == 3 else x.detach()) for x in ours
        ]
        theirs = [x.requires_grad_() for x in theirs]
        calls |= {
            "mamba_forward": forward_call(mamba_scan, theirs),
            "mamba_both": gradient_call(mamba_scan, theirs),
            "mamba_both_column": gradient_call(mamba_scan, theirs, columns=grid_columns(shape[1])),
        }
    calls, errors = that_run(calls)
    ms = medians(calls, dict.fromkeys(calls, repeats), in_a_row=5) if calls else {}
    floor = floor_ms(shape, 2, GPU_BANDWIDTH, GPU_EXPONENTIALS)
    return {
        "shape": shape,
        "backend": choose_backend(None, "cuda", torch.bfloat16),
        "ms": ms,
        "errors": errors,
        "floor_ms": floor,
        "share_of_floor": {
            f"{b}_{k}": floor[k] / ms[f"{b}_{k}"]
            for b in backends
            for k in ("forward", "both")
            if f"{b}_{k}" in ms
        },
        "times_faster_than_mamba": {
            f"{b}_{k}": ms[f"mamba_{k}"] / ms[f"{b}_{k}"]
            for b in backends
            for k in ("forward", "both", "both_column")
            if f"mamba_{k}" in ms and f"{b}_{k}" in ms
        }
        or "mamba-ssm's kernel is not installed, or failed",
    }


# Report ----------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """Where it ran."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return {
        "cpu": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/scan.py", *sys.argv[1:]]),
        "load": os.getloadavg()[0],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def cpu_markdown(report: dict) -> str:
    """The tables of results/scan_cpu.md."""
    m = report["machine"]
    lines = [
        "# Selective scan on the CPU",
        "",
        f"{m['cpu']} ({m['capability']}), {m['threads']} threads, torch {m['torch']}, fp32, "
        f"load of the machine at the start {m['load']:.1f}, "
        f"OMP_WAIT_POLICY={m['omp_wait_policy']}; "
        f"`{m['command']}`. Medians of interleaved runs, milliseconds, forward + backward.",
        "",
        "| (B, L, D, N) | forward | both | column order | zigzag | chunked | pscan | loop "
        "| x pscan | x loop | order costs | share of floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["speed"]:
        ms, faster = row["ms"], row["times_faster_than"]
        loop = (f"{ms['loop']:.0f}", f"{faster['loop']:.0f}") if "loop" in ms else ("", "")
        lines.append(
            f"| {tuple(row['shape'])} | {ms['forward']:.2f} | {ms['both']:.2f} "
            f"| {ms['column']:.2f} | {ms['zigzag']:.2f} | {ms['chunked']:.1f} "
            f"| {ms['pscan']:.0f} | {loop[0]} | {faster['pscan']:.1f} | {loop[1]} "
            f"| {max(row['order_costs'].values()):.2f} "
            f"| {row['share_of_floor']['both']:.2f} |"
        )
    block = report["block"]
    lines += [
        "",
        f"Floor: {report['copy_gb_per_s']:.1f} GB/s copied, {report['exponentials_per_ns']:.2f} "
        "exponentials/ns by the kernels' own in cache; the larger of the two times.",
        "",
        "| (B, L, D, N) | peak extra memory, MB | pscan, MB | ratio |",
        "|---|---|---|---|",
        *(
            f"| {shape} | {v['ours_mb']:.0f} | {v['pscan_mb']:.0f} | {v['ratio']:.3f} |"
            for shape, v in report["peak_extra_memory"].items()
        ),
        "",
        f"Inside a DiM block (d = 384, 366 tokens, batch 8): products {block['products']:.1f} ms, "
        f"scan {block['scan']:.1f} ms, convolution {block['conv']:.1f} ms; "
        f"scan + convolution / products = {block['scan_and_conv_over_products']:.2f}.",
        "",
        f"GPU: {report['gpu']}.",
        "",
    ]
    return "\n".join(lines)


def save(report: dict, folder: Path, device: str) -> None:
    """Write results/scan_<device>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"scan_{device}.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure-memory", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        name, *shape = args.measure_memory
        batch, length, dim, state = map(int, shape)
        print(measure_memory(name, (batch, length, dim, state)))
        return
    if args.device == "cuda":
        if not torch.cuda.is_available():
            print("GPU: not run: no CUDA device")
            return
        report: dict = {"machine": machine(), "speed": []}
        for shape in GPU_SHAPES:
            report["speed"].append(gpu_speed(shape, args.repeats))
            print(json.dumps(report["speed"][-1], indent=1), flush=True)
            save(report, args.out, "cuda")  # now: the next may fail
    else:
        report = {"machine": machine(), **cpu_report(args.repeats)}
        text = cpu_markdown(report)
        print(text)
        save(report, args.out, "cpu")
        (args.out / "scan_cpu.md").write_text(text)


if __name__ == "__main__":
    main()
