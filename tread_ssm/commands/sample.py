"""Sample from a trained run, with the averaged weights of its end or of one of its checkpoints.

An image grid, one row per class; several checkpoints stand side by side:
    tread-ssm sample --run runs/quickstart --class Flags --class 3 --out grid.png
    tread-ssm sample --run runs/quickstart --checkpoint 1000 4000
A set for evaluation, on all devices, in ADM's layout (arr_0: uint8 images, arr_1: labels):
    tread-ssm sample --run runs/dim_l --num 50000 --npz samples.npz

Image number i is a function of the seed and i. Rerun an interrupted command to resume it. Exit
codes: 2 where an argument cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import nn
from tqdm import tqdm

from tread_ssm.command import add_processes, check_at_least, device, is_main, parser, run_on, say
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import plain
from tread_ssm.data import LatentValues
from tread_ssm.errors import ConfigError
from tread_ssm.files import checksum
from tread_ssm.machine import check_disk, check_memory
from tread_ssm.pretrained import Description, load_export
from tread_ssm.processes import gathered, world
from tread_ssm.sampling.adm_npz import Parts, sampled_as
from tread_ssm.sampling.batch import fitting_batch
from tread_ssm.sampling.classes import class_number
from tread_ssm.sampling.cost import cost_text
from tread_ssm.sampling.generate import Samples, generate, generate_all, sample_labels, shares
from tread_ssm.sampling.image_grid import (
    FORMATS,
    Decode,
    decoder,
    decoder_at_hand,
    save_grid,
    spread,
)
from tread_ssm.sampling.options import (
    add_sampling_options,
    described_recipe,
    recipe_of,
    weak_checksum,
)
from tread_ssm.sampling.recipe import Recipe

_MOST_ON_CPU = 64  # more at once gain nothing there


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_on(args.processes, "sample", argv, lambda: _sample(args))


def _sample(args: argparse.Namespace) -> None:
    _check(args)
    if args.num is None:
        _sample_grid(args)
    else:
        _sample_set(args)


def _parser() -> argparse.ArgumentParser:
    read = parser("sample", __doc__)
    add_sampling_options(read, run_required=True)
    add = read.add_argument
    add("--checkpoint", type=int, nargs="+", metavar="STEP", help="weights after STEP steps")
    add(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="name or number; repeatable; default all",
    )
    add(
        "--batch",
        type=_batch_size,
        default=64,
        metavar="N|auto",
        help="images at once (64), halved if they do not fit; auto: as many as fit",
    )
    add("--compile", action="store_true", help="compile the network first (torch.compile)")
    add("--device", help="default: a GPU where there is one")
    add_processes(read)
    grid = read.add_argument_group("an image grid")
    grid.add_argument("--per-class", type=int, default=8, help="images a row (8)")
    grid.add_argument(
        "--out", type=Path, default=Path("grid.png"), help="PNG, JPEG or WebP (grid.png)"
    )
    group = read.add_argument_group("a set")
    group.add_argument("--num", type=int, help="number of images")
    group.add_argument("--npz", type=Path, metavar="FILE", help="file to write")
    group.add_argument("--png", type=Path, metavar="FOLDER", help="write 000000.png ... as well")
    group.add_argument(
        "--balanced", action="store_true", help="classes in turn, rather than at random"
    )
    return read


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _find_batch(
    args: argparse.Namespace,
    model: nn.Module,
    described: Description,
    recipe: Recipe,
    decode: Decode,
    images: int,
) -> None:
    """Where the batch is left open, set it to what fits into the memory of every process."""
    if args.batch is not None:
        return
    most = min(images, _MOST_ON_CPU) if next(model.parameters()).is_cpu else images
    args.batch = min(gathered(fitting_batch(model, described, recipe, decode, most)))
    say(f"Batches of {args.batch} images, found by memory.")


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError where arguments do not fit together."""
    check_at_least(args, 1, "num", "batch", "per_class")
    if (args.num is None) != (args.npz is None):
        raise ConfigError("--num and --npz go together: how many images, and the file for them.")
    if args.num is None and (args.png is not None or args.balanced):
        raise ConfigError("--png and --balanced belong to a set; give --num and --npz as well.")
    if args.num is None and args.out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out: {args.out} must end in one of {', '.join(FORMATS)}.")
    if args.num is not None and len(args.checkpoint or ()) > 1:
        raise ConfigError("A set has one checkpoint; several make an image grid, without --num.")
    if args.npz is not None and args.npz.suffix != ".npz":
        raise ConfigError(f"--npz: {args.npz} does not end in .npz.")


