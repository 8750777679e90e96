"""Backbones: embed -> run_blocks -> head. One file each, its config beside it."""

from typing import TypeAlias

from tread_ssm.models.backbone import Backbone, BackboneConfig
from tread_ssm.models.dim import DiM, DiMConfig
from tread_ssm.models.dit import DiT, DiTConfig
from tread_ssm.models.mixers import (
    AttentionConfig,
    Mamba1Config,
    Mamba2Config,
    Mamba3Config,
    MixerConfig,
)
from tread_ssm.models.zigmamba import ZigMamba, ZigMambaConfig

ModelConfig: TypeAlias = DiMConfig | ZigMambaConfig | DiTConfig

__all__ = [
    "AttentionConfig",
    "Backbone",
    "BackboneConfig",
    "DiM",
    "DiMConfig",
    "DiT",
    "DiTConfig",
    "Mamba1Config",
    "Mamba2Config",
    "Mamba3Config",
    "MixerConfig",
    "ModelConfig",
    "ZigMamba",
    "ZigMambaConfig",
]
