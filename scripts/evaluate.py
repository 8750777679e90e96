"""Compare samples with real images: FID, sFID, inception score, precision, recall and KID.

A set that was drawn (ADM's .npz, or a folder of images):
    accelerate launch scripts/evaluate.py --samples samples.npz
        --reference VIRTUAL_imagenet256_labeled.npz
A trained run, drawn from anew with every value of an option; a table and a plot:
    accelerate launch scripts/evaluate.py --run runs/dim_l --sweep guidance=1.0,1.5,2.0
        --num 5000 --reference VIRTUAL_imagenet256_labeled.npz

The images are shared among the processes. Distances shrink as the number of samples grows:
compare equal numbers. Exit codes: 2 where an argument or a file cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import plain
from tread_ssm.diffusion import SAMPLERS
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import (
    METRICS,
    FeatureExtractor,
    Statistics,
    batches,
    check_comparable,
    check_metrics,
    load_extractor,
    open_images,
    reference_statistics,
    save_statistics,
    score,
    statistics,
)
from tread_ssm.pretrained import Export, load_export
from tread_ssm.processes import gathered, own_share, world
from tread_ssm.sampling.adm_npz import check_same, file_digest
from tread_ssm.sampling.generate import (
    Images,
    Recipe,
    generate,
    recipe_of,
    sample_labels,
    shares,
)
from tread_ssm.sampling.image_grid import decoder

SWEPT = {"guidance": float, "weak_drop": float, "steps": int}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        job = _job(args)
        if args.run is None:
            _evaluate(args, job)
        else:
            _sweep(args, job)
    except (ValueError, OSError) as error:  # ConfigError among them
        # Each process says it: what goes wrong may go wrong on one of them alone.
        rank = os.environ.get("RANK", "0")
        print(f"error{f' (process {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if world()[0] == 0:
            print("Interrupted.", file=sys.stderr)
        return 130
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--samples", type=Path, help=".npz with arr_0 (uint8, NHWC), or a folder of images")
    add("--reference", type=Path, help="the same of real images, or their statistics")
    add("--extractor", choices=["inception", "emoji"], default="inception", help="(inception)")
    add("--weights", type=Path, help="file of Inception's weights (default: torch.hub's folder)")
    add("--metrics", default=",".join(METRICS), help="some of %(default)s")
    add("--out", type=Path, help="JSON to write (default: beside the samples, or in the run)")
    add("--save-reference", type=Path, metavar="NPZ", help="keep the reference's statistics")
    add("--batch", type=int, default=64, help="images a device takes at once (64)")
    add("--device", help="default: a GPU where there is one")
    sweep = parser.add_argument_group("a sweep")
    sweep.add_argument("--run", type=Path, help="folder of a run to draw from")
    sweep.add_argument("--sweep", metavar="NAME=A,B,...", help="guidance, weak_drop or steps")
    sweep.add_argument("--num", type=int, help="images to draw with each value")
    sweep.add_argument("--checkpoint", type=int, metavar="STEP", help="weights after STEP steps")
    sweep.add_argument("--seed", type=int, default=0)
    sweep.add_argument("--steps", type=int, help="sampling steps (default: the run's)")
    sweep.add_argument("--guidance", type=float, help="1 is none (default: the run's)")
    sweep.add_argument("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"))
    sweep.add_argument("--weak-drop", type=float, help="route guidance, as in sample.py")
    sweep.add_argument("--strong-drop", type=float, default=0.0)
    sweep.add_argument("--sampler", choices=list(SAMPLERS))
    sweep.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    sweep.add_argument("--vae", help="autoencoder of latents (default: the data's)")
    return parser


class _Job(NamedTuple):
    """What both ways of evaluating need."""

    metrics: tuple[str, ...]
    extractor: FeatureExtractor
    device: torch.device


def _job(args: argparse.Namespace) -> _Job:
    """Check the arguments, join the other processes, load the features. Raises ValueError."""
    metrics: Any = tuple(name.strip() for name in args.metrics.split(","))
    check_metrics(metrics)
    if (args.samples is None) == (args.run is None):
        raise ConfigError("Give either --samples, a set that was drawn, or --run with --sweep.")
    if args.run is not None and (args.sweep is None or args.num is None):
        raise ConfigError("--run needs --sweep and --num: the values to try, and images for each.")
    if args.run is None and (args.sweep is not None or args.num is not None):
        raise ConfigError("--sweep and --num draw from a run; name it with --run.")
    for name in ("batch", "num"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    if args.reference is None and set(metrics) != {"is"}:
        raise ConfigError("--reference is missing: all metrics but is compare with real images.")
    if args.reference is None and args.save_reference is not None:
        raise ConfigError("--save-reference keeps the statistics of --reference; give both.")
    if args.reference is not None and not args.reference.exists():
        raise ConfigError(f"--reference: {args.reference} is not there.")
    if args.out is not None and args.out.suffix != ".json":
        raise ConfigError(f"--out: {args.out} does not end in .json.")
    device = _device(args.device)
    return _Job(metrics, load_extractor(args.extractor, device, args.weights), device)


def _device(wanted: str | None) -> torch.device:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate import PartialState

    cpu = wanted == "cpu" or not torch.accelerator.is_available()
    # A process that is done waits for the slowest one, however long that takes.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    return torch.device(state.device)


def _evaluate(args: argparse.Namespace, job: _Job) -> None:
    images = open_images(args.samples)
    reference = _reference(args, job)
    check_comparable(len(images), job.extractor.name, reference, job.metrics)
    parts = batches(images, args.batch, args.samples.name)
    samples = statistics(job.extractor, parts, job.metrics).merged()
    if world()[0] != 0:
        return
    values = score(samples, reference, job.metrics, job.device)
    out = args.out or args.samples.with_name(args.samples.name + ".metrics.json")
    described = _described(args, job) | {
        "samples": str(args.samples),
        "drawn": _drawn(args.samples),
        "shape": images.shape,
        "count": samples.count,
        "reference_count": (reference and reference.count) or None,
    }
    _write_json(out, described | {"metrics": values})
    first = {"samples": args.samples.name, "images": f"{samples.count}"}
    print(_table([(first, values)], job), end="")


def _reference(args: argparse.Namespace, job: _Job) -> Statistics | None:
    if args.reference is None:
        return None
    held = reference_statistics(
        args.reference, job.extractor, job.metrics, batch=args.batch, progress=True
    )
    if args.save_reference is not None and world()[0] == 0:
        save_statistics(args.save_reference, held)
    return held


def _sweep(args: argparse.Namespace, job: _Job) -> None:
    """Draw and evaluate with each value; values that an earlier, equal command has done stay."""
    name, points = _points(args.sweep)
    folder = RunFolder(args.run).weights(args.checkpoint)
    model, run = load_export(folder, job.device)
    base = recipe_of(run, vars(args))
    _check_points(name, points, base, run)
    decode = decoder(run.values, args.vae, job.device)
    labels = sample_labels(args.num, range(max(1, run.model.n_classes)), args.seed)
    out = args.out or args.run / f"sweep_{name}.json"
    record = _described(args, job) | {
        "weights": file_digest(folder / "ema.safetensors"),
        **{key: getattr(args, key) for key in ("num", "seed", "batch")},
        "vae": args.vae or getattr(run.values, "vae", None),
        "reference_time": args.reference and args.reference.stat().st_mtime_ns,
        "run": str(args.run),
        "step": run.step,
        "sweep": name,
        "recipe": {k: v for k, v in plain(base).items() if k != name},
    }
    rows: dict[float, Mapping[str, float]] = gathered(_done(out, record))[0]
    reference = _reference(args, job)
    check_comparable(args.num, job.extractor.name, reference, job.metrics)
    for value in points:
        if value in rows:
            continue
        swept: dict[str, Any] = {name: value}
        mine = own_share(shares(args.num, args.batch))
        drawn = generate(
            model, run, replace(base, **swept), mine, labels, seed=args.seed, decode=decode
        )
        images = _watched(drawn, sum(map(len, mine)), f"{name}={value:g}")
        samples = statistics(job.extractor, images, job.metrics).merged()
        if world()[0] == 0:
            rows[value] = score(samples, reference, job.metrics, job.device)
            _write_json(out, {"record": record, "rows": sorted(rows.items())})
    if world()[0] == 0:
        from tread_ssm.plots.sweep import plot_sweep  # matplotlib

        table = _table([({name: f"{v:g}"}, rows[v]) for v in points], job)
        _write(out.with_suffix(".md"), table.encode())
        curves = {_title(m, job): [rows[v][m] for v in points] for m in job.metrics}
        plot_sweep(out.with_suffix(".png"), name.replace("_", " "), points, curves)
        print(f"{table}\n{out}, and beside it the table (.md) and the plot (.png)")


def _watched(drawn: Iterable[Images], total: int, text: str) -> Iterator[Tensor]:
    """The images as (B, 3, H, W), with a progress bar."""
    with tqdm(total=total, unit="image", desc=text, disable=world()[0] != 0) as bar:
        for part in drawn:
            yield torch.tensor(part.images).permute(0, 3, 1, 2)
            bar.update(len(part.numbers))


def _points(text: str) -> tuple[str, list[float]]:
    """The option that is swept, and its values in rising order. Raises ConfigError."""
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in SWEPT:
        raise ConfigError(f"--sweep: {name!r} cannot be swept; there are {', '.join(SWEPT)}.")
    try:
        return name, sorted({SWEPT[name](v) for v in values.split(",")})
    except ValueError:
        raise ConfigError(f"--sweep: {values!r} is no list of numbers, as {name}=1,2,4.") from None


def _check_points(name: str, points: Sequence[float], base: Recipe, run: Export) -> None:
    """Raises ConfigError where values cannot be drawn with, or make no difference."""
    if name == "weak_drop":
        if not base.strong_drop <= points[0] <= points[-1] < 1:
            raise ConfigError("--sweep: weak_drop goes from --strong-drop to below 1.")
        if base.guidance == 1:
            raise ConfigError("--sweep: weak_drop is without effect at guidance 1; set --guidance.")
    if name == "guidance" and base.weak_drop is None and not run.model.n_classes:
        raise ConfigError(
            "--sweep: guidance is without effect on a run without classes; guide by --weak-drop."
        )


def _done(out: Path, record: Mapping[str, Any]) -> dict[float, Mapping[str, float]]:
    """The rows that an earlier, equal sweep has written. Raises ConfigError for other files."""
    if not out.exists():
        return {}
    try:
        held = json.loads(out.read_text(encoding="utf-8"))
        before, rows = held["record"], {value: row for value, row in held["rows"]}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{out} is there already and holds no sweep; name another --out."
        ) from None
    check_same(before, json.loads(json.dumps(record)), f"{out} holds a sweep that was drawn")
    return rows


def _drawn(samples: Path) -> Any:
    """How scripts/sample.py drew the samples, where it did."""
    try:
        return json.loads(samples.with_name(samples.name + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _described(args: argparse.Namespace, job: _Job) -> dict[str, Any]:
    """With what it was measured."""
    weights = getattr(job.extractor, "weights", None)
    return {
        "reference": None if args.reference is None else str(args.reference),
        "extractor": job.extractor.name,
        "extractor_weights": weights and file_digest(weights),
        "wanted": job.metrics,
        "versions": {n: _version(n) for n in ("tread_ssm", "torch", "numpy", "torch-fidelity")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _title(metric: str, job: _Job) -> str:
    """FID is a name for Inception's features alone."""
    name = METRICS[metric].title
    return name if job.extractor.name == "inception" else f"{name} ({job.extractor.name})"


def _table(rows: Sequence[tuple[Mapping[str, str], Mapping[str, float]]], job: _Job) -> str:
    """A Markdown table: what the rows are of, then the metrics."""
    head = [*rows[0][0], *(_title(m, job) for m in job.metrics)]
    lines = [head, ["---"] * len(head)]
    lines += [[*first.values(), *(f"{v[m]:.4g}" for m in job.metrics)] for first, v in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(value, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
