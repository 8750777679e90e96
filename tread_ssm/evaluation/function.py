"""Features that a function of the user's computes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tread_ssm.evaluation.extractors import Features, check_images


class FunctionFeatures:
    """What `module:function` makes of uint8 images (B, 3, H, W): a tensor (B, F), or `Features`."""

    def __init__(self, name: str) -> None:
        """Import the function; its module may lie in the folder that the command runs in.

        Args:
            name: "module:function"; both parts may have dots.

        Raises:
            ValueError: There is no such module or function.
        """
        self.name = name
        self._function = _imported(name)

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> Features:
        """uint8 (B, 3, H, W) -> its features.

        Raises:
            ValueError: The images, or what the function gives, have another dtype or shape.
        """
        check_images(self.name, images_BCHW)
        found = self._function(images_BCHW)
        features = Features(found) if isinstance(found, Tensor) else found
        if not isinstance(features, Features):
            raise ValueError(
                f"{self.name} gives a {type(found).__name__}; expected a tensor (B, F), or "
                f"tread_ssm.evaluation.Features."
            )
        pooled = features.pooled
        if pooled.ndim != 2 or len(pooled) != len(images_BCHW) or not pooled.is_floating_point():
            raise ValueError(
                f"{self.name} gives {pooled.dtype} of shape {tuple(pooled.shape)} for "
                f"{len(images_BCHW)} images; expected floats ({len(images_BCHW)}, F)."
            )
        return features


def _imported(name: str) -> Callable[[Tensor], object]:
    module, _, path = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)  # console commands do not look there by themselves
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The features {name!r} cannot be imported ({error}); write module:function, of an "
            f"installed package or of a file in {here}."
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"The features {name!r} are a {type(found).__name__}, no function.")
    return found
