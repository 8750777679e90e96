"""How images are sampled: what the command line says, and the section `sample` of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tread_ssm.diffusion import Extrapolation

GuidedBy: TypeAlias = Literal["class", "routes", "path", "model"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How images are sampled.

    Attributes:
        steps: Sampling steps.
        guidance: Scale of the guidance, 1 is none: x0 = weak + guidance * (strong - weak).
        guided_by: What the weak pass is: without the class ("class"), with fewer tokens ("routes"),
            without the class and the blocks of the routes ("path"), or another network ("model").
            None: "routes" where `weak_drop` is set, else "class".
        interval: Timesteps at which to guide, see `Extrapolation`.
        guidance_channels: Guide only the first so many channels, see `Extrapolation`; None: all.
        weak_drop: What the weak pass drops, for "routes" alone.
        strong_drop: What the strong pass drops, for "routes" alone.
        weak_run: Folder of the other network's run or checkpoint, for "model" alone.
        sampler: A name from `SAMPLERS`. None: heun for EDM and flow, dpm_solver_pp for noise
            prediction.
        precision: bf16 runs the network under autocast; the sampler's own numbers stay float32.

    Raises:
        ValueError: Its parts do not fit together.
    """

    steps: int
    guidance: float = 1.0
    guided_by: GuidedBy | None = None
    interval: tuple[float, float] | None = None
    guidance_channels: int | None = None
    weak_drop: float | None = None
    strong_drop: float = 0.0
    weak_run: str | None = None
    sampler: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; it must be finite (1 is none).")
        if self.weak_drop is None and self.strong_drop:
            raise ValueError(
                f"strong_drop is {self.strong_drop}, but weak_drop is not set; route guidance "
                f"compares two passes, so set both."
            )
        _ = self.rule  # says whether it can be
        for kind, name in (("routes", "weak_drop"), ("model", "weak_run")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ValueError(
                    f"guided_by is {self.kind!r} and {name} {getattr(self, name)!r}; guidance by "
                    f"{kind} needs {name}, and no other kind takes it."
                )

    @property
    def kind(self) -> GuidedBy:
        """What it is guided by."""
        return self.guided_by or ("class" if self.weak_drop is None else "routes")

    @property
    def rule(self) -> Extrapolation:
        """How far, when and where it is guided. Raises ValueError."""
        return Extrapolation(self.guidance, self.interval, self.guidance_channels)
