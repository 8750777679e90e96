"""Triton kernels of the decayed product: matrix products of chunks of CHUNK visits.

Rows are read and written where `order` says; no permuted copy is made. Products take the inputs'
dtype (float32 as three TF32 products) and add up in float32, as do decays and states.

The forward has one program per sample and head, which goes through the chunks with the state (N, P)
in registers and keeps it after each. The backward first goes back through the chunks likewise and
keeps the gradient of each of those states; then two kernels take all chunks at once. For them the
heads of a group are cut into ranges, each with sums of its own for the gradients of q and k. A
launch takes one head of every range and adds to these; one launch follows the other. No atomics:
equal inputs give equal bits. (One kernel for both, or a loop over the heads, spills registers.)

Shape legend: B batch, L positions, K visits (K <= L), G groups, N states, H heads, P channels of a
head, T = CHUNK.
"""

# Triton gives arguments their types at launch.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import os

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _product(a, b):
    if INTERPRETED:  # the interpreter multiplies the bits of bfloat16 numbers; same result this way
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3", out_dtype=tl.float32)


@triton.jit
def _rows(sample, chunk, order, visits, length, order_stride, T: tl.constexpr):
    """The chunk's positions in the batch, 64 bits, and which of its T visits exist."""
    k = chunk * T + tl.arange(0, T)
    valid = k < visits
    if order is None:
        position = k.to(tl.int64)
    else:
        position = tl.load(order + sample * order_stride + k, mask=valid, other=0)
    return sample * length + position, valid


