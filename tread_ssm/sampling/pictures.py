"""Pictures of a trained network in one call.

Shape legend: C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import nn

from tread_ssm.pretrained import Description
from tread_ssm.sampling.classes import class_number
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe


def sample_images(
    model: nn.Module,
    run: Description,
    classes: str | int | Sequence[str | int] | None = None,
    *,
    n: int = 1,
    recipe: Recipe | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 64,
    vae: str | None = None,
) -> list[Image.Image]:
    """Sample images of some classes.

        model, run = from_pretrained("runs/quickstart")
        images = sample_images(model, run, "Flags", n=8, guidance=2)

    The same arguments give the same images. Torch's global random state is left alone.

    Args:
        model, run: As `from_pretrained` gives them.
        classes: A class by name or number, or several; ImageNet's words are known where the names
            are its synsets. None: all, or images without a class where the network knows none.
        n: Images of each class.
        recipe: How to sample. None: as the run sampled its own image grids.
        steps: Sampling steps, in place of the recipe's.
        guidance: Scale of the guidance, in place of the recipe's; 1 is none.
        seed: Of the noise.
        batch: Images sampled at once.
        vae: Autoencoder of latents: a folder or an identifier. None: the one that the data names.

    Returns:
        RGB images, class by class: n of the first, then n of the second.

    Raises:
        ConfigError: A ValueError. There is no such class, or no autoencoder for latents.
        ValueError: n or batch is less than 1, the recipe does not fit, or images are not finite.
    """
    recipe = run.sample.recipe if recipe is None else recipe
    recipe = replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        guidance=recipe.guidance if guidance is None else guidance,
    )
    labels = torch.tensor(_labels(run, classes)).repeat_interleave(n)
    decode = decoder(run.values, vae, next(model.parameters()).device)
    images = generate_all(model, run, recipe, labels, seed=seed, decode=decode, batch=batch)
    return [Image.fromarray(image) for image in images]


def _labels(run: Description, classes: str | int | Sequence[str | int] | None) -> list[int]:
    """The labels of these classes; [0], which the network does not look at, without classes."""
    known = run.class_names
    if not run.model.n_classes:
        if classes is not None:
            raise ValueError(f"classes is {classes!r}, but this run was trained without classes.")
        return [0]
    if classes is None:
        return list(range(len(known)))
    several = [classes] if isinstance(classes, (str, int)) else classes
    return [class_number(wanted, known) for wanted in several]
