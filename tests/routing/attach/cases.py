"""Tiny random models of other libraries, one for each row of the table of presets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.routing.attach.foreign import MODELS

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
        returns: Place of the stream in what each list of blocks returns; None: a tensor.
        exact: Whether dropping tokens is the same as hiding their keys.
    """

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], Any]
    grid: tuple[int, ...] = (4, 4)
    image: str | tuple[int, ...] = "last"
    exact: bool = True


def diffusers(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module("diffusers"), name)(**config)
        return model

    return build


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
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SMALL = {"num_attention_heads": 3, "attention_head_dim": 8}


def table(n: int, d: int = 8) -> tuple[Tensor, Tensor]:
    return randn(n, d, seed=5).cos(), randn(n, d, seed=5).sin()


WIDTH: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "num_classes": 3}
WIDTH_ROPE: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "num_classes": 3}


def timm_model(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = importlib.import_module("timm").create_model(name, **config)
        return model

    return build


def transformer(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A model of transformers with five small blocks."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 5}
    attention = {"num_attention_heads": 3, "intermediate_size": 32}

    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        if name not in ("Mamba2", "FalconMamba", "Rwkv"):
            sizes.update(attention)
        made = getattr(library, f"{name}Config")(**sizes, **config)
        model: nn.Module = getattr(library, f"{name}Model")(made)
        return model

    return build


def picture(size: int) -> Callable[[nn.Module], Any]:
    return lambda model: model(randn(BATCH, 3, size, size))


def hidden(run: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    return lambda model: run(model).last_hidden_state


def words(padded: bool = False) -> Callable[[nn.Module], Any]:
    """A language model on 16 tokens; the first three of one sample may be padding."""
    mask = torch.ones(BATCH, 16, dtype=torch.long)
    mask[1, :3] = 0
    inputs: dict[str, Any] = {"attention_mask": mask} if padded else {}
    ids = torch.arange(32).reshape(2, 16) * 5 % 8
    return lambda model: model(ids, **inputs).last_hidden_state


CASES: dict[str, Case] = {
    "diffusers.FluxTransformer2DModel": Case(
        lambda: MODELS["diffusers_flux"]().model,
        lambda m: MODELS["diffusers_flux"]().run(m),
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
        sample(
            hidden_states=randn(BATCH, 16, 4),
            encoder_hidden_states=TEXT,
            timestep=PART,
            img_ids=places(16, 4),
            txt_ids=torch.zeros(T, 4),
        ),
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
        sample(
            hidden_states=randn(BATCH, 16, 4),
            encoder_hidden_states=TEXT,
            timestep=PART,
            img_ids=places(16),
            txt_ids=torch.zeros(T, 3),
        ),
    ),
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
        sample(hidden_states=PICTURE, encoder_hidden_states=TEXT, timestep=PART),
    ),
    "diffusers.Lumina2Transformer2DModel": Case(
        diffusers(
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
        ),
        sample(
            hidden_states=PICTURE,
            timestep=PART,
            encoder_hidden_states=TEXT,
            encoder_attention_mask=torch.ones(BATCH, T, dtype=torch.bool),
        ),
    ),
    "diffusers.Lumina2Transformer2DModel, texts of different length": Case(
        diffusers(
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
        ),
        sample(
            hidden_states=PICTURE,
            timestep=PART,
            encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK.bool(),
        ),
        image=(5, 3),
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
    "diffusers.HunyuanVideoTransformer3DModel": Case(
        diffusers(
            "HunyuanVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=1,
            guidance_embeds=False,
            text_embed_dim=12,
            pooled_projection_dim=10,
            rope_axes_dim=(2, 2, 4),
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 2, 4, 8),
            timestep=STEP,
            encoder_hidden_states=TEXT,
            encoder_attention_mask=MASK,
            pooled_projections=POOLED,
        ),
        grid=VIDEO,
        image="first",
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
    "diffusers.HiDreamImageTransformer2DModel": Case(
        diffusers(
            "HiDreamImageTransformer2DModel",
            patch_size=2,
            in_channels=4,
            num_layers=4,
            num_single_layers=1,
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
    "diffusers.CogView3PlusTransformer2DModel": Case(
        diffusers(
            "CogView3PlusTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=5,
            text_embed_dim=12,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
            **SMALL,
        ),
        sample(
            hidden_states=PICTURE,
            encoder_hidden_states=TEXT,
            timestep=STEP,
            original_size=torch.full((BATCH, 2), 64.0),
            target_size=torch.full((BATCH, 2), 64.0),
            crop_coords=torch.zeros(BATCH, 2),
        ),
    ),
    "diffusers.CogView4Transformer2DModel": Case(
        diffusers(
            "CogView4Transformer2DModel",
            in_channels=4,
            out_channels=4,
            num_layers=5,
            text_embed_dim=12,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
            rope_axes_dim=(8, 8),
            **SMALL,
        ),
        sample(
            hidden_states=PICTURE,
            encoder_hidden_states=TEXT,
            timestep=STEP,
            original_size=torch.full((BATCH, 2), 64.0),
            target_size=torch.full((BATCH, 2), 64.0),
            crop_coords=torch.zeros(BATCH, 2),
        ),
    ),
    "diffusers.CogVideoXTransformer3DModel": Case(
        diffusers(
            "CogVideoXTransformer3DModel",
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=12,
            num_layers=5,
            sample_width=8,
            sample_height=4,
            sample_frames=5,
            max_text_seq_length=T,
            use_rotary_positional_embeddings=True,
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 2, 4, 4, 8),
            encoder_hidden_states=TEXT,
            timestep=STEP,
            image_rotary_emb=table(16),
        ),
        grid=VIDEO,
    ),
    "diffusers.WanTransformer3DModel": Case(
        diffusers(
            "WanTransformer3DModel",
            in_channels=4,
            out_channels=4,
            text_dim=12,
            freq_dim=8,
            ffn_dim=16,
            num_layers=5,
            rope_max_seq_len=32,
            **SMALL,
        ),
        sample(hidden_states=randn(BATCH, 4, 2, 4, 8), timestep=STEP, encoder_hidden_states=TEXT),
        grid=VIDEO,
    ),
    "diffusers.WanTransformer3DModel, a timestep for each token": Case(
        diffusers(
            "WanTransformer3DModel",
            in_channels=4,
            out_channels=4,
            text_dim=12,
            freq_dim=8,
            ffn_dim=16,
            num_layers=5,
            rope_max_seq_len=32,
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 2, 4, 8),
            timestep=torch.arange(2 * 16).reshape(2, 16) * 20,
            encoder_hidden_states=TEXT,
        ),
        grid=VIDEO,
    ),
    "diffusers.LTXVideoTransformer3DModel": Case(
        diffusers(
            "LTXVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            cross_attention_dim=24,
            num_layers=5,
            caption_channels=12,
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 16, 4),
            encoder_hidden_states=TEXT,
            timestep=STEP,
            encoder_attention_mask=MASK,
            num_frames=2,
            height=2,
            width=4,
        ),
        grid=VIDEO,
    ),
    "diffusers.MochiTransformer3DModel": Case(
        diffusers(
            "MochiTransformer3DModel",
            num_attention_heads=3,
            attention_head_dim=8,
            num_layers=5,
            pooled_projection_dim=16,
            in_channels=4,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=T,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 2, 4, 8),
            encoder_hidden_states=randn(BATCH, T, 16),
            timestep=STEP,
            encoder_attention_mask=MASK.bool(),
        ),
        grid=VIDEO,
        image="first",
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
    "diffusers.CosmosTransformer3DModel": Case(
        diffusers(
            "CosmosTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=3,
            attention_head_dim=16,
            num_layers=5,
            text_embed_dim=12,
            adaln_lora_dim=4,
            max_size=(4, 8, 8),
            concat_padding_mask=False,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 2, 4, 8),
            timestep=STEP,
            encoder_hidden_states=TEXT,
            fps=16,
        ),
        grid=VIDEO,
    ),
    "diffusers.Kandinsky5Transformer3DModel": Case(
        diffusers(
            "Kandinsky5Transformer3DModel",
            in_text_dim=12,
            in_text_dim2=10,
            time_dim=8,
            model_dim=24,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=5,
            axes_dims=(2, 2, 4),
        ),
        sample(
            hidden_states=randn(BATCH, 2, 4, 8, 4),
            encoder_hidden_states=TEXT,
            timestep=STEP,
            pooled_projections=POOLED,
            visual_rope_pos=[torch.arange(2), torch.arange(2), torch.arange(4)],
            text_rope_pos=torch.arange(T),
        ),
        grid=VIDEO,
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
        sample(hidden_states=PICTURE, timestep=PART, encoder_hidden_states=TEXT),
    ),
    "diffusers.StableAudioDiTModel": Case(
        diffusers(
            "StableAudioDiTModel",
            sample_size=16,
            in_channels=4,
            num_layers=5,
            num_key_value_attention_heads=3,
            out_channels=4,
            cross_attention_dim=24,
            time_proj_dim=8,
            global_states_input_dim=10,
            cross_attention_input_dim=12,
            **SMALL,
        ),
        sample(
            hidden_states=randn(BATCH, 4, 16),
            timestep=PART,
            encoder_hidden_states=TEXT,
            global_hidden_states=randn(BATCH, 1, 10),
            rotary_embedding=table(17, 4),
        ),
        grid=(1, 16),
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
            hidden_states=PICTURE,
            timestep=PART,
            encoder_hidden_states=TEXT,
            encoder_mask=MASK,
            cross_attention_kwargs={},
            image_rotary_emb=torch.polar(torch.ones(16, 16, 4), randn(16, 16, 4)),
        ),
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
    "diffusers.SanaVideoTransformer3DModel": Case(
        diffusers(
            "SanaVideoTransformer3DModel",
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
        sample(hidden_states=randn(BATCH, 4, 2, 4, 8), encoder_hidden_states=TEXT, timestep=STEP),
        grid=VIDEO,
        exact=False,
    ),
}
CASES |= {
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
    "timm.VisionTransformer, distilled": Case(
        timm_model("deit_tiny_distilled_patch16_224", img_size=64, depth=5), picture(64)
    ),
    "timm.VisionTransformer, DINOv2": Case(
        timm_model("vit_small_patch14_dinov2", img_size=56, depth=5, **WIDTH), picture(56)
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
    "timm.Cait": Case(timm_model("cait_xxs24_224", img_size=64, depth=5), picture(64), exact=False),
    "timm.Eva, DINOv3": Case(
        timm_model("vit_small_patch16_dinov3", img_size=64, depth=5, **WIDTH_ROPE), picture(64)
    ),
    "timm.Eva, mixed rotary tables": Case(
        timm_model("vit_base_patch16_rope_mixed_224", img_size=64, depth=5, **WIDTH_ROPE),
        picture(64),
    ),
    "timm.NaFlexVit": Case(timm_model("naflexvit_base_patch16_gap", depth=5, **WIDTH), picture(64)),
    "transformers.ViTModel": Case(
        transformer("ViT", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.Dinov2Encoder": Case(
        transformer("Dinov2", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.SiglipEncoder": Case(
        transformer("SiglipVision", image_size=64, patch_size=16), hidden(picture(64))
    ),
    "transformers.Qwen2Model": Case(
        transformer("Qwen2", vocab_size=8, num_key_value_heads=3, use_cache=False), words(), (1, 16)
    ),
    "transformers.Qwen2Model, padded": Case(
        transformer("Qwen2", vocab_size=8, num_key_value_heads=3, use_cache=False),
        words(padded=True),
        (1, 16),
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
    "transformers.RwkvModel": Case(
        transformer("Rwkv", vocab_size=8, attention_hidden_size=24, use_cache=False),
        words(),
        (1, 16),
        exact=False,
    ),
}
for _name in ("DiT", "PixArt", "SD3"):
    _make = MODELS[f"diffusers_{_name.lower()}"]
    CASES[f"diffusers.{_name}Transformer2DModel"] = Case(
        lambda make=_make: make().model,
        lambda m, make=_make: make().run(m),
        image="first" if _name == "SD3" else "last",
    )
