"""Triton kernels of the selective scan: states in registers, one visit after the other.

A program owns BLOCK_D channels of one sample and all their states, a (BLOCK_N, BLOCK_D) tile in
fp32, and reads and writes each visit's row where `order` says: no permuted copy is ever made.

Forward keeps the state before every CHUNK-th visit. Backward goes through the chunks from last to
first; in each it first runs forward again and keeps the state before every PART-th visit in a
scratch buffer of its own, then takes part by part from the end with that part's states in
registers. Sums over channels (B, C) and over samples (A, D, delta_bias) leave the kernel as one
partial sum per program, and torch adds those: no atomics, so equal inputs give equal bits.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, P channel blocks.
"""

# Triton gives arguments their types at launch, and its tuples grow in unrolled loops.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from tread_ssm.scan.selective.triton_math import LOG2_E, sigmoid, silu_slope, softplus

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _position(order, k, valid):
    """Where visit k reads and writes, in 64 bits: position * D may pass 2^31."""
    return tl.cast(k, tl.int64) if order is None else tl.load(order + k, mask=valid, other=0)


@triton.jit
def _row(x, row, columns, mask):
    """One row of a (rows, columns) array in fp32, 0 where masked."""
    return tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _time(dt, gap, k, valid):
    """The time over which the state decays: dt times one plus the number of missing tokens."""
    return dt if gap is None else dt * (1.0 + tl.load(gap + k, mask=valid, other=0).to(tl.float32))


