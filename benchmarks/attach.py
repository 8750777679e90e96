"""What attached routes cost where no token is dropped: training steps against a plain model's.

    python benchmarks/attach.py      # prints, and writes results/attach_<device>.json

The sides take turns, and each ratio is the median over the turns. "plain again" is a second plain
model: how far its ratio is from 1 is what the measurement cannot tell.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import origin
from tread_ssm import Route, RouteSchedule, SelfDrawing, attach
from tread_ssm.timing import median_of_pairs, take_turns

SIDES = ("plain", "plain again", "attached", "drawing, dense")


def training_step(
    side: str, depth: int, heads: int, size: int, batch: int
) -> Callable[[], torch.Tensor]:
    """Forward, backward and AdamW of diffusers' DiT on random latents; returns the loss.

    Args:
        side: One of SIDES: attached without a draw, or drawing by itself at a point of the
            schedule where it drops nothing.
        depth: Blocks.
        heads: Of 64 channels each.
        size: Rows and columns of the latents; a token is a patch of 2 x 2.
        batch: Samples.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=depth,
        sample_size=size,
        dropout=0.0,
    )
    model = model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, 4, size, size, device=device)
    t = torch.randint(1000, (batch,), device=device)
    labels = torch.randint(1000, (batch,), device=device)
    if side == "attached":
        attach(model)
    elif side == "drawing, dense":
        routes = (Route(1, depth - 1),)
        dense = RouteSchedule(dense_tail=1.0)
        attach(model, drawing=SelfDrawing(routes, schedule=dense, total_steps=1))

    def step() -> torch.Tensor:
        torch.manual_seed(1)  # the model drops labels
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = (model(x, timestep=t, class_labels=labels).sample.float() - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def hooks_seconds(depth: int, heads: int, size: int, batch: int, repeats: int) -> float:
    """What hooks of a dense forward pass take by themselves, those of blocks that do nothing."""
    x = torch.zeros(batch, (size // 2) ** 2, 64 * heads)
    plain, hooked = ([nn.Identity() for _ in range(depth)] for _ in range(2))
    attach(hooked)

    def passes(blocks: list[nn.Identity]) -> None:
        for _ in range(100):
            for block in blocks:
                block(x)

    seconds = take_turns(
        {"plain": lambda: passes(plain), "hooked": lambda: passes(hooked)}, repeats
    )
    pairs = zip(seconds["hooked"], seconds["plain"], strict=True)
    return statistics.median(a - b for a, b in pairs) / 100


def measure(depth: int, heads: int, size: int, batch: int, repeats: int) -> dict[str, object]:
    """Seconds of each side, and their ratios to the plain one."""
    sides = {side: training_step(side, depth, heads, size, batch) for side in SIDES}
    seconds = take_turns(sides, repeats)
    hooks = hooks_seconds(depth, heads, size, batch, repeats)
    return {
        "depth": depth,
        "width": 64 * heads,
        "tokens": (size // 2) ** 2,
        "batch": batch,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/attach.py", *sys.argv[1:]]),
        **origin(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "seconds": {side: statistics.median(s) for side, s in seconds.items()},
        "over_plain": {
            side: median_of_pairs(seconds[side], seconds["plain"]) for side in SIDES[1:]
        },
        "hooks_seconds": hooks,
        "hooks_over_plain": hooks / statistics.median(seconds["plain"]),
    }


def main() -> None:
    """Parse arguments, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--size", type=int, default=32, help="rows and columns of the latents")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    found = measure(options.depth, options.heads, options.size, options.batch, options.repeats)
    print(json.dumps(found, indent=1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"attach_{device}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
