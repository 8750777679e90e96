"""How many images fit into the memory at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tread_ssm.pretrained import Description
from tread_ssm.sampling.generate import generate
from tread_ssm.sampling.image_grid import Decode
from tread_ssm.sampling.recipe import Recipe


def fitting_batch(
    model: nn.Module, run: Description, recipe: Recipe, decode: Decode, most: int
) -> int:
    """How many images can be sampled and decoded at once: doubled from 1 for as long as they fit.

    Each number is tried with one step of sampling, guided as the recipe says.

    Args:
        model, run, recipe, decode: As for `generate`.
        most: Images at once, at most.

    Raises:
        ValueError: As `generate`.
        torch.OutOfMemoryError: As `generate`.
    """
    recipe, n = replace(recipe, steps=1, interval=None), 1
    while n < most:
        more = min(2 * n, most)
        labels = torch.zeros(more, dtype=torch.int64)
        (tried,) = generate(model, run, recipe, [range(more)], labels, seed=0, decode=decode)
        if tried.at_once < more:
            break
        n = more
    return n
