"""Feature extractors by name."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from tread_ssm.data.vision import Library
from tread_ssm.evaluation.extractors import EmojiFeatures, FeatureExtractor, InceptionFeatures
from tread_ssm.evaluation.function import FunctionFeatures
from tread_ssm.evaluation.metrics import check_extractor
from tread_ssm.evaluation.vision import VisionFeatures


def load_extractor(
    name: str, device: torch.device | str = "cpu", weights: Path | None = None
) -> FeatureExtractor:
    """The extractor of this name.

    Args:
        name: "inception"; "emoji"; "timm:MODEL" or "transformers:MODEL", as in
            "timm:vit_large_patch14_dinov2.lvd142m"; or "module:function".
        device: Where the features are computed. A function decides by itself.
        weights: File for "inception" (None: where `InceptionFeatures` looks) or for a model of
            timm (None: from the Hugging Face Hub). The others have none.

    Raises:
        ValueError: The name is unknown, or a network or its weights cannot be had.
    """
    check_extractor(name)
    if name == "inception":
        return InceptionFeatures(device, weights)
    source, _, model = name.partition(":")
    if source in ("timm", "transformers"):
        return VisionFeatures(model, cast(Library, source), device, weights)
    if weights is not None:
        raise ValueError(f"load_extractor: the features {name!r} take no file of weights.")
    if name == "emoji":
        return EmojiFeatures(device)
    return FunctionFeatures(name)
