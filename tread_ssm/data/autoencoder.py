"""The autoencoder of latent diffusion: images to moments, latents to images.

Shape legend: B batch, C latent channels, H, W pixels, h, w latent places (H / factor).
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from tread_ssm.data.values import LatentValues


class Autoencoder:
    """A diffusers AutoencoderKL, in eval mode; made by `load`."""

    def __init__(self, network: Any, device: torch.device | str) -> None:
        """Wrap a network.

        Args:
            network: An AutoencoderKL, on `device` already.
            device: Where it computes.
        """
        self._network, self._device = network, torch.device(device)
        self._dtype = next(network.parameters()).dtype

    @classmethod
    def load(
        cls,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Autoencoder:
        """An autoencoder from the disk, or from the Hugging Face Hub or its cache.

        Args:
            name: A local folder, or an identifier such as stabilityai/sd-vae-ft-ema.
            device: Where it computes.
            dtype: Of its weights.

        Raises:
            ValueError: It cannot be had, or diffusers is missing.
        """
        if find_spec("diffusers") is None:
            raise ValueError(
                "Autoencoders are read by diffusers, which is not installed; "
                "`pip install tread_ssm[latents]`."
            )
        from diffusers import AutoencoderKL

        try:
            network = AutoencoderKL.from_pretrained(name, torch_dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"The autoencoder {name!r} is neither a folder that `save_pretrained` wrote nor a "
                f"model in the cache or on the network: {reason}"
            ) from None
        return cls(network.to(device).eval().requires_grad_(False), device)

    @property
    def factor(self) -> int:
        """Pixels to a latent place, along each side; 8 for Stable Diffusion's."""
        return int(2 ** (len(self._network.config.block_out_channels) - 1))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def channels(self) -> int:
        """Of its latents, C."""
        return int(self._network.config.latent_channels)

    def values(self, name: str) -> LatentValues:
        """How its configuration scales latents for a model, under the name that the manifest gets.

        Stable Diffusion's has scaling_factor 0.18215 alone. Later ones subtract a shift_factor,
        or means, and divide by deviations for each channel.
        """
        config = self._network.config
        mean = config.get("latents_mean")
        if mean is None and config.get("shift_factor"):
            mean = (config.shift_factor,) * self.channels
        return LatentValues(
            scale=float(config.scaling_factor),
            vae=name,
            mean=tuple(map(float, mean or ())),
            deviation=tuple(map(float, config.get("latents_std") or ())),
        )

    def digest(self) -> str:
        """SHA-256 over the weights, in hexadecimal."""
        return weights_digest(self._network)

    @torch.no_grad()
    def encode(self, images_BHWC: Tensor | np.ndarray) -> Tensor:
        """Moments of the posterior.

        Args:
            images_BHWC: uint8 (B, H, W, 3).

        Returns:
            (B, 2C, h, w) float32: means, then log-variances.

        Raises:
            ValueError: H or W is no multiple of `factor`.
        """
        images = torch.as_tensor(images_BHWC)
        height, width = images.shape[1:3]
        if images.dtype != torch.uint8 or height % self.factor or width % self.factor:
            raise ValueError(
                f"Autoencoder.encode: images are {images.dtype} of shape {tuple(images.shape)}; "
                f"expected uint8 (B, H, W, 3), H and W multiples of {self.factor}."
            )
        x = rearrange(images.to(self._device), "b h w c -> b c h w").to(self._dtype)
        posterior = self._network.encode(x / 127.5 - 1).latent_dist
        return posterior.parameters.float()

    @torch.no_grad()
    def decode(self, z_BChw: Tensor, pixels: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """Images of latents.

        Args:
            z_BChw: Latents, not scaled.
            pixels: What is black and what is white, if it was encoded in another range than -1..1.

        Returns:
            uint8 (B, H, W, 3).

        Raises:
            ValueError: The autoencoder's latents have another number of channels.
        """
        if z_BChw.shape[1] != self.channels:
            raise ValueError(
                f"Autoencoder.decode: the latents have {z_BChw.shape[1]} channels, the "
                f"autoencoder's have {self.channels}; name the one that they were made with."
            )
        z = z_BChw.to(self._device, self._dtype)
        x = self._network.decode(z).sample.float()
        black, white = pixels
        x = ((x - black) * (255 / (white - black))).clamp(0, 255).round()
        return rearrange(x.to(torch.uint8), "b c h w -> b h w c")


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over a network's weights, in hexadecimal."""
    whole = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        whole.update(name.encode())
        whole.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()
