"""What every objective shares: how a network is called, and what training and sampling get.

An objective is a path x_t = alpha(t) * x0 + sigma(t) * noise from data to noise, a
distribution of timesteps to train at, and what the network predicts. There are three: `EDM`, `Flow`
and `NoisePrediction`. t = 0 is clean data in all of them.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tread_ssm.routing.plan import Draw


class Network(Protocol):
    """A backbone: x_BCHW, t_B, labels_B -> (B, C, H, W)."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor: ...


class Denoiser(Protocol):
    """Estimates clean data from x_BCHW at t, at least float32; guidance wraps it."""

    def __call__(self, x: Tensor, t: float, labels: Tensor, routing: Draw = ()) -> Tensor: ...


class NoiseSchedule(Protocol):
    """The part of an objective that a sampler needs.

    Attributes:
        straight: Whether dx/dt = (x - x0) / t along the path, as `heun` needs it.
    """

    straight: ClassVar[bool]

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data; the shape of `t`, at least float32."""

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the unit Gaussian noise; the shape of `t`, at least float32."""


@dataclass(frozen=True)
class LossTerms:
    """What an objective hands to `route_loss`; all (B, C, H, W), at least float32.

    Attributes:
        loss_map: Weighted squared error of each element.
        reconstruction: The network's account of the image, for TREAD v1's term on routed patches.
        noisy: x at t, before any preconditioning.
    """

    loss_map: Tensor
    reconstruction: Tensor
    noisy: Tensor


def wide(x: Tensor) -> Tensor:
    """x in at least float32: losses and coefficients are never computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_sample(value: Tensor) -> Tensor:
    """value_B -> (B, 1, 1, 1), at least float32."""
    return wide(value)[:, None, None, None]


def predict(model: Network, x: Tensor, t: Tensor, labels: Tensor, routing: Draw) -> Tensor:
    """The network's output for x_BCHW in at least float32. Raises ValueError on its shape."""
    output = model(x, t, labels, routing=routing)
    if output.shape != x.shape:
        raise ValueError(
            f"The network returned {tuple(output.shape)} for an input {tuple(x.shape)}; an "
            f"objective needs one number per input element, so build it with {x.shape[1]} output "
            f"channels."
        )
    return wide(output)


def full_t(t: float, x: Tensor) -> Tensor:
    """(B,) of t for the samples of x, on its device, at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)


def check_batch(x: Tensor, t: Tensor, noise: Tensor) -> None:
    """Raises ValueError where x_BCHW, t_B and noise_BCHW do not fit together."""
    if x.dim() != 4 or noise.shape != x.shape or t.shape != x.shape[:1]:
        raise ValueError(
            f"loss_terms: x is {tuple(x.shape)}, noise {tuple(noise.shape)}, t "
            f"{tuple(t.shape)}; expected (B, C, H, W), the same again, and (B,)."
        )


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless value is a finite number greater than 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and greater than 0.")


def check_steps(steps: int) -> None:
    """Raises ValueError unless there is at least one sampling step."""
    if steps < 1:
        raise ValueError(f"timesteps: steps is {steps}; sampling takes at least 1.")
