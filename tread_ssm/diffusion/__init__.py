"""Diffusion: objectives, the loss of a routed step, samplers and guidance."""

from typing import TypeAlias

from tread_ssm.diffusion.alignment import SRA2, Dispersive, Repa
from tread_ssm.diffusion.contrastive import Contrastive
from tread_ssm.diffusion.edm import EDM
from tread_ssm.diffusion.flow import Flow
from tread_ssm.diffusion.guidance import (
    Extrapolation,
    classifier_free,
    guide,
    path_guidance,
    route_guidance,
)
from tread_ssm.diffusion.noise_prediction import NoisePrediction
from tread_ssm.diffusion.objective import Denoiser, LossTerms, Network, NoiseSchedule
from tread_ssm.diffusion.route_loss import AllTokens, PerRoute, RouteLosses, patchify, route_loss
from tread_ssm.diffusion.sampler import (
    SAMPLERS,
    check_sampler,
    dpm_solver_pp,
    dpm_solver_singlestep,
    edm_churn,
    euler,
    euler_maruyama,
    heun,
    sample,
)

Objective: TypeAlias = EDM | Flow | NoisePrediction
Auxiliary: TypeAlias = SRA2 | Dispersive | Repa | Contrastive

__all__ = [
    "EDM",
    "SAMPLERS",
    "SRA2",
    "AllTokens",
    "Auxiliary",
    "Contrastive",
    "Denoiser",
    "Dispersive",
    "Extrapolation",
    "Flow",
    "LossTerms",
    "Network",
    "NoisePrediction",
    "NoiseSchedule",
    "Objective",
    "PerRoute",
    "Repa",
    "RouteLosses",
    "check_sampler",
    "classifier_free",
    "dpm_solver_pp",
    "dpm_solver_singlestep",
    "edm_churn",
    "euler",
    "euler_maruyama",
    "guide",
    "heun",
    "patchify",
    "path_guidance",
    "route_guidance",
    "route_loss",
    "sample",
]
