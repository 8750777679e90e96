"""Contrastive flow matching (Stoica et al., arXiv 2506.05350).

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tread_ssm.diffusion.auxiliary import Seen
from tread_ssm.diffusion.objective import wide


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Away from the velocity of another sample: minus its squared error, beside the objective's.

    The total is |v - u|^2 - weight * |v - u'|^2, where u' is the velocity noise - x0 of the other
    sample of a pair of neighbours in the batch (their noise differs, too). It is smallest for
    v = (u - weight * E[u']) / (1 - weight), not for the velocity of the data: a flow trained with
    it does not sample the data's distribution, it overshoots away from the average image. That
    resembles guidance which cannot be switched off.

    Attributes:
        kind: Always "contrastive".
        weight: Of the loss, below 1; 0.05 is the paper's.
    """

    kind: Literal["contrastive"] = "contrastive"
    weight: float = 0.05

    block: ClassVar[None] = None
    together: ClassVar[int] = 2
    whole_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ValueError(
                f"contrastive: weight is {self.weight}; it must satisfy 0 < weight < 1, or else "
                f"the loss has no minimum."
            )

    def head(self, dim: int, values: int, grid: tuple[int, int]) -> None:
        """None: the prediction itself is compared."""

    def loss(self, seen: Seen) -> Tensor:
        """Minus the mean squared error against the neighbours' velocities."""
        assert seen.velocity is not None
        target = wide(seen.noise - seen.x)
        other = target.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return -(seen.velocity - other).square().mean()
