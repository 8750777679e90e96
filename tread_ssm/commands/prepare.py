"""Make the latents that training reads: a folder of shards with a manifest.

From images in ImageNet's layout (a folder a class), or without classes:
    tread-ssm prepare --data ILSVRC/train
        --vae stabilityai/sd-vae-ft-ema --out data/imagenet256
From what another project has left behind:
    tread-ssm prepare --from edm2 --data img64-latents.zip --out data/imagenet256
Whether a folder is still as it was written:
    tread-ssm prepare --verify --out data/imagenet256

The means and log-variances of the autoencoder's posterior are stored in float16; training samples
it anew each time. Rerun an interrupted command to resume, on any number of processes; the result is
the same. Images that cannot be read are listed in unreadable.txt and left out. Exit
codes: 1 where --verify found something, 2 where an argument or a file cannot be used, 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tread_ssm.command import add_processes, check_at_least, device, parser, run_on, say
from tread_ssm.data.autoencoder import Autoencoder
from tread_ssm.data.dataset import digest
from tread_ssm.data.encode import EncodedImages
from tread_ssm.data.images import list_images
from tread_ssm.data.importers import FORMATS, open_source
from tread_ssm.data.prepare import (
    UNREADABLE,
    Source,
    files_digest,
    write_all,
)
from tread_ssm.data.shards import Manifest, Shard, verify

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_on(
        args.processes,
        "prepare",
        argv,
        lambda: _verify(args.out) if args.verify else _prepare(args),
    )


def _parser() -> argparse.ArgumentParser:
    read = parser("prepare", __doc__)
    add = read.add_argument
    add("--out", type=Path, required=True, help="folder to write, or to verify")
    add("--data", type=Path, help="folder of images, or what --from reads")
    add("--vae", help="autoencoder: a folder, or an identifier on the Hugging Face Hub")
    add("--from", dest="source", choices=FORMATS, help="whose latents --data holds")
    add("--scale", type=float, help="of the latents that --from reads (what the project uses)")
    add("--resolution", type=int, default=256, help="pixels a side (256)")
    add("--flip", action="store_true", help="store the moments of mirrored images as well")
    add("--precision", choices=AUTOCAST, default="fp32", help="of the autoencoder (fp32)")
    add("--batch", type=int, default=64, help="images encoded at once (64)")
    add("--shard-size", type=int, default=4096, help="samples a file (4096)")
    add("--workers", type=int, default=8, help="threads that decode images, a process (8)")
    add("--device", help="default: a GPU where there is one")
    add_processes(read)
    add("--verify", action="store_true", help="compare every file with its checksum")
    return read


def _verify(out: Path) -> int:
    def watch(files: list[Shard]) -> Iterator[Shard]:
        return iter(tqdm(files, unit="file", desc="verify"))

    wrong = verify(out, watch)
    for sentence in wrong:
        print(sentence)
    if wrong:
        print("Delete these files and rerun the command that made the folder.")
        return 1
    print(f"{out} is as it was written.")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    if args.data is None or (args.vae is None and args.source is None):
        raise ValueError("Give --data and --vae, or --data and --from, or --verify.")
    check_at_least(args, 1, "batch", "shard_size", "workers", "resolution")
    if args.scale is not None and args.source is None:
        raise ValueError("--scale belongs to --from; an autoencoder has its own.")
    where = device(args.device)
    source, settings, names = (_images if args.source is None else _imported)(args, where)
    manifest = write_all(source, args.out, args.shard_size, settings, names)
    if manifest is not None:
        _told(args.out, source, manifest)
    return 0


Prepared = tuple[Source, dict[str, Any], Sequence[str] | None]


def _images(args: argparse.Namespace, where: torch.device) -> Prepared:
    """The images through the autoencoder, what decides the result, and the samples' names."""
    images = list_images(args.data)
    for note in images.notes:
        say(f"note: {note}")
    autoencoder = Autoencoder.load(args.vae, where)
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.deterministic = True
    source = EncodedImages(
        images,
        args.vae,
        autoencoder,
        resolution=args.resolution,
        flip=args.flip,
        batch=args.batch,
        workers=args.workers,
        autocast=AUTOCAST[args.precision],
    )
    names = ("vae", "resolution", "flip", "precision", "batch")
    settings = {name: getattr(args, name) for name in names}
    sizes = zip(images.paths, images.sizes(), strict=True)
    settings["image_files"] = digest(f"{path} {size}" for path, size in sizes)
    settings["autoencoder_weights"] = autoencoder.digest()
    return source, settings, images.paths


def _imported(args: argparse.Namespace, where: torch.device) -> Prepared:
    """Another project's latents; they are read, not computed."""
    if args.flip:
        raise ValueError("--flip encodes images; latents that exist cannot be mirrored.")
    source = open_source(args.source, args.data, vae=args.vae, scale=args.scale)
    for note in source.notes:
        say(f"note: {note}")
    vae, scale = source.values.vae, source.values.scale
    settings = {"from": args.source, "data": str(args.data), "vae": vae, "scale": scale}
    settings["files"] = files_digest(args.data)
    return source, settings, None


def _told(out: Path, source: Source, manifest: Manifest) -> None:
    lost = len(source) - manifest.count
    say(
        f"{out}: {manifest.count} samples of {len(manifest.class_names) or 'no'} classes, moments "
        f"{manifest.shape}, scale {manifest.scale:g}, {len(manifest.shards)} shards."
    )
    if lost:
        say(f"{lost} images could not be read; {out / UNREADABLE} lists them.")
