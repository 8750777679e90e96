"""From a config to its model."""

from __future__ import annotations

from typing import TypeAlias

from tread_ssm.models.dim import DiM, DiMConfig
from tread_ssm.models.dit import DiT, DiTConfig
from tread_ssm.models.zigmamba import ZigMamba, ZigMambaConfig

ModelConfig: TypeAlias = DiMConfig | ZigMambaConfig | DiTConfig
Model: TypeAlias = DiM | ZigMamba | DiT


def build_model(config: ModelConfig) -> Model:
    """The freshly initialised model, on the current default device."""
    if isinstance(config, DiMConfig):
        return DiM(config)
    if isinstance(config, ZigMambaConfig):
        return ZigMamba(config)
    return DiT(config)
