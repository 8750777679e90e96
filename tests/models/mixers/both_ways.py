"""Two directions of a mixer in one product, against two passes of mixers with one direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tread_ssm.scan.order import OrderName, rank_table
from tread_ssm.tokens import Layout


def check_two_passes(
    both: nn.Module,
    passes: Sequence[nn.Module],
    directions: Callable[[Any], Sequence[dict[str, Tensor]]],
    orders: Sequence[OrderName],
    grid: tuple[int, int],
    last_taps: str | None = None,
) -> None:
    """Output and gradients, of a subset and of all tokens behind a prefix of two, in float64.

    Args:
        both: The mixer with two directions, of 8 channels.
        passes: A mixer for each direction.
        directions: Their parameters, as parts of those of `both`.
        orders: Their orders.
        grid: Rows and columns.
        last_taps: A convolution of which only the last taps are compared: the others are zero, but
            have gradients.
    """
    n = grid[0] * grid[1]
    index = torch.stack([torch.randperm(n)[:7].sort().values for _ in range(2)])
    tables = {name: rank_table(name, grid) for name in orders}
    for layout, length in (
        (Layout(grid, index, 2, tables), 9),
        (Layout(grid, None, 2, tables), n + 2),
    ):
        x = torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True)
        weight = torch.randn_like(x)
        pairs = zip(passes, directions(both), strict=True)
        expected = sum(functional_call(one, state, (x, layout)) for one, state in pairs)
        out = both(x, layout)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        leaves = [x, *both.parameters()]
        grads = [torch.autograd.grad((y * weight).sum(), leaves) for y in (out, expected)]
        for name, got, want in zip(["x", *dict(both.named_parameters())], *grads, strict=True):
            if name == last_taps:
                got, want = got[..., -1], want[..., -1]
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=name)
