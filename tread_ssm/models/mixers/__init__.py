"""Mixers: what moves information between tokens. One file each, its config beside it."""

from typing import TypeAlias

from tread_ssm.models.mixers.mamba1 import Mamba1, Mamba1Config
from tread_ssm.models.mixers.mixer import Mixer

MixerConfig: TypeAlias = Mamba1Config

__all__ = ["Mamba1", "Mamba1Config", "Mixer", "MixerConfig"]
