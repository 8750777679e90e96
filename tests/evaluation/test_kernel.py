"""The kernel distance against its definition, torchmetrics, and its promises."""

import pytest
import torch
from torch import Tensor

from tread_ssm.evaluation.kernel import kernel_distance


def features(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    n = len(x)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    return (xx + yy) / (n * (n - 1)) - 2 * xy / n**2


def test_is_its_definition_on_whole_sets() -> None:
    x, y = features(30, 0), features(30, 1, shift=0.4)
    assert kernel_distance(x, y, subsets=2) == pytest.approx(by_loops(x, y), rel=1e-4)


@pytest.mark.parametrize(("subsets", "size", "tolerance"), [(1, 300, 1e-4), (200, 60, 0.05)])
def test_agrees_with_torchmetrics(subsets: int, size: int, tolerance: float) -> None:
    """The same number on whole sets; the same mean over many subsets, drawn independently."""
    metric = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(300, 0), features(300, 1, shift=0.4)

    class Injected(torch.nn.Module):
        num_features = 16

        def forward(self, images: Tensor) -> Tensor:
            return x if int(images[0, 0, 0, 0]) == 0 else y

    torch.manual_seed(0)
    theirs = metric.KernelInceptionDistance(feature=Injected(), subsets=subsets, subset_size=size)
    theirs.update(torch.zeros(300, 3, 2, 2, dtype=torch.uint8), real=False)
    theirs.update(torch.ones(300, 3, 2, 2, dtype=torch.uint8), real=True)
    ours = kernel_distance(x, y, subsets=subsets, size=size)
    assert ours == pytest.approx(float(theirs.compute()[0]), rel=tolerance)
    assert ours > 0.1


def test_is_unbiased_and_repeats_itself() -> None:
    near = [kernel_distance(features(40, 2 * i), features(40, 2 * i + 1)) for i in range(40)]
    mean = sum(near) / len(near)
    spread = torch.tensor(near).std() / len(near) ** 0.5
    assert abs(mean) < 3.5 * spread and min(near) < 0
    x, y = features(90, 0), features(120, 1)
    assert kernel_distance(x, y, size=50) == kernel_distance(x, y, size=50)


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="1 samples, 5 reference images"):
        kernel_distance(features(1, 0), features(5, 1))
    with pytest.raises(ValueError, match="16 and 8 features"):
        kernel_distance(features(5, 0), features(5, 1)[:, :8])
