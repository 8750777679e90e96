"""The features of ADM's evaluation: TensorFlow's Inception of 2015, in torch-fidelity's port.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tread_ssm.evaluation.features import Features, flat_map

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"


class InceptionFeatures:
    """2048 pooled (pool_3), 2023 spatial features and 1008 class probabilities of any images.

    Images are resized to 299 x 299 as TensorFlow 1 did. The spatial features are the first 7
    channels of the seventh mixed block (Mixed_6d, 17 x 17 places). The probabilities are the
    softmax over all 1008 logits without their bias: what the published inception scores take.
    """

    name = "inception"

    def __init__(self, device: torch.device | str = "cpu", weights: Path | None = None) -> None:
        """Load the network. Nothing is downloaded.

        weights: torch-fidelity's file; None: WEIGHTS in torch.hub's folder of checkpoints, where
                 torch-fidelity itself leaves it.

        Raises ValueError where torch-fidelity or the file is missing, or the file is another one.
        """
        self.weights = weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        self._net = _network(self.weights)
        self._net.to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> float32 features. Raises ValueError."""
        shape = tuple(images_BCHW.shape)
        if images_BCHW.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            raise ValueError(
                f"InceptionFeatures: images are {images_BCHW.dtype} of shape {shape}; expected "
                f"uint8 (B, 3, H, W)."
            )
        maps: list[Tensor] = []
        hook = self._net.Mixed_6d.register_forward_hook(lambda _, __, out: maps.append(out))
        try:
            pooled, logits = self._net(images_BCHW.to(self._device))
        finally:
            hook.remove()
        return Features(pooled, flat_map(maps[0]), logits.softmax(dim=1))


def _network(path: Path) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError(
            'The inception features need torch-fidelity: pip install "tread_ssm[metrics]".'
        ) from None
    if not path.is_file():
        raise ValueError(
            f"The weights of the inception features are not at {path}; fetch {URL} (91 MB), and "
            f"put it there or name its place (--weights; eval.weights while training)."
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
            f"{path} does not hold the weights of torch-fidelity's Inception ({reason}); fetch "
            f"{URL}."
        ) from None
