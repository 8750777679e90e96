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
from torch import Tensor, nn

from tread_ssm.routing.plan import Draw


class Network(Protocol):
    """A backbone, as objectives call it."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
        """The prediction.

        Args:
            x: (B, C, H, W).
            t: (B,), in the network's own units.
            labels: (B,) int64.
            routing: Which tokens each route keeps.

        Returns:
            (B, C, H, W).
        """


class Denoiser(Protocol):
    """Estimates clean data; guidance wraps it."""

    def __call__(
        self,
        x: Tensor,
        t: float,
        labels: Tensor,
        routing: Draw = (),
        *,
        step_t: float | None = None,
    ) -> Tensor:
        """The estimate of x0.

        Args:
            x: (B, C, H, W), at t.
            t: Of the whole batch.
            labels: (B,) int64.
            routing: Which tokens each route keeps.
            step_t: The t at which the sampler's step began, where that is another one: a method
                that looks twice in a step guides both times or not at all.

        Returns:
            (B, C, H, W), at least float32.
        """


class NoiseSchedule(Protocol):
    """The part of an objective that a sampler needs.

    Attributes:
        straight: Whether dx/dt = (x - x0) / t along the path, as `heun` needs it.
        t_max: The largest t that it is defined for; infinite for EDM.
    """

    straight: ClassVar[bool]

    @property
    def t_max(self) -> float: ...

    def start_std(self, t: float) -> float:
        """Standard deviation of the noise that sampling starts from at t."""

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
        velocity: The network's account of noise - x0. None where an objective has no such thing.
    """

    loss_map: Tensor
    reconstruction: Tensor
    noisy: Tensor
    velocity: Tensor | None = None


def wide(x: Tensor) -> Tensor:
    """x in at least float32: losses and coefficients are never computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_sample(value: Tensor) -> Tensor:
    """value_B -> (B, 1, 1, 1), at least float32."""
    return wide(value)[:, None, None, None]


def predict(
    model: Network,
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    routing: Draw,
    *,
    learned_variance: bool = False,
) -> Tensor:
    """The network's output for x_BCHW in at least float32. Raises ValueError on its shape.

    A sampler may count in float64; the network then gets the dtype of its weights.

    Args:
        learned_variance: Whether the network may have twice the channels. The upper half, a
            learned variance, is left out.
        model, x, t, labels, routing: As the network is called.
    """
    seen, seen_t = x, t
    if x.dtype == torch.float64 and isinstance(model, nn.Module):
        dtype = next((p.dtype for p in model.parameters()), x.dtype)
        seen, seen_t = x.to(dtype), t.to(dtype)
    output = model(seen, seen_t, labels, routing=routing)
    if learned_variance and output.shape[1:2] == (2 * x.shape[1],):
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        raise ValueError(
            f"The network returned {tuple(output.shape)} for an input {tuple(x.shape)}; an "
            f"objective needs one number per input element, so build it with {x.shape[1]} output "
            f"channels."
        )
    return wide(output)


def full_t(t: float, x: Tensor) -> Tensor:
    """The timesteps of a batch.

    Args:
        t: Of all samples.
        x: (B, ...), the samples.

    Returns:
        (B,) on the device of x, in its dtype and at least float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)


def check_batch(x: Tensor, t: Tensor, noise: Tensor) -> None:
    """Check that what a loss is computed from fits together.

    Args:
        x: (B, C, H, W), clean samples.
        t: (B,).
        noise: (B, C, H, W).

    Raises:
        ValueError: Their shapes do not.
    """
    if x.dim() != 4 or noise.shape != x.shape or t.shape != x.shape[:1]:
        raise ValueError(
            f"loss_terms: x is {tuple(x.shape)}, noise {tuple(noise.shape)}, t "
            f"{tuple(t.shape)}; expected (B, C, H, W), the same again, and (B,)."
        )


def check_positive(name: str, value: float) -> None:
    """Check that a value is finite and greater than 0.

    Args:
        name: What the message calls it.
        value: Of any unit.

    Raises:
        ValueError: It is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and greater than 0.")


def check_steps(steps: int) -> None:
    """Check that there is at least one sampling step.

    Raises:
        ValueError: There is none.
    """
    if steps < 1:
        raise ValueError(f"timesteps: steps is {steps}; sampling takes at least 1.")
