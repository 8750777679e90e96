"""What image number i depends on: the seed, i and the recipe, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tread_ssm.config.run import SampleConfig
from tread_ssm.data import PixelValues
from tread_ssm.diffusion import EDM, Flow, NoisePrediction, Objective
from tread_ssm.models import DiMConfig, DiTConfig
from tread_ssm.pretrained import Description, export
from tread_ssm.routing import Cells, Draw, Route, RoutePlan, Segments
from tread_ssm.sampling.generate import (
    Samples,
    generate,
    generate_all,
    noise_of,
    sample_labels,
    shares,
)
from tread_ssm.sampling.guidance import RouteGuidance, check_guidance
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe

DIM = DiMConfig(image_size=8, channels=3, n_classes=4, dim=32, depth=3, pads=1)
DIT = DiTConfig(image_size=8, channels=3, n_classes=4, dim=32, depth=3, heads=2)
PLAN = RoutePlan((Route(0, 1), Route(1, 3, select=Segments(length=2))), depth=3)


def network(config: DiMConfig | DiTConfig) -> nn.Module:
    torch.manual_seed(0)
    model = config.build().eval().requires_grad_(False)
    for p in model.parameters():  # a fresh network predicts nothing at all
        p.add_(0.05 * torch.randn(p.shape))
    return model


def described(
    model: DiMConfig | DiTConfig = DIM, objective: Objective | None = None
) -> Description:
    return Description(
        step=1,
        model=model,
        objective=objective or Flow(),
        class_names=tuple("abcd"),
        values=PixelValues(),
        routes=tuple(PLAN.routes),
        sample=SampleConfig(),
    )


def kept(draw: Draw) -> list[Tensor]:
    return [subset.index for _, subset in draw]


def test_noise_belongs_to_the_number_of_the_image() -> None:
    all_of_them = noise_of(range(6), DIM, seed=1)
    assert torch.equal(noise_of([4], DIM, seed=1)[0], all_of_them[4])
    assert torch.equal(noise_of(range(3), DIM, seed=1), all_of_them[:3])
    assert len({float(x[0, 0, 0]) for x in all_of_them}) == 6
    assert not torch.equal(noise_of(range(6), DIM, seed=2), all_of_them)


def test_labels_belong_to_the_number_of_the_image_and_are_drawn_evenly() -> None:
    labels = sample_labels(4500, range(9), seed=3)
    assert torch.equal(sample_labels(100, range(9), seed=3), labels[:100])
    assert not torch.equal(sample_labels(100, range(9), seed=4), labels[:100])
    counts = labels.bincount(minlength=9)
    # Chi-squared with 8 degrees of freedom: 0.999 of the mass lies below 26.1.
    assert float(((counts - 500) ** 2 / 500).sum()) < 26.1
    assert counts.max() > counts.min()


def test_balanced_labels_and_chosen_classes() -> None:
    counts = sample_labels(100, range(9), seed=0, balanced=True).bincount(minlength=9)
    assert set(counts.tolist()) == {11, 12}
    assert set(sample_labels(50, [2, 7], seed=0).tolist()) == {2, 7}
    assert sample_labels(3, [2, 7], seed=0, balanced=True).tolist() == [2, 7, 2]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_batches_are_cut_alike_for_any_number_of_processes(processes: int) -> None:
    parts = [shares(50, 8, p, processes) for p in range(processes)]
    together = sorted((b for part in parts for b in part), key=lambda b: b.start)
    assert together == shares(50, 8)
    assert [i for b in together for i in b] == list(range(50))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images in batches of 8"):
        shares(0, 8)


@pytest.mark.parametrize("drop", [0.25, 0.5])
def test_what_route_guidance_keeps_belongs_to_the_number_of_the_image(drop: float) -> None:
    plan, t = PLAN.with_drop(drop), 0.7

    def draw(images: list[int], seed: int = 0, t: float = t) -> list[Tensor]:
        guidance = RouteGuidance(PLAN, (4, 4), seed, images)
        return kept(guidance.draw(plan, t))

    together = draw([0, 1, 2, 3])
    assert all(torch.equal(a[1:3], b) for a, b in zip(together, draw([1, 2]), strict=True))
    assert not any(torch.equal(a[0], a[1]) for a in together)
    for other in (draw([0, 1, 2, 3], seed=1), draw([0, 1, 2, 3], t=0.6)):
        assert not any(torch.equal(a, b) for a, b in zip(together, other, strict=True))


RECIPES = {
    "plain": (DIM, Flow(), Recipe(steps=4)),
    "labels": (DIM, EDM(), Recipe(steps=4, guidance=2.0, interval=(0.1, 5.0))),
    "routes": (DIM, Flow(), Recipe(steps=4, guidance=1.5, weak_drop=0.5, strong_drop=0.25)),
    "path": (DIM, Flow(), Recipe(steps=4, guidance=1.5, guided_by="path", interval=(0.2, 0.9))),
    "stochastic": (DIM, Flow(), Recipe(steps=4, guidance=2.0, sampler="euler_maruyama")),
    "transformer": (DIT, NoisePrediction(), Recipe(steps=5, guidance=1.5, weak_drop=0.5)),
}


def images(name: str, batch: int, n: int = 7) -> list[Samples]:
    config, objective, recipe = RECIPES[name]
    run = described(config, objective)
    return list(
        generate(
            network(config),
            run,
            recipe,
            shares(n, batch),
            sample_labels(n, range(4), seed=5),
            seed=5,
            decode=decoder(run.values, None, "cpu"),
        )
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_an_image_does_not_depend_on_what_else_is_in_its_batch(name: str) -> None:
    whole = images(name, batch=7)[0]
    assert whole.images.shape == (7, 8, 8, 3) and whole.images.dtype == np.uint8
    assert len({image.tobytes() for image in whole.images}) == 7
    for batch in (1, 3):
        parts = images(name, batch)
        assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
        # Sums of other shapes are rounded otherwise; no value moves by more than one grey level.
        pixels = np.concatenate([p.images for p in parts]).astype(int)
        assert np.abs(pixels - whole.images.astype(int)).max() <= 1
    assert np.array_equal(images(name, 3)[1].images, images(name, 3, n=6)[1].images)


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does() -> None:
    """An allocation that fails on a GPU, as torch raises it."""
    model, run, seen = network(DIM), described(), []

    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(arguments[0]))
        if seen[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(refuse)
    labels, decode = sample_labels(7, range(4), seed=5), decoder(run.values, None, "cpu")
    arguments = (model, run, Recipe(steps=1, sampler="euler"), shares(7, 6), labels)
    limit = 99
    whole = list(generate(*arguments, seed=5, decode=decode))
    seen.clear()
    limit = 2
    parts = list(generate(*arguments, seed=5, decode=decode))
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [p.numbers for p in parts] == [p.numbers for p in whole] == [range(6), range(6, 7)]
    for part, expected in zip(parts, whole, strict=True):
        difference = part.images.astype(int) - expected.images.astype(int)
        assert np.abs(difference).max() <= 1
    assert [p.at_once for p in whole] == [6, 1] and [p.at_once for p in parts] == [1, 1]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(generate(*arguments, seed=5, decode=decode))


def test_the_passes_of_guidance_run_one_after_the_other_where_both_do_not_fit() -> None:
    model, run, seen = network(DIM), described(), []

    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(arguments[0]))
        if seen[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(refuse)
    labels, decode = sample_labels(3, range(4), seed=5), decoder(run.values, None, "cpu")
    recipe = Recipe(steps=2, guidance=2.0, sampler="euler")
    limit = 99
    whole = generate_all(model, run, recipe, labels, seed=5, decode=decode)
    assert seen == [6, 6]
    seen.clear()
    limit = 1
    apart = generate_all(model, run, recipe, labels, seed=5, decode=decode)
    assert seen == [6, 2, *[1] * 12]
    assert np.abs(whole.astype(int) - apart.astype(int)).max() <= 1
    seen.clear()
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        generate_all(model, run, recipe, labels, seed=5, decode=decode)
    assert seen == [6, 2, 1]


def test_images_that_cannot_be_decoded_at_once_are_halved_as_well() -> None:
    model, run, seen = network(DIM), described(), []
    whole = decoder(run.values, None, "cpu")

    def decode(x: Tensor) -> np.ndarray:
        seen.append(len(x))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(x)

    labels, recipe = sample_labels(7, range(4), seed=5), Recipe(steps=1, sampler="euler")
    parts = [
        generate_all(model, run, recipe, labels, seed=5, decode=way, batch=6)
        for way in (decode, whole)
    ]
    assert seen == [6, 3, 1, 1, 1, 1, 1, 1, 1]
    assert np.abs(parts[0].astype(int) - parts[1].astype(int)).max() <= 1


def test_a_process_does_not_halve_alone_where_weights_are_sharded() -> None:
    """It would call the network, which gathers the weights of all, more often than the others."""
    model, run, seen = network(DIM), described(), []

    def refuse(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(arguments[0]))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        model.register_forward_pre_hook(refuse)
        labels, decode = sample_labels(7, range(4), seed=5), decoder(run.values, None, "cpu")
        with pytest.raises(torch.OutOfMemoryError):
            generate_all(model, run, Recipe(steps=1), labels, seed=5, decode=decode)
    finally:
        torch.distributed.destroy_process_group()
    assert seen == [7]


@pytest.mark.slow
def test_a_compiled_network_samples_the_same_images() -> None:
    run, recipe = described(), Recipe(steps=1, guidance=2.0, sampler="euler")
    labels, decode = sample_labels(2, range(4), seed=5), decoder(run.values, None, "cpu")
    plain, compiled = network(DIM), network(DIM)
    compiled.compile(backend="aot_eager")
    a, b = (
        generate_all(model, run, recipe, labels, seed=5, decode=decode).astype(int)
        for model in (plain, compiled)
    )
    assert np.abs(a - b).max() <= 1 and a.std() > 10


def test_drawing_leaves_the_random_numbers_alone() -> None:
    model, run = network(DIM), described()
    before = torch.get_rng_state()
    labels = torch.zeros(2, dtype=torch.int64)
    recipe = Recipe(steps=2, guidance=2.0, weak_drop=0.5)
    decode = decoder(run.values, None, "cpu")
    assert len(list(generate(model, run, recipe, shares(2, 1), labels, seed=0, decode=decode))) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_close_and_the_samplers_numbers_stay_wide() -> None:
    model, run = network(DIM), described()
    labels = sample_labels(4, range(4), seed=0)
    seen: list[torch.dtype] = []

    def decode(x: Tensor) -> np.ndarray:
        seen.append(x.dtype)
        return x.numpy()

    def draw(recipe: Recipe) -> np.ndarray:
        batches = shares(4, 4)
        drawn = generate(model, run, recipe, batches, labels, seed=0, decode=decode)
        return next(iter(drawn)).images

    full, half = draw(Recipe(steps=4)), draw(Recipe(steps=4, precision="bf16"))
    assert seen == [torch.float32, torch.float32]
    difference = np.sqrt(((full - half) ** 2).mean() / (full**2).mean())
    assert 0 < difference < 0.05


def test_another_run_guides_and_must_fit(tmp_path: Path) -> None:
    model, run = network(DIM), described()
    labels, decode = sample_labels(2, range(4), seed=0), decoder(run.values, None, "cpu")

    def draw(recipe: Recipe, run: Description = run) -> np.ndarray:
        return generate_all(model, run, recipe, labels, seed=0, decode=decode)

    export(tmp_path / "same", model.state_dict(), run)
    weaker = {n: t * 0.9 for n, t in model.state_dict().items()}
    export(tmp_path / "weaker", weaker, run)
    plain = draw(Recipe(steps=3))
    by = Recipe(steps=3, guidance=3.0, guided_by="model", weak_run=str(tmp_path / "same"))
    assert np.abs(draw(by).astype(int) - plain).max() <= 1  # a model leads away from itself nowhere
    by = replace(by, weak_run=str(tmp_path / "weaker"))
    assert np.abs(draw(by).astype(int) - plain).max() > 1
    with pytest.raises(ValueError, match=r"weaker was trained with Flow.*with EDM"):
        draw(by, described(objective=EDM()))
    with pytest.raises(ValueError, match=r"n_classes 4, the guided network 5; they must agree"):
        draw(by, described(replace(DIM, n_classes=5)))
    check_guidance(by, DIM, run.objective, PLAN)
    with pytest.raises(ValueError, match=r"n_classes 4, the guided network 5; they must agree"):
        check_guidance(by, replace(DIM, n_classes=5), run.objective, PLAN)


def test_what_cannot_be_drawn_is_refused() -> None:
    model, labels = network(DIM), torch.zeros(1, dtype=torch.int64)

    def draw(run: Description, recipe: Recipe) -> None:
        decode = decoder(run.values, None, "cpu")
        list(generate(model, run, recipe, shares(1, 1), labels, seed=0, decode=decode))

    with pytest.raises(ValueError, match=r"guided_by is 'path' and weak_drop 0\.5; guidance by"):
        Recipe(steps=1, guided_by="path", weak_drop=0.5)
    with pytest.raises(ValueError, match=r"guided_by is 'model' and weak_run None; .* needs weak"):
        Recipe(steps=1, guided_by="model")
    with pytest.raises(ValueError, match="trained with routes"):
        draw(replace(described(), routes=()), Recipe(steps=1, weak_drop=0.5))
    with pytest.raises(ValueError, match="cannot be cut into cells of 3 x 3"):
        cells = Route(0, 1, select=Cells(3))
        draw(replace(described(), routes=(cells,)), Recipe(steps=1, guidance=2.0, weak_drop=0.5))


def test_images_that_are_not_finite_are_refused() -> None:
    model, run, labels = network(DIM), described(), torch.zeros(5, dtype=torch.int64)
    next(model.parameters()).fill_(torch.nan)
    decode = decoder(run.values, None, "cpu")
    drawn = generate(model, run, Recipe(steps=2), [range(2, 5)], labels, seed=0, decode=decode)
    with pytest.raises(ValueError, match="3 of 3 images are not finite, image 2 the first"):
        next(drawn)


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="guidance is nan"):
        Recipe(steps=2, guidance=float("nan"))
    with pytest.raises(ValueError, match=r"strong_drop is 0\.3, but weak_drop is not set"):
        Recipe(steps=2, strong_drop=0.3)
