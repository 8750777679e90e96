"""Measure what routing costs, and what a scan backend is worth in a whole model.

`python benchmarks/models.py routing`

For a DiM and a DiT that are large enough to be bound by compute it prints the step time of the
routed network over that of the dense one, measured with both sides taking turns, beside the
ratio of FLOPs that tread_ssm.routing.cost predicts.

`python benchmarks/models.py widths`

The same for small DiMs at 256 tokens and several widths, by CPU time, beside what a step costs at 4
tokens: the part that no route saves.

`python benchmarks/models.py mixers`

A training step of one DiM by mixer, at 64, 256 and 366 tokens, dense and routed: CPU time, or time
on a GPU where there is one. Prints, and writes results/mixers_<device>.json and .md.

`python benchmarks/models.py throughput --size dim_l --batch 256`

Images per second of training steps with each scan backend that runs here, compiled and not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import measurement, write_results
from tread_ssm import Route, RoutePlan
from tread_ssm.config.run import load_config
from tread_ssm.models import (
    DiMConfig,
    DiTConfig,
    Mamba1Config,
    Mamba2Config,
    Mamba3Config,
    MixerConfig,
    ModelConfig,
)
from tread_ssm.models.cost import backbone_cost
from tread_ssm.scan import BACKENDS
from tread_ssm.scan.dispatch import ENVIRONMENT_VARIABLE, unavailable
from tread_ssm.tables import markdown_table
from tread_ssm.timing import median_of_pairs, take_turns

CONFIGS = Path(__file__).parents[1] / "configs"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One backbone, dense against routed."""

    backbone: str
    batch: int
    tokens_dense: int
    tokens_routed: int
    dense_s: float
    routed_s: float
    measured_share: float
    predicted_share: float

    @property
    def deviation(self) -> float:
        """Measured over predicted share, less one."""
        return self.measured_share / self.predicted_share - 1


