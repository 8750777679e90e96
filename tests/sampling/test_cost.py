"""FLOPs of an image, against those of a forward pass and its blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sampling.test_generate import described, network
from tread_ssm.diffusion import EDM, Flow, NoisePrediction
from tread_ssm.models import DiTConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.pretrained import export
from tread_ssm.routing import Route, RoutePlan
from tread_ssm.sampling.cost import cost_text, sampling_cost
from tread_ssm.sampling.recipe import Recipe

MODEL = DiTConfig(image_size=8, channels=3, n_classes=4, dim=16, depth=5, heads=2)
ROUTES = (Route(1, 4),)
COST = backbone_cost(MODEL, RoutePlan(ROUTES, 5))
DENSE, ROUTED = COST.dense.forward, COST.routed.forward
SKIPPED = DENSE - sum(COST.dense.block_flops[1:4])


@pytest.mark.parametrize(
    ("recipe", "passes", "flops"),
    [
        (Recipe(steps=4), 7, 7 * DENSE),
        (Recipe(steps=4, guidance=2.0), 14, 14 * DENSE),
        (Recipe(steps=4, guidance=2.0, sampler="euler"), 8, 8 * DENSE),
        (Recipe(steps=4, guidance=2.0, weak_drop=0.5), 14, 7 * (DENSE + ROUTED)),
        (Recipe(steps=4, guidance=2.0, guided_by="path"), 14, 7 * (DENSE + SKIPPED)),
        (Recipe(steps=4, guidance=1.0, guided_by="path"), 7, 7 * DENSE),
        # Steps from 1, 0.75, 0.5 and 0.25: the second and the third are guided, in both calls.
        (Recipe(steps=4, guidance=2.0, interval=(0.4, 0.8)), 11, 11 * DENSE),
    ],
    ids=["none", "class", "euler", "routes", "path", "scale 1", "interval"],
)
def test_flops_of_an_image(recipe: Recipe, passes: int, flops: int) -> None:
    found = sampling_cost(MODEL, Flow(), ROUTES, recipe)
    assert (found.passes, found.flops) == (passes, flops)


def test_a_smaller_network_guides_cheaply() -> None:
    small = DiTConfig(image_size=8, channels=3, n_classes=4, dim=8, depth=2, heads=2)
    recipe = Recipe(steps=3, guidance=2.0, guided_by="model", weak_run="anywhere", sampler="euler")
    for objective in (EDM(), NoisePrediction()):
        found = sampling_cost(MODEL, objective, (), recipe, small)
        alone = backbone_cost(small, RoutePlan((), 2)).dense.forward
        assert (found.passes, found.flops) == (6, 3 * DENSE + 3 * alone)


def test_the_cost_of_a_run_is_a_sentence(tmp_path: Path) -> None:
    run = described(MODEL)
    export(tmp_path, network(MODEL).state_dict(), run)
    recipe = Recipe(steps=2, guidance=2.0, guided_by="model", weak_run=str(tmp_path))
    text = cost_text(run, recipe)
    assert text.endswith("FLOPs in 6 passes, guided by model.")
    assert cost_text(run, Recipe(steps=2)).endswith("in 3 passes, without guidance.")
