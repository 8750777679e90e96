"""Compare samples with real images: FID, sFID, inception score, precision, recall and KID.

A set of samples (ADM's .npz, or a folder of images):
    tread-ssm evaluate --samples samples.npz
        --reference VIRTUAL_imagenet256_labeled.npz
With DINOv2's features in place of Inception's, against a folder of photographs:
    tread-ssm evaluate --samples samples.npz --reference photos/
        --extractor timm:vit_small_patch14_dinov2.lvd142m
A trained run, sampled anew:
    tread-ssm evaluate --run runs/photos --num 500 --reference photos/
With every value of an option; a table and a plot:
    tread-ssm evaluate --run runs/dim_l --sweep guidance=1.0,1.5,2.0
        --num 5000 --reference VIRTUAL_imagenet256_labeled.npz
Two options together, in a heat map (width: of the average, where snapshots were kept):
    tread-ssm evaluate --run runs/dim_l --sweep width=0.03,0.05,0.1 --sweep guidance=1,1.5,2 ...

The images are shared among the processes. Distances shrink as the number of samples grows:
compare equal numbers. Exit codes: 2 where an argument or a file cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tread_ssm.command import (
    add_extractor,
    add_processes,
    check_at_least,
    device,
    is_main,
    parser,
    run_on,
)
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import plain
from tread_ssm.env import version_of
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import (
    METRICS,
    batches,
    check_counts,
    check_metrics,
    load_extractor,
    open_images,
    reference_statistics,
    save_statistics,
)
from tread_ssm.evaluation.evaluator import Evaluator, Scored
from tread_ssm.evaluation.metrics import check_extractor, offered
from tread_ssm.files import checksum, read_json, write_json
from tread_ssm.machine import check_memory
from tread_ssm.pretrained import Description
from tread_ssm.processes import gathered
from tread_ssm.report.sweep import Rows, SweptWeights, read_rows, write_rows, write_table_and_plot
from tread_ssm.sampling.generate import sample_labels
from tread_ssm.sampling.image_grid import Decode, decoder
from tread_ssm.sampling.options import add_sampling_options, recipe_of, weak_checksum
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.training.averages.power_ema import gamma_of

SWEPT = {"guidance": float, "weak_drop": float, "steps": int, "width": float}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_on(args.processes, "evaluate", argv, lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> None:
    check_extractor(args.extractor)
    named = offered(args.extractor) if args.metrics is None else args.metrics.split(",")
    metrics = tuple(name.strip() for name in named)
    _check(args, metrics)
    place = device(args.device)
    extractor = load_extractor(args.extractor, place, args.weights)
    # Its reference is read where it is certain that it will be needed.
    evaluator = Evaluator(extractor, metrics, None, place)
    if args.run is None:
        _score_set(args, evaluator)
    else:
        _sweep(args, evaluator)


def _parser() -> argparse.ArgumentParser:
    read = parser("evaluate", __doc__)
    add = read.add_argument
    add("--samples", type=Path, help=".npz with arr_0 (uint8, NHWC), or a folder of images")
    add(
        "--reference",
        type=Path,
        help="real images: .npz, their statistics, or a folder, whose images are cut and scaled as "
        "in training",
    )
    add_extractor(read)
    add("--metrics", help=f"some of {','.join(METRICS)} (all that the features serve for)")
    add("--out", type=Path, help="JSON to write (default: beside the samples, or in the run)")
    add("--save-reference", type=Path, metavar="NPZ", help="write the reference's statistics")
    add("--batch", type=int, default=64, help="images a device takes at once (64)")
    add("--device", help="default: a GPU where there is one")
    add_processes(read)
    sweep = read.add_argument_group("a run, perhaps with a sweep")
    sweep.add_argument(
        "--sweep",
        metavar="NAME=A,B,...",
        action="append",
        help=f"{', '.join(SWEPT)}; give it twice to try all pairs",
    )
    sweep.add_argument("--num", type=int, help="images to sample, with each value of a sweep")
    add_sampling_options(sweep, run_required=False)
    sweep.add_argument("--checkpoint", type=int, metavar="STEP", help="weights after STEP steps")
    return read


def _check(args: argparse.Namespace, metrics: Sequence[str]) -> None:
    """Raises ValueError where arguments do not fit together."""
    check_metrics(metrics)
    if (args.samples is None) == (args.run is None):
        raise ConfigError("Give either --samples, a set of images, or --run, what to sample from.")
    if args.run is not None and args.num is None:
        raise ConfigError("--run needs --num: how many images to sample.")
    if args.run is None and (args.sweep is not None or args.num is not None):
        raise ConfigError("--sweep and --num sample from a run; name it with --run.")
    check_at_least(args, 1, "batch", "num")
    if args.reference is None and any(METRICS[m].compared for m in metrics):
        raise ConfigError("--reference is missing: all metrics but is compare with real images.")
    if args.reference is None and args.save_reference is not None:
        raise ConfigError("--save-reference writes the statistics of --reference; give both.")
    if args.reference is not None and not args.reference.exists():
        raise ConfigError(f"--reference: {args.reference} is not there.")
    if args.out is not None and args.out.suffix != ".json":
        raise ConfigError(f"--out: {args.out} does not end in .json.")


def _score_set(args: argparse.Namespace, evaluator: Evaluator) -> None:
    images = open_images(args.samples)
    evaluator = _with_reference(args, evaluator, len(images), images.size)
    scored = evaluator.score(batches(images, args.batch, args.samples.name))
    _check_differ(scored)
    if not is_main():
        return
    out = args.out or args.samples.with_name(args.samples.name + ".metrics.json")
    described = _described(args, evaluator) | {
        "samples": str(args.samples),
        "sampled": _sampled(args.samples),
        "shape": images.shape,
        "count": scored.count,
        "reference_count": (evaluator.reference and evaluator.reference.count) or None,
    }
    write_json(out, described | {"metrics": scored.values})
    row = (args.samples.name, f"{scored.count}"), scored.values
    print(evaluator.table(("samples", "images"), [row]))


def _check_differ(scored: Scored) -> None:
    if scored.alike:
        raise ConfigError(
            f"All {scored.count} images look alike to the extractor; are they all black? Look at "
            f"them, and at the weights that they come from."
        )


def _with_reference(
    args: argparse.Namespace, evaluator: Evaluator, count: int, size: tuple[int, int]
) -> Evaluator:
    """With what `count` samples of `size` are compared with; counts are checked first."""
    extractor, metrics = evaluator.extractor, evaluator.metrics
    check_counts(extractor, {"sample set": count}, metrics, size)
    if args.reference is None:
        return evaluator
    held = reference_statistics(
        args.reference, extractor, metrics, size=size, batch=args.batch, progress=True
    )
    if args.save_reference is not None and is_main():
        save_statistics(args.save_reference, held)
    evaluator = replace(evaluator, reference=held)
    evaluator.check(count)
    return evaluator


def _sweep(args: argparse.Namespace, evaluator: Evaluator) -> None:
    """Evaluate with each value of what is swept, or once where nothing is.

    Results of an earlier, equal command are not computed again.
    """
    swept = _swept(args.sweep or [])
    load = SweptWeights(RunFolder(args.run), args.checkpoint, evaluator.device)
    described = load(swept.get("width", [None])[0])[1]
    for name in swept.keys() - {"width"}:
        setattr(args, name, swept[name][0])  # options are checked with a value that will be used
    base = recipe_of(described, args)
    for name, values in swept.items():
        _check_points(name, values, base, described)
    decode = decoder(described.values, args.vae, evaluator.device)
    check_memory(16 * args.num, f"--num: the labels of {args.num:,} images", "Ask for fewer.")
    labels = sample_labels(args.num, range(max(1, described.model.n_classes)), args.seed)
    out = args.out or args.run / f"{'_'.join(['sweep', *swept]) if swept else 'evaluation'}.json"
    record = _described(args, evaluator) | {
        "averaged_weights": load.checksums("width" in swept),
        **({"weak_weights": digest} if (digest := weak_checksum(base)) else {}),
        **{key: getattr(args, key) for key in ("num", "seed", "batch")},
        "vae": args.vae or getattr(described.values, "vae", None),
        "reference_time": args.reference and args.reference.stat().st_mtime_ns,
        "run": str(args.run),
        "step": described.step,
        "sweep": ", ".join(swept),
        "recipe": {k: v for k, v in plain(base).items() if k not in swept},
    }
    rows: Rows = gathered(read_rows(out, record))[0]
    evaluator = _with_reference(
        args, evaluator, args.num, _size(described, decode, evaluator.device)
    )
    for point in (p for p in product(*swept.values()) if p not in rows):
        chosen: dict[str, Any] = dict(zip(swept, point, strict=True))
        named = ", ".join(f"{k}={v:g}" for k, v in chosen.items())
        model, _ = load(chosen.pop("width", None))
        scored, _ = evaluator.score_model(
            model,
            described,
            replace(base, **chosen),
            labels,
            seed=args.seed,
            batch=args.batch,
            decode=decode,
            progress=named or "sampling",
        )
        _check_differ(scored)
        if is_main():
            rows[point] = scored.values
            write_rows(out, record, rows)
    if is_main() and swept:
        table = write_table_and_plot(out, swept, rows, evaluator)
        print(f"{table}\n\n{out}, and beside it the table (.md) and the plot (.png)")
    elif is_main():
        print(evaluator.table(("run", "images"), [((args.run.name, f"{args.num}"), rows[()])]))


def _size(described: Description, decode: Decode, place: torch.device | str) -> tuple[int, int]:
    """Rows and columns of the images that a run samples."""
    model = described.model
    blank = torch.zeros(1, model.channels, model.image_size, model.image_size, device=place)
    height, width = decode(blank).shape[1:3]
    return height, width


def _swept(texts: Sequence[str]) -> dict[str, list[float]]:
    """The options that are swept, and their values in rising order. Raises ConfigError."""
    swept = dict(_points(text) for text in texts)
    if len(texts) > 2 or len(swept) < len(texts):
        raise ConfigError("--sweep: give one option, or two different ones.")
    # Weights are loaded once for each width where that changes last.
    return dict(sorted(swept.items(), key=lambda item: item[0] != "width"))


def _points(text: str) -> tuple[str, list[float]]:
    """An option that is swept, and its values in rising order. Raises ConfigError."""
    name, _, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in SWEPT:
        raise ConfigError(f"--sweep: {name!r} cannot be swept; there are {', '.join(SWEPT)}.")
    try:
        return name, sorted({SWEPT[name](v) for v in values.split(",")})
    except ValueError:
        raise ConfigError(f"--sweep: {values!r} is no list of numbers, as {name}=1,2,4.") from None


def _check_points(name: str, points: Sequence[float], base: Recipe, described: Description) -> None:
    """Raises ConfigError where values cannot be used, or make no difference."""
    if name == "weak_drop":
        if not base.strong_drop <= points[0] <= points[-1] < 1:
            raise ConfigError("--sweep: weak_drop goes from --strong-drop to below 1.")
        if base.guidance == 1:
            raise ConfigError("--sweep: weak_drop is without effect at guidance 1; set --guidance.")
    if name == "width":
        for width in points:
            gamma_of(width)  # raises
    if name == "guidance" and base.kind == "class" and not described.model.n_classes:
        raise ConfigError(
            "--sweep: guidance is without effect on a run without classes; guide by --weak-drop, "
            "or with --guided-by path or model."
        )


def _sampled(samples: Path) -> Any:
    """How the command sample made the samples, where it did."""
    try:
        return read_json(samples.with_name(samples.name + ".json"))
    except (OSError, ValueError):
        return None


def _described(args: argparse.Namespace, evaluator: Evaluator) -> dict[str, Any]:
    """With what it was measured."""
    weights = getattr(evaluator.extractor, "weights", None)
    return {
        "reference": None if args.reference is None else str(args.reference),
        "extractor": evaluator.extractor.name,
        "extractor_weights": weights and checksum(weights),
        "wanted": evaluator.metrics,
        "versions": {n: version_of(n) for n in ("tread_ssm", "torch", "numpy", "torch-fidelity")},
    }
