"""Networks that are perfect by construction, and the arithmetic to check samplers against.

For data whose every element is N(MU, S^2), the best estimate of x0, the exact solution of the
sampling ODE and so the perfect network of every objective are known in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tread_ssm.diffusion import EDM, Flow, NoisePrediction, Objective
from tread_ssm.routing import Draw

MU, S = 0.3, 0.5

OBJECTIVES: dict[str, Objective] = {
    "edm": EDM(),
    "velocity": Flow(),
    "data": Flow(predict="data"),
    "noise": NoisePrediction(),
}


def told_as(objective: Objective, t: Tensor) -> Tensor:
    """The t that a network is told as `t`, (B, 1, 1, 1)."""
    if isinstance(objective, EDM):
        t = (4 * t).exp()
    elif isinstance(objective, Flow):
        t = t / 1000
    else:
        t = t + 1
    return t[:, None, None, None]


@dataclass(frozen=True)
class Oracle:
    """The network whose estimate of x0 is `estimate(x, alpha, sigma)` under an objective."""

    objective: Objective
    estimate: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
        t = told_as(self.objective, t)
        alpha, sigma = self.objective.alpha(t), self.objective.sigma(t)
        if isinstance(self.objective, EDM):
            c_skip, c_out, c_in, _ = self.objective.coefficients(t)
            x = x / c_in
            return (self.estimate(x, alpha, sigma) - c_skip * x) / c_out
        x0 = self.estimate(x, alpha, sigma)
        if isinstance(self.objective, NoisePrediction):
            return (x - alpha * x0) / sigma
        return x0 if self.objective.predict == "data" else (x - x0) / sigma


def gaussian(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for x0 ~ N(MU, S^2)."""
    return MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)


def transported(objective: Objective, x: Tensor, timesteps: Tensor) -> Tensor:
    """Where the exact ODE takes x from the first t to the last, for x0 ~ N(MU, S^2)."""
    ends = timesteps[[0, -1]].double()
    alpha, sigma = objective.alpha(ends), objective.sigma(ends)
    deviation = (alpha**2 * S**2 + sigma**2).sqrt()
    return alpha[1] * MU + deviation[1] / deviation[0] * (x - alpha[0] * MU)


class Tiny(nn.Module):
    """A small real network that reads t, the label and the draw, and counts its samples."""

    def __init__(self, channels: int = 2, n_classes: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.label = nn.Embedding(n_classes + 1, channels)
        self.seen: list[tuple[Tensor, Draw]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
        self.seen.append((labels, routing))
        h = self.mix(x.to(self.mix.weight.dtype)) + self.label(labels)[:, :, None, None]
        for _, subset in routing:
            dropped = (~subset.mask()).to(h.dtype).mean(1)
            h = h * (1 - dropped[:, None, None, None])
        return h * t.cos().to(h.dtype)[:, None, None, None]
