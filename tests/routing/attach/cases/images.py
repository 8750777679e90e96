"""Models of diffusers that make images."""

from __future__ import annotations

from typing import Any

import torch

from tests.routing.attach.cases.case import (
    BATCH,
    MASK,
    PART,
    PICTURE,
    POOLED,
    SD3,
    SMALL,
    STEP,
    TEXT,
    Case,
    T,
    diffusers,
    places,
    randn,
    sample,
    table,
)

LUMINA2 = diffusers(
    "Lumina2Transformer2DModel",
    sample_size=8,
    in_channels=4,
    hidden_size=24,
    num_layers=5,
    num_refiner_layers=1,
    num_attention_heads=3,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(4, 2, 2),
    axes_lens=(16, 16, 16),
    cap_feat_dim=12,
)

COGVIEW: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 5,
    "text_embed_dim": 12,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 8,
    **SMALL,
}
COGVIEW_RUN = sample(
    hidden_states=PICTURE,
    encoder_hidden_states=TEXT,
    timestep=STEP,
    original_size=torch.full((BATCH, 2), 64.0),
    target_size=torch.full((BATCH, 2), 64.0),
    crop_coords=torch.zeros(BATCH, 2),
)

TOKENS = {
    "hidden_states": randn(BATCH, 16, 4),
    "encoder_hidden_states": TEXT,
    "timestep": PART,
}
LATENTS = {"hidden_states": PICTURE, "encoder_hidden_states": TEXT}

