"""Tiny random models of other libraries, one for each row of the table of presets."""

import torch
from torch import nn

from tests.routing.attach.cases.case import BATCH, Case, lively
from tests.routing.attach.cases.images import IMAGES
from tests.routing.attach.cases.others import OTHERS
from tests.routing.attach.cases.videos import VIDEOS

CASES = IMAGES | VIDEOS | OTHERS


def built(name: str) -> nn.Module:
    """The model of a case, in which every part matters."""
    torch.manual_seed(0)
    return lively(CASES[name].build(), all_small=name.startswith("timm"))


__all__ = ["BATCH", "CASES", "Case", "built", "lively"]
