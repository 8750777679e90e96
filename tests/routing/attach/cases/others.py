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
    hidden,
    picture,
    randn,
    timm_model,
    transformer,
    words,
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
    "timm.Beit": Case(
        timm_model(
            "beit_base_patch16_224",
            img_size=64,
            depth=5,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
            **WIDTH,
        ),
        picture(64),
    ),
    "timm.Beit, as many heads as samples": Case(
        timm_model(
            "beit_base_patch16_224",
            img_size=64,
            depth=5,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
            **(WIDTH | {"num_heads": BATCH}),
        ),
        picture(64),
    ),
    "timm.Cait": Case(timm_model("cait_xxs24_224", img_size=64, depth=5), picture(64), exact=False),
    "timm.Eva, DINOv3": Case(
        timm_model("vit_small_patch16_dinov3", img_size=64, depth=5, **WIDTH_ROPE), picture(64)
    ),
    "timm.Eva, EVA-02": Case(
        timm_model("eva02_tiny_patch14_224", img_size=56, depth=5, num_classes=3), picture(56)
    ),
    "timm.Eva, mixed rotary tables": Case(
        timm_model("vit_base_patch16_rope_mixed_224", img_size=64, depth=5, **WIDTH_ROPE),
        picture(64),
    ),
    "timm.Eva, mixed rotary tables, as many heads as samples": Case(
        timm_model(
            "vit_base_patch16_rope_mixed_224",
            img_size=64,
            depth=5,
            **(WIDTH_ROPE | {"num_heads": BATCH}),
        ),
        picture(64),
    ),
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
    "transformers.BambaModel": Case(
        transformer(
            "Bamba",
            vocab_size=8,
            num_key_value_heads=3,
            attn_layer_indices=[1, 2],
            mamba_n_heads=6,
            mamba_d_state=4,
            mamba_d_head=8,
            mamba_chunk_size=8,
            use_cache=False,
            pad_token_id=0,
        ),
        words(),
        (1, 16),
        exact=False,
    ),
    "transformers.Dinov2Encoder": Case(
        transformer("Dinov2", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.FalconMambaModel": Case(
        transformer("FalconMamba", vocab_size=8, state_size=4, use_cache=False),
        words(),
        (1, 16),
        exact=False,
    ),
    "transformers.JambaModel": Case(
        transformer(
            "Jamba",
            vocab_size=8,
            num_key_value_heads=3,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=9,
            expert_layer_offset=8,
            num_experts=2,
            mamba_d_state=4,
            use_mamba_kernels=False,
            use_cache=False,
            pad_token_id=0,
        ),
        words(padded=True),
        (1, 16),
        exact=False,
    ),
    "transformers.Mamba2Model": Case(
        transformer(
            "Mamba2",
            vocab_size=8,
            state_size=4,
            num_heads=6,
            head_dim=8,
            n_groups=1,
            chunk_size=8,
            use_cache=False,
        ),
        words(),
        (1, 16),
        exact=False,
    ),
    "transformers.MambaModel": Case(
        transformer("Mamba", vocab_size=8, state_size=4, use_cache=False),
        words(),
        (1, 16),
        exact=False,
    ),
    "transformers.Qwen2Model": Case(
        transformer("Qwen2", vocab_size=8, num_key_value_heads=3, use_cache=False), words(), (1, 16)
    ),
    "transformers.Qwen2Model, padded": Case(
        transformer("Qwen2", vocab_size=8, num_key_value_heads=3, use_cache=False),
        words(padded=True),
        (1, 16),
    ),
    "transformers.RwkvModel": Case(
        transformer("Rwkv", vocab_size=8, attention_hidden_size=24, use_cache=False),
        words(),
        (1, 16),
        exact=False,
    ),
    "transformers.SiglipEncoder": Case(
        transformer("SiglipVision", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.ViTModel": Case(
        transformer("ViT", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.Zamba2Model": Case(
        transformer(
            "Zamba2",
            vocab_size=8,
            mamba_d_state=4,
            mamba_headdim=8,
            n_mamba_heads=6,
            mamba_ngroups=1,
            chunk_size=8,
            hybrid_layer_ids=[1, 3],
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba"],
            use_cache=False,
            pad_token_id=0,
            num_mem_blocks=1,
        ),
        words(),
        (1, 16),
        exact=False,
    ),
}
