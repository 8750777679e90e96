"""Self-attention over whatever tokens are there.

Shape legend: B batch, L tokens of the stream (prefix and whatever image tokens are present),
D channels, A heads of P channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tread_ssm.models.mixers.mixer import BaseMixerConfig, Mixer, check_range, count_heads, turned
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(BaseMixerConfig):
    """Self-attention as a mixer; it has no order.

    Attributes:
        head_dim: Channels of a head, a multiple of 4; it divides the stream's channels.
        qk_norm: RMSNorm with a weight on queries and keys (arXiv 2302.05442).
        rope: Queries and keys turn by the row and the column of their token (see rotary_angles).
    """

    kind: Literal["attention"] = "attention"
    head_dim: int = 64
    qk_norm: bool = True
    rope: bool = True

    def __post_init__(self) -> None:
        check_range("AttentionConfig: head_dim", self.head_dim, 1)
        if self.head_dim % 4:
            raise ValueError(
                f"AttentionConfig: head_dim is {self.head_dim}; rows and columns need a multiple "
                f"of 4."
            )

    def check(self, dim: int) -> None:
        """Raise ValueError where heads do not divide the stream's channels."""
        count_heads("AttentionConfig", dim, self.head_dim)

    def build(self, dim: int, order: OrderName) -> Attention:
        """The mixer of a stream of `dim` channels."""
        heads = count_heads("AttentionConfig", dim, self.head_dim)
        return Attention(dim, heads, qk_norm=self.qk_norm, rope=self.rope)


class Attention(Mixer):
    """x_BLD -> x_BLD; every token attends to every token of the stream, wherever it sits.

    Args:
        dim: D.
        heads: A.
        qk_norm: RMSNorm with a weight on queries and keys.
        rope: Queries and keys turn by the row and the column of their token.
        value_residual: Values are a * v + b * first, where `first` are values that all blocks of
            the network share, and a and b are learned, 0.5 at the start (Zhou et al.,
            arXiv 2410.17897, who share the values of the first block).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool = False,
        rope: bool = False,
        value_residual: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.rope = heads, rope
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.RMSNorm(dim // heads, eps=1e-5) if qk_norm else None
        self.k_norm = nn.RMSNorm(dim // heads, eps=1e-5) if qk_norm else None
        self.out_proj = nn.Linear(dim, dim)
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if value_residual else None

    def forward(self, x: Tensor, layout: Layout, first: Tensor | None = None) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD; first_BLD: see value_residual."""
        q, k, v = rearrange(self.qkv(x), "b l (qkv a p) -> qkv b a l p", qkv=3, a=self.heads)
        if self.value_mix is not None:
            assert first is not None
            own, shared = self.value_mix
            first = rearrange(first, "b l (a p) -> b a l p", a=self.heads)
            v = (own * v + shared * first).to(v.dtype)
        if self.q_norm is not None and self.k_norm is not None:
            wide = self.q_norm.weight.dtype
            q, k = self.q_norm(q.to(wide)), self.k_norm(k.to(wide))
        if self.rope:
            angles = rotary_angles(layout, q.shape[-1], x).unsqueeze(1)
            q, k = turned(q, angles), turned(k, angles)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.out_proj(rearrange(y, "b a l p -> b l (a p)"))


def rotary_angles(layout: Layout, head_dim: int, like: Tensor) -> Tensor:
    """(1 or B, L, P / 2): by how much pairs of channels turn, from where each token sits.

    Half of the pairs turn by the row, half by the column, at angular frequencies 1 down to 1/100
    (axial RoPE for images, Heo et al., arXiv 2403.13298). The prefix does not turn.
    """
    rows, columns = layout.grid
    index = layout.index
    if index is None:
        index = torch.arange(rows * columns, device=like.device)[None]
    wide = torch.promote_types(like.dtype, torch.float32)
    quarter = head_dim // 4
    frequency = 100.0 ** (-torch.arange(quarter, device=like.device, dtype=wide) / quarter)
    places = torch.stack([index // columns, index % columns], dim=-1)
    angles = (places.unsqueeze(-1) * frequency).flatten(-2)
    return F.pad(angles, (0, 0, layout.n_prefix, 0))
