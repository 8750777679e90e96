"""The network behind the emoji features; `make_features` trains it.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "features.safetensors"
"""File of the trained weights, beside this one."""


class EmojiNet(nn.Module):
    """Four convolutions, 32 x 32 pixels -> 64 features, each of about unit variance on emoji.

    Two linear heads train the features and are not part of them: the class of an emoji, and
    whether and how an image was damaged. Classes alone would leave features that hardly notice
    noise and blur.
    """

    def __init__(self, n_classes: int, n_damages: int, dimension: int = 64) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1], dimension)
        self.scale = nn.BatchNorm1d(dimension, affine=False)
        self.classify = nn.Linear(dimension, n_classes)
        self.damage = nn.Linear(dimension, n_damages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x (B, 3, 32, 32) float in [-1, 1] -> features (B, 64)."""
        return self.pool(self.body(x_BCHW))

    def pool(self, maps_BCHW: Tensor) -> Tensor:
        """The body's maps (B, 128, 4, 4) -> features (B, 64)."""
        return self.scale(self.project(maps_BCHW.mean(dim=(2, 3))))


def network_input(images_BCHW: Tensor) -> Tensor:
    """uint8 images -> what the network takes; smaller images are enlarged.

    Args:
        images_BCHW: uint8 (B, 3, H, W), H = W <= 32.

    Returns:
        float32 (B, 3, 32, 32) in [-1, 1].

    Raises:
        ValueError: The images are no squares of at most 32 pixels.
    """
    height, width = images_BCHW.shape[-2:]
    if height != width or height > 32:
        raise ValueError(
            f"EmojiFeatures: images are {height} x {width}; expected squares of at most 32 pixels "
            f"a side."
        )
    x = images_BCHW.float().div(127.5).sub(1)
    if height != 32:
        x = F.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return x
