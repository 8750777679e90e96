"""Mamba-2 and Mamba-3 against their recurrences, token by token: outputs and every gradient.

Every order, every backend that has float64, lengths around a chunk and beyond, subsets of one token
and of odd size, decays next to 1 and to 0; and what 16 bits make of it.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.models.mixers import test_mamba2 as mamba2
from tests.models.mixers import test_mamba3 as mamba3
from tread_ssm.routing import Layout
from tread_ssm.scan.dispatch import ENVIRONMENT_VARIABLE
from tread_ssm.scan.order import ORDER_NAMES, rank_table

MIXERS = pytest.mark.parametrize("kind", [mamba2, mamba3], ids=["mamba2", "mamba3"])
BACKENDS = pytest.mark.parametrize("backend", ["matmul", "reference"])
GRIDS = {1: (1, 1), 63: (7, 9), 64: (8, 8), 65: (5, 13), 238: (14, 17), 500: (20, 25)}
Grid = tuple[int, int]


def stream(grid: Grid, order: str, kept: int | None) -> tuple[Layout, Tensor]:
    """A stream of one sample, and its tokens; `kept` of them are there, or all."""
    n = grid[0] * grid[1]
    index = None if kept is None else torch.randperm(n)[:kept].sort().values[None]
    layout = Layout(grid, index, 0, {order: rank_table(order, grid)})
    return layout, torch.randn(1, kept or n, 8, dtype=torch.float64, requires_grad=True)


def by_hand(kind: ModuleType, made: nn.Module, layout: Layout, x: Tensor, order: str) -> Tensor:
    places = range(x.shape[1]) if layout.index is None else layout.index[0].tolist()
    path = rank_table(order, layout.grid).argsort().tolist()
    found = kind.by_hand(made, dict(zip(places, x[0], strict=True)), path)
    return torch.stack([found[place] for place in places])[None]


def assert_equal(kind: ModuleType, made: nn.Module, layout: Layout, x: Tensor, order: str) -> None:
    """Output and all gradients to 1e-10 of their size."""
    outs = made(x, layout), by_hand(kind, made, layout, x, order)
    weight = torch.randn_like(x)
    leaves = {"x": x, **dict(made.named_parameters())}
    grads = [torch.autograd.grad((out * weight).sum(), list(leaves.values())) for out in outs]
    for name, got, want in zip(["y", *leaves], *((y, *g) for y, g in zip(outs, grads, strict=True)),
                               strict=True):  # fmt: skip
        got, want = got.detach(), want.detach()
        error = (got - want).square().mean().sqrt()
        assert float(error) <= 1e-10 * max(1e-3, float(want.square().mean().sqrt())), name


@MIXERS
@BACKENDS
@pytest.mark.parametrize("length", GRIDS)
def test_lengths(
    kind: ModuleType, backend: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, backend)
    made = kind.mixer("column", head_dim=8)
    layout, x = stream(GRIDS[length], "column", None)
    assert_equal(kind, made, layout, x, "column")


@MIXERS
@BACKENDS
@pytest.mark.parametrize("order", ORDER_NAMES)
def test_orders_and_subsets(
    kind: ModuleType, backend: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, backend)
    true_distance = "true_distance_conv" if kind is mamba2 else "true_distance"
    for options in ({}, {"gap_decay": True, true_distance: True}):
        made = kind.mixer(order, **options)
        for kept in (1, 7):
            layout, x = stream((3, 5), order, kept)
            assert_equal(kind, made, layout, x, order)


def set_decays(made: nn.Module, strong: bool) -> None:
    """Log decays of about -50, or of about -1e-6, for tokens whose first channel is 1."""
    with torch.no_grad():
        made.dt_bias.fill_(1.0)  # steps of about 1.3
        if isinstance(made, mamba2.Mamba2):
            made.A_log.fill_(3.6 if strong else -14.0)
        else:
            _, _, _, _, _, rate, *_ = made.in_proj.weight.split(made.sizes)
            rate.zero_()
            rate[:, 0] = 37.0 if strong else -1e6  # rates of 38, and of 1e-6


@MIXERS
@BACKENDS
@pytest.mark.parametrize("strong", [False, True], ids=["near_0", "-50"])
def test_decays(
    kind: ModuleType, backend: str, strong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, backend)
    made = kind.mixer("hilbert", head_dim=8, **({"decay_floor": 0.0} if kind is mamba3 else {}))
    set_decays(made, strong)
    layout, x = stream((8, 9), "hilbert", 67)
    x = x.detach().index_fill(2, torch.tensor(0), 1.0).requires_grad_()
    assert_equal(kind, made, layout, x, "hilbert")


@MIXERS
@pytest.mark.parametrize("backend", [None, "matmul", "reference"])
def test_bfloat16_is_within_one_percent(
    kind: ModuleType, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, backend)
    made = kind.mixer("column", head_dim=8).bfloat16().float()
    layout, x = stream((8, 9), "column", 67)
    x = x.detach().bfloat16().float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            got = made(x, layout)
        want = by_hand(kind, made.double(), layout, x.double(), "column")
    error = (got - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert 0 < float(error) < 1e-2
