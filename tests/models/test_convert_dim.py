"""Published DiM weights: names, shapes, and what the converted network computes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.diffusion import NoisePrediction
from tread_ssm.models import DiM, DiMConfig
from tread_ssm.models.convert_dim import from_published

Weights = dict[str, Tensor]


def layout(dim: int, depth: int, side: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The published names and shapes: patch 2, 4 channels, 16 states, 3 taps, 3 pads."""
    inner, rank = 2 * dim, math.ceil(dim / 16)
    shapes: dict[str, tuple[int, ...]] = {
        "additional_embed": (1, 2 + side * side, dim),
        "label_emb.weight": (classes + 1, dim),
        "adaln_single.emb.class_embedder.embedding_table.weight": (classes + 1, dim),
        "a4m_adapter.pad_token": (1, dim, 3),
        "a4m_adapter.pad_token_dec_split": (1, 3, dim),
        "norm_out.norm.weight": (dim,),
    }
    with_bias = {
        "pos_embed.proj": (dim, 4, 2, 2),
        "adaln_single.emb.timestep_embedder.linear_1": (dim, 256),
        "adaln_single.emb.timestep_embedder.linear_2": (dim, dim),
        "adaln_single.linear": (3 * dim, dim),
        "a4m_adapter.first_smoother": (dim, 1, 3, 3),
        "a4m_adapter.last_smoother": (dim, 1, 3, 3),
        "proj_out_1": (2 * dim, dim),
        "proj_out_2": (16, dim),
    }
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        shapes |= {
            f"{block}.norm1.norm.weight": (dim,),
            f"{block}.scale_shift_table": (3, dim),
            f"{block}.attn1.in_proj.weight": (2 * inner, dim),
            f"{block}.attn1.x_proj.weight": (rank + 32, inner),
            f"{block}.attn1.A_log": (inner, 16),
            f"{block}.attn1.D": (inner,),
            f"{block}.attn1.out_proj.weight": (dim, inner),
        }
        with_bias |= {
            f"{block}.attn1.conv1d": (inner, 1, 3),
            f"{block}.attn1.dt_proj": (inner, rank),
        }
        if i > depth // 2 and dim <= 512:
            with_bias |= {f"{block}.skip_linear": (dim, 2 * dim)}
        if i > depth // 2 and dim > 512:
            with_bias |= {f"{block}.skip_linear.{j}": (dim, dim) for j in (0, 1)}
    for name, shape in with_bias.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def published(dim: int = 32, depth: int = 5, side: int = 3, classes: int = 4) -> Weights:
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64) / math.sqrt(shape[-1])
        for name, shape in layout(dim, depth, side, classes).items()
    }