@triton.jit
def forward_kernel(
    u, delta, A, B, C, D, z, bias, order, gap, y, states,
    visits, length, dim, state, order_stride, gap_stride,
    CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(dim, BLOCK_D)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < dim, n < state
    tile = in_n[:, None] & in_d[None, :]
    kept = n[:, None] * dim + d[None, :]

    a = tl.load(A + kept, mask=tile, other=0.0) * LOG2_E
    skip = 0.0 if D is None else tl.load(D + d, mask=in_d, other=0.0)
    shift = 0.0 if bias is None else tl.load(bias + d, mask=in_d, other=0.0)
    order = None if order is None else order + sample * order_stride
    gap = None if gap is None else gap + sample * gap_stride
    states += sample * tl.cdiv(visits, CHUNK) * state * dim

    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for k in range(0, visits):
        if k % CHUNK == 0:
            tl.store(states + tl.cast(k // CHUNK, tl.int64) * state * dim + kept, h, mask=tile)
        p = sample * length + _position(order, k, True)
        raw = _row(delta, p * dim, d, in_d) + shift
        dt = softplus(raw) if SOFTPLUS else raw
        x = _row(u, p * dim, d, in_d)
        b = _row(B, p * state, n, in_n)
        c = _row(C, p * state, n, in_n)
        decay = tl.exp2(_time(dt, gap, k, True)[None, :] * a)
        h = decay * h + b[:, None] * (dt * x)[None, :]
        out = tl.sum(c[:, None] * h, 0) + skip * x
        if z is not None:
            gate = _row(z, p * dim, d, in_d)
            out = out * gate * sigmoid(gate)
        tl.store(y + p * dim + d, out, mask=in_d)


@triton.jit
def _advance(
    h, u, delta, a, B, shift, order, gap, k, visits, first, dim, state, d, n,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The state after visit k; from visit `visits` on dt is 0, and the state just stays."""
    valid = k < visits  # a scalar; masks come by way of sizes: the interpreter spreads no bool
    p = first + _position(order, k, valid)
    in_d, in_n = d < tl.where(valid, dim, 0), n < tl.where(valid, state, 0)
    raw = _row(delta, p * dim, d, in_d) + shift
    dt = tl.where(valid, softplus(raw) if SOFTPLUS else raw, 0.0)
    x = _row(u, p * dim, d, in_d)
    b = _row(B, p * state, n, in_n)
    decay = tl.exp2(_time(dt, gap, k, valid)[None, :] * a)
    return decay * h + b[:, None] * (dt * x)[None, :]


@triton.jit
def backward_kernel(
    grad_y, u, delta, A, B, C, D, z, bias, order, gap, states, scratch,
    grad_u, grad_delta, grad_z, part_A, part_B, part_C, part_D, part_bias,
    visits, length, dim, state, order_stride, gap_stride,
    CHUNK: tl.constexpr, PART: tl.constexpr, SOFTPLUS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(dim, BLOCK_D)
    program = tl.program_id(0).to(tl.int64)
    sample = program // blocks
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d, in_n = d < dim, n < state
    tile = in_n[:, None] & in_d[None, :]
    kept = n[:, None] * dim + d[None, :]
    own = n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]

    a = tl.load(A + kept, mask=tile, other=0.0) * LOG2_E
    skip = 0.0 if D is None else tl.load(D + d, mask=in_d, other=0.0)
    shift = 0.0 if bias is None else tl.load(bias + d, mask=in_d, other=0.0)
    order = None if order is None else order + sample * order_stride
    gap = None if gap is None else gap + sample * gap_stride
    first = sample * length
    chunks = tl.cdiv(visits, CHUNK)
    states += sample * chunks * state * dim
    scratch += program * (CHUNK // PART) * BLOCK_N * BLOCK_D
    part_B += program * visits * state
    part_C += program * visits * state

    carry = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)  # gradient of h_k that comes from h_(k+1)
    sum_A = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_D = tl.zeros((BLOCK_D,), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        parts = tl.cdiv(tl.minimum(CHUNK, visits - start), PART)

        h = tl.load(states + tl.cast(chunk, tl.int64) * state * dim + kept, mask=tile, other=0.0)
        for part in range(0, parts):
            tl.store(scratch + part * BLOCK_N * BLOCK_D + own, h)
            for i in tl.static_range(PART):
                h = _advance(
                    h, u, delta, a, B, shift, order, gap, start + part * PART + i, visits,
                    first, dim, state, d, n, SOFTPLUS,
                )  # fmt: skip
        tl.debug_barrier()  # a state may be read by another thread than wrote it

        for part_back in range(0, parts):
            part = parts - 1 - part_back
            h = tl.load(scratch + part * BLOCK_N * BLOCK_D + own)
            held = (h,)
            for i in tl.static_range(PART - 1):
                h = _advance(
                    h, u, delta, a, B, shift, order, gap, start + part * PART + i, visits,
                    first, dim, state, d, n, SOFTPLUS,
                )  # fmt: skip
                held = held + (h,)  # noqa: RUF005  (Triton has no unpacking)
            for j in tl.static_range(PART):
                k = start + part * PART + PART - 1 - j
                valid = k < visits
                p = first + _position(order, k, valid)
                here, here_n = d < tl.where(valid, dim, 0), n < tl.where(valid, state, 0)
                raw = _row(delta, p * dim, d, here) + shift
                dt = tl.where(valid, softplus(raw) if SOFTPLUS else raw, 0.0)
                time = _time(dt, gap, k, valid)
                x = _row(u, p * dim, d, here)
                b = _row(B, p * state, n, here_n)
                c = _row(C, p * state, n, here_n)
                g = _row(grad_y, p * dim, d, here)
                decay = tl.exp2(time[None, :] * a)
                h = decay * held[PART - 1 - j] + b[:, None] * (dt * x)[None, :]
                if z is not None:
                    gate = _row(z, p * dim, d, here)
                    out = tl.sum(c[:, None] * h, 0) + skip * x
                    tl.store(grad_z + p * dim + d, g * out * silu_slope(gate), mask=here)
                    g = g * gate * sigmoid(gate)

                grad_h = carry + c[:, None] * g[None, :]
                grad_b = tl.sum(grad_h * (dt * x)[None, :], 1)
                grad_c = tl.sum(h * g[None, :], 1)
                tl.store(part_B + tl.cast(k, tl.int64) * state + n, grad_b, mask=here_n)
                tl.store(part_C + tl.cast(k, tl.int64) * state + n, grad_c, mask=here_n)

                grad_input = tl.sum(b[:, None] * grad_h, 0)  # of dt * u
                carry = decay * grad_h
                grad_exponent = carry * held[PART - 1 - j]
                sum_A += grad_exponent * time[None, :]
                grad_time = tl.sum(grad_exponent * a, 0) * LN_2
                grad_dt = grad_input * x
                if gap is None:
                    grad_dt += grad_time
                else:
                    grad_dt += grad_time * _time(1.0, gap, k, valid)
                if SOFTPLUS:
                    grad_dt = grad_dt * sigmoid(raw)
                tl.store(grad_u + p * dim + d, grad_input * dt + skip * g, mask=here)
                tl.store(grad_delta + p * dim + d, grad_dt, mask=here)
                sum_D += g * x
                sum_bias += grad_dt
        tl.debug_barrier()  # the next chunk writes over the scratch

    tl.store(part_A + sample * state * dim + kept, sum_A, mask=tile)
    if D is not None:
        tl.store(part_D + sample * dim + d, sum_D, mask=in_d)
    if bias is not None:
        tl.store(part_bias + sample * dim + d, sum_bias, mask=in_d)
