"""Draw from a trained run, with the averaged weights of its end or of one of its checkpoints.

A grid, one row per class:
    python scripts/sample.py --run runs/quickstart --class Flags --out grid.png
A set for evaluation, on all devices, in ADM's layout (arr_0: uint8 images, arr_1: labels):
    accelerate launch scripts/sample.py --run runs/dim_l --num 50000 --npz samples.npz

Image number i is a function of the seed and i. A set that was interrupted goes on when the same
command is given again. Exit codes: 2 where an argument cannot be used, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import nearest, plain
from tread_ssm.data import LatentValues
from tread_ssm.diffusion import SAMPLERS
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import Export, load_export
from tread_ssm.sampling.adm_npz import Parts, file_digest
from tread_ssm.sampling.generate import (
    Images,
    Recipe,
    generate,
    recipe_of,
    sample_labels,
    shares,
)
from tread_ssm.sampling.image_grid import Decode, decoder, save_grid, spread, to_uint8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        _check(args)
        if args.num is None:
            _draw_grid(args)
        else:
            _draw_set(args)
    except (ValueError, OSError) as error:  # ConfigError among them
        # Each process says it: what goes wrong may go wrong on one of them alone.
        where = "" if _is_main() else f" (process {os.environ['RANK']})"
        print(f"error{where}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if _is_main():
            print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, such as runs/quickstart")
    add("--checkpoint", type=int, metavar="STEP", help="weights after STEP steps")
    add("--class", dest="classes", action="append", metavar="NAME", help="repeatable; default all")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    add("--guidance", type=float, help="classifier-free guidance, 1 is none (default: the run's)")
    add("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="timesteps to guide at")
    add("--sampler", choices=list(SAMPLERS), help="default: the objective's")
    add(
        "--weak-drop",
        type=float,
        help="route guidance in place of classifier-free guidance: "
        "share of tokens that the weak pass drops",
    )
    add("--strong-drop", type=float, default=0.0, help="the same of the strong pass (0)")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=64, help="images a device draws at once (64)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the network (fp32)")
    add("--vae", help="autoencoder of latents: a folder or an identifier (default: the data's)")
    add("--device", help="default: a GPU where there is one")
    grid = parser.add_argument_group("a grid")
    grid.add_argument("--per-class", type=int, default=8, help="images a row (8)")
    grid.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG (grid.png)")
    group = parser.add_argument_group("a set")
    group.add_argument("--num", type=int, help="number of images")
    group.add_argument("--npz", type=Path, metavar="FILE", help="file to write")
    group.add_argument("--png", type=Path, metavar="FOLDER", help="write 000000.png ... as well")
    group.add_argument(
        "--balanced", action="store_true", help="classes in turn, rather than at random"
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError where arguments do not fit together."""
    for name in ("num", "batch", "per_class"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is {value}; draw at least 1 image.")
    if (args.num is None) != (args.npz is None):
        raise ConfigError("--num and --npz go together: how many images, and the file for them.")
    if args.num is None and (args.png is not None or args.balanced):
        raise ConfigError("--png and --balanced belong to a set; give --num and --npz as well.")
    if args.npz is not None and args.npz.suffix != ".npz":
        raise ConfigError(f"--npz: {args.npz} does not end in .npz.")


def _draw_grid(args: argparse.Namespace) -> None:
    if not _is_main():
        return
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, run = load_export(_weights(args), device)
    rows, names = _rows(run, args.classes)
    labels = torch.tensor(rows).repeat_interleave(args.per_class)
    recipe, batches = recipe_of(run, vars(args)), shares(len(labels), args.batch)
    decode = _grid_decoder(run, args.vae, device)
    with tqdm(total=len(batches) * recipe.steps, unit="step", desc="sampling") as bar:

        def on_step(done: int, steps: int) -> None:
            bar.update()

        drawn = generate(
            model, run, recipe, batches, labels, seed=args.seed, decode=decode, on_step=on_step
        )
        images = np.concatenate([part.images for part in drawn])
    save_grid(args.out, images, names)
    print(
        f"{args.out}: {len(labels)} images after {run.step} training steps, "
        f"guidance {recipe.guidance:g}"
    )


def _grid_decoder(run: Export, vae: str | None, device: str) -> Decode:
    """Latents are shown as they are where no autoencoder is at hand. Raises ConfigError."""
    try:
        return decoder(run.values, vae, device)
    except ConfigError as error:
        if vae is not None:
            raise
        print(f"note: latents are shown undecoded: {error}", file=sys.stderr)
        return lambda x: to_uint8(x, run.values)


def _draw_set(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    cpu = args.device == "cpu" or not torch.accelerator.is_available()
    # A process that is done waits for the slowest one, however long that takes.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    alone = state.num_processes == 1 and args.device is not None
    device = torch.device(args.device) if alone else state.device
    folder = _weights(args)
    model, run = load_export(folder, device)
    rows = _rows(run, args.classes, most=None)[0]
    recipe = recipe_of(run, vars(args))
    digest = file_digest(folder / "ema.safetensors")
    parts = Parts(args.npz, _record(args, run, recipe, digest))
    if parts.finished():
        if state.is_main_process:
            parts.tidy()
        _say(f"{args.npz} is there already; remove it to draw it anew.")
        return
    decode = decoder(run.values, args.vae, device)
    if state.is_main_process:
        if args.png is not None and not parts.begun() and any(args.png.glob("*.png")):
            # Those of a larger set would stay, and be taken for this one's.
            raise ConfigError(f"--png: {args.png} holds images already; name another folder.")
        parts.begin()
    state.wait_for_everyone()
    labels = sample_labels(args.num, rows, args.seed, balanced=args.balanced)
    every = shares(args.num, args.batch)
    mine = shares(args.num, args.batch, state.process_index, state.num_processes)
    missing = [b for b in mine if not parts.done(b)]
    with _Bar(parts, args.num) as bar:
        for drawn in generate(
            model,
            run,
            recipe,
            missing,
            labels,
            seed=args.seed,
            decode=decode,
            on_step=bar.step,
        ):
            if args.png is not None:
                _write_png(args.png, drawn)
            parts.write(drawn.numbers, drawn.images)
            bar.count()
    state.wait_for_everyone()
    if state.is_main_process:
        shape = parts.join(every, labels.numpy())
        print(f"{args.npz}: {' x '.join(map(str, shape))} after {run.step} training steps")
    state.wait_for_everyone()
    state.destroy_process_group()


class _Bar:
    """Progress over all processes: the main one counts the parts that are there."""

    def __init__(self, parts: Parts, total: int) -> None:
        self._parts = parts
        self._bar = tqdm(
            total=total,
            initial=parts.images(),
            unit="image",
            desc="sampling",
            disable=not _is_main(),
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
        if _is_main():
            self._bar.update(self._parts.images() - self._bar.n)


def _record(args: argparse.Namespace, run: Export, recipe: Recipe, digest: str) -> dict[str, Any]:
    """What a set depends on."""
    vae = (args.vae or run.values.vae) if isinstance(run.values, LatentValues) else None
    return {
        "run": str(args.run),
        "step": run.step,
        "weights": digest,
        "num": args.num,
        "seed": args.seed,
        "batch": args.batch,
        "classes": args.classes,
        "balanced": args.balanced,
        "recipe": plain(recipe),
        "vae": vae,
        "png": None if args.png is None else str(args.png),
    }


def _write_png(folder: Path, drawn: Images) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in zip(drawn.numbers, drawn.images, strict=True):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


def _weights(args: argparse.Namespace) -> Path:
    """The folder that holds the weights asked for. Raises ConfigError."""
    folder = RunFolder(args.run).weights(args.checkpoint)
    if args.checkpoint is None and folder != args.run and _is_main():
        print(f"{args.run} is not finished; taking its {folder.name}.", file=sys.stderr)
    return folder


def _rows(
    run: Export, wanted: Sequence[str] | None, most: int | None = 20
) -> tuple[list[int], list[str]]:
    """The labels to draw, at most so many where none are named, and their names.

    Raises ConfigError.
    """
    known = run.class_names
    if not run.model.n_classes:
        if wanted:
            raise ConfigError("--class: this run was trained without classes.")
        return [0], [""]
    if wanted is None:
        rows = spread(len(known), most or len(known))
        return rows, [known[r] for r in rows]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--class: {name!r} is not a class of this run{_near(name, known)}")
    return [known.index(name) for name in wanted], list(wanted)


def _near(name: str, known: Sequence[str]) -> str:
    folded = {k.casefold(): k for k in known}
    if name.casefold() in folded:
        return f"; did you mean {folded[name.casefold()]!r}?"
    return nearest(name, known if len(known) <= 20 else [*known[:20], "..."])


def _say(message: str) -> None:
    if _is_main():
        print(message)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
