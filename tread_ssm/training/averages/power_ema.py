"""Power-function averages of the weights, and how one is made out of others (EDM2: Karras et al.,
arXiv 2312.02696, section 3 and appendix C).

Shape legend: s snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDEST = 0.28  # above 1 / sqrt(12) the profile would rise into the past


@dataclass(frozen=True)
class PosthocEma:
    """Averages for a width that is chosen after training.

    Attributes:
        every: Steps between snapshots of both averages. The last step has one besides. They stay
            on the disk, each as large as two models.
        widths: Relative widths of the two averages: standard deviation of the averaged steps over
            the number of steps.
    """

    every: int
    widths: tuple[float, float] = (0.05, 0.1)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1.")
        if self.widths[0] == self.widths[1]:
            raise ValueError(f"widths are {list(self.widths)}; they must differ.")
        for width in self.widths:
            gamma_of(width)


@dataclass(frozen=True)
class Profile:
    """A power-function average: step tau counts as tau^gamma, up to step `step`.

    Attributes:
        gamma: Of the power.
        step: The step at which it was taken.
    """

    gamma: float
    step: int


def gamma_of(width: float) -> float:
    """The power whose profile has this relative width.

    Solves width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the variance of a step under the
    profile in units of the training's length.

    Args:
        width: Standard deviation of the averaged steps over the number of steps.

    Raises:
        ValueError: No such profile has that width.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"width is {width}; it must satisfy 0 < width <= {WIDEST}.")
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real[np.abs(roots.imag) < 1e-9].max())


def power_decay(width: float) -> Callable[[int], float]:
    """The average's decay after each step, counted from 0.

    (1 - 1 / t)^(gamma + 1) with t = step + 1; the first weights replace the initial ones.
    """
    gamma = gamma_of(width)
    return lambda step: (1 - 1 / (step + 1)) ** (gamma + 1)


def weights_of(snapshots: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """(s,) float64: what each snapshot counts in the nearest sum to a wanted profile.

    Least squares between the profiles with weights that sum to 1, so that a
    parameter that never moved stays as it is.
    """
    gram = np.array([[_overlap(a, b) for b in snapshots] for a in snapshots])
    aim = np.array([_overlap(a, wanted) for a in snapshots])
    n = len(snapshots)
    # Lagrange's condition for the sum; scaled, so that all entries are of one size.
    scale = np.abs(gram).max()
    system = np.ones((n + 1, n + 1))
    system[:n, :n], system[n, n] = gram / scale, 0.0
    found = np.linalg.lstsq(system, np.append(aim / scale, 1.0), rcond=1e-14)[0]
    return np.asarray(found[:n])


def _overlap(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles, each of unit area."""
    low, high = min(a.step, b.step), max(a.step, b.step)
    share = (low / a.step) ** a.gamma * (low / b.step) ** b.gamma
    return (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1) * share / high


def file_of(width: float) -> str:
    """The name of the file of an average of this width."""
    return f"width-{width!r}.safetensors"


def width_in(file: Path) -> float:
    """The width in a file's name."""
    return float(file.stem.removeprefix("width-"))
