"""The recipe of a run's configuration, and what the command line changes of it."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace

import pytest

from tests.sampling.test_generate import described
from tread_ssm.config.run import SampleConfig
from tread_ssm.sampling.options import add_sampling_options, recipe_of
from tread_ssm.sampling.recipe import Recipe

OWN = SampleConfig(
    steps=7,
    guidance=1.5,
    weak_drop=0.75,
    strong_drop=0.25,
    interval=(0.1, 0.8),
    guidance_channels=2,
    sampler="euler",
    precision="bf16",
)


def chosen(own: SampleConfig, *words: str) -> Recipe:
    parser = ArgumentParser()
    add_sampling_options(parser, run_required=False)
    return recipe_of(replace(described(), sample=own), parser.parse_args(list(words)))


def test_the_runs_own_recipe_is_the_default() -> None:
    assert chosen(OWN) == OWN.recipe
    assert type(OWN.recipe) is Recipe
    assert OWN.recipe.kind == "routes" and OWN.recipe.strong_drop == 0.25


def test_what_is_named_is_changed_and_nothing_else() -> None:
    words = ("--steps", "3", "--guidance", "2", "--interval", "0", "0.5", "--precision", "fp32")
    recipe = chosen(OWN, *words, "--guidance-channels", "1", "--sampler", "heun")
    assert (recipe.steps, recipe.guidance, recipe.interval) == (3, 2.0, (0.0, 0.5))
    assert (recipe.precision, recipe.guidance_channels, recipe.sampler) == ("fp32", 1, "heun")
    assert (recipe.kind, recipe.weak_drop, recipe.strong_drop) == ("routes", 0.75, 0.25)


@pytest.mark.parametrize("kind", ["class", "path"])
def test_another_kind_of_guidance_replaces_the_whole_kind(kind: str) -> None:
    recipe = chosen(OWN, "--guided-by", kind)
    assert recipe.kind == kind
    assert (recipe.weak_drop, recipe.strong_drop, recipe.weak_run) == (None, 0.0, None)
    assert recipe.interval == OWN.interval


def test_a_part_of_a_kind_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strong_drop is 0\.3, but weak_drop is not set"):
        chosen(OWN, "--strong-drop", "0.3")
