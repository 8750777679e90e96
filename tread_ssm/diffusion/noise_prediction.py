"""Noise prediction over discrete steps (Ho et al., arXiv 2006.11239), as DiM trains.

Shape legend: B batch, C channels, H rows, W columns, T steps of the noising chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tread_ssm.diffusion.objective import (
    Denoiser,
    LossTerms,
    Network,
    check_batch,
    check_steps,
    full_t,
    per_sample,
    predict,
    wide,
)
from tread_ssm.routing.plan import Draw


@dataclass(frozen=True, kw_only=True)
class NoisePrediction:
    """x = alpha * x0 + sqrt(1 - alpha^2) * noise; t is the number of noising steps.

    Timesteps 1..T are trained, 0 is clean data, and the network gets t - 1 + `first`. Between whole
    steps ln(alpha) is interpolated linearly (Lu et al., arXiv 2206.00927, appendix D.3), so that
    samplers may use any t.

    Attributes:
        kind: Always "noise".
        n_steps: T, the length of the noising chain.
        beta_start: Variance added by the first step.
        beta_end: Variance added by the last step.
        betas: What is evenly spaced in between: "linear" the variances (Ho et al., and DiT, from
            1e-4 to 0.02), "scaled_linear" their square roots.
        first: What the network gets at timestep 1: 0, by which DDPM and DiT count their steps, or
            1, by which DiM's published weights do.
    """

    kind: Literal["noise"] = "noise"
    n_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: Literal["scaled_linear", "linear"] = "scaled_linear"
    first: int = 0

    straight: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"NoisePrediction: n_steps is {self.n_steps}; use at least 1.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"NoisePrediction: beta_start is {self.beta_start} and beta_end {self.beta_end}; "
                f"they must satisfy 0 < beta_start <= beta_end < 1."
            )
        if self.betas not in ("scaled_linear", "linear"):
            raise ValueError(
                f"NoisePrediction: betas is {self.betas!r}; use 'scaled_linear' or 'linear'."
            )
        if self.first not in (0, 1):
            raise ValueError(f"NoisePrediction: first is {self.first}; use 0 or 1.")

    @property
    def t_max(self) -> float:
        """T."""
        return float(self.n_steps)

    def start_std(self, t: float) -> float:
        """1 at every t: the path keeps the variance of data of unit variance."""
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at timesteps in [0, T]; the shape of `t`."""
        return self._log_alpha(t).exp().to(wide(t).dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at timesteps in [0, T]; the shape of `t`."""
        # expm1: near t 0 the difference 1 - alpha^2 would lose its digits.
        return torch.expm1(2 * self._log_alpha(t)).neg().sqrt().to(wide(t).dtype)

    def timesteps(self, steps: int) -> Tensor:
        """(steps + 1,) float64, timesteps evenly spaced from T to 0."""
        check_steps(steps)
        return torch.linspace(self.n_steps, 0, steps + 1, dtype=torch.float64)

    def sample_t(self, batch: int, generator: torch.Generator) -> Tensor:
        """As `EDM.sample_t`: (batch,) float32, whole numbers in 1..T."""
        return torch.randint(1, self.n_steps + 1, (batch,), generator=generator).float()

    def loss_terms(
        self,
        model: Network,
        x: Tensor,
        labels: Tensor,
        t: Tensor,
        noise: Tensor,
        routing: Draw = (),
    ) -> LossTerms:
        """As `EDM.loss_terms`; the reconstruction is the predicted noise.

        The clean estimate would grow with 1 / alpha, by 15 at the noisiest t, and swamp the
        reconstruction loss; the noise keeps its unit scale at every t.
        """
        check_batch(x, t, noise)
        noisy = per_sample(self.alpha(t)) * x + per_sample(self.sigma(t)) * noise
        output = predict(model, noisy, wide(t) - 1 + self.first, labels, routing)
        return LossTerms((output - noise) ** 2, output, noisy)

    def denoiser(self, model: Network) -> Denoiser:
        """The estimate of x0: (x - sigma * predicted noise) / alpha.

        Of a network with twice the channels the first half is the noise; the rest is a learned
        variance (Nichol and Dhariwal, arXiv 2102.09672), which our samplers do not look at.
        """

        def denoise(
            x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
        ) -> Tensor:
            timesteps = full_t(t, x)
            counted = timesteps - 1 + self.first
            output = predict(model, x, counted, labels, routing, learned_variance=True)
            alpha, sigma = per_sample(self.alpha(timesteps)), per_sample(self.sigma(timesteps))
            return (x - sigma * output) / alpha

        return denoise

    def _log_alpha(self, t: Tensor) -> Tensor:
        """ln(alpha) in float64. The table is made anew: it is small, and caching would tie it to a
        device and to the grad mode of its first use."""
        power = 1 if self.betas == "linear" else 2
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        roots = torch.linspace(*ends, self.n_steps, dtype=torch.float64, device=t.device)
        table = torch.log1p(-(roots**power)).cumsum(0) / 2
        table = torch.cat([table.new_zeros(1), table])
        t = t.to(torch.float64)
        below = t.floor().clamp(0, self.n_steps - 1).to(torch.int64)
        return torch.lerp(table[below], table[below + 1], t - below)
