"""Triton kernels of the causal depthwise convolution with SiLU, along any visiting order.

A program owns BLOCK_K visits of BLOCK_D channels of one sample. Backward recomputes the
convolution at its own visits and at the up to W - 1 visits after them, whose gradients reach back
here: neighbouring programs share nothing, and the sums for weight and bias leave as one partial
sum per program, which torch adds in a fixed order.

Shape legend: B batch, L positions, K visits (K <= L), D channels, W taps.
"""

# Triton gives arguments their types at launch, and its tuples grow in unrolled loops.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from tread_ssm.scan.selective.triton_math import sigmoid, silu_slope


@triton.jit
def _rows(x, order, k, visits, first, dim, d):
    """(k, d) of the tokens at visits k in fp32; 0 for visits that do not exist."""
    valid = (k >= 0) & (k < visits)
    position = tl.cast(k, tl.int64)
    if order is not None:
        position = tl.load(order + k, mask=valid, other=0)
    mask = valid[:, None] & (d < dim)[None, :]
    return tl.load(x + ((first + position) * dim)[:, None] + d[None, :], mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def _columns(weight, bias, d, dim, W: tl.constexpr):
    """Taps by distance, 0 first, each (1, d), and the bias."""
    taps = ()
    for j in tl.static_range(W):
        taps = taps + (tl.load(weight + d * W + (W - 1 - j), mask=d < dim, other=0.0)[None, :],)  # noqa: RUF005
    shift = 0.0 if bias is None else tl.load(bias + d, mask=d < dim, other=0.0)[None, :]
    return taps, shift


@triton.jit
def _distance(gap, k, visits, BACK: tl.constexpr):
    """Places along the full scan between visits k - BACK and k."""
    distance = tl.zeros_like(k)
    for i in tl.static_range(BACK):
        there = k - i
        valid = (there >= 0) & (there < visits)
        # Four places reach past every tap; more would only overflow.
        distance += 1 + tl.minimum(tl.load(gap + there, mask=valid, other=0), 4).to(tl.int32)
    return distance


@triton.jit
def _tap(taps, gap, k, visits, BACK: tl.constexpr, W: tl.constexpr):
    """The weight with which visit k reads the visit BACK before it, (1 or k, d)."""
    if gap is None:
        return taps[BACK]
    else:
        distance = _distance(gap, k, visits, BACK)[:, None]
        tap = tl.zeros((1, 1), tl.float32)
        for j in tl.static_range(BACK, W):
            tap += tl.where(distance == j, taps[j], 0.0)
        return tap


@triton.jit
def _convolved(tokens, taps, shift, gap, k, visits, AHEAD: tl.constexpr, W: tl.constexpr):
    """The convolution before SiLU at visits k; tokens[AHEAD + i] are those at k + i - (W - 1)."""
    y = tokens[AHEAD + W - 1] * taps[0] + shift
    for back in tl.static_range(1, W):
        y += tokens[AHEAD + W - 1 - back] * _tap(taps, gap, k, visits, back, W)
    return y


@triton.jit
def forward_kernel(
    x, weight, bias, order, gap, y, visits, length, dim, order_stride, gap_stride,
    ACTIVATION: tl.constexpr, W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks_d, blocks_k = tl.cdiv(dim, BLOCK_D), tl.cdiv(visits, BLOCK_K)
    d = (tl.program_id(0) % blocks_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = (tl.program_id(0) // blocks_d % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    sample = (tl.program_id(0) // blocks_d // blocks_k).to(tl.int64)
    first = sample * length
    order = None if order is None else order + sample * order_stride
    gap = None if gap is None else gap + sample * gap_stride

    taps, shift = _columns(weight, bias, d, dim, W)
    tokens = ()
    for i in tl.static_range(W):
        tokens = tokens + (_rows(x, order, k + (i - W + 1), visits, first, dim, d),)  # noqa: RUF005
    out = _convolved(tokens, taps, shift, gap, k, visits, 0, W)
    if ACTIVATION:
        out = out * sigmoid(out)
    position = tl.cast(k, tl.int64)
    if order is not None:
        position = tl.load(order + k, mask=k < visits, other=0)
    mask = (k < visits)[:, None] & (d < dim)[None, :]
    tl.store(y + ((first + position) * dim)[:, None] + d[None, :], out, mask=mask)


@triton.jit
def backward_kernel(
    grad_y, x, weight, bias, order, gap, grad_x, part_weight, part_bias,
    visits, length, dim, order_stride, gap_stride,
    ACTIVATION: tl.constexpr, W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks_d, blocks_k = tl.cdiv(dim, BLOCK_D), tl.cdiv(visits, BLOCK_K)
    d = (tl.program_id(0) % blocks_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = (tl.program_id(0) // blocks_d % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    strip = (tl.program_id(0) // blocks_d).to(tl.int64)  # of BLOCK_K visits of one sample
    sample = strip // blocks_k
    first = sample * length
    order = None if order is None else order + sample * order_stride
    gap = None if gap is None else gap + sample * gap_stride

    taps, shift = _columns(weight, bias, d, dim, W)
    tokens = ()
    for i in tl.static_range(2 * W - 1):
        tokens = tokens + (_rows(x, order, k + (i - W + 1), visits, first, dim, d),)  # noqa: RUF005
    grad_token = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for ahead in tl.static_range(W):
        reader = k + ahead
        g = _rows(grad_y, order, reader, visits, first, dim, d)
        if ACTIVATION:
            g *= silu_slope(_convolved(tokens, taps, shift, gap, reader, visits, ahead, W))
        grad_token += g * _tap(taps, gap, reader, visits, ahead, W)
        if ahead == 0:
            for j in tl.static_range(W):
                total = _weight_gradient(g, tokens, gap, k, visits, j, W)
                tl.store(part_weight + (strip * W + (W - 1 - j)) * dim + d, total, mask=d < dim)
            if bias is not None:
                tl.store(part_bias + strip * dim + d, tl.sum(g, 0), mask=d < dim)

    position = tl.cast(k, tl.int64)
    if order is not None:
        position = tl.load(order + k, mask=k < visits, other=0)
    mask = (k < visits)[:, None] & (d < dim)[None, :]
    tl.store(grad_x + ((first + position) * dim)[:, None] + d[None, :], grad_token, mask=mask)


@triton.jit
def _weight_gradient(g, tokens, gap, k, visits, DISTANCE: tl.constexpr, W: tl.constexpr):
    """(d,): what this strip gives to the tap of DISTANCE."""
    if gap is None:
        return tl.sum(g * tokens[W - 1 - DISTANCE], 0)
    else:
        read = tl.zeros_like(g)
        for back in tl.static_range(DISTANCE + 1):
            here = _distance(gap, k, visits, back) == DISTANCE
            read += tl.where(here[:, None], tokens[W - 1 - back], 0.0)
        return tl.sum(g * read, 0)
