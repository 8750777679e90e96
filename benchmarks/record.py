"""A record from nothing to a row: train, choose the average and the guidance, sample, evaluate.

    python benchmarks/record.py --config quickstart --extractor emoji --num 1906 --try-num 512
    python benchmarks/record.py --config dim_l --reference VIRTUAL_imagenet256_labeled.npz
        --num 50000 --try-num 5000 --processes 8

Width and guidance are chosen on images of another seed than those of the row. Each stage is a
command of tread-ssm that resumes, so the same line resumes the whole. The row goes to
results/records.jsonl, and the table to results/records.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.origin import commit, processor
from tread_ssm.commands import run_command
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.data import Pixels
from tread_ssm.files import read_json, replacing
from tread_ssm.models.cost import count_parameters
from tread_ssm.report.history import History, training_flops
from tread_ssm.tables import duration, markdown_table, short

RESULTS = Path(__file__).parent / "results"
_SAME = ("commit", "config", "seed", "command")  # what makes two rows the same record
SEED, CHOICE_SEED = 0, 1  # of the images of the row, and of those that the choice is made on


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; returns the exit code of the first that fails."""
    args = _parser().parse_args(argv)
    overrides = [*args.overrides, f"train.posthoc_ema={{every: {args.snapshots}}}"]
    config = load_config(args.config, overrides)
    folder = config.folder.path
    many = ["--processes", str(args.processes)] if args.processes else []
    _stage("train", "--config", args.config, *overrides, *many)
    reference = args.reference or _own_reference(config, folder)
    scoring = ["--reference", str(reference), "--extractor", args.extractor, "--metrics", "fid"]
    swept = [f"width={_joined(args.widths)}", f"guidance={_joined(args.guidance)}"]
    choice = folder / "record_choice.json"
    _stage(
        "evaluate", "--run", str(folder), "--sweep", swept[0], "--sweep", swept[1],
        "--num", str(args.try_num), "--seed", str(CHOICE_SEED), "--out", str(choice),
        *scoring, *many,
    )  # fmt: skip
    width, guidance = best(read_json(choice)["rows"])
    average = folder / "averages" / f"width-{width!r}"
    _stage("average", "--run", str(folder), "--width", repr(width))
    samples = folder / "record.npz"
    _stage(
        "sample", "--run", str(average), "--num", str(args.num), "--npz", str(samples),
        "--guidance", repr(guidance), "--seed", str(SEED), *many,
    )  # fmt: skip
    score = folder / "record.json"
    _stage("evaluate", "--samples", str(samples), "--out", str(score), *scoring, *many)
    row = _row(args, config, width, guidance, read_json(score)["metrics"]["fid"])
    _write(row, args.results)
    print(table([row]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="a YAML file, or a name, such as dim_l")
    add("--reference", type=Path, help="real images or their statistics (default: the data's own)")
    add("--extractor", default="inception", help="features (inception)")
    add("--num", type=int, default=50_000, help="images of the row (50000)")
    add("--try-num", type=int, default=5_000, help="images for each width and guidance (5000)")
    add("--widths", type=float, nargs="+", default=[0.03, 0.06, 0.1], help="(0.03 0.06 0.1)")
    add("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0], help="scales (1 1.5 2)")
    add("--snapshots", type=int, default=1000, help="steps between snapshots of averages (1000)")
    add("--processes", type=int, help="for each stage")
    add("--results", type=Path, default=RESULTS, help="folder of the table")
    add("overrides", nargs="*", metavar="section.key=value", help="of the configuration")
    return parser


def _stage(command: str, *arguments: str) -> None:
    print(f"+ tread-ssm {command} {' '.join(arguments)}", flush=True)
    if code := run_command(command, list(arguments)):
        sys.exit(code)


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)


def _own_reference(config: RunConfig, folder: Path) -> Path:
    """The training images as a file; only images in memory can be their own reference."""
    data = config.data.open()
    if not isinstance(data, Pixels):
        sys.exit(f"error: --reference is missing; data of kind {config.data.kind} has none.")
    path = folder / "reference.npz"
    if not path.is_file():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=data.images)
    return path


def best(rows: Sequence[tuple[tuple[float, float], dict[str, float]]]) -> tuple[float, float]:
    """The width and the guidance with the smallest distance."""
    (width, guidance), _ = min(rows, key=lambda row: row[1]["fid"])
    return width, guidance


def _row(
    args: argparse.Namespace, config: RunConfig, width: float, guidance: float, distance: float
) -> dict[str, Any]:
    last = History.read(config.folder.path).rows[-1]
    return {
        "date": date.today().isoformat(),
        "commit": commit() or "unknown",
        "config": " ".join([args.config, *args.overrides]),
        "seed": config.seed,
        "machine": _machine(args.processes or 1),
        "training_seconds": round(last["seconds"], 1),
        "training_flops": training_flops(config, [last["step"]])[0],
        "parameters": count_parameters(config.model),
        "precision": config.train.precision,
        "guidance": guidance,
        "width": width,
        "images": args.num,
        "extractor": args.extractor,
        "distance": distance,
        "command": " ".join(["python benchmarks/record.py", *sys.argv[1:]]),
    }


def _machine(processes: int) -> str:
    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    cores = f"{os.cpu_count()} cores, {processes} process{'es' * (processes > 1)}"
    return f"{processor()}, {cores}"


def _write(row: dict[str, Any], results: Path) -> None:
    """Add the row to the file of all rows, and make the table anew.

    A rerun of the same command at the same commit takes the place of its earlier row.
    """
    path = results / "records.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    others = [old for old in map(json.loads, lines) if any(old[k] != row[k] for k in _SAME)]
    rows = [*others, row]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with replacing(results / "records.md") as temporary:
        temporary.write_text(table(rows) + "\n", encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, the oldest first."""
    head = (
        "date", "commit", "configuration", "seed", "machine", "training", "FLOPs", "parameters",
        "precision", "guidance", "width", "images", "distance",
    )  # fmt: skip
    return markdown_table(
        head,
        [
            (
                r["date"], f"`{r['commit']}`", f"`{r['config']}`", str(r["seed"]), r["machine"],
                duration(r["training_seconds"]), f"{r['training_flops']:.3g}",
                short(r["parameters"]), r["precision"], f"{r['guidance']:g}", f"{r['width']:g}",
                f"{r['images']:,}",
                f"{'FID' if r['extractor'] == 'inception' else 'FD-' + r['extractor']} "
                f"{r['distance']:.3f}",
            )
            for r in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
