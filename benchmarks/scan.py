"""Speed and memory of the selective scan on a CPU: against other implementations, and its floor.

    python benchmarks/scan.py                # prints, and writes results/scan_cpu.json and .md

Times are of forward + backward with the gradient of every argument; the sides take turns. The scan
is compared with mambapy's pscan, with its own form in plain torch ("chunked"), and with the plain
loop over time (once: it takes seconds). benchmarks/gpu.py measures GPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import measurement, write_results
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.order import OrderName, rank_table
from tread_ssm.scan.selective import cpu
from tread_ssm.tables import markdown_table
from tread_ssm.timing import take_turns

RESULTS = Path(__file__).parent / "results"
SHAPES = ((8, 64, 384, 16), (8, 256, 384, 16), (8, 1024, 384, 16), (4, 256, 2048, 16))
LOOP_SHAPE = (8, 256, 384, 16)

Shape = tuple[int, int, int, int]  # batch, tokens, channels, states
Call = Callable[[], object]


def make_inputs(shape: Shape) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a Mamba block sees them at initialisation."""
    batch, length, dim, state = shape
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    u, delta, z = (normal(batch, length, dim) + mean for mean in (0, -3, 0))
    B, C = normal(batch, length, state), normal(batch, length, state)
    A = -torch.arange(1, state + 1.0).repeat(dim, 1)
    inputs = [u, delta, A, B, C, torch.ones(dim), z, 0.1 * normal(dim)]
    return [x.requires_grad_() for x in inputs]


