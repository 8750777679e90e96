"""Draw a grid from a trained run: python scripts/sample.py --run runs/quickstart --class Flags

Weights are the averaged ones of the finished run, or of one of its checkpoints. One row per class;
the same seed gives the same grid. Exit code 2 where an argument cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from tread_ssm.diffusion.sampler import Sampler
from tread_ssm.routing import RoutePlan
from tread_ssm.training.checkpoint import checkpoints
from tread_ssm.training.export import Export, load_export
from tread_ssm.training.grid import save_grid, spread, to_uint8
from tread_ssm.training.sampling import RouteGuidance, draw, starting_noise
from tread_ssm.training.strict import ConfigError, nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        _sample(args)
    except ValueError as error:  # ConfigError among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, such as runs/quickstart")
    add("--checkpoint", type=int, metavar="STEP", help="weights after STEP steps")
    add("--class", dest="classes", action="append", metavar="NAME", help="repeatable; default all")
    add("--per-class", type=int, default=8, help="images a row (8)")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    add("--guidance", type=float, help="classifier-free guidance, 1 is none (default: the run's)")
    add("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="levels to guide at")
    add("--sampler", choices=["euler", "heun", "dpm_solver_pp"], help="default: the objective's")
    add(
        "--weak-drop",
        type=float,
        help="route guidance in place of classifier-free guidance: "
        "share of tokens that the weak pass drops",
    )
    add("--strong-drop", type=float, default=0.0, help="the same of the strong pass (0)")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("grid.png"), help="PNG to write (grid.png)")
    return parser


def _sample(args: argparse.Namespace) -> None:
    folder = _weights(args.run, args.checkpoint)
    model, run = load_export(folder, args.device)
    rows, names = _rows(run, args.classes)
    if args.per_class < 1:
        raise ConfigError(f"--per-class is {args.per_class}; draw at least 1 image.")
    labels = torch.tensor(rows).repeat_interleave(args.per_class)
    sampler: Sampler | None = args.sampler or run.sample.sampler
    guidance = run.sample.guidance if args.guidance is None else args.guidance
    route_guidance = None
    if args.weak_drop is not None:
        plan = RoutePlan(run.routes, run.model.depth)
        route_guidance = RouteGuidance(
            plan, run.model.grid, args.weak_drop, args.strong_drop, args.seed
        )
    with tqdm(unit="step", desc="sampling") as bar:

        def on_step(done: int, steps: int) -> None:
            bar.total = steps
            bar.update()

        x = draw(
            model,
            run.objective,
            starting_noise(len(labels), run.model, args.seed).to(args.device),
            labels.to(args.device),
            null_label=run.model.n_classes,
            steps=run.sample.steps if args.steps is None else args.steps,
            guidance=guidance,
            interval=None if args.interval is None else tuple(args.interval),
            routes=route_guidance,
            sampler=sampler,
            on_step=on_step,
        )
    save_grid(args.out, to_uint8(x, run.values), names)
    print(
        f"{args.out}: {len(labels)} images after {run.step} training steps, guidance {guidance:g}"
    )


def _weights(run: Path, step: int | None) -> Path:
    """The folder that holds the weights asked for. Raises ConfigError."""
    if not run.is_dir():
        raise ConfigError(f"--run: {run} is no folder.")
    found = dict(checkpoints(run))
    if step is not None:
        if step not in found:
            steps = ", ".join(map(str, found)) or "none"
            raise ConfigError(f"--checkpoint: {run} has none of step {step}; there are {steps}.")
        return found[step]
    if (run / "ema.safetensors").is_file() or not found:
        return run
    newest = max(found)
    print(f"{run} is not finished; taking its checkpoint of step {newest}.", file=sys.stderr)
    return found[newest]


def _rows(run: Export, wanted: Sequence[str] | None) -> tuple[list[int], list[str]]:
    """The labels to draw and their names. Raises ConfigError."""
    known = run.class_names
    if not run.model.n_classes:
        if wanted:
            raise ConfigError("--class: this run was trained without classes.")
        return [0], [""]
    if wanted is None:
        rows = spread(len(known), 20)
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


if __name__ == "__main__":
    sys.exit(main())
