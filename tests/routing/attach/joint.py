"""Blocks that see text and image together, and attention with the dropped keys masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tread_ssm.routing import Route, RoutePlan

D, HEADS = 8, 2
BATCH, GRID, N = 3, (2, 6), 12


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(depth: int, *route: int, batch: int = BATCH, **options: Any) -> Any:
    plan = RoutePlan((Route(*route, **options),), depth)
    return plan.draw(batch, GRID, torch.Generator().manual_seed(1))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S, D) with two heads; mask broadcasts to (B, heads, S, S), True: seen."""
    split = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


class Double(nn.Module):
    """Image and text in, text and image out; a table and a mask for both together."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.image, self.text = nn.Linear(D, 3 * D), nn.Linear(D, 3 * D)

    def forward(
        self, hidden: Tensor, text: Tensor, rope: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        parts = [self.image(hidden), self.text(text)]
        q, k, v = torch.cat(parts if self.first else parts[::-1], dim=1).chunk(3, dim=-1)
        if rope is not None:
            q, k = q * rope, k * rope
        out = attention(q, k, v, mask)
        n = hidden.shape[1]
        image, rest = (out[:, :n], out[:, n:]) if self.first else (out[:, -n:], out[:, :-n])
        return text + rest, hidden + image


class Single(nn.Module):
    """The same on one stream of both."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(D, 3 * D)

    def forward(
        self, hidden: Tensor, rope: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.both(hidden).chunk(3, dim=-1)
        if rope is not None:
            q, k = q * rope, k * rope
        return hidden + attention(q, k, v, mask)


class Model(nn.Module):
    """Three double blocks, three single ones, as Chroma and AuraFlow; image first or last."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.doubles = nn.ModuleList(Double(first) for _ in range(3))
        self.singles = nn.ModuleList(Single() for _ in range(3))

    def forward(self, x: Tensor, text: Tensor, **tables: Any) -> Tensor:
        """x_BND, text_BTD -> (B, T + N, D)."""
        for block in self.doubles:
            text, x = block(x, text, **tables)
        both = torch.cat([x, text] if self.first else [text, x], dim=1)
        for block in self.singles:
            both = block(both, **tables)
        return both

    def masked(
        self, x: Tensor, text: Tensor, kept: Tensor, start: int, stop: int, **tables: Any
    ) -> Tensor:
        """What a route over blocks [start, stop) must give: no token is dropped, but the keys of
        those outside kept_BN are hidden from the others, and at `stop` they are as at `start`."""
        n, base = x.shape[1], x
        seen = torch.ones(x.shape[0], n + text.shape[1], dtype=torch.bool)
        image = slice(0, n) if self.first else slice(text.shape[1], None)
        seen[:, image] = kept
        hidden = seen[:, None, None]
        plain = tables.pop("mask", None)
        both = torch.empty(0)
        for i, block in enumerate([*self.doubles, *self.singles]):
            if i == len(self.doubles):
                both = torch.cat([x, text] if self.first else [text, x], dim=1)
            if i == start:
                base = x if i < len(self.doubles) else both[:, image]
            mask = hidden if start <= i < stop else None
            if plain is not None:
                mask = plain if mask is None else plain & mask
            if i < len(self.doubles):
                text, x = block(x, text, mask=mask, **tables)
                x = torch.where(kept[..., None], x, base) if i + 1 == stop else x
            else:
                both = block(both, mask=mask, **tables)
                if i + 1 == stop:
                    restored = both.clone()
                    restored[:, image] = torch.where(kept[..., None], both[:, image], base)
                    both = restored
        return both
