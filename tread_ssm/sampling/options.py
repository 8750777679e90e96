"""Command-line options of sampling, which the commands sample and evaluate share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tread_ssm.config.strict import plain
from tread_ssm.diffusion import SAMPLERS, Objective
from tread_ssm.diffusion.sampler import default_sampler
from tread_ssm.errors import ConfigError
from tread_ssm.files import checksum
from tread_ssm.pretrained import Description
from tread_ssm.sampling.recipe import GuidedBy, Recipe

_KIND = ("guided_by", "weak_drop", "strong_drop", "weak_run")


def add_sampling_options(add_to: ArgumentParser | _ArgumentGroup, *, run_required: bool) -> None:
    """Add what says which run samples, and how."""
    add = add_to.add_argument
    add("--run", type=Path, required=run_required, help="folder of a run, such as runs/quickstart")
    add("--steps", type=int, help="sampling steps (default: the run's)")
    add("--guidance", type=float, help="scale of guidance, 1 is none (default: the run's)")
    add("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="timesteps to guide at")
    add(
        "--guided-by",
        choices=get_args(GuidedBy),
        help="what the weak pass lacks: the class (default), tokens, the routes' blocks and the "
        "class, or training",
    )
    add("--guidance-channels", type=int, help="guide the first so many channels only")
    add("--weak-drop", type=float, help="guided by routes: share that the weak pass drops")
    add("--strong-drop", type=float, help="share that the strong pass drops (0)")
    add("--weak-run", help="guided by model: folder of the weak model's run or checkpoint")
    add("--sampler", choices=list(SAMPLERS), help="default: the objective's")
    add("--precision", choices=["fp32", "bf16"], help="of the network (default: the run's)")
    add("--vae", help="autoencoder of latents: a folder or an identifier (default: the data's)")
    add("--seed", type=int, default=0)


def described_recipe(recipe: Recipe, objective: Objective, seed: int) -> str:
    """The whole recipe in a line, with the sampler that the objective chooses if none is named."""
    settings = plain(recipe) | {"sampler": recipe.sampler or default_sampler(objective)}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in (given | {"seed": seed}).items())


def weak_checksum(recipe: Recipe) -> str | None:
    """What tells the weights of the weak run apart; None where there is none. Raises OSError."""
    return recipe.weak_run and checksum(Path(recipe.weak_run) / "ema.safetensors")


def recipe_of(run: Description, options: Namespace) -> Recipe:
    """A run's own recipe, but for what the command line says.

    The options of the kind of guidance go together: one of them replaces all of the run's.

    Raises:
        ValueError: The parts do not fit together, or the run.
    """
    given = {
        "steps": options.steps,
        "guidance": options.guidance,
        "interval": options.interval and tuple(options.interval),
        "guidance_channels": options.guidance_channels,
        "sampler": options.sampler,
        "precision": options.precision,
    }
    recipe = replace(run.sample.recipe, **{k: v for k, v in given.items() if v is not None})
    kind = [getattr(options, name) for name in _KIND]
    if any(value is not None for value in kind):
        guided_by, weak_drop, strong_drop, weak_run = kind
        recipe = replace(
            recipe,
            guided_by=guided_by,
            weak_drop=weak_drop,
            strong_drop=strong_drop or 0.0,
            weak_run=weak_run,
        )
    guidance = options.guidance
    if guidance not in (None, 1) and recipe.kind == "class" and not run.model.n_classes:
        raise ConfigError(
            f"guidance is {guidance:g}, but this run was trained without classes; guide it by "
            f"routes (weak_drop), path or another model."
        )
    return recipe
