"""The Frechet distance against closed forms and scipy; streaming against the whole."""

import numpy as np
import pytest
import torch

from tread_ssm.data import load_emoji
from tread_ssm.evaluation import (
    EmojiFeatures,
    FeatureMoments,
    Gaussian,
    feature_moments,
    frechet_distance,
)


def features(n: int, dimension: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimension, dimension, generator=rng, dtype=torch.float64)
    return torch.randn(n, dimension, generator=rng, dtype=torch.float64) @ mix + mean


def test_streamed_and_merged_moments_equal_those_of_the_whole() -> None:
    x = features(500, 12, seed=0, mean=1e6)
    batches = [FeatureMoments.of(part) for part in x.split([1, 99, 150, 250])]
    left, right = batches[0] + batches[1], batches[2] + batches[3]
    total = right + left
    assert total.count == 500
    np.testing.assert_allclose(total.mean.numpy(), x.mean(0).numpy(), rtol=1e-14)
    np.testing.assert_allclose(total.covariance.numpy(), np.cov(x.numpy().T), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dimension", [1, 7, 64])
def test_agrees_with_scipy(dimension: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a = FeatureMoments.of(features(4 * dimension + 9, dimension, seed=1))
    b = FeatureMoments.of(features(3 * dimension + 5, dimension, seed=2, mean=0.3))
    c_a, c_b = a.covariance.numpy(), b.covariance.numpy()
    root = np.real(np.trace(np.atleast_2d(linalg.sqrtm(c_a @ c_b))))
    shift = (a.mean - b.mean).numpy()
    expected = shift @ shift + np.trace(c_a) + np.trace(c_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_scaled_and_shifted_features() -> None:
    x = features(300, 5, seed=3)
    x = x - x.mean(0)
    distance = frechet_distance(FeatureMoments.of(x), FeatureMoments.of(3 * x + 2))
    expected = 5 * 2**2 + 4 * float(FeatureMoments.of(x).covariance.trace())
    assert distance == pytest.approx(expected, rel=1e-10)


def test_symmetric_zero_for_equal_sets_and_never_negative() -> None:
    a, b = FeatureMoments.of(features(80, 20, seed=4)), FeatureMoments.of(features(70, 20, seed=5))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert 0 <= frechet_distance(a, a) < 1e-9
    # A covariance of low rank, as dead features give.
    flat = features(80, 20, seed=6)
    flat[:, 5:] = 0
    assert 0 <= frechet_distance(FeatureMoments.of(flat), FeatureMoments.of(flat.clone())) < 1e-6


def test_too_few_images_are_refused_with_numbers_and_a_remedy() -> None:
    few, enough = (
        FeatureMoments.of(features(20, 20, seed=7)),
        FeatureMoments.of(features(21, 20, seed=8)),
    )
    with pytest.raises(
        ValueError, match=r"second set has 20 images.*20 features.*21; sample 1 more"
    ):
        frechet_distance(enough, few)
    assert frechet_distance(enough, enough) >= 0


def test_bad_features_are_refused() -> None:
    x = features(30, 4, seed=9)
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 30 images are not finite"):
        FeatureMoments.of(x)
    with pytest.raises(ValueError, match="expected \\(B, F\\)"):
        FeatureMoments.of(torch.zeros(3))
    with pytest.raises(ValueError, match="4 and of 5 features"):
        frechet_distance(FeatureMoments.of(features(9, 4, 0)), FeatureMoments.of(features(9, 5, 0)))
    with pytest.raises(ValueError, match="one image has no covariance"):
        _ = FeatureMoments.of(x[:1]).covariance


def test_agrees_with_torchmetrics_given_the_same_features() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    images = torch.from_numpy(load_emoji(16)[0]).permute(0, 3, 1, 2)[:600]
    extractor = EmojiFeatures()

    class Injected(torch.nn.Module):
        num_features = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return extractor(x).pooled

    theirs = fid.FrechetInceptionDistance(feature=Injected()).set_dtype(torch.float64)
    theirs.update(images[:350], real=True)
    theirs.update(images[350:], real=False)
    real, fake = (feature_moments(extractor, x) for x in (images[:350], images[350:]))
    ours = frechet_distance(fake, real)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert ours > 0.1


def test_a_reference_of_unknown_size_serves_as_well() -> None:
    a, b = FeatureMoments.of(features(80, 20, seed=4)), FeatureMoments.of(features(70, 20, seed=5))
    assert frechet_distance(a, Gaussian(b.mean, b.covariance)) == frechet_distance(a, b)
