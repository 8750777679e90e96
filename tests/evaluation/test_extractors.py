"""FD-emoji tells good images from bad ones, at the sizes that runs use."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from tread_ssm.data import load_emoji
from tread_ssm.evaluation import (
    EmojiFeatures,
    FeatureMoments,
    feature_moments,
    frechet_distance,
    load_extractor,
)
from tread_ssm.evaluation.emoji.make_features import DAMAGES, damage, held_out, train
from tread_ssm.evaluation.emoji.network import network_input
from tread_ssm.evaluation.extractors import flat_map


@pytest.fixture(scope="module")
def extractor() -> EmojiFeatures:
    return EmojiFeatures()


def halves(size: int) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(load_emoji(size)[0]).permute(0, 3, 1, 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:953]], images[order[953:]]


def as_uint8(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", [16, 32])
def test_distance_orders_images_by_quality(extractor: EmojiFeatures, size: int) -> None:
    half, other = halves(size)
    rng = torch.Generator().manual_seed(1)
    reference = feature_moments(extractor, other)
    x = half.float()
    noise = 127.5 + 127.5 * torch.randn(x.shape, generator=rng)
    variants = {
        "real": half,
        "slight noise": as_uint8(x + 12 * torch.randn(x.shape, generator=rng)),
        "blurred": as_uint8(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)),
        "jittered": as_uint8(x + 40 * torch.randn(x.shape, generator=rng)),
        "noise": as_uint8(noise),
    }
    distance = {
        name: frechet_distance(feature_moments(extractor, images), reference)
        for name, images in variants.items()
    }
    print({name: round(value, 2) for name, value in distance.items()})
    assert distance["slight noise"] > 1.5 * distance["real"]
    for bad in ("blurred", "jittered"):
        assert distance[bad] > 3 * distance["slight noise"]
        assert distance[bad] > 10 * distance["real"]
        assert distance["noise"] > 3 * distance[bad]
    assert frechet_distance(reference, reference) < 1e-8


def test_a_set_of_few_different_images_is_not_near(extractor: EmojiFeatures) -> None:
    half, other = halves(16)
    reference = feature_moments(extractor, other)
    real = frechet_distance(feature_moments(extractor, half[:400]), reference)
    collapsed = half[:20].repeat(20, 1, 1, 1)
    assert frechet_distance(feature_moments(extractor, collapsed), reference) > 5 * real


def test_features_are_scaled_to_the_emoji(extractor: EmojiFeatures) -> None:
    moments = feature_moments(extractor, torch.cat(halves(32)))
    assert len(moments.mean) == extractor.dimension
    deviations = moments.covariance.diagonal().sqrt()
    assert deviations.min() > 0.3 and deviations.max() < 3


def test_batches_do_not_change_the_moments(extractor: EmojiFeatures) -> None:
    images = halves(16)[0][:100]
    a = feature_moments(extractor, images, batch=33)
    b = FeatureMoments.of(extractor(images).pooled)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=0, atol=1e-4)


def test_wrong_images_are_refused(extractor: EmojiFeatures) -> None:
    with pytest.raises(ValueError, match=r"torch.float32 of shape .*expected uint8"):
        extractor(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="expected uint8"):
        extractor(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="64 x 64"):
        extractor(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    x = network_input(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))
    assert x.shape == (1, 3, 32, 32) and float(x.max()) == 1.0 == float(x.min())


def test_shipped_weights_are_small_and_carry_their_accuracy(extractor: EmojiFeatures) -> None:
    path = files("tread_ssm.evaluation.emoji").joinpath("features.safetensors")
    with safe_open(str(path), "pt") as file:
        recorded = {name: float(value) for name, value in file.metadata().items()}
    assert len(path.read_bytes()) < 1_000_000
    images, labels, _ = load_emoji(32)
    held = held_out(images)
    x = torch.from_numpy(images[held]).permute(0, 3, 1, 2)
    right = extractor(x).probabilities.argmax(1) == torch.from_numpy(labels[held])
    assert float(right.float().mean()) == pytest.approx(recorded["class_32"], abs=0.01)
    assert recorded["class_32"] > 0.6 and recorded["damage_32"] > 0.9


def test_images_held_out_have_no_copy_in_training() -> None:
    images = load_emoji(32)[0]
    held = held_out(images)
    own = {i.tobytes() for i in images[~held]}
    assert not [i for i in images[held] if i.tobytes() in own]
    assert 0.12 < held.mean() < 0.16


def test_damages_do_what_they_say() -> None:
    half = halves(32)[0][:32]
    rng = torch.Generator().manual_seed(0)
    for kind, name in enumerate(DAMAGES):
        damaged = damage(half, torch.full((32,), kind), rng)
        changed = (damaged != half).flatten(1).any(1).float().mean()
        assert changed == 0 if name == "intact" else changed > 0.9


def test_training_the_features_is_deterministic_and_learns() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (first, reached), (second, _) = train(epochs=2), train(epochs=2)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert reached["damage_32"] > 0.5


def test_all_kinds_of_features_come_from_one_pass(extractor: EmojiFeatures) -> None:
    found = extractor(halves(32)[0][:5])
    assert found.pooled.shape == (5, 64) and found.spatial.shape == (5, 4 * 4 * 7)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(5))


def test_a_map_is_flattened_place_by_place_with_seven_channels() -> None:
    maps = torch.arange(2 * 9 * 3 * 4).reshape(2, 9, 3, 4).float()
    nhwc = maps.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(flat_map(maps).numpy(), nhwc[..., :7].reshape(2, -1))


def test_extractors_are_loaded_by_name() -> None:
    assert load_extractor("emoji").name == "emoji"
    with pytest.raises(ValueError, match="'vgg'; use inception, emoji, timm:MODEL"):
        load_extractor("vgg")
    with pytest.raises(ValueError, match="'emoji' take no file of weights"):
        load_extractor("emoji", weights=Path("x"))