def _sample_grid(args: argparse.Namespace) -> None:
    place = device(args.device)
    if not is_main():
        return
    exports = [load_export(folder, place) for folder in _weights(args)]
    described = exports[0][1]
    rows, names = _rows(described, args.classes)
    check_memory(
        (8 + _pixel_bytes(described)) * len(exports) * len(rows) * args.per_class,
        f"--per-class: {len(rows)} rows of {args.per_class:,} images",
        "Ask for fewer, or for a set with --num and --npz.",
    )
    recipe, decode = recipe_of(described, args), _grid_decoder(described, args.vae, place)
    labels = torch.tensor(rows).repeat_interleave(args.per_class)
    _find_batch(args, exports[0][0], described, recipe, decode, len(labels))
    for model, _ in exports:
        if args.compile:
            model.compile()
    total = len(exports) * len(shares(len(labels), args.batch)) * recipe.steps
    print(cost_text(described, recipe))
    with tqdm(total=total, unit="step", desc="sampling") as bar:

        def on_step(done: int, steps: int) -> None:
            bar.update()

        sets = [
            generate_all(
                model,
                export,
                recipe,
                labels,
                seed=args.seed,
                decode=decode,
                batch=args.batch,
                on_step=on_step,
            )
            for model, export in exports
        ]
    steps = [f"step {export.step}" for _, export in exports]
    # A row r holds a class: c columns of the first checkpoint, then those of the second.
    images = rearrange(
        np.stack(sets), "set (row column) ... -> (row set column) ...", row=len(rows)
    )
    save_grid(args.out, images, names, steps if len(steps) > 1 else ())
    print(f"{args.out}: {len(images)} images of {args.run}, {', '.join(steps)}")
    print(described_recipe(recipe, described.objective, args.seed))


def _grid_decoder(described: Description, vae: str | None, place: torch.device) -> Decode:
    """Latents are shown as they are where no autoencoder is at hand. Raises ConfigError."""
    if vae is not None:
        return decoder(described.values, vae, place)
    decode, reason = decoder_at_hand(described.values, place)
    if reason:
        print(f"note: latents are shown undecoded: {reason}", file=sys.stderr)
    return decode


def _sample_set(args: argparse.Namespace) -> None:
    place = device(args.device)
    (folder,) = _weights(args)
    model, described = load_export(folder, place)
    rows = _rows(described, args.classes, most=None)[0]
    recipe = recipe_of(described, args)
    digest = checksum(folder / "ema.safetensors")
    if args.batch is None:
        args.batch = sampled_as(args.npz).get("batch")  # what resumes is cut as it began
    decode = decoder(described.values, args.vae, place)
    _find_batch(args, model, described, recipe, decode, args.num)
    parts = Parts(args.npz, _record(args, described, recipe, digest))
    if parts.finished():
        if is_main():
            parts.tidy()
        say(f"{args.npz} is there already; remove it to sample it anew.")
        return
    _check_fits(args, described, parts)
    say(cost_text(described, recipe))
    if args.compile:
        model.compile()
    if is_main():
        if args.png is not None and not parts.begun() and any(args.png.glob("*.png")):
            # Those of a larger set would stay, and be taken for this one's.
            raise ConfigError(f"--png: {args.png} holds images already; name another folder.")
        parts.begin()
    gathered(None)  # the others wait for the folder
    labels = sample_labels(args.num, rows, args.seed, balanced=args.balanced)
    mine = shares(args.num, args.batch, *world())
    missing = [b for b in mine if not parts.done(b)]
    before, began = parts.images(), time.monotonic()
    at_once = args.batch
    with _Bar(parts, args.num) as bar:
        for part in generate(
            model,
            described,
            recipe,
            missing,
            labels,
            seed=args.seed,
            decode=decode,
            on_step=bar.step,
        ):
            if args.png is not None:
                _write_png(args.png, part)
            parts.write(part.numbers, part.images)
            at_once = min(at_once, part.at_once) if len(part.numbers) == args.batch else at_once
            bar.count()
    gathered(None)  # all parts are there
    if is_main():
        shape = parts.join(shares(args.num, args.batch), labels.numpy())
        print(f"{args.npz}: {' x '.join(map(str, shape))} after {described.step} training steps")
        print(described_recipe(recipe, described.objective, args.seed))
        if args.num > before:
            seconds = time.monotonic() - began
            rate = f"{(args.num - before) / seconds:.3g} images/s"
            print(f"{rate}, decoding and writing included, {at_once} at once")


