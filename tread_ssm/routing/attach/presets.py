"""What the blocks of well-known models take: a table, one row an architecture.

A row is found by the class of the model, or of a part of it, so that wrappers and heads do not
matter. A new architecture costs a row here and a case in tests/routing/attach/cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from torch import nn

from tread_ssm.routing.attach.arguments import Blocks

# Often used: blocks that get text beside the image and return both, in either order.
_IMAGE: dict[str, Any] = {"streams": ("hidden_states",), "returns": (0,)}
_IMAGE_SECOND: dict[str, Any] = {"streams": ("hidden_states",), "returns": (1,)}
_ROPE: dict[str, Any] = {"image_rotary_emb": "n d"}
_WAN: dict[str, Any] = {"rotary_emb": "b n 1 d", "temb": "b i d | b n i d"}
_LANGUAGE: dict[str, Any] = {
    "attention_mask": "b n | b 1 n n",
    "position_embeddings": "b n d",
    "position_ids": "b n",
}

PRESETS: dict[str, tuple[Blocks, ...]] = {
    # --- diffusers
    "diffusers.AuraFlowTransformer2DModel": (
        Blocks("joint_transformer_blocks", **_IMAGE_SECOND),
        Blocks("single_transformer_blocks", n_prefix=None),
    ),
    "diffusers.ChromaTransformer2DModel": (
        Blocks("transformer_blocks", per_token={**_ROPE, "attention_mask": "b n"}, **_IMAGE_SECOND),
        Blocks(
            "single_transformer_blocks",
            n_prefix=None,
            per_token={**_ROPE, "attention_mask": "b n"},
        ),
    ),
    "diffusers.CogVideoXTransformer3DModel": (
        Blocks("transformer_blocks", per_token=_ROPE, **_IMAGE),
    ),
    "diffusers.CogView3PlusTransformer2DModel": (Blocks("transformer_blocks", **_IMAGE),),
    "diffusers.CogView4Transformer2DModel": (
        Blocks("transformer_blocks", per_token=_ROPE, whole=("attention_mask",), **_IMAGE),
    ),
    "diffusers.CosmosTransformer3DModel": (
        Blocks(
            "transformer_blocks",
            per_token={
                **_ROPE,
                "extra_pos_emb": "b n d",
                "embedded_timestep": "b d | b n d",
                "temb": "b d | b n d",
                "controlnet_residual": "b n d",
            },
            whole=("attention_mask",),
        ),
    ),
    "diffusers.DiTTransformer2DModel": (Blocks("transformer_blocks"),),
    "diffusers.Flux2Transformer2DModel": (
        Blocks(
            "transformer_blocks",
            per_token=_ROPE,
            whole=("temb_mod_img", "temb_mod_txt"),
            **_IMAGE_SECOND,
        ),
        Blocks("single_transformer_blocks", n_prefix=None, per_token=_ROPE, whole=("temb_mod",)),
    ),
    "diffusers.FluxTransformer2DModel": (
        Blocks("transformer_blocks", per_token=_ROPE, **_IMAGE_SECOND),
        Blocks("single_transformer_blocks", per_token=_ROPE, **_IMAGE_SECOND),
    ),
    # The single blocks' text is cut off behind each of them, by the length of the whole stream.
    "diffusers.HiDreamImageTransformer2DModel": tuple(
        Blocks(
            path,
            per_token={"image_rotary_emb": "b n 1 d i j", "hidden_states_masks": "b n"},
            image="first",
            whole_between=True,
            **more,
        )
        for path, more in (
            ("double_stream_blocks", _IMAGE),
            ("single_stream_blocks", {"streams": ("hidden_states",), "n_prefix": None}),
        )
    ),
    "diffusers.HunyuanDiT2DModel": (Blocks("blocks", per_token=_ROPE, skips=("skip",)),),
    "diffusers.HunyuanImageTransformer2DModel": tuple(
        Blocks(path, per_token={**_ROPE, "attention_mask": "b 1 1 n"}, image="first", **_IMAGE)
        for path in ("transformer_blocks", "single_transformer_blocks")
    ),
    "diffusers.HunyuanVideoTransformer3DModel": tuple(
        Blocks(path, per_token={rope: "n d", "attention_mask": "b 1 1 n"}, image="first", **_IMAGE)
        for path, rope in (
            ("transformer_blocks", "freqs_cis"),
            ("single_transformer_blocks", "image_rotary_emb"),
        )
    ),
    "diffusers.Kandinsky5Transformer3DModel": (
        Blocks(
            "visual_transformer_blocks",
            per_token={"rope": "b n 1 d i j"},
            whole=("text_embed", "time_embed"),
        ),
    ),
    "diffusers.LTXVideoTransformer3DModel": (
        Blocks("transformer_blocks", per_token={"image_rotary_emb": "b n d", "temb": "b n d"}),
    ),
    "diffusers.Lumina2Transformer2DModel": (
        Blocks(
            "layers",
            n_prefix=None,
            per_token={"image_rotary_emb": "b n d", "attention_mask": "b n"},
            present="attention_mask",
        ),
    ),
    "diffusers.LuminaNextDiT2DModel": (
        Blocks("layers", per_token={"image_rotary_emb": "1 n d", "attention_mask": "b n"}),
    ),
    "diffusers.MochiTransformer3DModel": (
        Blocks("transformer_blocks", per_token={"image_rotary_emb": "n h d"}, **_IMAGE),
    ),
    "diffusers.OmniGenTransformer2DModel": (
        Blocks("layers", n_prefix=None, per_token={**_ROPE, "attention_mask": "b 1 n n"}),
    ),
    "diffusers.PRXTransformer2DModel": (
        Blocks(
            "blocks",
            per_token={"image_rotary_emb": "b 1 n d i j"},
            whole=("attention_mask",),
        ),
    ),
    "diffusers.PixArtTransformer2DModel": (Blocks("transformer_blocks"),),
    "diffusers.QwenImageTransformer2DModel": (
        Blocks(
            "transformer_blocks",
            per_token={"image_rotary_emb": ("n d", None), "modulate_index": "b n"},
            **_IMAGE_SECOND,
        ),
    ),
    "diffusers.SD3Transformer2DModel": (Blocks("transformer_blocks", **_IMAGE_SECOND),),
    "diffusers.SanaTransformer2DModel": (
        Blocks("transformer_blocks", grid_arguments=("height", "width")),
    ),
    "diffusers.SanaVideoTransformer3DModel": (
        Blocks(
            "transformer_blocks",
            per_token={"rotary_emb": "b n 1 d", "timestep": "b n d"},
            grid_arguments=("frames", "height", "width"),
        ),
    ),
    "diffusers.StableAudioDiTModel": (
        Blocks("transformer_blocks", n_prefix=1, per_token={"rotary_embedding": "n d"}),
    ),
    "diffusers.WanTransformer3DModel": (Blocks("blocks", per_token=_WAN),),
    # Hints are added between blocks.
    "diffusers.WanVACETransformer3DModel": (Blocks("blocks", per_token=_WAN, whole_between=True),),
    "diffusers.ZImageTransformer2DModel": (
        Blocks(
            "layers",
            n_prefix=None,
            image="first",
            per_token={"freqs_cis": "b n d", "attn_mask": "b n", "noise_mask": "b n"},
            whole=("adaln_noisy", "adaln_clean"),
        ),
    ),
    "diffusers.UVit2DModel": (Blocks("transformer_layers", whole=("added_cond_kwargs",)),),
    # --- timm
    "timm.Beit": (
        Blocks(
            "blocks",
            n_prefix="num_prefix_tokens",
            per_token={"shared_rel_pos_bias": "b h n n | h n n -> b h n n"},
        ),
    ),
    "timm.Cait": (Blocks("blocks"),),
    "timm.Eva": (
        Blocks(
            "blocks",
            n_prefix="num_prefix_tokens",
            per_token={
                "rope": "n d -> b 1 n d | h n d -> b h n d | b h n d",
                "attn_mask": "b n | b 1 n n",
            },
        ),
    ),
    "timm.NaFlexVit": (
        Blocks(
            "blocks",
            n_prefix="num_prefix_tokens",
            per_token={"attn_mask": "b h n n", "rope": "n d -> b 1 n d | b h n d"},
        ),
    ),
    "timm.VisionTransformer": (
        Blocks("blocks", n_prefix="num_prefix_tokens", per_token={"attn_mask": "b h n n"}),
    ),
    # --- transformers
    "transformers.BambaModel": (Blocks("layers", per_token=_LANGUAGE, closes_gaps=True),),
    "transformers.Dinov2Encoder": (Blocks("layer", n_prefix=1),),
    "transformers.FalconMambaModel": (
        Blocks("layers", per_token={"attention_mask": "b n"}, closes_gaps=True),
    ),
    "transformers.JambaModel": (Blocks("layers", per_token=_LANGUAGE, closes_gaps=True),),
    "transformers.Mamba2Model": (
        Blocks("layers", per_token={"attention_mask": "b n"}, closes_gaps=True),
    ),
    "transformers.MambaModel": (
        Blocks("layers", per_token={"attention_mask": "b n"}, closes_gaps=True),
    ),
    # Causal, so that the order of tokens counts.
    "transformers.Qwen2Model": (Blocks("layers", per_token=_LANGUAGE, closes_gaps=True),),
    "transformers.RwkvModel": (Blocks("blocks", closes_gaps=True),),
    "transformers.SiglipEncoder": (Blocks("layers", per_token={"attention_mask": "b 1 n n"}),),
    "transformers.ViTModel": (Blocks("layers", n_prefix=1),),
    "transformers.Zamba2Model": (
        Blocks(
            "layers",
            per_token={
                **_LANGUAGE,
                "causal_mask": "b 1 n n",
                "original_hidden_states": "b n d",
            },
            closes_gaps=True,
        ),
    ),
}
"""Library and class: what each list of blocks takes, in the order in which the model calls them."""


def preset(model: nn.Module) -> list[tuple[nn.Module, Blocks]]:
    """The blocks of a model with the row of each, from the table.

    Raises:
        ValueError: No part of the model, or several, are in the table.
    """
    found: list[tuple[str, nn.Module, tuple[Blocks, ...]]] = []
    for path, part in model.named_modules():
        rows = _rows(type(part))
        inside = any(path.startswith(f"{p}." if p else "") for p, _, _ in found)
        if rows is not None and not inside:
            found.append((path, part, rows))
    if not found:
        raise ValueError(_unknown(model))
    if len(found) > 1:
        parts = ", ".join(f"model.{path}" for path, _, _ in found)
        raise ValueError(f"attach: several parts can have routes; attach to one of them: {parts}.")
    return stack(found[0][1], found[0][2])


def stack(model: nn.Module, rows: Sequence[Blocks]) -> list[tuple[nn.Module, Blocks]]:
    """The blocks of a model that `rows` describe, each with its row.

    Raises:
        ValueError: A row names a list or a number that the model does not have.
    """
    found = []
    for row in rows:
        blocks = _at(model, row.path)
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
            raise ValueError(
                f"attach: {type(model).__name__} has no list of blocks at `{row.path}`; "
                f"{_lists(model)}."
            )
        n = _at(model, row.n_prefix) if isinstance(row.n_prefix, str) else row.n_prefix
        row = replace(row, n_prefix=n)
        found += [(block, row) for block in blocks]
    return found


def _rows(kind: type) -> tuple[Blocks, ...] | None:
    names = (f"{c.__module__.split('.')[0]}.{c.__name__}" for c in kind.__mro__)
    return next((PRESETS[name] for name in names if name in PRESETS), None)


def _at(model: Any, path: str) -> Any:
    return reduce(lambda part, name: getattr(part, name, None), path.split("."), model)


def _lists(model: nn.Module) -> str:
    lists = [
        f"`{path}` ({len(part)} x {type(part[0]).__name__})"
        for path, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) > 1
    ]
    return f"its lists of modules are {', '.join(lists[:6])}" if lists else "it has no such list"


def _unknown(model: nn.Module) -> str:
    kind = type(model)
    return (
        f"attach: no preset for {kind.__module__.split('.')[0]}.{kind.__name__}; {_lists(model)}. "
        f"Describe what the blocks take, as attach(model, rows=(Blocks('PATH', "
        f"per_token={{'rope': PerToken('n d')}}, whole=('context',)),)), check it with "
        f"routing.verify(lambda: model(...)), and send us the row."
    )
