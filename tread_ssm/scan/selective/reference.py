"""The specification of the scan and of the convolution: plain torch, any floating dtype.

Slow and hungry for memory on purpose: every state of every visit is kept, and each line is one
term of the equations of Mamba (Gu & Dao, arXiv 2312.00752, equation 2 and section 3.6), with the
visiting order and the gap of missing tokens added. Backends are tested against this file.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, W taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.inputs import ConvInputs, Gradients, ScanInputs, wide_dtype
from tread_ssm.scan.visits import check_gap, gap_scale, put, take, visited_positions

FAST_ON = ()


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: the reference runs everywhere."""
    return None


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """The reference keeps nothing between forward and backward."""
    return (0,)


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype, and an empty tensor."""
    u, delta, A, B, C, D, z, delta_bias, order, gap, delta_softplus = x
    visit = visited_positions(order, u)
    u_BKD, dt_BKD, B_BKN, C_BKN = (take(t, visit) for t in (u, delta, B, C))
    dt_BKD = step_size(dt_BKD, delta_bias, delta_softplus)
    _, h = _states(u_BKD, dt_BKD, A, B_BKN, gap)
    y = (h * C_BKN.unsqueeze(2)).sum(-1)  # not a matrix product: its rounding depends on K
    if D is not None:
        y = y + D * u_BKD
    if z is not None:
        y = y * F.silu(take(z, visit))
    return put(y, visit, u), u.new_empty(0, dtype=wide_dtype(u.dtype))


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias."""
    u, delta, A, B, C, D, z, delta_bias, order, gap, delta_softplus = x
    visit = visited_positions(order, u)
    u_BKD, delta_BKD, B_BKN, C_BKN, g_BKD = (take(t, visit) for t in (u, delta, B, C, grad_y))
    dt_BKD = step_size(delta_BKD, delta_bias, delta_softplus)
    decay, h = _states(u_BKD, dt_BKD, A, B_BKN, gap)

    grad_z = None
    if z is not None:
        y = torch.einsum("bkdn,bkn->bkd", h, C_BKN)
        if D is not None:
            y = y + D * u_BKD
        z_BKD = take(z, visit)
        grad_z = put(g_BKD * y * silu_slope(z_BKD), visit, z)
        g_BKD = g_BKD * F.silu(z_BKD)

    # gradient of the states: each receives from its output and from the state after it
    from_output = torch.einsum("bkd,bkn->bkdn", g_BKD, C_BKN).unbind(1)
    grads = [torch.zeros_like(from_output[0])]
    for direct, next_decay in zip(
        from_output[::-1], (torch.zeros_like(A), *decay.unbind(1)[:0:-1]), strict=True
    ):
        grads.append(direct + next_decay * grads[-1])
    gh = torch.stack(grads[:0:-1], 1)

    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    grad_exponent = gh * decay * before
    scale = gap_scale(gap, u_BKD.dtype)
    grad_input = torch.einsum("bkdn,bkn->bkd", gh, B_BKN)  # of dt * u
    grad_dt = torch.einsum("bkdn,dn->bkd", grad_exponent, A) * scale + grad_input * u_BKD
    grad_A = torch.einsum("bkdn,bkd->dn", grad_exponent, dt_BKD * scale)
    grad_B = torch.einsum("bkdn,bkd->bkn", gh, dt_BKD * u_BKD)
    grad_C = torch.einsum("bkdn,bkd->bkn", h, g_BKD)
    grad_u = grad_input * dt_BKD
    grad_D = None
    if D is not None:
        grad_u = grad_u + D * g_BKD
        grad_D = (u_BKD * g_BKD).sum((0, 1))
    if delta_softplus:
        grad_dt = grad_dt * torch.sigmoid(delta_BKD + (0 if delta_bias is None else delta_bias))
    return (
        put(grad_u, visit, u),
        put(grad_dt, visit, delta),
        grad_A,
        put(grad_B, visit, B),
        put(grad_C, visit, C),
        grad_D,
        grad_z,
        None if delta_bias is None else grad_dt.sum((0, 1)),
    )