class ByHand:
    """The published network, written out; tokens move along each scan and back."""

    def __init__(self, w: Weights, depth: int, side: int) -> None:
        self.w, self.depth, self.side = w, depth, side

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def smooth(self, name: str, x: Tensor) -> Tensor:
        w = self.w[f"a4m_adapter.{name}.weight"], self.w[f"a4m_adapter.{name}.bias"]
        return F.conv2d(x, *w, padding=1, groups=x.shape[1])

    def mamba(self, block: str, x: Tensor) -> Tensor:
        w, length = self.w, x.shape[1]
        u, z = (x @ w[f"{block}.in_proj.weight"].T).chunk(2, dim=2)
        taps = w[f"{block}.conv1d.weight"], w[f"{block}.conv1d.bias"]
        u = F.conv1d(u.mT, *taps, padding=2, groups=u.shape[2])[..., :length].mT
        u = F.silu(u)
        rank = w[f"{block}.dt_proj.weight"].shape[1]
        dt, B, C = (u @ w[f"{block}.x_proj.weight"].T).split([rank, 16, 16], dim=2)
        dt, A = F.softplus(self.linear(f"{block}.dt_proj", dt)), -w[f"{block}.A_log"].exp()
        h, out = torch.zeros(*u[:, 0].shape, 16, dtype=x.dtype), []
        for i in range(length):
            h = (dt[:, i, :, None] * A).exp() * h
            h = h + (dt[:, i] * u[:, i])[..., None] * B[:, i, None]
            out.append((h * C[:, i, None]).sum(2))
        y = torch.stack(out, dim=1) + w[f"{block}.D"] * u
        return (y * F.silu(z)) @ w[f"{block}.out_proj.weight"].T

    def visits(self, i: int) -> Tensor:
        """Places of the padded grid in the order of block i: rows, then columns, and mirrored."""
        table = torch.arange((self.side + 3) ** 2).reshape(self.side + 3, self.side + 3)
        turn = min(i, self.depth - 1 - i) % 4
        path = (table if turn < 2 else table.T).flatten()
        return path.flip(0) if turn % 2 else path

    def stream(self, x: Tensor, t_token: Tensor, y_token: Tensor) -> Tensor:
        w, side, batch = self.w, self.side, len(x)
        kernel = w["pos_embed.proj.weight"], w["pos_embed.proj.bias"]
        image = F.conv2d(x, *kernel, stride=2).flatten(2).mT
        prefix = torch.stack([t_token, y_token], dim=1)
        tokens = torch.cat([prefix, image], dim=1) + w["additional_embed"]
        image = self.smooth("first_smoother", tokens[:, 2:].mT.unflatten(2, (side, side)))
        pads = w["a4m_adapter.pad_token"]  # (1, D, 3)
        ends = pads[:, :, None].expand(batch, -1, side, -1)
        below = pads[..., None].expand(batch, -1, -1, side + 3)
        grid = torch.cat([torch.cat([image, ends], dim=3), below], dim=2)
        between = w["a4m_adapter.pad_token_dec_split"].expand(batch, -1, -1)
        return torch.cat([tokens[:, :2], between, grid.flatten(2).mT], dim=1)

    def skip(self, block: str, x: Tensor, early: Tensor) -> Tensor:
        if x.shape[2] <= 512:
            return self.linear(f"{block}.skip_linear", torch.cat([x, early], dim=2))
        return self.linear(f"{block}.skip_linear.0", x) + self.linear(
            f"{block}.skip_linear.1", early
        )

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        w, side, dim = self.w, self.side, self.w["norm_out.norm.weight"].shape[0]
        emb = "adaln_single.emb"
        c = F.silu(self.linear(f"{emb}.timestep_embedder.linear_1", waves(t, 256)))
        c = self.linear(f"{emb}.timestep_embedder.linear_2", c)
        c = c + w[f"{emb}.class_embedder.embedding_table.weight"][y]
        modulation = self.linear("adaln_single.linear", F.silu(c)).unflatten(1, (3, dim))
        t_token, y_token = waves(t, dim), w["label_emb.weight"][y]
        h, early = self.stream(x, t_token, y_token), []
        for i in range(self.depth):
            block = f"transformer_blocks.{i}"
            if i > self.depth // 2:
                h = self.skip(block, h, early.pop())
            mods = (modulation + w[f"{block}.scale_shift_table"])[:, :, None]
            shift, scale, gate = mods.unbind(1)
            normed = rms_norm(h, w[f"{block}.norm1.norm.weight"]) * (1 + scale) + shift
            order = torch.cat([torch.arange(5), 5 + self.visits(i)])
            mixed = torch.empty_like(h)
            mixed[:, order] = self.mamba(f"{block}.attn1", normed[:, order])
            h = h + (1 + gate) * mixed
            if 1 <= i <= self.depth // 2:
                early.append(h)
        image = h[:, 5:].mT.unflatten(2, (side + 3, side + 3))[..., :side, :side]
        out = rms_norm(self.smooth("last_smoother", image).flatten(2).mT, w["norm_out.norm.weight"])
        shift, scale = self.linear("proj_out_1", F.silu(t_token + y_token))[:, None].chunk(2, dim=2)
        out = self.linear("proj_out_2", out * (1 + scale) + shift)
        out = out.reshape(-1, side, side, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", out).reshape(len(x), 4, 2 * side, 2 * side)


def waves(t: Tensor, dim: int) -> Tensor:
    angle = t[:, None] * 10000 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("dim", [32, 528])
def test_the_converted_network_computes_what_the_published_one_does(dim: int) -> None:
    depth, side = (11, 3) if dim == 32 else (5, 3)
    weights = published(dim, depth, side)
    config, ours = from_published(weights)
    assert (config.image_size, config.channels, config.n_classes) == (6, 4, 4)
    assert (config.dim, config.depth, config.patch, config.pads) == (dim, depth, 2, 3)
    model = DiM(config).double().eval()
    model.load_state_dict(ours)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    t, y = torch.tensor([1.0, 1000.0], dtype=torch.float64), torch.tensor([0, 4])
    expected = ByHand(weights, depth, side)(x, t, y)
    assert expected.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-9, atol=1e-9)


def test_times_run_from_1() -> None:
    """What the network gets at timestep 1 is 1 for DiM's weights, 0 otherwise."""
    seen: list[float] = []

    def network(x: Tensor, t: Tensor, labels: Tensor, *, routing: object = ()) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    x, labels = torch.zeros(1, 4, 2, 2), torch.zeros(1, dtype=torch.int64)
    for first in (0, 1):
        objective = NoisePrediction(first=first)
        for t in (1.0, 1000.0):
            objective.denoiser(network)(x, t, labels)
            objective.loss_terms(network, x, labels, torch.tensor([t]), x)
    assert seen == [0, 0, 999, 999, 1, 1, 1000, 1000]
    with pytest.raises(ValueError, match="first is 2; use 0 or 1"):
        NoisePrediction(first=2)


@pytest.mark.parametrize(("dim", "parameters"), [(1024, 386.1e6), (1536, 862.4e6)])
def test_all_names_and_shapes_of_the_published_sizes(dim: int, parameters: float) -> None:
    shapes = layout(dim, 49, 16, 1000)
    config, ours = from_published({n: torch.empty(s, device="meta") for n, s in shapes.items()})
    assert config == DiMConfig(image_size=32, channels=4, n_classes=1000, dim=dim, depth=49)
    with torch.device("meta"):
        model = DiM(config)
    assert {n: t.shape for n, t in ours.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert sum(t.numel() for t in ours.values()) == pytest.approx(parameters, rel=1e-3)


def unconditional(weights: Weights) -> None:
    del weights["label_emb.weight"]


def with_feed_forward(weights: Weights) -> None:
    weights["transformer_blocks.1.ff.net.0.proj.weight"] = torch.zeros(64, 32)


def odd(weights: Weights) -> None:
    weights["transformer_blocks.1.attn1.D"] = torch.zeros(63)


def oblong(weights: Weights) -> None:
    weights["additional_embed"] = weights["additional_embed"][:, :-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unconditional, r"weights of a DiM .* 1 missing: label_emb\.weight\.$"),
        (with_feed_forward, r"1 unexpected: transformer_blocks\.1\.ff"),
        (odd, r"attn1\.D has shape \(63,\), but the other weights ask for \(64,\)"),
        (oblong, "additional_embed has 8 image tokens; our DiM takes square images"),
    ],
)
def test_other_weights_are_refused(spoil: Callable[[Weights], None], message: str) -> None:
    weights = published()
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        from_published(weights)
