"""Make a reference file from real images: the statistics that `tread-ssm evaluate` compares with.

Of the images that a run was trained on, cut and scaled as there:
    tread-ssm reference --run runs/photos --out photos.npz
Of a folder of images, an .npz of images, or a folder of latents, which are decoded:
    tread-ssm reference --data photos/ --size 64 --out photos.npz

The file is of one extractor's features at one size; give `tread-ssm evaluate` the same --extractor.
Nothing is mirrored. Damaged images of a folder are left out. Exit codes: 2 where an argument or a
file cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tread_ssm.command import (
    add_extractor,
    add_processes,
    check_at_least,
    device,
    is_main,
    parser,
    run_on,
    say,
)
from tread_ssm.config.run import load_config
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import ArrayData, DataConfig, FolderData, LatentData
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import (
    METRICS,
    batches,
    check_counts,
    check_metrics,
    load_extractor,
    save_statistics,
    statistics,
)
from tread_ssm.evaluation.images import images_of
from tread_ssm.evaluation.metrics import check_extractor, offered
from tread_ssm.files import MANIFEST
from tread_ssm.sampling.image_grid import decoder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("reference", __doc__)
    add = read.add_argument
    source = read.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a run: the images that it trains on")
    source.add_argument("--data", type=Path, help="folder of images, .npz, or folder of latents")
    add("--out", type=Path, required=True, metavar="NPZ", help="file to write")
    add("--size", type=int, help="pixels a side for a folder of images (as training chooses it)")
    add("--vae", help="autoencoder of latents: a folder or an identifier (default: the data's)")
    add_extractor(read)
    add("--metrics", help=f"what it will serve for, some of {','.join(METRICS)} (all that it can)")
    add("--batch", type=int, default=64, help="images a device takes at once (64)")
    add("--device", help="default: a GPU where there is one")
    add_processes(read)
    args = read.parse_args(argv)
    return run_on(args.processes, "reference", argv, lambda: _reference(args))


def _reference(args: argparse.Namespace) -> None:
    check_extractor(args.extractor)
    named = offered(args.extractor) if args.metrics is None else args.metrics.split(",")
    check_metrics(named)
    metrics = [name for name in named if METRICS[name].compared]
    check_at_least(args, 1, "batch", "size")
    if not metrics:
        raise ConfigError(f"--metrics: {', '.join(named)} compares with no reference.")
    if args.out.suffix != ".npz":
        raise ConfigError(f"--out: {args.out} does not end in .npz.")
    data, place = _data(args).open(), device(args.device)
    for note in data.notes:
        say(f"note: {note}")
    images = images_of(data, decoder(data.values, args.vae, place), place)
    extractor = load_extractor(args.extractor, place, args.weights)
    check_counts(extractor, {"reference": len(images)}, metrics, images.size)
    held = statistics(extractor, batches(images, args.batch, "reference"), metrics).merged()
    if is_main():
        save_statistics(args.out, held)
    height, width = images.size
    say(
        f"{args.out}: {extractor.name} features of {held.count:,} images of {height} x {width}, "
        f"for {', '.join(metrics)}."
    )


def _data(args: argparse.Namespace) -> DataConfig:
    if args.size is not None and (args.run is not None or not args.data.is_dir()):
        raise ConfigError("--size cuts a folder of images, which --data names.")
    if args.run is not None:
        config = RunFolder(args.run).config
        if not config.is_file():
            raise ConfigError(f"--run: {config} is not there; name the folder of a run.")
        return load_config(config).data
    if not args.data.exists():
        raise ConfigError(f"--data: {args.data} is not there.")
    if not args.data.is_dir():
        return ArrayData(path=str(args.data))
    if (args.data / MANIFEST).is_file():
        return LatentData(path=str(args.data))
    return FolderData(path=str(args.data), size=args.size, check=True)
