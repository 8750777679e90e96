"""Self-attention over whatever tokens are there.

Shape legend: B batch, L tokens of the stream, D channels of a token, A heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.mixers.mixer import Mixer
from tread_ssm.tokens import Layout


class Attention(Mixer):
    """x_BLD -> x_BLD; every token attends to every token of the stream, wherever it sits."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # B A L .
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2))