def conv_forward(inputs: ConvInputs) -> Tensor:
    """y (B, L, D) in x's dtype."""
    x, weight, bias, order, gap, activation = inputs
    visit = visited_positions(order, x)
    y = _convolved(take(x, visit), weight, bias, gap)
    return put(F.silu(y) if activation else y, visit, x)


def conv_backward(grad_y: Tensor, inputs: ConvInputs) -> Gradients:
    """Gradients of x, weight and bias."""
    x, weight, bias, order, gap, activation = inputs
    visit = visited_positions(order, x)
    x_BKD, g_BKD = take(x, visit), take(grad_y, visit)
    if activation:
        g_BKD = g_BKD * silu_slope(_convolved(x_BKD, weight, bias, gap))
    width = weight.shape[1]
    grad_x = torch.zeros_like(x_BKD)
    grad_weight = torch.zeros_like(weight)
    for back, distance, reads in taps(gap, x_BKD.shape[1], width, x.device):
        tap = width - 1 - distance
        g = g_BKD[:, back:] * reads.unsqueeze(-1)
        source = x_BKD[:, : x_BKD.shape[1] - back]
        grad_x[:, : x_BKD.shape[1] - back] += g * weight[:, tap]
        grad_weight[:, tap] += (g * source).sum((0, 1))
    grad_bias = None if bias is None else g_BKD.sum((0, 1))
    return put(grad_x, visit, x), grad_weight, grad_bias


# Parts that the chunked backend shares ---------------------------------------------------------


def step_size(delta_BKD: Tensor, delta_bias: Tensor | None, softplus: bool) -> Tensor:
    """dt = softplus(delta + delta_bias)."""
    x = delta_BKD if delta_bias is None else delta_BKD + delta_bias
    return F.softplus(x) if softplus else x


def silu_slope(x: Tensor) -> Tensor:
    """Derivative of SiLU."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def taps(
    gap: Tensor | None, visits: int, width: int, device: torch.device
) -> list[tuple[int, int, Tensor]]:
    """(visits back, distance, (1 or B, K - back) 0/1: does the visit read that far back there?).

    Without a gap the two coincide; with one, the visit m steps back sits
    sum of (gap + 1) over the last m visits away, and is read by the tap of just that distance.
    """
    if gap is None:
        everywhere = torch.ones(1, visits, device=device)
        return [(m, m, everywhere[:, m:]) for m in range(min(width, visits))]
    check_gap(gap)
    place = (gap.view(-1, visits).clamp(max=width) + 1).cumsum(1)  # more reaches no further
    found = []
    for m in range(min(width, visits)):
        distance = place[:, m:] - place[:, : visits - m]
        found += [(m, j, (distance == j).to(torch.float32)) for j in range(m, width)]
    return found


def _convolved(x_BKD: Tensor, weight: Tensor, bias: Tensor | None, gap: Tensor | None) -> Tensor:
    width = weight.shape[1]
    y = torch.zeros_like(x_BKD)
    for back, distance, reads in taps(gap, x_BKD.shape[1], width, x_BKD.device):
        source = x_BKD[:, : x_BKD.shape[1] - back]
        y[:, back:] += source * weight[:, width - 1 - distance] * reads.unsqueeze(-1)
    return y if bias is None else y + bias


def _states(
    u_BKD: Tensor, dt_BKD: Tensor, A: Tensor, B_BKN: Tensor, gap: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Decays and states of every visit, both (B, K, D, N)."""
    decay = torch.exp((dt_BKD * gap_scale(gap, u_BKD.dtype)).unsqueeze(-1) * A)
    inputs = (dt_BKD * u_BKD).unsqueeze(-1) * B_BKN.unsqueeze(2)
    states = [torch.zeros_like(inputs[:, 0])]
    # unbind once: indexing inside the loop would make autograd's backward quadratic in K
    for a, x in zip(decay.unbind(1), inputs.unbind(1), strict=True):
        states.append(a * states[-1] + x)
    return decay, torch.stack(states[1:], 1)
