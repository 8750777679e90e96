"""Features of images from a pretrained vision transformer: of its patches, and of whole images.

Shape legend: B batch, E channels of a feature, H, W pixels, h, w patches.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tread_ssm.data.autoencoder import weights_digest
from tread_ssm.data.values import LatentValues

Library = Literal["timm", "transformers"]
Tokens = tuple[Tensor, Tensor]
"""Of the whole images (B, E), and of their patches (B, h * w, E)."""

_DESCRIPTION = "preprocessor_config.json"  # of transformers
# What most of ImageNet's networks, DINO and DINOv2 among them, were trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PatchFeatures:
    """A vision transformer that encodes as an `Autoencoder` does; made by `load`."""

    def __init__(
        self,
        network: nn.Module,
        tokens: Callable[[Tensor], Tokens],
        factor: int,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] = (_MEAN, _STD),
    ) -> None:
        """Wrap a network.

        Args:
            network: In eval mode, on its device.
            tokens: From normalised images (B, 3, H, W) to what the network says of them.
            factor: Pixels along a patch's side.
            normalisation: Mean and deviation of the colours 0..1, for each channel.
        """
        self._network, self._tokens, self.factor = network, tokens, factor
        self.device = next(network.parameters()).device
        mean, std = (torch.tensor(c, device=self.device)[:, None, None] for c in normalisation)
        self._mean, self._std = mean, std

    @classmethod
    def load(
        cls,
        name: str,
        library: Library,
        size: int,
        device: torch.device | str = "cpu",
        weights: Path | None = None,
    ) -> PatchFeatures:
        """A network from the disk, or from the Hugging Face Hub or its cache.

        Args:
            name: A model of timm such as vit_base_patch14_dinov2.lvd142m; with "transformers", a
                folder or an identifier such as facebook/dinov2-base.
            library: Which reads it.
            size: Pixels along a side of the images.
            device: Where it computes.
            weights: File of weights for a model of timm. None: from the Hub.

        Raises:
            ValueError: It cannot be had, or has no patches.
        """
        if find_spec(library) is None:
            raise ValueError(f"{library} is not installed; `pip install {library}`.")
        if library == "transformers" and weights is not None:
            raise ValueError("weights belongs to timm; with transformers, name their folder.")
        make = _from_timm if library == "timm" else _from_transformers
        try:
            return make(name, size, torch.device(device), weights)
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"The vision transformer {name!r} cannot be had from {library}: {reason}"
            ) from None

    def values(self, name: str) -> LatentValues:
        """What a manifest says of the numbers."""
        return LatentValues(scale=1.0, vae=name)

    def digest(self) -> str:
        """SHA-256 over the weights, in hexadecimal."""
        return weights_digest(self._network)

    @torch.no_grad()
    def encode(self, images_BHWC: Tensor | np.ndarray) -> Tensor:
        """Features of unit length: alignment compares directions only.

        Args:
            images_BHWC: uint8 (B, H, W, 3), H and W multiples of `factor`.

        Returns:
            (B, E, h, w) float32.
        """
        images = torch.as_tensor(images_BHWC).to(self.device)
        height, width = (n // self.factor for n in images.shape[1:3])
        x = rearrange(images, "b h w c -> b c h w").to(torch.float32) / 255
        tokens = F.normalize(self._tokens(self._normalised(x))[1].float(), dim=2)
        return rearrange(tokens, "b (h w) e -> b e h w", h=height, w=width)

    @torch.no_grad()
    def pooled(self, images_BCHW: Tensor) -> Tensor:
        """A vector for each image: the class token, or what the network pools to.

        Args:
            images_BCHW: float32 (B, 3, H, W) in 0..1, on any device, of the size of `load`.

        Returns:
            (B, E) float32.
        """
        return self._tokens(self._normalised(images_BCHW.to(self.device)))[0].float()

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self._mean) / self._std


def _from_timm(name: str, size: int, device: torch.device, weights: Path | None) -> PatchFeatures:
    import timm

    overlay = None if weights is None else {"file": str(weights)}
    network: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=size
    )
    network = network.to(device).eval().requires_grad_(False)
    config = timm.data.resolve_model_data_config(network)

    def tokens(x: Tensor) -> Tokens:
        found = network.forward_features(x)
        return network.forward_head(found, pre_logits=True), found[:, network.num_prefix_tokens :]

    return PatchFeatures(
        network, tokens, network.patch_embed.patch_size[0], (config["mean"], config["std"])
    )


def _from_transformers(
    name: str, size: int, device: torch.device, weights: Path | None
) -> PatchFeatures:
    from transformers import AutoModel

    network: Any = AutoModel.from_pretrained(name).to(device).eval().requires_grad_(False)
    factor = int(network.config.patch_size)
    patches = (size // factor) ** 2

    def tokens(x: Tensor) -> Tokens:
        # Class and register tokens stand in front.
        found = network(pixel_values=x).last_hidden_state
        whole = found[:, 0] if found.shape[1] > patches else found.mean(dim=1)
        return whole, found[:, -patches:]

    return PatchFeatures(network, tokens, factor, _normalisation(name))


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of colours that a model of transformers was trained with.

    ImageNet's for a folder that does not say. Raises OSError.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    if Path(name).is_dir() and not (Path(name) / _DESCRIPTION).is_file():
        return _MEAN, _STD
    held, _ = ImageProcessingMixin.get_image_processor_dict(name)
    return tuple(held.get("image_mean", _MEAN)), tuple(held.get("image_std", _STD))
