"""The arithmetic of DPM-Solver++ (Lu et al., arXiv 2211.01095), which works in half log-SNRs."""

from __future__ import annotations

import math

from torch import Tensor


def half_log_snr(alpha: float, sigma: float) -> float:
    """The half log-SNR ln(alpha / sigma); infinite at clean data, minus infinity at pure noise."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def step_sizes(n: int, *, starts: bool, ends: bool) -> list[int]:
    """How many calls each singlestep has.

    Args:
        n: Calls in all.
        starts: Whether the first step leaves pure noise; it is a step of its own.
        ends: Whether the last step reaches t 0; it is a step of its own.
    """
    alone = [1] * (starts and n > 0)
    last = [1] * (ends and n > len(alone))
    threes, rest = divmod(n - len(alone) - len(last), 3)
    if rest == 0 and threes:
        return [*alone, *[3] * (threes - 1), 2, 1, *last]
    return [*alone, *[3] * threes, *[rest] * (rest > 0), *last]


def integrated_x0(known: list[tuple[float, Tensor]], to: float) -> Tensor:
    """The estimates of x0, extrapolated over half log-SNRs up to `to`, weighted and integrated.

    One, two or three estimates give order 1, 2 or 3: arXiv 2211.01095, proposition 4.1 with the
    derivatives of the estimate taken from divided differences; order 2 is the paper's algorithm 2.

    Args:
        known: Half log-SNR and estimate of x0 of each, the latest last.
        to: Half log-SNR at the end of the step.
    """
    at, latest = known[-1]
    h = to - at
    phi_1 = -math.expm1(-h)
    if len(known) == 1:
        return phi_1 * latest
    before_at, before = known[-2]
    r_0 = (at - before_at) / h
    d_1 = (latest - before) / r_0  # h times the first derivative
    if len(known) == 2:
        return phi_1 * (latest + d_1 / 2)
    r_1 = (before_at - known[-3][0]) / h
    # Half of h^2 times the second derivative, so it counts twice below. Code for this method that
    # counts it once is of order 2.
    d_2 = (d_1 - (before - known[-3][1]) / r_1) / (r_0 + r_1)
    d_1 = d_1 + r_0 * d_2
    phi_2 = 1 - phi_1 / h
    phi_3 = 0.5 - phi_2 / h
    return phi_1 * latest + phi_2 * d_1 + phi_3 * 2 * d_2
