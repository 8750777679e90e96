"""Self-attention over whatever tokens are there, and DiT's block around it.

Shape legend: B batch, L tokens of the stream, D channels of a token, A heads.

Source: DiT (Peebles and Xie, arXiv 2212.09748).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.embed import modulate
from tread_ssm.tokens import Layout


class Attention(nn.Module):
    """x_BLD -> x_BLD; every token attends to every token of the stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B A L .
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Attention, then an MLP, each as x + gate * f(LayerNorm(x) * (1 + scale) + shift).

    The six vectors of the modulation come from a Linear of SiLU(cond_BD): adaLN-zero. Positions
    are in the tokens, so the layout is not looked at.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        from timm.layers import GELUTanh, Mlp  # here, so that the Mamba backbones need no timm

        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, cond: Tensor, layout: Layout) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(cond)).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