def _check_fits(args: argparse.Namespace, described: Description, parts: Parts) -> None:
    """Raises ConfigError where the set has no room: its labels, and the parts beside the whole."""
    what, remedy = f"--num: a set of {args.num:,} images", "Ask for fewer."
    check_memory(16 * args.num, what, remedy)
    images = 2 * args.num - parts.images()
    check_disk(args.npz.parent, images * _pixel_bytes(described), what, remedy)


def _pixel_bytes(described: Description) -> int:
    """Bytes of an image, at least: a latent has fewer numbers than its pixels."""
    return 3 * described.model.image_size**2


class _Bar:
    """Progress over all processes: the main one counts the parts that are there."""

    def __init__(self, parts: Parts, total: int) -> None:
        self._parts = parts
        self._bar = tqdm(
            total=total,
            initial=parts.images(),
            unit="image",
            desc="sampling",
            disable=not is_main(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, done: int, steps: int) -> None:
        """Show how far the batch is."""
        self._bar.set_postfix_str(f"step {done}/{steps}", refresh=False)
        self._bar.update(0)

    def count(self) -> None:
        """Look which parts have come."""
        if is_main():
            self._bar.update(self._parts.images() - self._bar.n)


def _record(
    args: argparse.Namespace, described: Description, recipe: Recipe, digest: str
) -> dict[str, Any]:
    """What a set depends on."""
    values = described.values
    vae = (args.vae or values.vae) if isinstance(values, LatentValues) else None
    return {
        "run": str(args.run),
        "step": described.step,
        "weights": digest,
        "weak_weights": weak_checksum(recipe),
        "num": args.num,
        "seed": args.seed,
        "batch": args.batch,
        "classes": args.classes,
        "balanced": args.balanced,
        "compile": args.compile,
        "recipe": plain(recipe),
        "vae": vae,
        "png": None if args.png is None else str(args.png),
    }


def _write_png(folder: Path, part: Samples) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in zip(part.numbers, part.images, strict=True):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


def _weights(args: argparse.Namespace) -> list[Path]:
    """The folders that hold the weights asked for. Raises ConfigError."""
    if args.checkpoint is not None:
        return [RunFolder(args.run).weights(step) for step in args.checkpoint]
    folder = RunFolder(args.run).weights()
    if folder != args.run:
        say(f"{args.run} is not finished; taking its {folder.name}.", error=True)
    return [folder]


def _rows(
    described: Description, wanted: Sequence[str] | None, most: int | None = 20
) -> tuple[list[int], list[str]]:
    """The labels to sample, at most so many where none are named, and their names.

    Raises ConfigError.
    """
    known = described.class_names
    if not described.model.n_classes:
        if wanted:
            raise ConfigError("--class: this run was trained without classes.")
        return [0], [""]
    if wanted is None:
        rows = spread(len(known), most or len(known))
        return rows, [known[r] for r in rows]
    try:
        rows = [class_number(name, known) for name in wanted]
    except ConfigError as error:
        raise ConfigError(f"--class: {error}") from None
    return rows, [known[r] for r in rows]