def training_step(
    config: ModelConfig,
    plan: RoutePlan,
    batch: int,
    *,
    compiled: bool = False,
    checkpoint: bool = False,
) -> Callable[[], None]:
    """A step of forward, backward and AdamW on random latents; draws its routes anew."""
    torch.manual_seed(0)
    model = config.build().to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(model.parameters()).device
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, config.channels, config.image_size, config.image_size, device=device)
    level = torch.rand(batch, device=device) * 1000
    labels = torch.randint(config.n_classes, (batch,), device=device)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        draw = plan.draw(batch, model.grid, generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = model(x, level, labels, routing=draw, checkpoint=checkpoint)
            loss = (out.float() - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str, config: ModelConfig, route: Route, batch: int, repeats: int) -> Row:
    """Time both sides and set the prediction beside them."""
    plan = RoutePlan((route,), config.depth)
    sides = {
        "dense": training_step(config, plan.with_drop(0.0), batch),
        "routed": training_step(config, plan, batch),
    }
    seconds = take_turns(sides, repeats)
    cost = backbone_cost(config, plan)
    return Row(
        name,
        batch,
        max(cost.dense.tokens),
        min(cost.routed.tokens),
        statistics.median(seconds["dense"]),
        statistics.median(seconds["routed"]),
        median_of_pairs(seconds["routed"], seconds["dense"]),
        cost.step_share,
    )


def widths(dims: list[int], batch: int, repeats: int) -> str:
    """Markdown: CPU time of a step by width, dense and routed, medians over turns."""
    plan = RoutePlan((Route(2, 6),), 7)
    plans = {"dense": plan.with_drop(0), "0.5": plan, "0.75": plan.with_drop(0.75)}
    lines = []
    for kind in ("mamba1", "mamba2"):
        for dim in dims:
            small = [f"model.dim={dim}", f"model.mixer={{kind: {kind}}}", "data.size=32"]
            quickstart = CONFIGS / "quickstart.yaml"
            config = load_config(quickstart, [*small, "model.image_size=32"]).model
            tiny = load_config(quickstart, [*small, "model.image_size=4"]).model
            sides = {name: training_step(config, p, batch) for name, p in plans.items()}
            sides["4 tokens"] = training_step(tiny, plans["dense"], batch)
            seconds = take_turns(sides, repeats, time.process_time)
            for drop in ("0.5", "0.75"):
                predicted = backbone_cost(config, plans[drop], batch).step_share
                measured = median_of_pairs(seconds[drop], seconds["dense"])
                ms = (f"{1e3 * statistics.median(seconds[n]):.0f}" for n in ("dense", "4 tokens"))
                shares = (f"{measured:.3f}", f"{predicted:.3f}", f"{measured / predicted - 1:+.1%}")
                lines.append([kind, str(dim), *ms, drop, *shares])
    head = ["mixer", "channels", "dense ms", "ms at 4 tokens", "drop", "measured", "FLOPs predict"]
    return markdown_table([*head, "deviation"], lines)


MIXERS: dict[str, MixerConfig] = {
    "mamba1": Mamba1Config(),
    "mamba2": Mamba2Config(d_state=64),
    "mamba3": Mamba3Config(d_state=64),
}
GRIDS = {64: (16, 0), 256: (32, 0), 366: (32, 3)}
"""Side of the latents and DiM's padding tokens, by the number of tokens (a prefix of 2 aside)."""


def mixers(dim: int, batch: int, repeats: int, grids: dict[int, tuple[int, int]]) -> dict[str, Any]:
    """Seconds of a step of 7 blocks by mixer, and its median ratio to Mamba-1's."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    rows = []
    for tokens, (side, pads) in grids.items():
        for name, routes in (("dense", ()), ("routed", (Route(1, -1),))):
            sides = {
                kind: training_step(
                    DiMConfig(
                        image_size=side, channels=4, n_classes=10,
                        dim=dim, depth=7, pads=pads, mixer=mixer,
                    ),
                    RoutePlan(routes, 7),
                    batch,
                )
                for kind, mixer in MIXERS.items()
            }  # fmt: skip
            seconds = take_turns(sides, repeats, clock)
            for kind, times in seconds.items():
                ratio = median_of_pairs(times, seconds["mamba1"])
                row = {"tokens": tokens, "step": name, "mixer": kind}
                rows.append({**row, "s": statistics.median(times), "over_mamba1": ratio})
    return {**measurement(), "width": dim, "batch": batch, "repeats": repeats, "rows": rows}


def mixers_markdown(found: dict[str, Any]) -> str:
    """The text of results/mixers_<device>.md."""
    clock = "time on the GPU" if found["gpu"] else "CPU time"
    what = (
        f"A training step of DiM by mixer, {clock}: 7 blocks of {found['width']} channels, batch "
        f"{found['batch']}, medians of {found['repeats']} turns, threads: {found['threads']}. "
        f"{found['gpu'] or ''} {found['machine']}, commit {found['commit']}, {found['date']}, load "
        f"of the machine at the start {found['load']:.1f}; `{found['command']}`."
    )
    columns = [(m, s) for m in MIXERS for s in ("dense", "routed")]
    cells = {(r["tokens"], r["mixer"], r["step"]): r for r in found["rows"]}
    lines = []
    for tokens in dict.fromkeys(r["tokens"] for r in found["rows"]):
        first, second, *others = (cells[(tokens, mixer, step)] for mixer, step in columns)
        lines.append(
            [str(tokens), f"{1e3 * first['s']:.0f}", f"{1e3 * second['s']:.0f}"]
            + [f"{r['over_mamba1']:.2f}" for r in others]
        )
    head = ["tokens", "Mamba-1, dense, ms", "Mamba-1, routed, ms"]
    head += [f"{m.replace('mamba', 'Mamba-')}, {s}, times" for m, s in columns[2:]]
    return f"{' '.join(what.split())}\n\n{markdown_table(head, lines)}\n"


def images_per_second(step: Callable[[], None], batch: int, repeats: int) -> float:
    """From the median of the steps' times."""
    return batch / statistics.median(take_turns({"step": step}, repeats)["step"])


def throughput(
    size: str, batch: int, repeats: int, backends: tuple[str, ...], checkpoint: bool
) -> None:
    """Print images per second of dense training steps, by backend, as a Markdown table."""
    config = load_config(CONFIGS / f"{size}.yaml").model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = RoutePlan((), config.depth)
    print(f"Images per second, in training steps of {batch}:\n")
    print("| backend | eager | compiled |\n|---|---|---|")
    for backend in backends:
        reason = unavailable(backend, device, torch.float32)
        if reason:
            print(f"| {backend} | cannot run: {reason} | |", flush=True)
            continue
        print(f"| {backend} |", end="", flush=True)
        for compiled in (False, True):
            torch.compiler.reset()  # the backend is frozen into compiled code
            try:
                step = partial(training_step, compiled=compiled, checkpoint=checkpoint)
                with patch.dict(os.environ, {ENVIRONMENT_VARIABLE: backend}):
                    speed = f"{images_per_second(step(config, plan, batch), batch, repeats):.3g}"
            except RuntimeError as error:  # out of memory; the next may need less
                speed = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(f" {speed} |", end="", flush=True)
        print()


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| backbone | batch | tokens | dense ms | routed ms | measured | by FLOPs | deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.backbone} | {r.batch} | {r.tokens_dense} / {r.tokens_routed} "
            f"| {1e3 * r.dense_s:.3g} | {1e3 * r.routed_s:.3g} | {r.measured_share:.3f} "
            f"| {r.predicted_share:.3f} | {r.deviation:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["routing", "widths", "mixers", "throughput"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 192], help="widths")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, help="mixers: folder to write to")
    parser.add_argument("--size", default="dim_l", help="throughput: a file of configs/")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--checkpoint", action="store_true", help="throughput: recompute blocks")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.what == "widths":
        print(widths(options.dims, options.batch, options.repeats))
        return
    if options.what == "mixers":
        found = mixers(192, options.batch, options.repeats, GRIDS)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_results(options.results, f"mixers_{device}", found, mixers_markdown(found))
        return
    if options.what == "throughput":
        throughput(
            options.size,
            options.batch,
            options.repeats,
            tuple(options.backends),
            options.checkpoint,
        )
        return
    dim = load_config(CONFIGS / "dim_s.yaml").model
    dit = DiTConfig(image_size=32, channels=4, n_classes=1000, dim=384, depth=12, heads=6)  # DiT-S
    rows = [
        compare("DiM-S/2", dim, Route(4, -3), options.batch, options.repeats),
        compare("DiT-S/2", dit, Route(2, -3), 4 * options.batch, options.repeats),
    ]
    print(f"medians of {options.repeats} interleaved training steps\n")
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
