"""Feature extractors: from images to the features that metrics compare.

`InceptionFeatures` are those of ADM's evaluation. `EmojiFeatures` are those of a small network
that was trained on the embedded emoji alone (`tread_ssm.evaluation.emoji`). The Frechet distance
over them is called FD-emoji. It says how far samples are from these emoji and is no FID. Those of
pretrained transformers are in `vision`, those of the user's own functions in `function`.

Shape legend: B batch, C channels, H rows, W columns, F pooled features, G spatial features.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from tread_ssm.evaluation.emoji.network import WEIGHTS as EMOJI_WEIGHTS
from tread_ssm.evaluation.emoji.network import EmojiNet, network_input

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a batch of images; floats, on any device.

    Attributes:
        pooled: (B, F), for FID, precision, recall and KID.
        spatial: (B, G), a map flattened place by place, for sFID. None: there is none.
        probabilities: (B, classes), each row sums to 1, for the inception score. None: no classes.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None


class FeatureExtractor(Protocol):
    """Turns images into features; any callable object with a name serves.

    Attributes:
        name: Which features these are. Statistics of equally named extractors are compared.
    """

    name: str

    def __call__(self, images_BCHW: Tensor) -> Features:
        """The features of uint8 images (B, 3, H, W).

        uint8, because that is what gets written to disk and looked at: rounding belongs to the
        samples.
        """
        ...


class InceptionFeatures:
    """2048 pooled (pool_3), 2023 spatial features and 1008 class probabilities of any images.

    The network is TensorFlow's Inception of 2015, in torch-fidelity's port. Images are resized to
    299 x 299 as TensorFlow 1 did. The spatial features are the first 7 channels of the seventh
    mixed block (Mixed_6d, 17 x 17 places). The probabilities are the softmax over all 1008 logits
    without their bias: what the published inception scores take.
    """

    name = "inception"

    def __init__(self, device: torch.device | str = "cpu", weights: Path | None = None) -> None:
        """Load the network. Nothing is downloaded.

        Args:
            device: Where the features are computed.
            weights: torch-fidelity's file. None: WEIGHTS in torch.hub's folder of checkpoints,
                where torch-fidelity itself leaves it.

        Raises:
            ValueError: torch-fidelity or the file is missing, or the file is another one.
        """
        self.weights = weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        self._net = _inception(self.weights)
        self._net.to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> float32 features.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        check_images("InceptionFeatures", images_BCHW)
        maps: list[Tensor] = []
        hook = self._net.Mixed_6d.register_forward_hook(lambda _, __, out: maps.append(out))
        try:
            pooled, logits = self._net(images_BCHW.to(self._device))
        finally:
            hook.remove()
        return Features(pooled, flat_map(maps[0]), logits.softmax(dim=1))


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
        """Load the weights that come with the package."""
        with as_file(files("tread_ssm.evaluation.emoji").joinpath(EMOJI_WEIGHTS)) as path:
            state = {n: t.float() for n, t in load_file(str(path)).items()}
        self._net = EmojiNet(len(state["classify.bias"]), len(state["damage.bias"]))
        # Counters of batches are not shipped; they have no part in evaluation.
        self._net.load_state_dict(state, strict=False)
        self._net.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W), H = W <= 32 -> 64, 112 and 9 float32.

        Raises:
            ValueError: The images have another dtype or shape.
        """
        check_images("EmojiFeatures", images_BCHW)
        maps = self._net.body(network_input(images_BCHW.to(self._device)))
        pooled = self._net.pool(maps)
        return Features(pooled, flat_map(maps), self._net.classify(pooled).softmax(dim=1))


def flat_map(maps_BCHW: Tensor, channels: int = 7) -> Tensor:
    """The first channels of maps (B, C, H, W), flattened place by place: (B, H * W * channels).

    sFID's features (Nash et al., 2021); the order is that of TensorFlow's NHWC, as in ADM's
    reference files.
    """
    return rearrange(maps_BCHW[:, :channels], "b c h w -> b (h w c)")


def check_images(where: str, images_BCHW: Tensor) -> None:
    """Check that images are uint8 (B, 3, H, W).

    Raises:
        ValueError: They have another dtype or shape.
    """
    shape = tuple(images_BCHW.shape)
    if images_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"{where}: images are {images_BCHW.dtype} of shape {shape}; expected uint8 "
            f"(B, 3, H, W)."
        )


def _inception(path: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError(
            'The inception features need torch-fidelity: pip install "tread_ssm[metrics]".'
        ) from None
    if not path.is_file():
        raise ValueError(
            f"The weights of the inception features are not at {path}. Download {URL} (91 MB) and "
            f"put it there, or name the file as `weights` (in a configuration: "
            f"`eval.weights`). FID needs 2,049 images or more; for fewer, choose other features."
        )
    try:
        # torch-fidelity unpickles whatever it is given; this refuses code.
        torch.load(path, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} does not hold the weights of torch-fidelity's Inception ({reason}). Download "
            f"{URL}."
        ) from None
