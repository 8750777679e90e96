"""DiT's published weights under our names, and back.

The published layout is that of facebookresearch/DiT's `.pt` files (Peebles and Xie, arXiv
2212.09748): a state dict, whose layers compute what ours do, so that nothing but names changes.
Position embeddings are in those files and a fixed table here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tread_ssm.models.dit import DiT, DiTConfig, sincos_2d

POSITION = "pos_embed"
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published networks (DiT-S, B, L and XL), by their width."""

# Beginnings of names, published and ours; those of blocks follow "blocks.<number>.".
_PAIRS = (
    ("x_embedder.proj.", "patches.projection."),
    ("t_embedder.mlp.0.", "t_cond.hidden."),
    ("t_embedder.mlp.2.", "t_cond.out."),
    ("y_embedder.embedding_table.", "label_cond."),
    ("attn.qkv.", "attention.qkv."),
    ("attn.proj.", "attention.out_proj."),
    ("mlp.", "mlp."),
    ("adaLN_modulation.1.", "modulation."),
    ("final_layer.adaLN_modulation.1.", "head.modulation."),
    ("final_layer.linear.", "head.linear."),
)
# The weights whose shapes tell the sizes of the network, and their numbers of dimensions.
_TELLING = {
    "x_embedder.proj.weight": 4,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
    POSITION: 3,
}


def from_published(
    weights: Mapping[str, Tensor], heads: int | None = None
) -> tuple[DiTConfig, dict[str, Tensor]]:
    """The config and the state dict of our DiT for published weights; tensors are not copied.

    Args:
        weights: The published state dict.
        heads: Attention heads, which no shape tells; None: those of the published DiT of this
            width.

    Raises:
        ValueError: Names, shapes or the position table are not those of a DiT.
    """
    config = config_of(weights, heads)
    shapes = published_shapes(config)
    check_names("DiT", shapes, weights)
    check_shapes("DiT", shapes, weights)
    table = sincos_2d(config.grid, config.dim)
    found = weights[POSITION][0]
    error = 0.0 if found.is_meta else float((found.to("cpu", table.dtype) - table).abs().max())
    if not error <= 1e-4:
        rows, columns = config.grid
        raise ValueError(
            f"{POSITION} differs by up to {error:.3g} from the sines and cosines of {rows} x "
            f"{columns} tokens, and our DiT has no other positions."
        )
    return config, {_rename(n, _PAIRS): weights[n] for n in shapes if n != POSITION}


def to_published(config: DiTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published layout of our DiT's state dict; its tensors are not copied.

    Raises:
        ValueError: The network is not the published one.
    """
    if not config.as_published:
        raise ValueError(
            "The published layout has no place for RMSNorm, SwiGLU, QK norm, rotary positions or "
            "a value residual; only a DiT without these options can be converted."
        )
    if config.fuse:
        raise ValueError(
            f"The published layout has no place for the maps of fused routes (fuse={config.fuse}); "
            f"only a DiT without them can be converted."
        )
    table = sincos_2d(config.grid, config.dim)[None]
    return {POSITION: table, **{_published(n): t for n, t in weights.items()}}


def published_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of this network in the published layout."""
    with torch.device("meta"):
        ours = DiT(config).state_dict()
    positions = (1, config.grid[0] * config.grid[1], config.dim)
    return {POSITION: positions, **{_published(n): tuple(t.shape) for n, t in ours.items()}}


def config_of(weights: Mapping[str, Tensor], heads: int | None = None) -> DiTConfig:
    """The sizes of a network, by the shapes of its published weights; heads as in from_published.

    Raises:
        ValueError: Names or shapes are not those of a DiT, or the heads of this width are unknown.
    """
    check_names("DiT", _TELLING, weights, complete=False)
    check_shapes("DiT", _TELLING, weights)
    shapes = {name: weights[name].shape for name in _TELLING}
    dim, channels, patch, _ = shapes["x_embedder.proj.weight"]
    n_tokens = shapes[POSITION][1]
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise ValueError(f"{POSITION} has {n_tokens} tokens; our DiT takes square images alone.")
    if heads is None:
        if dim not in HEADS:
            raise ValueError(
                f"The weights do not tell the number of heads, and {dim} channels are no published "
                f"width ({', '.join(map(str, HEADS))}); pass heads."
            )
        heads = HEADS[dim]
    return DiTConfig(
        image_size=side * patch,
        channels=channels,
        n_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        dim=dim,
        depth=1 + max(numbers_of_blocks("blocks", weights)),
        heads=heads,
        patch=patch,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / dim,
        out_channels=shapes["final_layer.linear.weight"][0] // patch**2,
    )


def _published(ours: str) -> str:
    return _rename(ours, [(new, old) for old, new in _PAIRS])


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """`name` with its beginning, behind the number of its block, replaced by its partner."""
    block = re.match(r"(blocks\.\d+\.)?", name)
    start = block.group() if block else ""
    rest = name.removeprefix(start)
    old, new = next(pair for pair in pairs if rest.startswith(pair[0]))
    return start + new + rest.removeprefix(old)


def numbers_of_blocks(stack: str, names: Iterable[str]) -> list[int]:
    """The numbers behind "<stack>." in the names of weights."""
    matches = (re.match(rf"{stack}\.(\d+)\.", name) for name in names)
    return [int(m.group(1)) for m in matches if m]


def check_names(
    network: str, expected: Iterable[str], given: Iterable[str], *, complete: bool = True
) -> None:
    """Raise ValueError unless the names are there, and no others where they are `complete`."""
    missing = [n for n in expected if n not in given]
    others = [n for n in given if n not in expected] if complete else []
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", others))
        if names
    ]
    if parts:
        raise ValueError(
            f"These are not the weights of a {network} in the published layout; {'; '.join(parts)}."
        )


def check_shapes(
    network: str, expected: Mapping[str, int | tuple[int, ...]], weights: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless weights have these shapes, or these numbers of dimensions."""
    for name, shape in expected.items():
        found = tuple(weights[name].shape)
        if isinstance(shape, int) and len(found) != shape:
            raise ValueError(
                f"{name} has shape {found}; the published layout has {shape} dimensions there."
            )
        if not isinstance(shape, int) and found != shape:
            raise ValueError(
                f"{name} has shape {found}, but the other weights ask for {shape}; this is no "
                f"{network} of the published layout."
            )
