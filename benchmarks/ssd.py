"""Speed of `ssd`, the operation of Mamba-2, on a CPU: against others, and against its floor.

    OMP_NUM_THREADS=1 python benchmarks/ssd.py    # prints, and writes results/ssd_cpu.json and .md

Times are of forward + backward with the gradient of every argument; the sides take turns, and a
ratio is the median over the turns. `ssd` is compared with its form in plain torch ("matmul") and
with Mamba-1's scan of equal width. The mixer is compared with transformers' own on the same
weights, which has its slow path here: plain torch. Two directions are measured as one masked
product and as two passes: where they cross is `LONGEST` of scan/decayed/masked.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import measurement, write_results
from benchmarks.scan import gradient_call, make_inputs, visits
from tread_ssm.models.mixers import Mamba2Config
from tread_ssm.routing import Layout
from tread_ssm.scan import selective_scan, ssd
from tread_ssm.scan.ops import FLOPS_PER_SSD_STEP
from tread_ssm.tables import markdown_table
from tread_ssm.timing import median_of_pairs, take_turns

RESULTS = Path(__file__).parent / "results"
HEAD, STATES, SCAN_STATES = 64, 64, 16
SHAPES = ((8, 64, 384), (8, 256, 384), (8, 366, 384), (4, 256, 2048))
OTHERS = ("column", "matmul", "mamba1")
LENGTHS = (32, 64, 96, 128, 256, 512)  # of the two directions

Shape = tuple[int, int, int]  # batch, tokens, inner channels


def product_inputs(shape: Shape) -> list[Tensor]:
    """v, q, k and log_decay of one group, as a Mamba-2 block sees them when it is new."""
    batch, length, inner = shape
    token = partial(torch.randn, batch, length, generator=torch.Generator().manual_seed(0))
    steps = (token(inner // HEAD) - 3).exp()
    data = [token(inner // HEAD, HEAD), token(1, STATES), token(1, STATES), -4 * steps]
    return [x.requires_grad_() for x in data]


def product(v: Tensor, q: Tensor, k: Tensor, log_decay: Tensor, **options: Any) -> Tensor:
    """`ssd` with v first, whose shape the result has."""
    return ssd(q, k, v, log_decay, **options)


def both_masked(v: Tensor, q: Tensor, k: Tensor, log_decay: Tensor, back: Tensor) -> Tensor:
    """There in raster order and back along `back`, as one product, whatever the length."""
    there = (q, k, v, log_decay, None, None, None)
    way_back = (None, None, None, back, None, None)
    y: Tensor = torch.ops.tread_ssm.both_forward.default(*there, *way_back, "matmul")[0]
    return y


def both_passes(
    v: Tensor, q: Tensor, k: Tensor, log_decay: Tensor, back: Tensor, backend: str | None = None
) -> Tensor:
    """The same as two calls of `ssd`."""
    there = ssd(q, k, v, log_decay, backend=backend)
    return there + ssd(q, k, v, log_decay, back, backend=backend)


def mixers(shape: Shape) -> tuple[dict[str, Callable[[Tensor], Tensor]], Tensor]:
    """Our mixer and transformers' with the same weights, and an input."""
    from transformers import Mamba2Config as TheirConfig
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    batch, length, inner = shape
    torch.manual_seed(0)
    ours = Mamba2Config(d_state=STATES, head_dim=HEAD).build(inner // 2, "raster")
    ours.init_weights()
    config = TheirConfig(
        hidden_size=inner // 2, num_heads=inner // HEAD, head_dim=HEAD, state_size=STATES,
        n_groups=1, expand=2, conv_kernel=4, use_bias=False,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(batch, length, inner // 2, requires_grad=True)
    return {"ours": partial(ours, layout=Layout((1, length))), "transformers": theirs}, x


def mixer_call(mixer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    """Forward and backward, with the gradient of the input and of every weight."""
    module = mixer.func if isinstance(mixer, partial) else mixer
    assert isinstance(module, nn.Module)
    leaves, g = [x, *module.parameters()], torch.randn_like(x)
    return lambda: torch.autograd.grad(mixer(x), leaves, g)


def rates() -> tuple[float, float]:
    """(bytes/s of a 64 MiB copy, read and write counted; FLOP/s of a product of 1024 x 1024)."""
    source, square = torch.rand(1 << 24), torch.rand(1024, 1024)
    target, out = torch.empty_like(source), torch.empty_like(square)
    sides = {
        "copy": lambda: target.copy_(source),
        "product": lambda: torch.mm(square, square, out=out),
    }
    s = {name: statistics.median(t) for name, t in take_turns(sides, 15).items()}
    return 8 * source.numel() / s["copy"], 2 * 1024**3 / s["product"]


def floor_s(shape: Shape, bandwidth: float, flops: float) -> dict[str, float]:
    """Least seconds of forward + backward: bytes moved once, and the recurrence's FLOPs (ops.py).

    Bytes: q, k, v, log_decay in and y out; in the backward these and grad y in, four gradients out.
    """
    batch, length, inner = shape
    inputs, y = 2 * STATES + inner + inner // HEAD, inner
    moved = 4 * batch * length * ((inputs + y) + (inputs + y) + inputs)
    steps = batch * length * inner * STATES * sum(FLOPS_PER_SSD_STEP.values())
    return {"bytes": moved / bandwidth, "flops": steps / flops}


def measure(shape: Shape, repeats: int, bandwidth: float, flops: float) -> dict[str, Any]:
    """One row of the table."""
    batch, length, inner = shape
    x, order = product_inputs(shape), visits("column", length)
    sides: dict[str, Callable[[], object]] = {
        "ssd": gradient_call(product, x),
        "column": gradient_call(product, x, order=order),
        "matmul": gradient_call(product, x, backend="matmul"),
        "mamba1": gradient_call(selective_scan, make_inputs((batch, length, inner, SCAN_STATES))),
    }
    seconds = take_turns(sides, repeats)
    modules, token = mixers(shape)
    whole = take_turns({n: mixer_call(m, token) for n, m in modules.items()}, max(1, repeats // 4))
    median = {name: statistics.median(t) for name, t in {**seconds, **whole}.items()}
    floor = floor_s(shape, bandwidth, flops)
    return {
        "shape": shape,
        "s": median,
        "over_ssd": {name: median_of_pairs(seconds[name], seconds["ssd"]) for name in OTHERS},
        "transformers_over_ours": median_of_pairs(whole["transformers"], whole["ours"]),
        "floor_s": floor,
        "share_of_floor": max(floor.values()) / median["ssd"],
    }


def measure_both(shape: Shape, repeats: int) -> dict[str, Any]:
    """One row of the table of two directions."""
    x, back = product_inputs(shape), torch.arange(shape[1]).flip(0)
    sides: dict[str, Callable[[], object]] = {
        "one": gradient_call(both_masked, x, back=back),
        "two": gradient_call(both_passes, x, back=back, backend="matmul"),
        "cpu": gradient_call(both_passes, x, back=back),
    }
    seconds = take_turns(sides, repeats)
    return {
        "shape": shape,
        "s": {name: statistics.median(t) for name, t in seconds.items()},
        "two_over_one": median_of_pairs(seconds["two"], seconds["one"]),
    }


def markdown(found: dict[str, Any]) -> str:
    """The text of results/ssd_cpu.md."""
    what = (
        f"`ssd` on a CPU, float32, forward + backward, heads of {HEAD} channels, {STATES} states, "
        f"one group; Mamba-1 has {SCAN_STATES} states. {found['machine']}, threads: "
        f"{found['threads']}, commit {found['commit']}, {found['date']}, load of the machine at "
        f"the start {found['load']:.1f}; `{found['command']}`. Floor: "
        f"{found['copy_gb_per_s']:.1f} GB/s copied, {found['gflop_per_s']:.0f} GFLOP/s of a matrix "
        "product; the longer of both times."
    )
    head = ["batch, tokens, channels", "ssd, ms", "column order, times", "matmul, times"]
    head += ["Mamba-1, times", "share of floor", "mixer, ms", "transformers' mixer, times"]
    lines = []
    for row in found["rows"]:
        line = [", ".join(map(str, row["shape"])), f"{1e3 * row['s']['ssd']:.2f}"]
        line += [f"{row['over_ssd'][name]:.2f}" for name in OTHERS]
        line += [f"{row['share_of_floor']:.2f}", f"{1e3 * row['s']['ours']:.2f}"]
        lines.append([*line, f"{row['transformers_over_ours']:.1f}"])
    both = []
    for row in found["both"]:
        times = (f"{1e3 * t:.2f}" for t in row["s"].values())
        both.append([", ".join(map(str, row["shape"])), *times, f"{row['two_over_one']:.2f}"])
    ways = "Two directions, summed: as one masked product, and as two passes of `ssd`."
    heads = ["batch, tokens, channels", "one product (matmul), ms", "two passes (matmul), ms"]
    heads += ["two passes (C++), ms", "matmul: two passes, times"]
    return f"{what}\n\n{markdown_table(head, lines)}\n\n{ways}\n\n{markdown_table(heads, both)}\n"


def report(shapes: tuple[Shape, ...], lengths: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Everything that is measured."""
    about = measurement()
    bandwidth, flops = rates()
    rows = [measure(shape, repeats, bandwidth, flops) for shape in shapes]
    both = [measure_both((8, length, 384), repeats) for length in lengths]
    speeds = {"copy_gb_per_s": bandwidth / 1e9, "gflop_per_s": flops / 1e9}
    return {**about, **speeds, "repeats": repeats, "rows": rows, "both": both}


def main() -> None:
    """Parse arguments, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = report(SHAPES, LENGTHS, options.repeats)
    write_results(options.out, "ssd_cpu", found, markdown(found))


if __name__ == "__main__":
    main()
