"""What a tiny random model of another library is, and how to build and run one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BATCH, T = 2, 5  # samples, text tokens
VIDEO = (2, 2, 4)  # frames, rows, columns of tokens


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A model, how it is run, and where the image's tokens stand in joint attention.

    Attributes:
        build: The model's class and configuration.
        run: One forward pass; returns the prediction.
        grid: Token grid.
        image: Where the image's tokens stand among others, in streams and in attention; or
            where those of each sample begin.
        exact: Whether dropping tokens is the same as hiding their keys.
    """

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], Any]
    grid: tuple[int, ...] = (4, 4)
    image: str | tuple[int, ...] = "last"
    exact: bool = True


def diffusers(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: made("diffusers", name)(**config)


def made(library: str, name: str) -> Any:
    """A class of a library; the test is skipped where the installed version lacks it."""
    module = importlib.import_module(library)
    if not hasattr(module, name):
        pytest.skip(f"{library} has no {name}")
    return getattr(module, name)


def lively(model: nn.Module, all_small: bool = False) -> nn.Module:
    """Gates, and weights that start small, made larger: they would hide everything.

    all_small: Also vectors that are small but not zero.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            small = p.numel() > 0 and float(p.square().mean()) < 0.03**2
            if small and (p.dim() != 1 or not bool(p.any()) or all_small):
                fan_in = p[0].numel() if p.dim() > 1 else 100
                p.copy_(torch.randn(p.shape, generator=generator) / fan_in**0.5)
    return model.eval()


def sample(**inputs: Any) -> Callable[[nn.Module], Any]:
    def run(model: nn.Module) -> Any:
        out = model(**inputs)
        out = getattr(out, "sample", out)
        return out[0] if isinstance(out, tuple) else out

    return run


def places(n: int, dim: int = 3) -> Tensor:
    """Positions (n, dim) of a grid of four columns."""
    ids = torch.zeros(n, dim)
    ids[:, 1], ids[:, 2] = torch.arange(n) // 4, torch.arange(n) % 4
    return ids


STEP = torch.tensor([3, 700])
PART = torch.tensor([0.1, 0.9])
PICTURE = randn(BATCH, 4, 8, 8)
TEXT = randn(BATCH, T, 12, seed=1)
POOLED = randn(BATCH, 10, seed=2)
CLIP = {"hidden_states": randn(BATCH, 4, 2, 4, 8), "encoder_hidden_states": TEXT, "timestep": STEP}
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SMALL = {"num_attention_heads": 3, "attention_head_dim": 8}
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "joint_attention_dim": 12,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 10,
    "out_channels": 4,
    "pos_embed_max_size": 8,
    **SMALL,
}


def table(n: int, d: int = 8) -> tuple[Tensor, Tensor]:
    return randn(n, d, seed=5).cos(), randn(n, d, seed=5).sin()


WIDTH: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "num_classes": 3}
WIDTH_ROPE: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "num_classes": 3}


def timm_model(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        if not timm.is_model(name):
            pytest.skip(f"timm has no {name}")
        return timm.create_model(name, **config)

    return build


def transformer(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A model of transformers with five small blocks."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 5}
    if name not in ("Mamba", "Mamba2", "FalconMamba", "Rwkv"):
        sizes |= {"num_attention_heads": 3, "intermediate_size": 32}

    def build() -> nn.Module:
        settings = made("transformers", f"{name}Config")(**sizes, **config)
        model: nn.Module = made("transformers", f"{name}Model")(settings)
        return model

    return build


def picture(size: int) -> Callable[[nn.Module], Any]:
    return lambda model: model(randn(BATCH, 3, size, size))


def vision(name: str) -> Case:
    """A model of transformers that sees pictures."""
    run = picture(64)
    build = transformer(name, image_size=64, patch_size=16)
    return Case(build, lambda model: run(model).last_hidden_state)


def language(name: str, padded: bool = False, exact: bool = False, **config: Any) -> Case:
    """A language model on 16 tokens; the first three of one sample may be padding."""
    mask = torch.ones(BATCH, 16, dtype=torch.long)
    mask[1, :3] = 0
    inputs: dict[str, Any] = {"attention_mask": mask} if padded else {}
    ids = torch.arange(32).reshape(2, 16) * 5 % 8
    return Case(
        transformer(name, vocab_size=8, use_cache=False, **config),
        lambda model: model(ids, **inputs).last_hidden_state,
        (1, 16),
        exact=exact,
    )
