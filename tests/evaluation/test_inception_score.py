"""The inception score: closed forms, torchmetrics, and splits as ADM cuts them."""

import pytest
import torch

from tread_ssm.evaluation.inception_score import inception_score


def test_sure_and_varied_classes_give_their_number_and_unsure_ones_1() -> None:
    assert inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10)
    assert inception_score(torch.full((20, 10), 0.1)) == pytest.approx(1)
    assert inception_score(torch.eye(10)[[3, 3, 3]]) == pytest.approx(1)


def test_by_hand() -> None:
    p = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    divergence = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert inception_score(p) == pytest.approx(float(divergence.exp()), rel=1e-6)


def test_agrees_with_torchmetrics() -> None:
    metric = pytest.importorskip("torchmetrics.image.inception")
    logits = 2 * torch.randn(200, 12, generator=torch.Generator().manual_seed(0))

    class Logits(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits[: len(images)]

    theirs = metric.InceptionScore(feature=Logits(), splits=1)
    theirs.update(torch.zeros(200, 3, 2, 2, dtype=torch.uint8))
    assert inception_score(logits.softmax(1)) == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_splits_follow_the_order_and_the_rest_is_one() -> None:
    p = torch.rand(25, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    parts = [inception_score(part) for part in (p[:10], p[10:20], p[20:])]
    assert inception_score(p, split=10) == pytest.approx(sum(parts) / 3)
    with pytest.raises(ValueError, match="no images"):
        inception_score(p[:0])
