"""Precision and recall against a double loop, torch-fidelity, and sets that are easy to judge."""

import pytest
import torch
from torch import Tensor

from tread_ssm.evaluation.precision_recall import precision_recall, radii


def features(n: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return scale * x + shift


def by_loops(x: Tensor, y: Tensor, k: int) -> tuple[float, float]:
    def reach(points: Tensor) -> list[float]:
        return [
            sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i)[k - 1]
            for i, p in enumerate(points)
        ]

    def share(points: Tensor, others: Tensor, balls: list[float]) -> float:
        inside = [
            any(float((p - q).norm()) <= r for q, r in zip(others, balls, strict=True))
            for p in points
        ]
        return sum(inside) / len(inside)

    x, y = x.double(), y.double()
    return share(x, y, reach(y)), share(y, x, reach(x))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [7, 4096])
def test_agrees_with_a_double_loop_whatever_the_blocks(k: int, block: int) -> None:
    x, y = features(45, 0, scale=0.7, shift=50.4), features(60, 1, shift=50.0)
    found = precision_recall(x, y, k=k, block=block)
    assert found == pytest.approx(by_loops(x, y, k))
    assert 0.1 < found[1] < found[0] <= 1


def test_agrees_with_torch_fidelity() -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = features(200, 0, scale=0.8, shift=0.3), features(150, 1)
    expected = theirs.calculate_precision_recall_full(x, y, 3)
    assert precision_recall(x, y, block=64) == pytest.approx(expected)


def test_sets_that_are_easy_to_judge() -> None:
    x = features(50, 0)
    assert precision_recall(x, x.clone()) == (1.0, 1.0)
    assert precision_recall(x, features(50, 1, shift=100.0)) == (0.0, 0.0)
    # Few different samples, all of them good: precise, and most of the reference is missing.
    collapsed = x[:2].repeat(20, 1)
    precision, recall = precision_recall(collapsed, x)
    assert precision == 1.0 and recall < 0.1


def test_a_point_is_not_its_own_neighbour_but_its_copy_is() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    assert radii(line, k=1).tolist() == [1, 1, 0, 0]
    assert radii(line, k=2, block=3).tolist() == [3, 2, 2, 2]


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples are 3 images.*at least 4"):
        precision_recall(features(3, 0), features(9, 1))
    with pytest.raises(ValueError, match="6 and 5 features"):
        precision_recall(features(9, 0), features(9, 1)[:, :5])
