"""Measure what routing costs, and what a scan backend is worth in a whole model.

`python scripts/benchmark.py routing`

For a DiM and a DiT that are large enough to be bound by compute it prints the step time of the
routed network over that of the dense one, measured with both sides taking turns, beside the
ratio of FLOPs that tread_ssm.routing.cost predicts.

`python scripts/benchmark.py throughput --size dim_l --batch 256`

Images per second of training steps with each scan backend that runs here, compiled and not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tread_ssm import Route, RoutePlan
from tread_ssm.models import ModelConfig, build_model
from tread_ssm.models.cost import backbone_cost
from tread_ssm.models.sizes import sized
from tread_ssm.scan.dispatch import ENVIRONMENT_VARIABLE, unavailable
from tread_ssm.scan.ops import BACKENDS
from tread_ssm.training.timing import median_of_pairs, take_turns


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
    config: ModelConfig, plan: RoutePlan, batch: int, *, compiled: bool = False
) -> Callable[[], None]:
    """A step of forward, backward and AdamW on random latents; draws its routes anew."""
    torch.manual_seed(0)
    model = build_model(config).to("cuda" if torch.cuda.is_available() else "cpu")
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
            loss = (model(x, level, labels, routing=draw).float() - x).square().mean()
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


def throughput(size: str, batch: int, repeats: int) -> str:
    """Images per second of dense training steps, by backend, as a Markdown table."""
    config = sized(size, image_size=32, channels=4, n_classes=1000)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan, lines = RoutePlan((), config.depth), ["| backend | eager | compiled |", "|---|---|---|"]
    for backend in BACKENDS:
        reason = unavailable(backend, device, torch.float32)
        if reason:
            lines.append(f"| {backend} | cannot run: {reason} | |")
            continue
        os.environ[ENVIRONMENT_VARIABLE] = backend
        speeds = []
        for compiled in (False, True):
            torch.compiler.reset()  # the backend is frozen into compiled code
            step = training_step(config, plan, batch, compiled=compiled)
            seconds = take_turns({"step": step}, repeats)["step"]
            speeds.append(f"{batch / statistics.median(seconds):.1f}")
        lines.append(f"| {backend} | {speeds[0]} | {speeds[1]} |")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| backbone | batch | tokens | dense s | routed s | measured | FLOPs predict | deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.backbone} | {r.batch} | {r.tokens_dense} / {r.tokens_routed} | {r.dense_s:.3f} "
            f"| {r.routed_s:.3f} | {r.measured_share:.3f} | {r.predicted_share:.3f} "
            f"| {r.deviation:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["routing", "throughput"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--size", default="dim_l", help="throughput: a size of the size table")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.what == "throughput":
        print(throughput(options.size, options.batch, options.repeats))
        return
    dim, dit = (
        sized(name, image_size=32, channels=4, n_classes=1000) for name in ("dim_s", "dit_s")
    )
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
