"""What the page computes: images of a run, and which tokens the weak pass of guidance saw.

Shape legend: H rows, W columns of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.diffusion.sampler import OnStep
from tread_ssm.plots.tokens import plot_kept
from tread_ssm.pretrained import Description, load_export
from tread_ssm.routing import RoutePlan
from tread_ssm.sampling.classes import class_number
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.guidance import RouteGuidance
from tread_ssm.sampling.image_grid import Decode, decoder
from tread_ssm.sampling.recipe import GuidedBy, Recipe
from tread_ssm.tokens import TokenSubset

NONE, CLASS, ROUTES, PATH, MODEL = "none", "classifier-free", "routes", "path", "another run"
_GUIDED_BY: Mapping[str, GuidedBy] = {
    CLASS: "class",
    ROUTES: "routes",
    PATH: "path",
    MODEL: "model",
}


@dataclass(frozen=True)
class Player:
    """A run, ready to sample.

    Attributes:
        model: With its averaged weights, in eval mode.
        run: Its description.
        decode: From its numbers to images.
    """

    model: nn.Module
    run: Description
    decode: Decode

    @staticmethod
    def load(folder: Path, device: torch.device, vae: str | None = None) -> Player:
        """The newest weights of a run. Raises ConfigError where something is missing or damaged."""
        model, run = load_export(RunFolder(folder).weights(), device)
        return Player(model, run, decoder(run.values, vae, device))

    @property
    def kinds(self) -> list[str]:
        """The kinds of guidance that this run allows by itself."""
        classes = [CLASS] if self.run.model.n_classes else []
        return [NONE, *classes, *([ROUTES, PATH] if self.run.routes else [])]

    @property
    def classes(self) -> list[str]:
        """The names of its classes; none where it was trained without."""
        return list(self.run.class_names) if self.run.model.n_classes else []


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What somebody has chosen on the page.

    Attributes:
        kind: Of guidance, one of `Player.kinds` or MODEL.
        scale: Of guidance; not used without.
        weak_drop: What the weak pass of guidance by routes drops; not used by another kind.
        weak_run: Folder of the run that guides by MODEL; not used by another kind.
        steps: Sampling steps.
        name: Of the class; None where the run has no classes.
        seed: Of the noise.
        n: Images.
    """

    kind: str
    scale: float
    weak_drop: float
    steps: int
    name: str | None
    seed: int
    n: int
    weak_run: str | None = None

    def recipe(self, run: Description) -> Recipe:
        """How to sample. Raises ValueError."""
        return Recipe(
            steps=self.steps,
            guidance=1.0 if self.kind == NONE else self.scale,
            guided_by=_GUIDED_BY.get(self.kind),
            weak_run=self._weak_weights if self.kind == MODEL else None,
            weak_drop=self.weak_drop if self.kind == ROUTES else None,
            sampler=run.sample.sampler,
        )

    @property
    def _weak_weights(self) -> str | None:
        return self.weak_run and str(RunFolder(Path(self.weak_run)).weights())


def images_of(player: Player, choice: Choice, on_step: OnStep | None = None) -> np.ndarray:
    """uint8 (n, H, W, 3), the same for the same choice.

    Args:
        player: The run.
        choice: What to sample.
        on_step: Called after each step with (steps done, steps).

    Raises:
        ValueError: The choice does not fit the run.
    """
    run = player.run
    label = 0 if choice.name is None else class_number(choice.name, run.class_names)
    return generate_all(
        player.model,
        run,
        choice.recipe(run),
        torch.full((choice.n,), label),
        seed=choice.seed,
        decode=player.decode,
        batch=choice.n,
        on_step=on_step,
    )


def weak_pass(player: Player, choice: Choice) -> dict[str, TokenSubset]:
    """Which tokens of image 0 the weak pass keeps at the first, a middle and the last step.

    They are those that sampling drew: a function of the seed and the timestep. By title; empty
    where the weak pass sees every token.
    """
    if choice.kind != ROUTES or choice.scale == 1:
        return {}
    run = player.run
    plan = RoutePlan(run.routes, run.model.depth)
    guidance = RouteGuidance(plan, run.model.grid, choice.seed, range(1))
    timesteps = run.objective.timesteps(choice.steps)
    shown = {}
    for i in sorted({0, choice.steps // 2, choice.steps - 1}):
        draw = guidance.draw(plan.with_drop(choice.weak_drop), float(timesteps[i]))
        for route, subset in draw:
            shown[f"step {i + 1}, blocks {route.start} to {route.stop - 1}"] = subset
    return shown


def plot_weak_pass(player: Player, choice: Choice, image: np.ndarray) -> Figure | None:
    """An image cut into tokens, and what the weak pass kept of them; None where it kept all.

    Args:
        player: The run.
        choice: What was sampled.
        image: uint8 (H, W, 3), image 0 of the choice.
    """
    shown = weak_pass(player, choice)
    return plot_kept(image, shown, player.run.model.grid) if shown else None


def told(player: Player, choice: Choice) -> str:
    """A sentence about what the weak pass of the chosen guidance sees."""
    if choice.kind == NONE or choice.scale == 1:
        return "Without guidance there is no weak pass."
    if choice.kind == CLASS:
        return "The weak pass sees every token, but not the class."
    if choice.kind == PATH:
        trained = any(route.path_drop for route in player.run.routes)
        caution = (
            " This run never trained without these blocks (`path_drop`), so what this pass "
            "predicts means little."
        )
        return "The weak pass skips the blocks of the routes, and does not see the class." + (
            "" if trained else caution
        )
    if choice.kind == MODEL:
        return f"The weak pass is the network of {choice.weak_run}."
    return (
        "The weak pass sees the class, and inside the routes only some of the tokens: of the first "
        "image those shown here."
    )
