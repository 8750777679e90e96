"""Backbones: embed -> run_blocks -> head."""

from tread_ssm.models.build import ModelConfig, build_model
from tread_ssm.models.dim import DiM, DiMConfig
from tread_ssm.models.dit import DiT, DiTConfig
from tread_ssm.models.sizes import SIZES, sized
from tread_ssm.models.zigmamba import ZigMamba, ZigMambaConfig

__all__ = [
    "SIZES",
    "DiM",
    "DiMConfig",
    "DiT",
    "DiTConfig",
    "ModelConfig",
    "ZigMamba",
    "ZigMambaConfig",
    "build_model",
    "sized",
]