@triton.jit
def _tile(x, rows, valid, stride, width, BLOCK: tl.constexpr):
    """(T, BLOCK) of x at the rows, which lie `stride` apart; 0 beyond `width` and where invalid."""
    column = tl.arange(0, BLOCK)
    mask = valid[:, None] & (column < width)[None, :]
    return tl.load(x + rows[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def _put(x, value, rows, valid, stride, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    mask = valid[:, None] & (column < width)[None, :]
    tl.store(x + rows[:, None] * stride + column[None, :], value, mask=mask)


@triton.jit
def _add(x, value, rows, valid, stride, width, stored, BLOCK: tl.constexpr):
    """Put the value, added to what earlier launches have stored there, if they have."""
    column = tl.arange(0, BLOCK)
    mask = valid[:, None] & (column < width)[None, :]
    at = x + rows[:, None] * stride + column[None, :]
    value += tl.load(at, mask=mask & stored, other=0.0).to(tl.float32)
    tl.store(at, value, mask=mask)


@triton.jit
def _state(N: tl.constexpr, P: tl.constexpr):
    """Offsets inside one state."""
    return tl.arange(0, N)[:, None] * P + tl.arange(0, P)[None, :]


@triton.jit
def _decays(log_decay, gap, sample, chunk, rows, valid, visits, heads, gap_stride,
            T: tl.constexpr):  # fmt: skip
    """The sum of log decays from the chunk's start on, in units of log 2, as float32 and what its
    rounding lost (differences of long sums must be exact), and 1 + gap."""
    log = tl.load(log_decay + rows * heads, mask=valid, other=0.0)
    stretch = tl.full((T,), 1.0, tl.float32)
    if gap is not None:
        k = chunk * T + tl.arange(0, T)
        stretch += tl.load(gap + sample * gap_stride + k, mask=valid, other=0).to(tl.float32)
    exact = tl.cumsum(log.to(tl.float64) * stretch.to(tl.float64), 0) * LOG2_E
    high = exact.to(tl.float32)
    return high, (exact - high.to(tl.float64)).to(tl.float32), stretch


@triton.jit
def _last(x, T: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, T) == T - 1, x, 0.0), 0)


@triton.jit
def _to_end(high, low, T: tl.constexpr):
    """Decay of each visit's input until the chunk's end."""
    return tl.exp2((_last(high, T) - high) + (_last(low, T) - low))


@triton.jit
def _mask(high, low, T: tl.constexpr):
    """Decays (T, T) from visit j to visit i, 0 where j comes later."""
    i, j = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    exponent = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.exp2(tl.where(j <= i, exponent, float("-inf")))


@triton.jit(do_not_specialize=["visits", "length"])
def forward_kernel(
    q, k, v, log_decay, order, gap, y, states,
    visits, length, groups, heads, state, channels,
    q_stride, k_stride, v_stride, order_stride, gap_stride,
    T: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    group = head // (heads // groups)
    chunks = tl.cdiv(visits, T)
    q += group * state
    k += group * state
    v += head * channels
    y += head * channels
    states += (sample * (chunks - 1) * heads + head) * (N * P)

    h = tl.zeros((N, P), tl.float32)
    for chunk in range(0, chunks):
        rows, valid = _rows(sample, chunk, order, visits, length, order_stride, T)
        high, low, _ = _decays(
            log_decay + head, gap, sample, chunk, rows, valid, visits, heads, gap_stride, T
        )
        q_TN = _tile(q, rows, valid, q_stride, state, N)
        k_TN = _tile(k, rows, valid, k_stride, state, N)
        scores = (_product(q_TN, tl.trans(k_TN)) * _mask(high, low, T)).to(v.dtype.element_ty)
        tl.debug_barrier()  # loading again what is in cache keeps it out of the registers
        q_TN = _tile(q, rows, valid, q_stride, state, N)
        out = _product(q_TN, h.to(q_TN.dtype)) * tl.exp2(high)[:, None]
        tl.debug_barrier()
        v_TP = _tile(v, rows, valid, v_stride, channels, P)
        out += _product(scores, v_TP)
        _put(y, out, rows, valid, heads * channels, channels, P)
        tl.debug_barrier()
        k_TN = _tile(k, rows, valid, k_stride, state, N)
        v_TP = _tile(v, rows, valid, v_stride, channels, P)
        v_end = (v_TP.to(tl.float32) * _to_end(high, low, T)[:, None]).to(v_TP.dtype)
        h = h * tl.exp2(_last(high, T)) + _product(tl.trans(k_TN), v_end)
        if chunk + 1 < chunks:
            tl.store(states + chunk * heads * (N * P) + _state(N, P), h)


@triton.jit(do_not_specialize=["visits", "length"])
def after_kernel(
    grad_y, q, log_decay, order, gap, after,
    visits, length, groups, heads, state, channels,
    grad_y_stride, q_stride, order_stride, gap_stride,
    T: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """after (B, chunks - 1, H, N, P): the gradient of the state after each chunk but the last."""
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    group = head // (heads // groups)
    chunks = tl.cdiv(visits, T)
    after += (sample * (chunks - 1) * heads + head) * (N * P)

    gh = tl.zeros((N, P), tl.float32)
    for back in range(1, chunks):
        chunk = chunks - back
        rows, valid = _rows(sample, chunk, order, visits, length, order_stride, T)
        q_TN = _tile(q + group * state, rows, valid, q_stride, state, N)
        g_TP = _tile(grad_y + head * channels, rows, valid, grad_y_stride, channels, P)
        high, _, _ = _decays(
            log_decay + head, gap, sample, chunk, rows, valid, visits, heads, gap_stride, T
        )
        g_start = (g_TP.to(tl.float32) * tl.exp2(high)[:, None]).to(g_TP.dtype)
        gh = gh * tl.exp2(_last(high, T)) + _product(tl.trans(q_TN), g_start)
        tl.store(after + (chunk - 1) * heads * (N * P) + _state(N, P), gh)


@triton.jit(do_not_specialize=["visits", "length", "index"])
def across_kernel(
    grad_y, q, k, v, log_decay, order, gap, states, after, sum_q, sum_k, grad_v, grad_log_decay,
    visits, length, groups, heads, state, channels, ranges, index,
    grad_y_stride, q_stride, k_stride, v_stride, order_stride, gap_stride,
    T: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What chunks owe each other by way of the states."""
    chunks = tl.cdiv(visits, T)
    chunk = tl.program_id(0) % chunks
    program = tl.program_id(0) // chunks
    sample = (program // ranges // groups).to(tl.int64)
    group = program // ranges % groups
    span = program % (ranges * groups)
    head = span * (heads // groups // ranges) + index
    i, j = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    sum_stride = groups * ranges * state
    rows, valid = _rows(sample, chunk, order, visits, length, order_stride, T)
    high, low, stretch = _decays(
        log_decay + head, gap, sample, chunk, rows, valid, visits, heads, gap_stride, T
    )
    at_state = ((sample * (chunks - 1) + chunk) * heads + head) * (N * P) + _state(N, P)
    of_decay = tl.zeros((T,), tl.float32)
    if chunk > 0:  # what these visits read of earlier chunks
        g_TP = _tile(grad_y + head * channels, rows, valid, grad_y_stride, channels, P)
        before = tl.load(states + at_state - heads * (N * P))
        if chunk + 1 < chunks:  # and what later chunks read of these earlier ones
            both = tl.load(after + at_state) * before
            of_decay += tl.sum(tl.sum(both, 1), 0) * tl.exp2(_last(high, T))
        g_start = (g_TP.to(tl.float32) * tl.exp2(high)[:, None]).to(g_TP.dtype)
        of_q = _product(g_start, tl.trans(before.to(g_TP.dtype)))
        q_TN = _tile(q + group * state, rows, valid, q_stride, state, N)
        of_decay += tl.cumsum(tl.sum(of_q * q_TN.to(tl.float32), 1), 0, reverse=True)
        _add(sum_q + span * state, of_q, rows, valid, sum_stride, state, index > 0, N)
    if chunk + 1 < chunks:  # what later chunks read of these visits
        to_end = _to_end(high, low, T)
        k_TN = _tile(k + group * state, rows, valid, k_stride, state, N)
        of_v = _product(k_TN, tl.load(after + at_state).to(k_TN.dtype)) * to_end[:, None]
        _put(grad_v + head * channels, of_v, rows, valid, heads * channels, channels, P)
        tl.debug_barrier()  # as in the forward
        v_TP = _tile(v + head * channels, rows, valid, v_stride, channels, P)
        v_end = (v_TP.to(tl.float32) * to_end[:, None]).to(v_TP.dtype)
        of_k = _product(v_end, tl.trans(tl.load(after + at_state).to(v_TP.dtype)))
        k_TN = _tile(k + group * state, rows, valid, k_stride, state, N)
        written = tl.sum(of_k * k_TN.to(tl.float32), 1)
        of_decay += tl.sum(tl.where(j < i, written[None, :], 0.0), 1)
        _add(sum_k + span * state, of_k, rows, valid, sum_stride, state, index > 0, N)
    tl.store(grad_log_decay + head + rows * heads, of_decay * stretch, mask=valid)


@triton.jit(do_not_specialize=["visits", "length", "index"])
def inside_kernel(
    grad_y, q, k, v, log_decay, order, gap, sum_q, sum_k, grad_v, grad_log_decay,
    visits, length, groups, heads, state, channels, ranges, index,
    grad_y_stride, q_stride, k_stride, v_stride, order_stride, gap_stride,
    T: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What the visits of a chunk owe each other, added to what across_kernel has stored."""
    chunks = tl.cdiv(visits, T)
    chunk = tl.program_id(0) % chunks
    program = tl.program_id(0) // chunks
    sample = (program // ranges // groups).to(tl.int64)
    group = program // ranges % groups
    span = program % (ranges * groups)
    head = span * (heads // groups // ranges) + index
    i, j = tl.arange(0, T)[:, None], tl.arange(0, T)[None, :]
    sum_stride = groups * ranges * state

    rows, valid = _rows(sample, chunk, order, visits, length, order_stride, T)
    high, low, stretch = _decays(
        log_decay + head, gap, sample, chunk, rows, valid, visits, heads, gap_stride, T
    )
    v_TP = _tile(v + head * channels, rows, valid, v_stride, channels, P)
    g_TP = _tile(grad_y + head * channels, rows, valid, grad_y_stride, channels, P)
    of_scores = _product(g_TP, tl.trans(v_TP))
    q_TN = _tile(q + group * state, rows, valid, q_stride, state, N)
    k_TN = _tile(k + group * state, rows, valid, k_stride, state, N)
    scores = _product(q_TN, tl.trans(k_TN))
    decays = _mask(high, low, T)
    of_scores *= decays
    pairs = (scores * of_scores).to(g_TP.dtype)
    masked = (scores * decays).to(g_TP.dtype)
    of_scores = of_scores.to(k_TN.dtype)
    tl.debug_barrier()  # as in the forward
    g_TP = _tile(grad_y + head * channels, rows, valid, grad_y_stride, channels, P)
    of_v = _product(tl.trans(masked), g_TP)
    _add(grad_v + head * channels, of_v, rows, valid, heads * channels, channels,
         chunk + 1 < chunks, P)  # fmt: skip
    # For each step the pairs of visits between which it lies, never as a difference of sums:
    # strong decays would drown in its rounding.
    later = _product((i <= j).to(tl.float32).to(g_TP.dtype), pairs)
    of_decay = tl.sum(tl.where(j < i, later, 0.0), 1) * stretch
    at = grad_log_decay + head + rows * heads
    of_decay += tl.load(at, mask=valid & (chunks > 1), other=0.0)
    tl.store(at, of_decay, mask=valid)

    k_TN = _tile(k + group * state, rows, valid, k_stride, state, N)
    of_q = _product(of_scores, k_TN)
    stored = (index > 0) | (chunk > 0)
    _add(sum_q + span * state, of_q, rows, valid, sum_stride, state, stored, N)
    q_TN = _tile(q + group * state, rows, valid, q_stride, state, N)
    of_k = _product(tl.trans(of_scores), q_TN)
    stored = (index > 0) | (chunk + 1 < chunks)
    _add(sum_k + span * state, of_k, rows, valid, sum_stride, state, stored, N)
