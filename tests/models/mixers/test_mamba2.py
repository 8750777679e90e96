"""Mamba-2 against its recurrence, token by token, and against transformers' own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.mixers.both_ways import check_two_passes
from tread_ssm.models.mixers import Mamba2, Mamba2Config
from tread_ssm.routing import Layout, TokenSubset
from tread_ssm.scan.order import ORDER_NAMES, rank_table

SMALL = {"d_state": 3, "head_dim": 4, "groups": 2}
GRID, N = (3, 5), 15


def mixer(order: str = "raster", **options: object) -> Mamba2:
    """A small mixer in float64 in which no parameter is zero or one."""
    torch.manual_seed(0)
    made = Mamba2Config(**{**SMALL, **options}).build(8, order)
    made.init_weights()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.double()


def layout_of(order: str, index: Tensor | None = None, n_prefix: int = 0) -> Layout:
    return Layout(GRID, index, n_prefix, {order: rank_table(order, GRID)})


def by_hand(m: Mamba2, tokens: dict[int, Tensor], path: list[int]) -> dict[int, Tensor]:
    """One sample: tokens by place, the prefix at -P .. -1; `path` lists all places in order."""
    c = m.config
    inner, states = 16, c.groups * c.d_state
    sizes = [inner, inner + 2 * states, m.heads]
    parts = {p: (m.in_proj.weight @ t).split(sizes) for p, t in tokens.items()}
    full = [*range(min(0, *tokens), 0), *path]
    present = [p for p in full if p in tokens]
    h = [torch.zeros(c.d_state, c.head_dim, dtype=torch.float64) for _ in range(m.heads)]
    out, missing = {}, 0
    for time, place in enumerate(full):
        if place not in tokens:
            missing += 1
            continue
        line = full if c.true_distance_conv else present
        at = time if c.true_distance_conv else present.index(place)
        mixed = m.conv1d.bias.clone()
        for back in range(c.d_conv):
            if at >= back and line[at - back] in tokens:
                mixed = mixed + m.conv1d.weight[:, 0, -1 - back] * parts[line[at - back]][1]
        u, B, C = F.silu(mixed).split([inner, states, states])
        z, _, dt = parts[place]
        dt = torch.log1p(torch.exp(dt + m.dt_bias))
        y = []
        for head in range(m.heads):
            group = head // (m.heads // c.groups)
            b, q = (x[group * c.d_state : (group + 1) * c.d_state] for x in (B, C))
            v = u[head * c.head_dim : (head + 1) * c.head_dim]
            decay = torch.exp(-dt[head] * m.A_log[head].exp())
            h[head] = decay ** (1 + (missing if c.gap_decay else 0)) * h[head]
            h[head] = h[head] + torch.outer(b, dt[head] * v)
            y.append(q @ h[head] + m.D[head] * v)
        gated = torch.cat(y) * F.silu(z)
        if c.norm:
            halves = [g / (g.square().mean() + 1e-5).sqrt() for g in gated.chunk(c.groups)]
            gated = torch.cat(halves) * m.norm.weight
        out[place] = m.out_proj.weight @ gated
        missing = 0
    return out


@pytest.mark.parametrize("order", ORDER_NAMES)
@pytest.mark.parametrize(
    "options",
    [{}, {"true_distance_conv": True}, {"gap_decay": True}, {"norm": False, "d_conv": 2}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_over_a_subset_it_equals_the_recurrence_along_the_full_path(
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


@pytest.mark.parametrize("order", ["raster", "column_reversed", "hilbert"])
def test_a_missing_token_is_one_with_a_step_of_zero(order: str) -> None:
    """Exactly so where the convolution reads nothing but the token itself."""
    made = mixer(order)
    with torch.no_grad():
        made.conv1d.weight[..., :-1] = 0
    subset = TokenSubset(torch.stack([torch.randperm(N)[:6].sort().values for _ in range(2)]), N)
    x = torch.randn(2, N, 8, dtype=torch.float64)
    routed = made(subset.take(x), layout_of(order).take(subset))

    dropped = ~subset.mask()[..., None]
    made.in_proj.register_forward_hook(  # softplus(-1000) = 0
        lambda m, a, out: (*out[:2], out[2].masked_fill(dropped, -1e3))
    )
    silent = made(x, layout_of(order))
    torch.testing.assert_close(routed, subset.take(silent), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 63, 130])
def test_it_equals_the_mixer_of_transformers_with_the_same_weights(length: int) -> None:
    hub = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config as HubConfig

    config = HubConfig(
        **{"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 24, "n_groups": 1},
        **{"expand": 2, "conv_kernel": 4, "use_bias": False, "chunk_size": 16},
    )
    theirs = hub.Mamba2Mixer(config, layer_idx=0)
    torch.manual_seed(0)
    ours = Mamba2Config(d_state=24, head_dim=16).build(32, "raster")
    ours.init_weights()
    with torch.no_grad():
        ours.norm.weight.uniform_(0.5, 1.5)
        ours.D.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, length, 32)
    weight = torch.randn_like(x)
    outs = [ours(x, Layout((1, length))), theirs(x)]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
    grads = [
        torch.autograd.grad((out * weight).sum(), list(m.parameters()))
        for out, m in zip(outs, (ours, theirs), strict=True)
    ]
    theirs_by_name = dict(zip(dict(theirs.named_parameters()), grads[1], strict=True))
    for name, grad in zip(dict(ours.named_parameters()), grads[0], strict=True):
        torch.testing.assert_close(grad, theirs_by_name[name], rtol=1e-3, atol=1e-4)


def directions(made: Mamba2) -> list[dict[str, Tensor]]:
    """The parameters of one mixer for each direction, as parts of those of `made`."""
    with torch.no_grad():
        made.conv1d.weight[..., :-1] = 0
    sizes, heads = made.sizes, made.heads
    ways = (len(sizes) - 1) // 2
    conv_weight, conv_bias = (made.conv1d.weight.split(sizes), made.conv1d.bias.split(sizes))
    found = []
    for way, D in zip((0, ways - 1), (made.D, made.D * 0), strict=True):
        parts = (0, 1 + 2 * way, 2 + 2 * way)
        z, mixed, dt = made.in_proj.weight.split(made.in_proj.sizes)
        rows = [mixed.split(sizes)[i] for i in parts]
        found.append(
            {
                "in_proj.weight": torch.cat([z, *rows, dt.split(heads)[way]]),
                "conv1d.weight": torch.cat([conv_weight[i] for i in parts]),
                "conv1d.bias": torch.cat([conv_bias[i] for i in parts]),
                "dt_bias": made.dt_bias.split(heads)[way],
                "A_log": made.A_log.split(heads)[way],
                "D": D,
                "out_proj.weight": made.out_proj.weight,
            }
        )
    return found


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("order", ["raster", "column"])
@pytest.mark.parametrize(
    "options", [{}, {"gap_decay": True, "true_distance_conv": True}], ids=["plain", "options"]
)
def test_two_directions_are_two_passes_along_opposite_orders(
    order: str, options: dict[str, object], own: bool
) -> None:
    """Where all else is linear, and the convolution reads the token itself."""
    back = f"{order}_reversed"
    options = {"norm": False, **options}
    both = mixer(order, bidirectional=True, own_backward=own, **options)
    passes = [mixer(name, **options) for name in (order, back)]
    check_two_passes(both, passes, directions, (order, back), GRID, "conv1d.weight")


def test_it_starts_as_mamba2_says() -> None:
    torch.manual_seed(0)
    made = Mamba2Config(head_dim=2).build(512, "raster")
    made.init_weights()
    A = made.A_log.detach().exp()
    assert A.shape == (512,) and 1 <= float(A.min()) < 1.2 and 15.8 < float(A.max()) <= 16
    assert 8 < float(A.mean()) < 9  # uniform, not log-uniform
    dt = F.softplus(made.dt_bias.detach())
    assert 1e-3 * 0.99 < float(dt.min()) < 2e-3 and 0.05 < float(dt.max()) < 0.1 * 1.01
    assert torch.equal(made.D, torch.ones(512)) and torch.equal(made.norm.weight, torch.ones(1024))
    assert made.conv1d.weight.shape == (1024 + 256, 1, 4)
    assert made.in_proj.weight.shape == (2 * 1024 + 2 * 128 + 512, 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state is 0; it must be at least 1"),
        ({"d_conv": 5}, r"d_conv is 5; it must be in 2\.\.4"),
        ({"head_dim": 3}, "16 channels are not a multiple of head_dim 3"),
        ({"head_dim": 4, "groups": 3}, "4 heads cannot be shared by 3 groups"),
        ({"own_backward": True}, "own_backward needs bidirectional"),
    ],
)
def test_impossible_mixers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mamba2Config(**options).check(8)