def by_states(states: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> Tensor:
    """The scan out of all its states (B, L, D, N), which `states` gives for decays and inputs."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    dt = F.softplus(delta + delta_bias)
    h = states(torch.exp(dt.unsqueeze(-1) * A), (dt * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def pscan_scan(*inputs: Tensor) -> Tensor:
    """The scan as mambapy computes it: a Blelloch scan over (B, L, D, N) tensors."""
    from mambapy.pscan import pscan

    return by_states(pscan, *inputs)


def loop_scan(*inputs: Tensor) -> Tensor:
    """The textbook loop: index, step, append. Its backward is quadratic in L."""

    def states(decay: Tensor, x: Tensor) -> Tensor:
        h = [x[:, 0]]
        for k in range(1, x.shape[1]):
            h.append(decay[:, k] * h[-1] + x[:, k])
        return torch.stack(h, 1)

    return by_states(states, *inputs)


def visits(order: OrderName, length: int) -> Tensor:
    """An order on a grid 16 wide, or as wide below that as divides the length."""
    columns = next(c for c in range(16, 0, -1) if length % c == 0)
    return rank_table(order, (length // columns, columns)).argsort()


def gradient_call(function: Callable[..., Tensor], inputs: list[Tensor], **options: object) -> Call:
    """Forward and backward of `function`, with the gradient of every input."""
    g = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*inputs, **options), inputs, g)


def milliseconds(sides: dict[str, Call], repeats: int) -> dict[str, float]:
    """The median time of each side; they take turns."""
    return {n: 1e3 * statistics.median(t) for n, t in take_turns(sides, repeats).items()}


def rates() -> tuple[float, float]:
    """(bytes/s of a 64 MiB copy, read and write counted; exponentials/s of the kernels' own, in
    cache, one thread times the number of threads)."""
    source, small = torch.rand(1 << 24), torch.rand(1 << 15)
    target, out = torch.empty_like(source), torch.empty_like(small)
    sides: dict[str, Call] = {
        "copy": lambda: target.copy_(source),
        "exp": lambda: [cpu.exp2(small, out) for _ in range(200)],
    }
    ms = milliseconds(sides, 15)
    exps = 200 * small.numel() / ms["exp"] * 1e3 * torch.get_num_threads()
    return 8 * source.numel() / ms["copy"] * 1e3, exps


def floor_ms(shape: Shape, bandwidth: float, exps: float) -> dict[str, float]:
    """Least time of forward and of forward + backward: bytes, exponentials, and the larger.

    Forward: u, delta, z in, y out, one exponential per state-step. Backward: u, delta, z, grad y
    in, three gradients out, and each exponential again.
    """
    batch, length, dim, state = shape
    result = {}
    for name, rows, times in (("forward", 4, 1), ("both", 11, 2)):
        result[f"{name}_bytes"] = 1e3 * rows * 4 * batch * length * dim / bandwidth
        result[f"{name}_exponentials"] = 1e3 * times * batch * length * dim * state / exps
        result[name] = max(result[f"{name}_bytes"], result[f"{name}_exponentials"])
    return result


def measure(shape: Shape, repeats: int, bandwidth: float, exps: float) -> dict[str, Any]:
    """One row of the table."""
    x = make_inputs(shape)
    scan: Callable[..., Tensor] = selective_scan
    sides: dict[str, Call] = {
        "forward": torch.no_grad()(partial(scan, *x)),
        "both": gradient_call(selective_scan, x),
        "column": gradient_call(selective_scan, x, order=visits("column", shape[1])),
        "zigzag": gradient_call(selective_scan, x, order=visits("zigzag_1", shape[1])),
    }
    slow: dict[str, Call] = {
        "both again": sides["both"],
        "chunked": gradient_call(selective_scan, x, backend="chunked"),
        "pscan": gradient_call(pscan_scan, x),
    }
    ms = milliseconds(sides, repeats) | milliseconds(slow, max(1, repeats // 8))
    if shape == LOOP_SHAPE:
        start = time.perf_counter()
        gradient_call(loop_scan, x)()
        ms["loop"] = 1e3 * (time.perf_counter() - start)
    floor = floor_ms(shape, bandwidth, exps)
    others = [name for name in ("chunked", "pscan", "loop") if name in ms]
    return {
        "shape": shape,
        "ms": ms,
        "floor_ms": floor,
        "share_of_floor": {name: floor[name] / ms[name] for name in ("forward", "both")},
        "times_faster_than": {name: ms[name] / ms["both again"] for name in others},
        "order_costs": {name: ms[name] / ms["both"] for name in ("column", "zigzag")},
    }


def peak_memory_mb(name: str, shape: Shape) -> float:
    """Peak resident memory of one forward + backward beyond its inputs, in a fresh process."""
    command = [sys.executable, __file__, "--measure-memory", name, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(name: str, shape: Shape) -> float:
    """See peak_memory_mb; Linux only (resets the process's high-water mark)."""
    functions: dict[str, Callable[..., Tensor]]
    functions = {"ours": selective_scan, "pscan": pscan_scan}
    function = functions[name]
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
    order = visits("column", tokens)

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


def report(shapes: tuple[Shape, ...], repeats: int) -> dict[str, Any]:
    """Everything that is measured."""
    about = measurement() | {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    bandwidth, exps = rates()
    rows = [measure(shape, repeats, bandwidth, exps) for shape in shapes]
    for row in rows:
        row["peak_mb"] = {name: peak_memory_mb(name, row["shape"]) for name in ("ours", "pscan")}
    speeds = {"copy_gb_per_s": bandwidth / 1e9, "exponentials_per_ns": exps / 1e9}
    return {**about, **speeds, "rows": rows, "block": block_share()}


def markdown(found: dict[str, Any]) -> str:
    """The text of results/scan_cpu.md."""
    block = found["block"]
    what = (
        f"{found['machine']} ({found['capability']}), {found['threads']} threads, commit "
        f"{found['commit']}, {found['date']}, float32, load of the machine at the start "
        f"{found['load']:.1f}, OMP_WAIT_POLICY={found['omp_wait_policy']}; `{found['command']}`. "
        f"Medians of sides that take turns, milliseconds, forward + backward. Floor: "
        f"{found['copy_gb_per_s']:.1f} GB/s copied, {found['exponentials_per_ns']:.2f} "
        f"exponentials/ns by the kernels' own in cache; the larger of the two times."
    )
    head = ["(B, L, D, N)", "forward", "both", "column order", "zigzag", "chunked", "pscan", "loop"]
    head += ["x pscan", "x loop", "order costs", "share of floor"]
    head += ["peak extra memory, MB", "pscan's, MB"]
    lines = []
    for row in found["rows"]:
        ms, faster, peak = row["ms"], row["times_faster_than"], row["peak_mb"]
        cells = [f"{ms[name]:.2f}" for name in ("forward", "both", "column", "zigzag")]
        cells += [f"{ms[name]:.0f}" if name in ms else "" for name in ("chunked", "pscan", "loop")]
        cells += [f"{faster[name]:.1f}" if name in faster else "" for name in ("pscan", "loop")]
        cells += [f"{max(row['order_costs'].values()):.2f}", f"{row['share_of_floor']['both']:.2f}"]
        lines.append([f"{tuple(row['shape'])}", *cells, *(f"{mb:.0f}" for mb in peak.values())])
    inside = (
        f"Inside a DiM block (d = 384, 366 tokens, batch 8): products {block['products']:.1f} ms, "
        f"scan {block['scan']:.1f} ms, convolution {block['conv']:.1f} ms; "
        f"scan + convolution / products = {block['scan_and_conv_over_products']:.2f}."
    )
    return f"# Selective scan on the CPU\n\n{what}\n\n{markdown_table(head, lines)}\n\n{inside}\n"


def main() -> None:
    """Parse arguments, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure-memory", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        name, *sizes = options.measure_memory
        batch, length, dim, state = map(int, sizes)
        print(measure_memory(name, (batch, length, dim, state)))
        return
    found = report(SHAPES, options.repeats)
    write_results(options.out, "scan_cpu", found, markdown(found))


if __name__ == "__main__":
    main()
