"""Flow matching along straight lines from data to noise (Lipman et al., arXiv 2210.02747; Liu et
al., arXiv 2209.03003).

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

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

Time = Literal["uniform", "logit_normal"]
Prediction = Literal["velocity", "data"]

# The smallest t by which a prediction of the data is divided (Li & He, arXiv 2511.13720).
T_MIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Flow:
    """x = (1 - t) * x0 + t * noise; t is 0 for data and 1 for noise. The network gets 1000 * t.

    The loss is the squared error of the velocity in both cases. A prediction of the data stands
    for the velocity (x - x0_hat) / max(t, 0.05); the true one is divided likewise, so its loss is
    (x0_hat - x0)^2 / max(t, 0.05)^2 (Li & He, arXiv 2511.13720).

    Attributes:
        kind: Always "flow".
        time: Distribution of t in training: "uniform", or "logit_normal", the sigmoid of a normal
            number (Esser et al., arXiv 2403.03206, equation 19).
        mean: Mean of that normal number; a positive one trains more on noisy images.
        std: Standard deviation of that normal number.
        predict: What the network's output is: the velocity noise - x0, or the clean data.
        sit: The network is one of SiT's code (Ma et al., arXiv 2401.08740): it is told 1 - t, 0 for
            noise and 1 for data, and its velocity is x0 - noise. A learned variance is left aside.
        shift: Moves t towards noise, in training and in sampling alike:
            t' = shift * t / (1 + (shift - 1) * t), which multiplies sigma / alpha by `shift`
            (Esser et al., equation 23). Larger images hide less under the same noise, which
            sqrt(C * H * W / 4096) makes up for: 1 for latents of 4 x 32 x 32 (arXiv 2512.12386).
    """

    kind: Literal["flow"] = "flow"
    time: Time = "uniform"
    mean: float = 0.0
    std: float = 1.0
    predict: Prediction = "velocity"
    sit: bool = False
    shift: float = 1.0

    straight: ClassVar[bool] = True
    t_max: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        for name, known in (("time", get_args(Time)), ("predict", get_args(Prediction))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Flow: {name} is {getattr(self, name)!r}; use one of {', '.join(known)}."
                )
        if self.sit and self.predict != "velocity":
            raise ValueError("Flow: SiT's networks predict a velocity; leave predict or sit out.")
        check_positive("Flow: std", self.std)
        check_positive("Flow: shift", self.shift)
        if not math.isfinite(self.mean):
            raise ValueError(f"Flow: mean is {self.mean}; it must be finite.")

    def start_std(self, t: float) -> float:
        """That of x at t for data of unit variance; 1 at t = 1."""
        return math.hypot(1 - t, t)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at t: 1 - t."""
        return 1 - wide(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at t: t."""
        return wide(t)

    def timesteps(self, steps: int) -> Tensor:
        """(steps + 1,) float64, timesteps from 1 to 0: evenly spaced, then shifted."""
        check_steps(steps)
        return self._shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def sample_t(self, batch: int, generator: torch.Generator) -> Tensor:
        """As `EDM.sample_t`: (batch,) float32 in [0, 1]."""
        if self.time == "uniform":
            return self._shifted(torch.rand(batch, generator=generator))
        normal = torch.randn(batch, generator=generator)
        return self._shifted((self.mean + self.std * normal).sigmoid())

    def _shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def loss_terms(
        self,
        model: Network,
        x: Tensor,
        labels: Tensor,
        t: Tensor,
        noise: Tensor,
        routing: Draw = (),
    ) -> LossTerms:
        """As `EDM.loss_terms`; the reconstruction is the estimate of x0."""
        check_batch(x, t, noise)
        t_B111 = per_sample(t)
        noisy = (1 - t_B111) * x + t_B111 * noise
        output = self._output(model, noisy, wide(t), labels, routing)
        if self.predict == "velocity":
            return LossTerms((output - (noise - x)) ** 2, noisy - t_B111 * output, noisy, output)
        divisor = t_B111.clamp_min(T_MIN)
        velocity = (noisy - output) / divisor
        return LossTerms(((output - x) / divisor) ** 2, output, noisy, velocity)

    def denoiser(self, model: Network) -> Denoiser:
        """The estimate of x0: the network's output, or x - t * velocity."""

        def denoise(
            x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
        ) -> Tensor:
            output = self._output(model, x, full_t(t, x), labels, routing)
            return output if self.predict == "data" else x - t * output

        return denoise

    def _output(
        self, model: Network, x: Tensor, t: Tensor, labels: Tensor, routing: Draw
    ) -> Tensor:
        """What the network says of x_BCHW at t_B: our velocity, or the data."""
        if self.sit:
            return -predict(model, x, 1 - t, labels, routing, learned_variance=True)
        return predict(model, x, 1000 * t, labels, routing)
