"""Small real models of other libraries, and for each a hand-written loop over its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tread_ssm.routing import PerToken
from tread_ssm.tokens import TokenSubset

BATCH, GRID = 2, (4, 4)

# (block, stream, what the blocks hand on besides, first call's arguments, kept) -> the same two
Step = Callable[
    [nn.Module, Any, Any, dict[str, Any], TokenSubset | None],
    tuple[Any, Any],
]


@dataclass(frozen=True)
class Foreign:
    """A model, how it is run, how it is attached, and how a person would call one block."""

    model: nn.Module
    run: Callable[[nn.Module], Any]
    blocks: Sequence[nn.Module]
    step: Step
    stream: str
    attach: dict[str, Any] = field(default_factory=dict)
    beside: str | None = None
    shared: bool = False
    grid: tuple[int, int] = GRID


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _lively(model: nn.Module) -> nn.Module:
    """Zero-initialised parts made non-zero, so that every block matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def _plain(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
    return block(x, **call), beside


def _joint(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
    text, x = block(hidden_states=x, encoder_hidden_states=beside, **call)
    return x, text


def _flux(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
    tables = call["image_rotary_emb"]
    if kept is not None:
        n_text = beside.shape[1]
        ids = torch.cat([torch.arange(n_text), kept.index[0] + n_text])
        tables = tuple(t[ids] for t in tables)
    return _joint(block, x, beside, call | {"image_rotary_emb": tables}, kept)


def _eva(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
    rope = call["rope"]
    if kept is not None:
        rope = torch.stack([rope[ids] for ids in kept.index])[:, None]
    return block(x, **(call | {"rope": rope})), beside


def diffusers_dit() -> Foreign:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    x, t, y = _randn(BATCH, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 4])

    def run(m: nn.Module) -> Tensor:
        return m(x, timestep=t, class_labels=y).sample

    return Foreign(_lively(model), run, model.transformer_blocks, _plain, "hidden_states")


def diffusers_pixart() -> Foreign:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=5,
        cross_attention_dim=24,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    x, text, t = _randn(BATCH, 4, 8, 8), _randn(BATCH, 5, 12, seed=1), torch.tensor([3, 700])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def run(m: nn.Module) -> Tensor:
        return m(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample

    return Foreign(_lively(model), run, model.transformer_blocks, _plain, "hidden_states")


def diffusers_sd3() -> Foreign:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=12,
        caption_projection_dim=24,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )
    x, text, pooled = _randn(BATCH, 4, 8, 8), _randn(BATCH, 5, 12, seed=1), _randn(BATCH, 10)
    t = torch.tensor([3.0, 700.0])

    def run(m: nn.Module) -> Tensor:
        return m(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample

    return Foreign(
        _lively(model),
        run,
        model.transformer_blocks,
        _joint,
        "hidden_states",
        {"streams": ("hidden_states",), "returns": (1,)},
        beside="encoder_hidden_states",
    )


def diffusers_flux() -> Foreign:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )
    x, text, pooled = _randn(BATCH, 16, 4), _randn(BATCH, 5, 12, seed=1), _randn(BATCH, 10)
    place = torch.arange(16)
    image_ids = torch.stack([torch.zeros(16), place // 4, place % 4], dim=1)

    def run(m: nn.Module) -> Tensor:
        return m(
            x,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=torch.tensor([0.1, 0.9]),
            img_ids=image_ids,
            txt_ids=torch.zeros(5, 3),
        ).sample

    return Foreign(
        _lively(model),
        run,
        [*model.transformer_blocks, *model.single_transformer_blocks],
        _flux,
        "hidden_states",
        {
            "streams": ("hidden_states",),
            "returns": (1,),
            "per_token": ("image_rotary_emb",),
        },
        beside="encoder_hidden_states",
        shared=True,
    )


def timm_vit() -> Foreign:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=5, num_classes=3)
    x = _randn(BATCH, 3, 64, 64)
    return Foreign(_lively(model), lambda m: m(x), model.blocks, _plain, "x", {"n_prefix": 1})


def timm_eva02() -> Foreign:
    import timm

    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=5, num_classes=3)
    x = _randn(BATCH, 3, 56, 56)
    return Foreign(
        _lively(model),
        lambda m: m(x),
        model.blocks,
        _eva,
        "x",
        {"n_prefix": 1, "per_token": {"rope": PerToken("n d -> b 1 n d")}},
    )


def transformers_mamba() -> Foreign:
    from transformers import MambaConfig, MambaModel

    model = MambaModel(
        MambaConfig(
            vocab_size=8, hidden_size=16, state_size=4, num_hidden_layers=5, use_cache=False
        )
    )
    x = _randn(BATCH, 16, 16)

    def run(m: nn.Module) -> Tensor:
        return m(inputs_embeds=x).last_hidden_state

    return Foreign(
        _lively(model),
        run,
        model.layers,
        _plain,
        "hidden_states",
        {"closes_gaps": True},
        grid=(1, 16),
    )


def torch_encoder() -> Foreign:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 5)
    x = _randn(BATCH, 16, 16)

    def step(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
        return block(x, **call), beside

    return Foreign(_lively(model), lambda m: m(x), model.layers, step, "src")


class ResidualBlock(nn.Module):
    """The classic block of Mamba language models: the sum is made at the next block's start."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(16), nn.GRU(16, 16, batch_first=True)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) twice."""
        residual = hidden + residual
        return self.mix(self.norm(residual))[0], residual


class ResidualStack(nn.Module):
    """Blocks that hand on (hidden, residual)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D)."""
        residual = torch.zeros_like(x)
        for block in self.blocks:
            x, residual = block(x, residual)
        return x + residual


def hidden_and_residual() -> Foreign:
    model = ResidualStack()
    x = _randn(BATCH, 16, 16)

    def step(block: nn.Module, x: Any, beside: Any, call: dict[str, Any], kept: Any) -> Any:
        return block(*x), beside

    return Foreign(
        model.eval(),
        lambda m: m(x),
        model.blocks,
        step,
        "hidden",
        {"streams": ("hidden", "residual"), "returns": (0, 1)},
    )


MODELS = {
    f.__name__: f
    for f in (
        diffusers_dit,
        diffusers_pixart,
        diffusers_sd3,
        diffusers_flux,
        timm_vit,
        timm_eva02,
        transformers_mamba,
        torch_encoder,
        hidden_and_residual,
    )
}
