"""Features of a pretrained vision transformer, such as DINOv2, for Fréchet distances and the rest.

Shape legend: B batch, H rows, W columns, F features.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.data.vision import Library, PatchFeatures
from tread_ssm.evaluation.extractors import Features, check_images

SIZE = 224


class VisionFeatures:
    """The class token of a transformer of timm or transformers, of any images.

    Images are resized to 224 x 224 bicubically, as Stein et al. (2023, arXiv 2306.04675) do it for
    their Fréchet distance over DINOv2. There is no spatial part, and there are no classes.
    """

    def __init__(
        self,
        model: str,
        library: Library,
        device: torch.device | str = "cpu",
        weights: Path | None = None,
    ) -> None:
        """Load the network, from the disk or from the Hugging Face Hub.

        Args:
            model: A model of timm; with "transformers", a folder or an identifier.
            library: Which reads it.
            device: Where the features are computed.
            weights: File of weights for a model of timm. None: from the Hub.

        Raises:
            ValueError: It cannot be had.
        """
        self._net = PatchFeatures.load(model, library, SIZE, device, weights)
        self.weights = weights
        self.name = f"{library}:{model}"
        if weights is not None:  # statistics of other weights are not compared with these
            self.name += f" {self._net.digest()[:8]}"

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> (B, F) float32.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        check_images("VisionFeatures", images_BCHW)
        x = images_BCHW.to(self._net.device, torch.float32) / 255
        if x.shape[2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        return Features(self._net.pooled(x))
