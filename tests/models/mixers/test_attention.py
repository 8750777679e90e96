"""Attention as a mixer: subsets, rotary positions, hybrids."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.models import AttentionConfig, DiMConfig, Mamba2Config, ZigMambaConfig
from tread_ssm.models.mixers import Attention, Mamba2
from tread_ssm.models.mixers.attention import rotary_angles
from tread_ssm.routing import Layout, Route, TokenSubset

GRID, N, PREFIX = (3, 5), 15, 2


def mixer(**options: object) -> Attention:
    torch.manual_seed(0)
    made = AttentionConfig(**{"head_dim": 8, **options}).build(16, "raster")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.double()


def some_subset() -> TokenSubset:
    return TokenSubset(torch.stack([torch.randperm(N)[:7].sort().values for _ in range(2)]), N)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_over_a_subset_it_is_dense_attention_with_dropped_keys_masked(
    rope: bool, qk_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, subset = mixer(rope=rope, qk_norm=qk_norm), some_subset()
    x, whole = torch.randn(2, PREFIX + N, 16, dtype=torch.float64), subset.with_prefix(PREFIX)
    routed = made(whole.take(x), Layout(GRID, n_prefix=PREFIX).take(subset))
    real, mask = F.scaled_dot_product_attention, whole.mask()[:, None, None]
    masked: Callable[..., Tensor] = lambda q, k, v: real(q, k, v, attn_mask=mask)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", masked)
    dense = made(x, Layout(GRID, n_prefix=PREFIX))
    torch.testing.assert_close(routed, whole.take(dense), rtol=1e-12, atol=1e-12)


def test_it_equals_a_loop_over_queries() -> None:
    made, subset = mixer(), some_subset()
    x = torch.randn(2, PREFIX + 7, 16, dtype=torch.float64)
    out = made(x, Layout(GRID, subset.index, PREFIX))
    frequency = [1.0, 0.1]  # head_dim 8: two pairs for the row, two for the column
    for b in range(2):
        q, k, v = (x[b] @ made.qkv.weight.T + made.qkv.bias).chunk(3, dim=1)
        places = [None] * PREFIX + [divmod(int(i), 5) for i in subset.index[b]]

        def head(y: Tensor, norm: torch.nn.RMSNorm, token: int, a: int) -> Tensor:
            y = y[token, 8 * a : 8 * a + 8]
            y = y / (y.square().mean() + 1e-5).sqrt() * norm.weight
            if places[token] is None:  # noqa: B023
                return y
            row, column = places[token]  # type: ignore[misc]  # noqa: B023
            angle = torch.tensor(
                [side * f for side in (row, column) for f in frequency], dtype=torch.float64
            )
            turn = torch.exp(1j * angle)
            return torch.view_as_real(torch.complex(y[::2], y[1::2]) * turn).flatten()

        ys = []
        for i in range(PREFIX + 7):
            parts = []
            for a in range(2):
                keys = torch.stack([head(k, made.k_norm, j, a) for j in range(PREFIX + 7)])
                weights = (keys @ head(q, made.q_norm, i, a) / 8**0.5).softmax(0)
                parts.append(weights @ v[:, 8 * a : 8 * a + 8])
            ys.append(torch.cat(parts))
        expected = torch.stack(ys) @ made.out_proj.weight.T + made.out_proj.bias
        torch.testing.assert_close(out[b], expected, rtol=1e-10, atol=1e-10)


def test_rotary_positions_travel_with_the_tokens() -> None:
    subset, like = some_subset(), torch.zeros(1)
    dense = rotary_angles(Layout(GRID, n_prefix=PREFIX), 8, like).expand(2, -1, -1)
    routed = rotary_angles(Layout(GRID, n_prefix=PREFIX).take(subset), 8, like)
    assert dense.shape == (2, PREFIX + N, 4) and torch.count_nonzero(dense[:, :PREFIX]) == 0
    assert torch.equal(routed, subset.with_prefix(PREFIX).take(dense))
    with torch.autocast("cpu", torch.bfloat16):
        made = mixer().float()
        x = torch.randn(1, N, 16)
        assert made(x, Layout(GRID)).isfinite().all()


@pytest.mark.parametrize("config", [DiMConfig, ZigMambaConfig])
def test_a_hybrid_has_attention_in_every_fourth_block(
    config: type[DiMConfig] | type[ZigMambaConfig],
) -> None:
    mixers = {
        "mixer": Mamba2Config(d_state=8, head_dim=8),
        "attention": AttentionConfig(head_dim=8),
    }
    shape = {"image_size": 8, "channels": 3, "n_classes": 4, "dim": 16, "depth": 9}
    model = config(**shape, **mixers, attention_every=4).build()
    kinds = [type(block.mixer) for block in model.blocks]
    assert kinds == [Attention if i in (3, 7) else Mamba2 for i in range(9)]


@pytest.mark.parametrize("config", [DiMConfig, ZigMambaConfig])
def test_a_shared_attention_is_own_ones_with_equal_weights(
    config: type[DiMConfig] | type[ZigMambaConfig],
) -> None:
    options = {
        **{"image_size": 8, "channels": 3, "n_classes": 4, "dim": 16, "depth": 5},
        **{"mixer": Mamba2Config(d_state=8, head_dim=8), "attention_every": 2},
        "attention": AttentionConfig(head_dim=8),
    }
    shared, own = config(**options, attention_shared=True).build(), config(**options).build()
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state = shared.state_dict()
    attention = {k.removeprefix("shared."): state.pop(k) for k in list(state) if k[:6] == "shared"}
    assert set(attention) == set(dict(own.blocks[1].mixer.named_parameters()))
    for i in (1, 3):
        state |= {f"blocks.{i}.mixer.{k}": v for k, v in attention.items()}
    own.load_state_dict(state)
    subset = TokenSubset(torch.stack([torch.randperm(16)[:7].sort().values for _ in range(2)]), 16)
    batch = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 4])
    outs = [copy.deepcopy(m)(*batch, routing=((Route(1, 4), subset),)) for m in (shared, own)]
    assert torch.equal(*outs)
    grads = []
    for model in (shared, own):
        model(*batch, routing=((Route(1, 4), subset),)).square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters()})
    both = grads[1]["blocks.1.mixer.qkv.weight"] + grads[1]["blocks.3.mixer.qkv.weight"]
    torch.testing.assert_close(grads[0]["shared.qkv.weight"], both)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_shared": True}, "attention_every is 0: no block has attention"),
        ({"attention_every": -1}, "attention_every is -1"),
        ({"attention_every": 2, "attention": AttentionConfig(head_dim=32)}, "16 channels are not"),
        ({"mixer": Mamba2Config(head_dim=24)}, "32 channels are not a multiple of head_dim 24"),
    ],
)
def test_impossible_hybrids_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiMConfig(image_size=8, channels=3, n_classes=4, dim=16, depth=5, **options)


def test_rows_and_columns_need_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="head_dim is 6; rows and columns need a multiple of 4"):
        AttentionConfig(head_dim=6)
