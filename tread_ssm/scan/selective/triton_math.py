"""Functions of one number that the Triton kernels share, right to fp32 rounding at both ends."""

# Triton gives arguments their types at launch.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) with a small relative error where the result is tiny, too.

    log(1 + e) = 2 atanh(e / (2 + e)), and its argument is at most 1/3 for e = exp(-|x|).
    """
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2.0 + e)
    t = s * s
    series = t * (1.0 / 15.0) + 1.0 / 13.0
    series = series * t + 1.0 / 11.0
    series = series * t + 1.0 / 9.0
    series = series * t + 1.0 / 7.0
    series = series * t + 1.0 / 5.0
    series = series * t + 1.0 / 3.0
    series = series * t + 1.0
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def silu_slope(x):
    """Derivative of x sigmoid(x)."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))
