"""The record: seconds on two cores from nothing to good emoji, beside the record before it.

    python benchmarks/speedrun.py 16        # to FD-emoji 2.0 at 16 px
    python benchmarks/speedrun.py 32        # to FD-emoji 10 at 32 px
    python benchmarks/speedrun.py --table   # what is recorded

The last recipe of a race is the record, the one before it its predecessor; both run here, taking
turns, seed by seed. The clock starts before Python does and stops when training has written its
weights. FD-emoji is that of the run's report: 256 samples with the configuration's guidance. A
recipe has arrived when the mean over its seeds is within the goal. Use a machine that does nothing
else. The configuration of the quickstart follows the record; what is gnarly is not taken.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import origin
from benchmarks.study.results import append, read
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.data import Pixels
from tread_ssm.report.measure import emoji_distances, generate_from
from tread_ssm.tables import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speedrun.jsonl"
IMAGES = 256


@dataclass(frozen=True)
class Recipe:
    """A way to train: what it changes of `configs/quickstart.yaml`, and why it is faster."""

    name: str
    why: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Race:
    """A goal and the recipes that held its record, the present one last.

    Attributes:
        size: Side of the emoji, in pixels.
        goal: FD-emoji to be reached.
        recipes: At least two.
    """

    size: int
    goal: float
    recipes: tuple[Recipe, ...]


RACES = {
    16: Race(
        16,
        2.0,
        (
            Recipe("quickstart", "as shipped on 2026-11-23", ()),
            Recipe("muon", "Muon, at the same rate", ("train.optimizer={kind: muon, lr: 4e-3}",)),
        ),
    ),
    32: Race(
        32,
        10.0,
        (
            Recipe("dense", "no routes", ("train.steps=3000", "routing.routes=[]")),
            Recipe("routed", "half of the tokens skip blocks 2 to 5", ("train.steps=3000",)),
        ),
    ),
}
TOY = ("train.steps=4", "train.warmup=1", "model.dim=16")


def configure(race: Race, recipe: Recipe, seed: int, work: Path) -> tuple[RunConfig, list[str]]:
    """The configuration of a run, and the overrides that make it."""
    given = [
        f"name={race.size}-{recipe.name}-{seed}",
        f"out={work}",
        f"seed={seed}",
        f"data.size={race.size}",
        f"model.image_size={race.size}",
        "train.threads=2",
        "train.report=false",
        "train.save_every=1000000",
        "sample.every=0",
        *recipe.overrides,
    ]
    return load_config(ROOT / "configs" / "quickstart.yaml", given), given


def train(race: Race, recipe: Recipe, seed: int, work: Path) -> tuple[float, float]:
    """Train in a process of its own; returns its seconds and the FD-emoji of its samples.

    Raises:
        ValueError: The run is there already; its time would not be that of all its steps.
    """
    config, overrides = configure(race, recipe, seed, work)
    if config.folder.path.exists():
        raise ValueError(f"{config.folder.path} exists; choose another work folder.")
    command = [sys.executable, "-m", "tread_ssm", "train"]
    command += ["--config", str(ROOT / "configs" / "quickstart.yaml"), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    data = config.data.open()
    assert isinstance(data, Pixels)
    sets = {
        "": lambda labels: generate_from(
            config.folder.path, labels, config.sample.guidance, seed, torch.device("cpu")
        )
    }
    return seconds, emoji_distances(data, sets, IMAGES, seed).values[""]


def run(race: Race, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """The record and its predecessor, taking turns; one row each."""
    pair = race.recipes[-2:]
    found: dict[str, list[tuple[float, float]]] = {recipe.name: [] for recipe in pair}
    for seed in seeds:
        for recipe in pair:
            found[recipe.name].append(train(race, recipe, seed, work))
            seconds, distance = found[recipe.name][-1]
            print(f"{recipe.name}, seed {seed}: {seconds:.1f} s, {distance:.2f}", flush=True)
    session = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return [
        {
            "session": session,
            "race": race.size,
            "goal": race.goal,
            "recipe": recipe.name,
            "why": recipe.why,
            "seeds": list(seeds),
            "seconds": [round(seconds, 2) for seconds, _ in found[recipe.name]],
            "distance": [round(distance, 4) for _, distance in found[recipe.name]],
            "load": round(os.getloadavg()[2], 2),
            **origin(),
        }
        for recipe in pair
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The sessions as Markdown, each record below its predecessor."""
    lines = []
    for row, before in zip(rows, [None, *rows], strict=False):
        seconds, distance = statistics.mean(row["seconds"]), statistics.mean(row["distance"])
        same = before is not None and before["session"] == row["session"]
        share = f"{seconds / statistics.mean(before['seconds']):.2f}" if same and before else ""
        arrived = "yes" if distance <= row["goal"] else "no"
        goal = f"{row['goal']:g} at {row['race']} px"
        figures = [f"{seconds:.0f}", share, f"{distance:.2f}", arrived, str(len(row["seeds"]))]
        origins = [row["session"][:10], row["commit"], row["machine"]]
        lines.append([goal, f"{row['recipe']}: {row['why']}", *figures, *origins])
    head = ["goal", "recipe", "seconds", "of its predecessor's", "FD-emoji", "arrived", "seeds"]
    return markdown_table([*head, "date", "commit", "machine"], lines)


def main() -> None:
    """Parse arguments; run a race, or print what is recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("race", nargs="?", type=int, choices=sorted(RACES), help="pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print what is recorded")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="run folders; default: runs/speedrun-<time>")
    parser.add_argument("--toy", action="store_true", help="tiny runs, to see that it works")
    options = parser.parse_args()
    if not options.table:
        if options.race is None:
            parser.error("name a race, or ask for the --table")
        race = RACES[options.race]
        if options.toy:
            recipes = (replace(r, overrides=(*r.overrides, *TOY)) for r in race.recipes)
            race = replace(race, recipes=tuple(recipes))
        work = options.work or Path("runs") / time.strftime("speedrun-%Y%m%d-%H%M%S")
        for row in run(race, options.seeds, work.resolve()):
            append(options.results, row)
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
