"""The specification of the gate and the norm behind a scan, in plain torch.

    out = weight * RMSNorm(y * SiLU(z)), each group of channels by itself

(Mamba-2, Dao & Gu, arXiv 2405.21060, section 7.1.) The backward pass computes everything from the
inputs again, so that they are all that is kept.

Shape legend: B batch, L positions, G groups, C channels of a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.inputs import GateInputs, Gradients, wide_dtype

FAST_ON = ("cpu", "cuda")
EPS = 1e-5


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: it runs everywhere."""
    return None


def gate_forward(x: GateInputs) -> Tensor:
    """out (B, L, G, C) in y's dtype."""
    wide = wide_dtype(x.y.dtype)
    out = x.y.to(wide) * F.silu(x.z.to(wide))
    if x.weight is not None:
        out = F.rms_norm(out, out.shape[-1:], eps=EPS) * x.weight
    return out.to(x.y.dtype)


def gate_backward(grad_out: Tensor, x: GateInputs) -> Gradients:
    """Gradients of y, z and weight."""
    wide = wide_dtype(x.y.dtype)
    y, z, grad = x.y.to(wide), x.z.to(wide), grad_out.to(wide)
    gate, grad_weight = F.silu(z), None
    if x.weight is not None:
        gated = y * gate
        scale = (gated.square().mean(-1, keepdim=True) + EPS).rsqrt()
        normed = gated * scale
        grad_weight = (grad * normed).sum((0, 1))
        grad = grad * x.weight
        grad = scale * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    grad_z = torch.ops.aten.silu_backward(grad * y, z)
    return (grad * gate).to(x.y.dtype), grad_z.to(x.z.dtype), grad_weight
