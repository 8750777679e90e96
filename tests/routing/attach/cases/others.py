"""Models of timm and transformers, and one of diffusers for discrete tokens."""

from __future__ import annotations

import torch

from tests.routing.attach.cases.case import (
    BATCH,
    WIDTH,
    WIDTH_ROPE,
    Case,
    T,
    diffusers,
    language,
    picture,
    randn,
    timm_model,
    vision,
)


def beit(heads: int) -> Case:
    """One bias for all blocks: (heads, N, N)."""
    shared = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    sizes = WIDTH | {"num_heads": heads}
    return Case(
        timm_model("beit_base_patch16_224", img_size=64, depth=5, **shared, **sizes), picture(64)
    )


def mixed(heads: int) -> Case:
    """A rotary table for each head: (heads, N, d)."""
    sizes = WIDTH_ROPE | {"num_heads": heads}
    return Case(
        timm_model("vit_base_patch16_rope_mixed_224", img_size=64, depth=5, **sizes), picture(64)
    )


OTHERS: dict[str, Case] = {
    "diffusers.UVit2DModel": Case(
        diffusers(
            "UVit2DModel",
            hidden_size=24,
            cond_embed_dim=8,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=24,
            vocab_size=9,
            codebook_size=8,
            in_channels=8,
            block_out_channels=32,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=5,
            num_attention_heads=3,
            intermediate_size=16,
            sample_size=4,
        ),
        lambda m: m(
            torch.arange(32).reshape(2, 4, 4) % 8,
            encoder_hidden_states=randn(BATCH, T, 24),
            pooled_text_emb=randn(BATCH, 8),
            micro_conds=randn(BATCH, 5).abs(),
        ),
    ),
    "timm.Beit": beit(heads=3),
    "timm.Beit, as many heads as samples": beit(heads=BATCH),
    "timm.Cait": Case(timm_model("cait_xxs24_224", img_size=64, depth=5), picture(64), exact=False),
    "timm.Eva, DINOv3": Case(
        timm_model("vit_small_patch16_dinov3", img_size=64, depth=5, **WIDTH_ROPE), picture(64)
    ),
    "timm.Eva, EVA-02": Case(
        timm_model("eva02_tiny_patch14_224", img_size=56, depth=5, num_classes=3), picture(56)
    ),
    "timm.Eva, mixed rotary tables": mixed(heads=3),
    "timm.Eva, mixed rotary tables, as many heads as samples": mixed(heads=BATCH),
    "timm.NaFlexVit": Case(timm_model("naflexvit_base_patch16_gap", depth=5, **WIDTH), picture(64)),
    "timm.VisionTransformer": Case(
        timm_model("vit_tiny_patch16_224", img_size=64, depth=5, num_classes=3), picture(64)
    ),
    "timm.VisionTransformer, DINOv2": Case(
        timm_model("vit_small_patch14_dinov2", img_size=56, depth=5, **WIDTH), picture(56)
    ),
    "timm.VisionTransformer, distilled": Case(
        timm_model("deit_tiny_distilled_patch16_224", img_size=64, depth=5), picture(64)
    ),
    "transformers.BambaModel": language(
        "Bamba",
        num_key_value_heads=3,
        attn_layer_indices=[1, 2],
        mamba_n_heads=6,
        mamba_d_state=4,
        mamba_d_head=8,
        mamba_chunk_size=8,
        pad_token_id=0,
    ),
    "transformers.Dinov2Encoder": vision("Dinov2"),
    "transformers.FalconMambaModel": language("FalconMamba", state_size=4),
    "transformers.JambaModel": language(
        "Jamba",
        padded=True,
        num_key_value_heads=3,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=9,
        expert_layer_offset=8,
        num_experts=2,
        mamba_d_state=4,
        use_mamba_kernels=False,
        pad_token_id=0,
    ),
    "transformers.Mamba2Model": language(
        "Mamba2", state_size=4, num_heads=6, head_dim=8, n_groups=1, chunk_size=8
    ),
    "transformers.MambaModel": language("Mamba", state_size=4),
    "transformers.Qwen2Model": language("Qwen2", exact=True, num_key_value_heads=3),
    "transformers.Qwen2Model, padded": language(
        "Qwen2", padded=True, exact=True, num_key_value_heads=3
    ),
    "transformers.RwkvModel": language("Rwkv", attention_hidden_size=24),
    "transformers.SiglipEncoder": vision("SiglipVision"),
    "transformers.ViTModel": vision("ViT"),
    "transformers.Zamba2Model": language(
        "Zamba2",
        mamba_d_state=4,
        mamba_headdim=8,
        n_mamba_heads=6,
        mamba_ngroups=1,
        chunk_size=8,
        hybrid_layer_ids=[1, 3],
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        pad_token_id=0,
        num_mem_blocks=1,
    ),
}
