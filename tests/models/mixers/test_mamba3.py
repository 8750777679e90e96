"""Mamba-3 against its recurrence, token by token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.mixers.both_ways import check_two_passes
from tread_ssm.models.mixers import Mamba3, Mamba3Config
from tread_ssm.routing import Layout
from tread_ssm.scan.order import ORDER_NAMES, rank_table

SMALL = {"d_state": 8, "head_dim": 4, "groups": 2}
GRID, N = (3, 5), 15


def mixer(order: str = "raster", **options: object) -> Mamba3:
    """A small mixer in float64 in which no parameter is zero or one."""
    torch.manual_seed(0)
    made = Mamba3Config(**{**SMALL, **options}).build(8, order)
    made.init_weights()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        made.in_proj.weight.mul_(3)  # decays, angles and trapezoids that differ
    return made.double()


def layout_of(order: str, index: Tensor | None = None, n_prefix: int = 0) -> Layout:
    return Layout(GRID, index, n_prefix, {order: rank_table(order, GRID)})


def turn(x: Tensor, theta: Tensor) -> Tensor:
    """The first pairs of neighbours as complex numbers, times exp(i theta)."""
    n = 2 * len(theta)
    pairs = torch.complex(x[0:n:2], x[1:n:2]) * torch.exp(1j * theta)
    return torch.cat([torch.view_as_real(pairs).flatten(), x[n:]])


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-5).sqrt() * weight


def by_hand(m: Mamba3, tokens: dict[int, Tensor], path: list[int]) -> dict[int, Tensor]:
    """One sample: tokens by place, the prefix at -P .. -1; `path` lists all places in order."""
    c, n = m.config, m.config.d_state
    h = [torch.zeros(n, c.head_dim, dtype=torch.float64) for _ in range(m.heads)]
    theta = [torch.zeros(c.angles, dtype=torch.float64) for _ in range(m.heads)]
    before: list[tuple[Tensor, Tensor] | None] = [None] * m.heads
    out, missing = {}, 0
    for place in [*range(min(0, *tokens), 0), *path]:
        if place not in tokens:
            missing += 1
            continue
        z, u, B, C, dts, rates, traps, angle = (m.in_proj.weight @ tokens[place]).split(m.sizes)
        ys = []
        for head in range(m.heads):
            group = head // (m.heads // c.groups)
            part = slice(group * n, (group + 1) * n)
            x = u[head * c.head_dim : (head + 1) * c.head_dim]
            dt = torch.log1p(torch.exp(dts[head] + m.dt_bias[head]))
            a = rates[head]
            if c.decay == "softplus":
                rate = torch.log1p(torch.exp(a))
            else:
                rate = 1 + a if a >= 0 else 1 / (1 - a)
            alpha = torch.exp(-dt * max(rate, torch.tensor(c.decay_floor)))
            if c.gap_decay:
                alpha = alpha ** (1 + missing)
            theta[head] = (theta[head] + math.pi * torch.tanh(angle) * dt) % (2 * math.pi)
            k = turn(rms(B[part], m.B_norm.weight) + m.B_bias[head], theta[head])
            q = turn(rms(C[part], m.C_norm.weight) + m.C_bias[head], theta[head])
            lam = torch.sigmoid(traps[head])
            if c.true_distance and missing:
                lam = torch.ones_like(lam)
            h[head] = alpha * h[head]
            if before[head] is not None:
                h[head] = h[head] + (1 - lam) * dt * alpha * torch.outer(*before[head])
            h[head] = h[head] + lam * dt * torch.outer(k, x)
            before[head] = (k, x)
            y = q @ h[head] + m.D[head] * x
            if c.norm:
                y = rms(y, m.norm.weight[head * c.head_dim : (head + 1) * c.head_dim])
            ys.append(y)
        out[place] = m.out_proj.weight @ (torch.cat(ys) * F.silu(z))
        missing = 0
    return out


OPTIONS = [
    {},
    {"decay": "softplus", "norm": True},
    {"true_distance": True},
    {"gap_decay": True},
    {"rope_fraction": 0.0, "decay_floor": 1.5},
    {"rope_fraction": 1.0, "groups": 4},
]


@pytest.mark.parametrize("order", ORDER_NAMES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "plain"))
def test_over_a_subset_it_equals_the_recurrence_over_the_kept_tokens(
    order: str, options: dict[str, object]
) -> None:
    made = mixer(order, **options)
    index = torch.stack([torch.randperm(N)[:7].sort().values for _ in range(2)])
    x = torch.randn(2, 2 + 7, 8, dtype=torch.float64)
    with torch.no_grad():
        out = made(x, layout_of(order, index, 2))
        path = rank_table(order, GRID).argsort().tolist()
        for b in range(2):
            places = [-2, -1, *index[b].tolist()]
            expected = by_hand(made, dict(zip(places, x[b], strict=True)), path)
            hand = torch.stack([expected[p] for p in places])
            torch.testing.assert_close(out[b], hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ["raster", "column_reversed"])
def test_gradients_are_those_of_the_recurrence(order: str) -> None:
    made = mixer(order, true_distance=True, gap_decay=True)
    index = torch.randperm(N)[:6].sort().values[None]
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    path = rank_table(order, GRID).argsort().tolist()
    expected = by_hand(made, dict(zip(index[0].tolist(), x[0], strict=True)), path)
    hand = torch.stack([expected[p] for p in index[0].tolist()])[None]
    weight = torch.randn_like(hand)
    grads = [
        torch.autograd.grad((out * weight).sum(), list(made.parameters()))
        for out in (made(x, layout_of(order, index)), hand)
    ]
    for name, ours, theirs in zip(dict(made.named_parameters()), *grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_a_step_of_zero_is_not_a_missing_token() -> None:
    """The next token's trapezoid still reads the silent token; all before it agree."""
    torch.manual_seed(1)
    x = torch.randn(1, N, 8, dtype=torch.float64)
    keep = torch.tensor([[0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])  # 3 and 4 are missing

    def silenced(made: Mamba3) -> Tensor:
        missing = torch.zeros(1, N, 1, dtype=torch.bool)
        missing[:, 3:5] = True

        def hook(m: torch.nn.Module, a: object, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            dt = out[4].masked_fill(missing, -1e3)  # softplus(-1000) = 0
            return (*out[:4], dt, *out[5:])

        made.in_proj.register_forward_hook(hook)
        return made(x, layout_of("raster"))[:, keep[0]]

    plain = mixer()
    routed = plain(x[:, keep[0]], layout_of("raster", keep))
    difference = (routed - silenced(plain)).detach().abs().amax((0, 2))
    assert float(difference[:3].max()) < 1e-12 and float(difference[3]) > 1e-3


def directions(made: Mamba3) -> list[dict[str, Tensor]]:
    """The parameters of one mixer for each direction, as parts of those of `made`."""
    ways = 2 if made.config.own_backward else 1
    z, u, *others = made.in_proj.weight.split(made.sizes)
    found = []
    for way, D in zip((0, ways - 1), (made.D, made.D * 0), strict=True):
        rows = [part.unflatten(0, (ways, -1))[way] for part in others]
        own = {n: getattr(made, n).chunk(ways)[way] for n in ("dt_bias", "B_bias", "C_bias")}
        same = {f"{n}.weight": getattr(made, n).weight for n in ("B_norm", "C_norm", "out_proj")}
        found.append({**own, **same, "in_proj.weight": torch.cat([z, u, *rows]), "D": D})
    return found


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("order", ["raster", "column"])
@pytest.mark.parametrize(
    "options",
    [{}, {"gap_decay": True, "true_distance": True}, {"rope_fraction": 0.0}],
    ids=["plain", "options", "no_angles"],
)
def test_two_directions_are_two_passes_along_opposite_orders(
    order: str, options: dict[str, object], own: bool
) -> None:
    """Where all else is linear."""
    back = f"{order}_reversed"
    options = {"norm": False, **options}
    both = mixer(order, bidirectional=True, own_backward=own, **options)
    passes = [mixer(name, **options) for name in (order, back)]
    check_two_passes(both, passes, directions, (order, back), GRID)


def test_it_starts_as_mamba3_says() -> None:
    made = Mamba3Config().build(512, "raster")
    made.init_weights()
    assert made.heads == 16 and made.config.angles == 32
    assert made.in_proj.weight.shape == (2 * 1024 + 2 * 128 + 3 * 16 + 32, 512)
    for weight in (made.B_bias, made.C_bias, made.D, made.B_norm.weight, made.C_norm.weight):
        assert torch.equal(weight, torch.ones_like(weight))
    assert made.B_bias.shape == (16, 128) and made.B_norm.weight.shape == (128,)
    dt = F.softplus(made.dt_bias.detach())
    assert float(dt.min()) > 1e-3 * 0.99 and float(dt.max()) < 0.1 * 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 6, "rope_fraction": 0.5}, "must be an even number of states"),
        ({"rope_fraction": 1.5}, r"rope_fraction is 1\.5"),
        ({"rope_fraction": math.nan}, "rope_fraction is nan"),
        ({"decay": "relu"}, "decay is 'relu'"),
        ({"decay_floor": -1.0}, r"decay_floor is -1\.0"),
        ({"head_dim": 3}, "not a multiple of head_dim 3"),
        ({"own_backward": True}, "own_backward needs bidirectional"),
    ],
)
def test_impossible_mixers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mamba3Config(**options).check(8)
