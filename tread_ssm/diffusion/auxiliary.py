"""Losses beside the objective's: what they may look at, and what each of them promises.

Shape legend: B batch, C channels, H rows, W columns, P side of a patch, N tokens of the grid, K
those that a route keeps, D channels of a token, E of a cached feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from tread_ssm.tokens import TokenSubset


@dataclass(frozen=True)
class Seen:
    """What an auxiliary loss looks at: one batch, and what the network made of it.

    Attributes:
        x: (B, C, H, W) float32, clean samples.
        noise: (B, C, H, W) float32.
        velocity: (B, C, H, W), the network's account of noise - x; None where the objective has
            none.
        features: (B, K, D), the image tokens behind the loss's block, through its head where it
            has one. None where it has no block.
        kept: Which tokens these are. None: all of them.
        patch: P.
        cached: (B, N, E), features of the images from another network; None: there are none.
    """

    x: Tensor
    noise: Tensor
    velocity: Tensor | None
    features: Tensor | None
    kept: TokenSubset | None
    patch: int
    cached: Tensor | None = None


class AuxiliaryLoss(Protocol):
    """A loss that is added to the objective's.

    Attributes:
        kind: Its name. The log calls its value `kind`_loss.
        weight: What its value is multiplied by.
    """

    @property
    def kind(self) -> str: ...
    @property
    def weight(self) -> float: ...

    @property
    def block(self) -> int | None:
        """The block whose output it looks at, negative from the end; None: none."""

    @property
    def together(self) -> int:
        """How many neighbours in a batch it compares. A batch is cut at multiples of it only."""

    @property
    def whole_grid(self) -> bool:
        """Whether its head can do nothing with a part of the tokens."""

    def head(self, dim: int, values: int, grid: tuple[int, int]) -> nn.Module | None:
        """What is learned beside the network and applied to the block's tokens (B, K, D).

        Args:
            dim: D.
            values: Numbers in a patch of the image, P * P * C.
            grid: (rows, columns) of the tokens.
        """

    def loss(self, seen: Seen) -> Tensor:
        """(), at least float32, before its weight. Not asked for where the block is skipped."""


def check_weight(kind: str, weight: float) -> None:
    """Check a loss's weight.

    Args:
        kind: The loss's name, for the message.
        weight: What its value is multiplied by.

    Raises:
        ValueError: It is not finite and greater than 0.
    """
    if not 0 < weight < math.inf:
        raise ValueError(f"{kind}: weight is {weight}; it must be finite and greater than 0.")


def kept_values(seen: Seen, values: Tensor) -> Tensor:
    """Values of all tokens at the places of `seen.features`.

    Args:
        seen: What the loss looks at.
        values: (B, N, ...).

    Returns:
        (B, K, ...); all of them where no route skips the loss's block.
    """
    return values if seen.kept is None else seen.kept.take(values)
