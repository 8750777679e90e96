"""EDM: preconditioned denoising at log-normal noise (Karras et al., arXiv 2206.00364).

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tread_ssm.diffusion.objective import (
    Denoiser,
    LossTerms,
    Network,
    check_batch,
    check_positive,
    check_steps,
    full_t,
    per_sample,
    predict,
    wide,
)
from tread_ssm.routing.plan import Draw


@dataclass(frozen=True, kw_only=True)
class EDM:
    """x = x0 + t * noise; t is the noise's standard deviation sigma.

    The network gets c_in * x and ln(sigma) / 4, and its output is scaled and added to c_skip * x
    (table 1, column "ours").

    Attributes:
        kind: Always "edm".
        p_mean: Mean of ln(sigma) in training.
        p_std: Standard deviation of ln(sigma) in training.
        sigma_data: Standard deviation of the data.
        sigma_min: Smallest sigma of the sampling schedule (equation 5), before the last step to 0.
        sigma_max: Largest sigma of the sampling schedule, where sampling starts.
        rho: Exponent of the sampling schedule; larger values put more steps at small sigma.
    """

    kind: Literal["edm"] = "edm"
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    straight: ClassVar[bool] = True
    t_max: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        for name in ("p_std", "sigma_data", "sigma_min", "sigma_max", "rho"):
            check_positive(f"EDM: {name}", getattr(self, name))
        if not math.isfinite(self.p_mean):
            raise ValueError(f"EDM: p_mean is {self.p_mean}; it must be finite.")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"EDM: sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; sigma_min "
                f"must be the smaller one."
            )

    def start_std(self, t: float) -> float:
        """t: sampling starts from pure noise (algorithm 1)."""
        return t

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at t: 1."""
        return torch.ones_like(wide(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at t: t."""
        return wide(t)

    def timesteps(self, steps: int) -> Tensor:
        """(steps + 1,) float64, timesteps from sigma_max to sigma_min (equation 5), then 0."""
        check_steps(steps)
        high, low = (s ** (1 / self.rho) for s in (self.sigma_max, self.sigma_min))
        ramp = torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho
        return torch.cat([ramp, ramp.new_zeros(1)])

    def sample_t(self, batch: int, generator: torch.Generator) -> Tensor:
        """Timesteps to train at.

        Args:
            batch: How many.
            generator: On the CPU.

        Returns:
            (batch,) float32, each a sigma.
        """
        return (self.p_mean + self.p_std * torch.randn(batch, generator=generator)).exp()

    def loss_terms(
        self,
        model: Network,
        x: Tensor,
        labels: Tensor,
        t: Tensor,
        noise: Tensor,
        routing: Draw = (),
    ) -> LossTerms:
        """The loss of each element; the reconstruction is the denoised image.

        Args:
            model: The network.
            x: (B, C, H, W), clean samples.
            labels: (B,) int64.
            t: (B,), timesteps.
            noise: (B, C, H, W), standard normal.
            routing: Which tokens each route keeps.

        Raises:
            ValueError: Shapes do not fit together.
        """
        check_batch(x, t, noise)
        sigma = per_sample(t)
        noisy = x + sigma * noise
        denoised = self._denoise(model, noisy, t, labels, routing)
        weight = 1 / sigma**2 + 1 / self.sigma_data**2  # = 1 / c_out^2
        return LossTerms(weight * (denoised - x) ** 2, denoised, noisy)

    def denoiser(self, model: Network) -> Denoiser:
        """The preconditioned network D(x; sigma), equation 7."""

        def denoise(
            x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
        ) -> Tensor:
            return self._denoise(model, x, full_t(t, x), labels, routing)

        return denoise

    def _denoise(
        self, model: Network, x: Tensor, t: Tensor, labels: Tensor, routing: Draw
    ) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.coefficients(t)
        output = predict(model, per_sample(c_in) * x, c_noise, labels, routing)
        return per_sample(c_skip) * x + per_sample(c_out) * output

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise of table 1; each the shape of `t`."""
        sigma = wide(t)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        return c_skip, c_out, variance.rsqrt(), sigma.log() / 4
