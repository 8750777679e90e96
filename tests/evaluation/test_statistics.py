"""Statistics add up, are complete, and are scored; what is missing or too few is said."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from tread_ssm.data import load_emoji
from tread_ssm.evaluation import (
    METRICS,
    EmojiFeatures,
    FeatureMoments,
    Features,
    Statistics,
    check_comparable,
    frechet_distance,
    score,
    statistics,
)


def images(n: int, seed: int) -> Tensor:
    every = torch.from_numpy(load_emoji(8)[0]).permute(0, 3, 1, 2)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:n]]


def of(x: Tensor, batch: int = 50, metrics: Sequence[str] = tuple(METRICS)) -> Statistics:
    return statistics(EmojiFeatures(), x.split(batch) if len(x) else [], metrics)


@pytest.fixture(scope="module")
def reference() -> Statistics:
    return of(images(400, seed=1))


@pytest.mark.parametrize("cuts", [[300], [1, 299], [120, 80, 100], [0, 300], [200, 0, 100]])
def test_parts_add_up_to_the_whole_in_order(cuts: list[int], reference: Statistics) -> None:
    x = images(300, seed=2)
    whole = of(x, batch=300)
    total = reduce(add, [of(part) for part in x.split(cuts)])
    assert total.count == 300 and total.merged() is total
    assert isinstance(total.pooled, FeatureMoments) and isinstance(whole.pooled, FeatureMoments)
    # Batches change the last bits of float32 features; sums over them are float64.
    torch.testing.assert_close(total.pooled.scatter, whole.pooled.scatter, rtol=1e-5, atol=1e-3)
    for name in ("features", "probabilities"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
    assert score(total, reference, METRICS) == pytest.approx(
        score(whole, reference, METRICS), rel=1e-4, abs=1e-5
    )


def test_moments_of_one_pass_equal_those_of_its_parts_to_float64(reference: Statistics) -> None:
    assert reference.features is not None
    x = reference.features.double()
    parts = [FeatureMoments.of(part) for part in x.split([7, 193, 200])]
    total = reduce(add, parts)
    torch.testing.assert_close(total.covariance, torch.cov(x.T), rtol=1e-11, atol=1e-12)


def test_chunks_of_a_long_stream_change_nothing() -> None:
    x = images(1900, seed=3)
    long = of(x, batch=100, metrics=("fid", "kid"))
    assert isinstance(long.pooled, FeatureMoments) and long.features is not None
    whole = FeatureMoments.of(long.features)
    torch.testing.assert_close(long.pooled.covariance, whole.covariance, rtol=1e-11, atol=1e-12)


def test_only_what_is_needed_is_kept() -> None:
    x = images(5, seed=0)
    kept = {
        metric: [f for f in vars(of(x, metrics=(metric,))) if _held(of(x, metrics=(metric,)), f)]
        for metric in METRICS
    }
    assert kept == {
        "fid": ["pooled"],
        "sfid": ["spatial"],
        "is": ["probabilities"],
        "precision": ["features"],
        "recall": ["features"],
        "kid": ["features"],
    }


def _held(held: Statistics, field: str) -> bool:
    return field not in ("extractor", "count", "size") and getattr(held, field) is not None


def test_scores_are_those_of_the_parts_and_tell_good_from_bad(reference: Statistics) -> None:
    good, x = of(images(300, seed=2)), images(300, seed=2)
    noise = torch.randint(0, 256, x.shape, generator=torch.Generator().manual_seed(0))
    bad = of(noise.to(torch.uint8))
    a, b = score(good, reference, METRICS), score(bad, reference, METRICS)
    assert list(a) == list(METRICS)
    assert a["fid"] == frechet_distance(good.pooled, reference.pooled)  # type: ignore[arg-type]
    for metric in ("fid", "sfid", "kid"):
        assert b[metric] > 5 * abs(a[metric])
    for metric in ("is", "precision", "recall"):
        assert b[metric] < a[metric]
    assert score(good, None, ["is"]) == {"is": a["is"]}
    assert list(score(good, reference, ["recall", "fid"])) == ["recall", "fid"]


def test_too_few_images_are_refused_before_they_are_drawn(reference: Statistics) -> None:
    cases: list[tuple[int, str, str]] = [
        (64, "fid", "fid needs at least 65 images for the covariance of 64.*has 64: add 1,"),
        (100, "sfid", "sfid needs at least 113 images for the covariance of 112.*add 13,"),
        (3, "recall", "recall needs at least 4 images; the sample set has 3"),
        (1, "kid", "kid needs at least 2 images"),
        (0, "kid", "no samples"),
    ]
    for count, metric, message in cases:
        with pytest.raises(ValueError, match=message):
            check_comparable(count, "emoji", reference, [metric])
    check_comparable(113, "emoji", reference, METRICS)
    small = of(images(64, seed=0))
    with pytest.raises(ValueError, match="the reference has 64"):
        score(reference, small, ["fid"])
    with pytest.raises(ValueError, match="the sample set has 64"):
        score(small, reference, ["fid"])


def test_what_is_missing_is_said(reference: Statistics) -> None:
    only_fid = of(images(100, seed=0), metrics=("fid",))
    with pytest.raises(ValueError, match="kid: the statistics were not made for it"):
        score(reference, only_fid, ["kid"])
    with pytest.raises(ValueError, match="kid: the statistics were not made for it"):
        score(only_fid, reference, ["kid"])
    with pytest.raises(ValueError, match="fid compares with real images"):
        score(only_fid, None, ["fid"])
    with pytest.raises(ValueError, match="made for different metrics"):
        _ = only_fid + of(images(100, seed=1), metrics=("fid", "kid"))
    other = Statistics("inception", 100, only_fid.pooled)
    with pytest.raises(ValueError, match="use one extractor for both"):
        score(only_fid, other, ["fid"])
    with pytest.raises(ValueError, match="emoji and of inception features do not add up"):
        _ = only_fid + other
    with pytest.raises(ValueError, match="'fids'; there are fid, sfid"):
        of(images(2, 0), metrics=("fids",))
    with pytest.raises(ValueError, match="name each wanted one once"):
        of(images(2, 0), metrics=("fid", "fid"))


class Pixels:
    """Any callable will do."""

    name = "pixels"

    def __call__(self, x: Tensor) -> Features:
        return Features(x.float().flatten(2).mean(2))


def test_any_callable_serves_as_far_as_it_goes() -> None:
    a, b = (statistics(Pixels(), [images(50, s)], ["fid", "kid"]) for s in (0, 1))
    assert score(a, b, ["fid", "kid"])["fid"] > 0
    with pytest.raises(ValueError, match="pixels features have no spatial part"):
        statistics(Pixels(), [images(5, 0)], ["sfid"])
    with pytest.raises(ValueError, match="pixels features come without classes"):
        statistics(Pixels(), [images(5, 0)], ["is"])


@pytest.mark.parametrize("metric", METRICS)
def test_features_that_are_not_finite_are_refused_for_every_metric(metric: str) -> None:
    class Broken:
        name = "broken"

        def __call__(self, x: Tensor) -> Features:
            y = x.float().flatten(1)[:, :3].softmax(1)
            y[x.flatten(1).amax(1) == 0] = torch.nan
            return Features(y, y, y)

    x = torch.ones(10, 3, 2, 2, dtype=torch.uint8)
    x[7] = 0
    with pytest.raises(ValueError, match="not finite"):
        statistics(Broken(), x.split(4), [metric])
