"""DiT as published and as of 2026: the block written out, subsets, what options add."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.models import DiT, DiTConfig
from tread_ssm.models.convert import to_published
from tread_ssm.models.dit import Conditioning, DiTBlock
from tread_ssm.models.mixers.attention import rotary_angles
from tread_ssm.routing import Layout, TokenSubset

GRID, N, D, HEADS, B = (3, 5), 15, 16, 2, 3
SHAPE = {"image_size": 8, "channels": 2, "n_classes": 3, "dim": D, "depth": 4, "heads": HEADS}
MODERN = {"norm": "rms", "mlp": "swiglu", "qk_norm": True, "rope": True, "value_residual": True}
OPTIONS = [{}, *({name: value} for name, value in MODERN.items()), MODERN]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "published")


def live(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double()


def block_of(options: dict[str, object]) -> DiTBlock:
    torch.manual_seed(0)
    return live(DiTBlock(DiTConfig(**SHAPE, **options)))


def inputs(options: dict[str, object]) -> tuple[Tensor, Conditioning]:
    x, values = torch.randn(2, B, N, D, dtype=torch.float64)
    cond = torch.randn(B, D, dtype=torch.float64)
    return x, Conditioning(cond, values if "value_residual" in options else None)


def some_subset() -> TokenSubset:
    return TokenSubset.of(torch.stack([torch.randperm(N)[:7] for _ in range(B)]), N)


@every_option
def test_over_a_subset_it_is_dense_with_dropped_keys_masked(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, (x, cond), subset = block_of(options), inputs(options), some_subset()
    routed = block(subset.take(x), cond, Layout(GRID).take(subset))
    dense = block(x, cond, Layout(GRID))
    real, mask = F.scaled_dot_product_attention, subset.mask()[:, None, None]
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: real(q, k, v, attn_mask=mask)
    )
    masked = block(x, cond, Layout(GRID))
    torch.testing.assert_close(routed, subset.take(masked), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(routed, subset.take(dense))


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def turned_by_hand(x: Tensor) -> Tensor:
    """x_BNP of one head: pairs of channels as complex numbers, turned."""
    angles = rotary_angles(Layout(GRID), x.shape[-1], x)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)


def test_the_modern_block_written_out() -> None:
    block, (x, cond) = block_of(MODERN), inputs(MODERN)
    m = block.modulation(F.silu(cond.vector))[:, None].unflatten(2, (6, D)).unbind(2)
    z = rms(x, 1e-6) * (1 + m[1]) + m[0]
    attention = block.attention
    q, k, v = (z @ attention.qkv.weight.T + attention.qkv.bias).split(D, dim=2)
    heads = []
    for a in range(HEADS):
        part = slice(a * D // HEADS, (a + 1) * D // HEADS)
        q_a = turned_by_hand(rms(q[..., part], 1e-5) * attention.q_norm.weight)
        k_a = turned_by_hand(rms(k[..., part], 1e-5) * attention.k_norm.weight)
        v_a = (
            attention.value_mix[0] * v[..., part] + attention.value_mix[1] * cond.values[..., part]
        )
        weights = (q_a @ k_a.transpose(1, 2) / (D // HEADS) ** 0.5).softmax(-1)
        heads.append(weights @ v_a)
    y = torch.cat(heads, dim=2) @ attention.out_proj.weight.T + attention.out_proj.bias
    x1 = x + m[2] * y
    z = rms(x1, 1e-6) * (1 + m[4]) + m[3]
    gate = z @ block.mlp.fc1_g.weight.T + block.mlp.fc1_g.bias
    y = gate * gate.sigmoid() * (z @ block.mlp.fc1_x.weight.T + block.mlp.fc1_x.bias)
    y = y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    assert block.mlp.fc2.weight.shape == (D, int(4 * D * 2 / 3))
    torch.testing.assert_close(block(x, cond, Layout(GRID)), x1 + m[5] * y, rtol=1e-11, atol=1e-11)


def test_shared_values_are_those_of_the_embedded_tokens() -> None:
    torch.manual_seed(0)
    model = live(DiT(DiTConfig(**SHAPE, value_residual=True)))
    x, t = torch.randn(B, 2, 8, 8, dtype=torch.float64), torch.rand(B, dtype=torch.float64)
    stream, cond, _ = model.embed(x, t, torch.arange(B))
    linear = model.values[1]
    expected = F.layer_norm(stream, (D,), eps=1e-6) @ linear.weight.T + linear.bias
    torch.testing.assert_close(cond.values, expected)


def test_every_part_has_the_parameters_that_its_option_asks_for() -> None:
    def names(options: dict[str, object]) -> set[str]:
        return set(DiT(DiTConfig(**SHAPE, **options)).state_dict())

    published = names({})
    assert names({"norm": "rms"}) == names({"rope": True}) == published
    added = {n.removeprefix("blocks.0.") for n in names({"qk_norm": True}) - published}
    assert {"attention.q_norm.weight", "attention.k_norm.weight"} <= added
    assert {"values.1.weight", "blocks.3.attention.value_mix"} <= names({"value_residual": True})
    assert "blocks.3.mlp.fc1_g.weight" in names({"mlp": "swiglu"})


@every_option
def test_only_the_published_network_has_the_published_layout(options: dict[str, object]) -> None:
    config = DiTConfig(**SHAPE, **options)
    assert config.as_published == (not options)
    if options:
        with pytest.raises(ValueError, match="no place for RMSNorm, SwiGLU"):
            to_published(config, config.build().state_dict())
