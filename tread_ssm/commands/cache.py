"""Cache a vision transformer's features of the training images, for the loss repa.

    tread-ssm cache --data ILSVRC/train --model vit_base_patch14_dinov2.lvd142m
        --size 224 --out data/imagenet256/dinov2
    tread-ssm cache --data ILSVRC/train --library transformers --model facebook/dinov2-base
        --size 224 --out data/imagenet256/dinov2
    tread-ssm prepare --verify --out data/imagenet256/dinov2

--data is what `tread-ssm prepare --data` read. The images are cropped as there, at another size: it
must give as many patches as the network has tokens (224 / 14 = 16 = 32 / 2). Features have unit
length and are stored in float16. Rerun an interrupted command to resume, on any number of
processes. Exit codes: 2 where an argument or a file cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from tread_ssm.command import add_processes, check_at_least, device, parser, run_on, say
from tread_ssm.data.dataset import digest
from tread_ssm.data.encode import EncodedImages
from tread_ssm.data.images import list_images
from tread_ssm.data.prepare import write_all
from tread_ssm.data.vision import PatchFeatures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("cache", __doc__)
    add = read.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--data", type=Path, required=True, help="folder of the training images")
    add("--model", required=True, help="vision transformer: a name, a folder or an identifier")
    add("--library", choices=["timm", "transformers"], default="timm", help="(timm)")
    add("--weights", type=Path, help="file of weights for timm (default: from the Hub)")
    add("--size", type=int, default=224, help="pixels a side that the transformer sees (224)")
    add("--flip", action="store_true", help="store the features of mirrored images as well")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="(fp32)")
    add("--batch", type=int, default=64, help="images encoded at once (64)")
    add("--shard-size", type=int, default=4096, help="samples a file (4096)")
    add("--workers", type=int, default=8, help="threads that decode images, a process (8)")
    add("--device", help="default: a GPU where there is one")
    add_processes(read)
    args = read.parse_args(argv)
    return run_on(args.processes, "cache", argv, lambda: _cache(args))


def _cache(args: argparse.Namespace) -> None:
    check_at_least(args, 1, "batch", "shard_size", "workers", "size")
    where = device(args.device)
    images = list_images(args.data)
    for note in images.notes:
        say(f"note: {note}")
    encoder = PatchFeatures.load(args.model, args.library, args.size, where, args.weights)
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.deterministic = True
    source = EncodedImages(
        images,
        args.model,
        encoder,
        resolution=args.size,
        flip=args.flip,
        batch=args.batch,
        workers=args.workers,
        autocast=torch.bfloat16 if args.precision == "bf16" else None,
    )
    names = ("model", "library", "size", "flip", "precision", "batch")
    settings = {name: getattr(args, name) for name in names}
    sizes = zip(images.paths, images.sizes(), strict=True)
    settings["image_files"] = digest(f"{path} {size}" for path, size in sizes)
    settings["weights"] = encoder.digest()
    manifest = write_all(source, args.out, args.shard_size, settings, images.paths, "features")
    if manifest is not None:
        channels, rows, columns = manifest.shape
        say(
            f"{args.out}: features of {manifest.count} images, {rows} x {columns} patches of "
            f"{channels} channels."
        )
