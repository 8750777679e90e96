"""Features of images: what a Frechet distance is taken over.

`EmojiFeatures` is a small network trained on the embedded emoji alone
(`tread_ssm.evaluation.emoji.make_features`). The distance over its features is called FD-emoji; it
says how far samples are from these emoji and is no FID.

Shape legend: B batch, C channels, H rows, W columns, F pooled features, G spatial features.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tread_ssm.evaluation.frechet import FeatureMoments

WEIGHTS = "emoji_features.safetensors"


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a batch of images; floats, on any device.

    pooled:        (B, F), for FID, precision, recall and KID.
    spatial:       (B, G), a map flattened place by place, for sFID; None: there is none.
    probabilities: (B, classes), each row sums to 1, for the inception score; None: no classes.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None


class FeatureExtractor(Protocol):
    """Turns images into features; any callable object with a name serves.

    name: which features these are. Statistics of equally named extractors are compared.
    """

    name: str

    def __call__(self, images_BCHW: Tensor) -> Features:
        """The features of uint8 images (B, 3, H, W).

        uint8, because that is what gets written to disk and looked at: rounding belongs to the
        samples.
        """
        ...


def load_extractor(
    name: Literal["emoji", "inception"],
    device: torch.device | str = "cpu",
    weights: Path | None = None,
) -> FeatureExtractor:
    """The extractor of this name.

    weights: file for "inception"; None: where `InceptionFeatures` looks. "emoji" has its own.

    Raises ValueError where the name is unknown, or Inception's network or weights are missing.
    """
    if name == "inception":
        from tread_ssm.evaluation.inception import InceptionFeatures

        return InceptionFeatures(device, weights)
    if name != "emoji":
        raise ValueError(f"load_extractor: no features are called {name!r}; use emoji, inception.")
    if weights is not None:
        raise ValueError("load_extractor: the weights of the emoji features come with the package.")
    return EmojiFeatures(device)


def feature_moments(
    extractor: FeatureExtractor, images_BCHW: Tensor, batch: int = 256
) -> FeatureMoments:
    """The moments of the pooled features of uint8 images (n, 3, H, W), `batch` at a time."""
    parts = (FeatureMoments.of(extractor(part).pooled) for part in images_BCHW.split(batch))
    total = next(parts)
    for part in parts:
        total = total + part
    return total


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
            layers += [
                nn.Conv2d(a, b, 3, stride, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1], dimension)
        self.scale = nn.BatchNorm1d(dimension, affine=False)
        self.classify = nn.Linear(dimension, n_classes)
        self.damage = nn.Linear(dimension, n_damages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x (B, 3, 32, 32) float in [-1, 1] -> features (B, 64)."""
        return self.pool(self.body(x_BCHW))

    def pool(self, maps: Tensor) -> Tensor:
        """The body's maps (B, 128, 4, 4) -> features (B, 64)."""
        return self.scale(self.project(maps.mean(dim=(2, 3))))


class EmojiFeatures:
    """64 features of emoji-like images of 8, 16 or 32 pixels; smaller ones are enlarged to 32.

    As in Inception, the spatial features are seven channels of a late map (4 x 4 places), and a
    linear head gives the probabilities of the 9 classes.

    Take the features of real and of generated images at the *same* size, so that both go through
    the same enlarging.
    """

    name = "emoji"
    dimension = 64

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Loads the weights that come with the package."""
        with as_file(files("tread_ssm.data").joinpath(WEIGHTS)) as path:
            state = {n: t.float() for n, t in load_file(str(path)).items()}
        self._net = EmojiNet(len(state["classify.bias"]), len(state["damage.bias"]))
        # Counters of batches are not shipped; they have no part in evaluation.
        self._net.load_state_dict(state, strict=False)
        self._net.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W), H = W <= 32 -> 64, 112 and 9 float32. Raises ValueError."""
        maps = self._net.body(network_input(images_BCHW.to(self._device)))
        pooled = self._net.pool(maps)
        return Features(pooled, flat_map(maps), self._net.classify(pooled).softmax(dim=1))


def flat_map(maps_BCHW: Tensor, channels: int = 7) -> Tensor:
    """The first channels of maps (B, C, H, W), flattened place by place: (B, H * W * channels).

    sFID's features (Nash et al., 2021); the order is that of TensorFlow's NHWC, as in ADM's
    reference files.
    """
    return maps_BCHW[:, :channels].permute(0, 2, 3, 1).flatten(1)


def network_input(images_BCHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W), H = W <= 32 -> float32 (B, 3, 32, 32) in [-1, 1]. Raises ValueError."""
    shape = tuple(images_BCHW.shape)
    if images_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"EmojiFeatures: images are {images_BCHW.dtype} of shape {shape}; expected uint8 "
            f"(B, 3, H, W)."
        )
    if shape[2] != shape[3] or shape[2] > 32:
        raise ValueError(
            f"EmojiFeatures: images are {shape[2]} x {shape[3]}; expected squares of at most 32 "
            f"pixels a side."
        )
    x = images_BCHW.float().div(127.5).sub(1)
    if shape[2] != 32:
        x = F.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return x