IMAGES: dict[str, Case] = {
    "diffusers.AuraFlowTransformer2DModel": Case(
        diffusers(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            num_mmdit_layers=2,
            num_single_dit_layers=3,
            joint_attention_dim=12,
            caption_projection_dim=24,
            pos_embed_max_size=16,
            **SMALL,
        ),
        sample(**LATENTS, timestep=PART),
    ),
    "diffusers.ChromaTransformer2DModel": Case(
        diffusers(
            "ChromaTransformer2DModel",
            in_channels=4,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=12,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=8,
            approximator_layers=1,
        ),
        sample(**TOKENS, img_ids=places(16), txt_ids=torch.zeros(T, 3)),
    ),
    "diffusers.CogView3PlusTransformer2DModel": Case(
        diffusers("CogView3PlusTransformer2DModel", **COGVIEW), COGVIEW_RUN
    ),
    "diffusers.CogView4Transformer2DModel": Case(
        diffusers("CogView4Transformer2DModel", **COGVIEW, rope_axes_dim=(8, 8)), COGVIEW_RUN
    ),
    "diffusers.DiTTransformer2DModel": Case(
        diffusers(
            "DiTTransformer2DModel",
            in_channels=4,
            num_layers=5,
            sample_size=8,
            num_embeds_ada_norm=10,
            **SMALL,
        ),
        sample(hidden_states=PICTURE, timestep=STEP, class_labels=torch.tensor([1, 4])),
    ),
    "diffusers.Flux2Transformer2DModel": Case(
        diffusers(
            "Flux2Transformer2DModel",
            in_channels=4,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=12,
            timestep_guidance_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        sample(**TOKENS, img_ids=places(16, 4), txt_ids=torch.zeros(T, 4)),
    ),
    "diffusers.FluxTransformer2DModel": Case(
        diffusers(
            "FluxTransformer2DModel",
            patch_size=1,
            in_channels=4,
            num_layers=2,
            num_single_layers=3,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 16, 4),
            encoder_hidden_states=TEXT,
            pooled_projections=POOLED,
            timestep=PART,
            img_ids=places(16),
            txt_ids=torch.zeros(T, 3),
        ),
    ),
    "diffusers.HiDreamImageTransformer2DModel": Case(
        diffusers(
            "HiDreamImageTransformer2DModel",
            patch_size=2,
            in_channels=4,
            num_layers=2,
            num_single_layers=3,
            caption_channels=[12, 12],
            text_emb_dim=10,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=[0, 0, 0, 0, 0],
            force_inference_output=True,
            **SMALL,
        ),
        sample(
            hidden_states=PICTURE,
            timesteps=STEP,
            encoder_hidden_states_t5=TEXT,
            encoder_hidden_states_llama3=[TEXT],
            pooled_embeds=POOLED,
        ),
        image="first",
    ),
    "diffusers.HunyuanDiT2DModel": Case(
        diffusers(
            "HunyuanDiT2DModel",
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=24,
            num_layers=6,
            cross_attention_dim=12,
            cross_attention_dim_t5=16,
            pooled_projection_dim=10,
            text_len=T,
            text_len_t5=2,
            use_style_cond_and_image_meta_size=False,
            **SMALL,
        ),
        sample(
            hidden_states=PICTURE,
            timestep=STEP.float(),
            encoder_hidden_states=TEXT,
            text_embedding_mask=MASK,
            encoder_hidden_states_t5=randn(BATCH, 2, 16),
            text_embedding_mask_t5=torch.ones(BATCH, 2),
            image_rotary_emb=table(16),
        ),
    ),
    "diffusers.HunyuanImageTransformer2DModel": Case(
        diffusers(
            "HunyuanImageTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=1,
            text_embed_dim=12,
            rope_axes_dim=(4, 4),
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 4, 4),
            timestep=STEP.float(),
            encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK,
        ),
        image="first",
    ),
    "diffusers.Lumina2Transformer2DModel": Case(
        LUMINA2,
        sample(
            **LATENTS,
            timestep=PART,
            encoder_attention_mask=torch.ones(BATCH, T, dtype=torch.bool),
        ),
    ),
    "diffusers.Lumina2Transformer2DModel, texts of different length": Case(
        LUMINA2,
        sample(
            **LATENTS,
            timestep=PART,
            encoder_attention_mask=MASK.bool(),
        ),
        image=(5, 3),
    ),
    "diffusers.LuminaNextDiT2DModel": Case(
        diffusers(
            "LuminaNextDiT2DModel",
            sample_size=8,
            hidden_size=24,
            num_layers=5,
            num_attention_heads=3,
            num_kv_heads=3,
            multiple_of=8,
            cross_attention_dim=12,
            learn_sigma=False,
        ),
        sample(
            **LATENTS,
            timestep=PART,
            encoder_mask=MASK,
            cross_attention_kwargs={},
            image_rotary_emb=torch.polar(torch.ones(16, 16, 4), randn(16, 16, 4)),
        ),
    ),
    "diffusers.OmniGenTransformer2DModel": Case(
        diffusers(
            "OmniGenTransformer2DModel",
            hidden_size=24,
            num_attention_heads=3,
            num_key_value_heads=3,
            intermediate_size=32,
            num_layers=5,
            pad_token_id=0,
            vocab_size=20,
            max_position_embeddings=64,
            original_max_position_embeddings=64,
            rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
            pos_embed_max_size=8,
            time_step_dim=8,
        ),
        sample(
            hidden_states=PICTURE,
            timestep=PART,
            input_ids=torch.arange(BATCH * T).reshape(BATCH, T),
            input_img_latents=[],
            input_image_sizes={},
            attention_mask=torch.ones(BATCH, T + 17, T + 17),
            position_ids=torch.arange(T + 17).expand(BATCH, -1),
        ),
    ),
    "diffusers.PRXTransformer2DModel": Case(
        diffusers(
            "PRXTransformer2DModel",
            in_channels=4,
            context_in_dim=12,
            hidden_size=24,
            num_heads=3,
            depth=5,
            axes_dim=[4, 4],
        ),
        sample(**LATENTS, timestep=PART),
    ),
    "diffusers.PixArtTransformer2DModel": Case(
        diffusers(
            "PixArtTransformer2DModel",
            num_layers=5,
            cross_attention_dim=24,
            sample_size=8,
            caption_channels=12,
            use_additional_conditions=False,
            **SMALL,
        ),
        sample(
            **LATENTS,
            encoder_attention_mask=MASK,
            timestep=STEP,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
    ),
    "diffusers.QwenImageTransformer2DModel": Case(
        diffusers(
            "QwenImageTransformer2DModel",
            in_channels=4,
            out_channels=1,
            num_layers=5,
            joint_attention_dim=12,
            axes_dims_rope=(2, 2, 4),
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 16, 4),
            encoder_hidden_states=TEXT,
            encoder_hidden_states_mask=torch.ones(BATCH, T, dtype=torch.bool),
            timestep=PART,
            img_shapes=[[(1, 4, 4)]] * BATCH,
        ),
    ),
    "diffusers.SD3Transformer2DModel": Case(
        diffusers("SD3Transformer2DModel", num_layers=5, **SD3),
        sample(
            **LATENTS,
            pooled_projections=POOLED,
            timestep=STEP,
        ),
        image="first",
    ),
    "diffusers.SanaTransformer2DModel": Case(
        diffusers(
            "SanaTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=5,
            num_cross_attention_heads=3,
            cross_attention_head_dim=8,
            cross_attention_dim=24,
            caption_channels=12,
            sample_size=4,
            **SMALL,
        ),
        sample(hidden_states=randn(BATCH, 4, 4, 4), encoder_hidden_states=TEXT, timestep=STEP),
        exact=False,
    ),
    "diffusers.ZImageTransformer2DModel": Case(
        diffusers(
            "ZImageTransformer2DModel",
            in_channels=4,
            dim=24,
            n_layers=5,
            n_refiner_layers=1,
            n_heads=3,
            n_kv_heads=3,
            cap_feat_dim=12,
            axes_dims=[4, 2, 2],
            axes_lens=[128, 16, 16],
        ),
        lambda m: torch.stack(
            m(list(randn(BATCH, 4, 1, 8, 16)), PART, list(TEXT), return_dict=False)[0]
        ),
        grid=(4, 8),
        image="first",
    ),
}
