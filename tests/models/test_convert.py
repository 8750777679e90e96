"""Published DiT weights: names, shapes, and what the converted network computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.models import DiT, DiTConfig
from tread_ssm.models.convert import from_published, published_shapes, to_published
from tread_ssm.models.dit import sincos_2d

Weights = dict[str, Tensor]


def layout(dim: int, depth: int, side: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The published names and shapes, patch 2, 4 channels in and 8 out."""
    linears = {
        "t_embedder.mlp.0": (dim, 256),
        "t_embedder.mlp.2": (dim, dim),
        "final_layer.linear": (32, dim),
        "final_layer.adaLN_modulation.1": (2 * dim, dim),
    }
    for i in range(depth):
        linears |= {
            f"blocks.{i}.attn.qkv": (3 * dim, dim),
            f"blocks.{i}.attn.proj": (dim, dim),
            f"blocks.{i}.mlp.fc1": (4 * dim, dim),
            f"blocks.{i}.mlp.fc2": (dim, 4 * dim),
            f"blocks.{i}.adaLN_modulation.1": (6 * dim, dim),
        }
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, side * side, dim),
        "x_embedder.proj.weight": (dim, 4, 2, 2),
        "x_embedder.proj.bias": (dim,),
        "y_embedder.embedding_table.weight": (classes + 1, dim),
    }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def table(dim: int, side: int) -> Tensor:
    """Published position table: MAE's, in numpy."""
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    across = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    halves = []
    for places in across:
        angle = places.reshape(-1)[:, None] * omega[None]
        halves += [np.sin(angle), np.cos(angle)]
    return torch.from_numpy(np.concatenate(halves, axis=1)).float()[None]


def published(dim: int = 32, depth: int = 2, side: int = 4, classes: int = 5) -> Weights:
    rng = torch.Generator().manual_seed(0)
    weights = {
        n: 0.2 * torch.randn(s, generator=rng) for n, s in layout(dim, depth, side, classes).items()
    }
    return {**weights, "pos_embed": table(dim, side)}


def by_hand(w: Weights, x: Tensor, t: Tensor, y: Tensor, heads: int) -> Tensor:
    """The published network of patch 2, written out."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    b, _, height, _ = x.shape
    side = height // 2
    angle = t[:, None] * torch.exp(-np.log(10000) * torch.arange(128) / 128)
    waves = torch.cat([angle.cos(), angle.sin()], dim=1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])
    patches = x.reshape(b, 4, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, side**2, 16)
    h = patches @ w["x_embedder.proj.weight"].reshape(-1, 16).T + w["x_embedder.proj.bias"]
    h = h + w["pos_embed"]
    dim = h.shape[2]
    depth = sum(n.endswith("qkv.weight") for n in w)
    for i in range(depth):
        m = linear(f"blocks.{i}.adaLN_modulation.1", c)[:, None].split(dim, dim=2)
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + m[1]) + m[0]).split(dim, dim=2)
        mixed = []
        for part in torch.arange(dim).split(dim // heads):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (dim // heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[..., part])
        h = h + m[2] * linear(f"blocks.{i}.attn.proj", torch.cat(mixed, dim=2))
        inner = linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + m[4]) + m[3])
        inner = F.gelu(inner, approximate="tanh")
        h = h + m[5] * linear(f"blocks.{i}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].split(dim, dim=2)
    out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    out = out.reshape(b, side, side, 2, 2, 8)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(b, 8, height, height)


def test_the_converted_network_computes_what_the_published_one_does() -> None:
    weights = published()
    config, ours = from_published(weights, heads=2)
    assert config == DiTConfig(
        image_size=8,
        channels=4,
        n_classes=5,
        dim=32,
        depth=2,
        heads=2,
        patch=2,
        out_channels=8,
    )
    model = DiT(config).eval()
    model.load_state_dict(ours)
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([0.0, 1.0, 250.0, 500.0, 998.0, 999.0]), torch.arange(6)
    expected = by_hand(weights, x, t, y, heads=2)
    assert expected.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-5, atol=1e-5)


def test_there_and_back_is_exact() -> None:
    weights = published()
    back = to_published(*from_published(weights, heads=2))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], t) for n, t in weights.items())


def test_the_position_table_is_the_published_one() -> None:
    assert torch.equal(sincos_2d((16, 16), 1152)[None], table(1152, 16))


def test_all_names_and_shapes_of_the_published_dit_xl() -> None:
    shapes = layout(1152, 28, 16, 1000)
    config, ours = from_published({n: torch.empty(s, device="meta") for n, s in shapes.items()})
    assert config == DiTConfig(
        **{"image_size": 32, "channels": 4, "n_classes": 1000, "out_channels": 8},
        **{"dim": 1152, "depth": 28, "heads": 16},
    )
    with torch.device("meta"):
        model = DiT(config)
    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert published_shapes(config) == shapes
    assert sum(t.numel() for t in ours.values()) == pytest.approx(675e6, rel=0.01)


def without(weights: Weights) -> None:
    del weights["blocks.1.attn.qkv.bias"]


def with_other(weights: Weights) -> None:
    weights["extra.weight"] = torch.zeros(1)


def odd(weights: Weights) -> None:
    weights["blocks.1.mlp.fc2.weight"] = torch.zeros(32, 31)


def flat(weights: Weights) -> None:
    weights["pos_embed"] = weights["pos_embed"][0]


def oblong(weights: Weights) -> None:
    weights["pos_embed"] = weights["pos_embed"][:, :12]


def turned(weights: Weights) -> None:
    weights["pos_embed"] = weights["pos_embed"].roll(16, dims=2)


def no_dit(weights: Weights) -> None:
    weights.clear()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, r"1 missing: blocks.1.attn.qkv.bias\.$"),
        (with_other, r"1 unexpected: extra.weight\.$"),
        (odd, r"blocks.1.mlp.fc2.weight has shape \(32, 31\).*\(32, 128\)"),
        (flat, r"pos_embed has shape \(16, 32\); .* 3 dimensions"),
        (oblong, "pos_embed has 12 tokens; our DiT takes square images"),
        (turned, "pos_embed differs by up to .* of 4 x 4 tokens"),
        (no_dit, r"5 missing: x_embedder.proj.weight, .*, \.\.\.\.$"),
    ],
)
def test_other_weights_are_refused(spoil: Callable[[Weights], None], message: str) -> None:
    weights = published()
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        from_published(weights, heads=2)


def test_heads_of_no_published_width_must_be_told() -> None:
    with pytest.raises(ValueError, match=r"32 channels are no published width.*pass heads"):
        from_published(published())
