"""Mixers: what moves information between tokens. One file each, its config beside it."""

from typing import TypeAlias

from tread_ssm.models.mixers.attention import Attention, AttentionConfig
from tread_ssm.models.mixers.mamba1 import Mamba1, Mamba1Config
from tread_ssm.models.mixers.mamba2 import Mamba2, Mamba2Config
from tread_ssm.models.mixers.mamba3 import Mamba3, Mamba3Config
from tread_ssm.models.mixers.mixer import Mixer, SharedMixer

MixerConfig: TypeAlias = Mamba1Config | Mamba2Config | Mamba3Config | AttentionConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "Mamba1",
    "Mamba1Config",
    "Mamba2",
    "Mamba2Config",
    "Mamba3",
    "Mamba3Config",
    "Mixer",
    "MixerConfig",
    "SharedMixer",
]
