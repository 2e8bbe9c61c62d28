"""Pipelines of the real diffusers classes with tiny random networks: milliseconds per call, no downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TinyFamily = Literal["sd", "sd-v", "sdxl", "sd3"]
"""sd: eps prediction. sd-v: v prediction. sdxl: micro-conditioning. sd3: flow matching with dual attention."""

_TOKENS = 16
_WIDTH = 16
_LATENT_CHANNELS = 4
_LATENT_SIZE = 8


def tiny_pipeline(family: TinyFamily, seed: int = 0) -> DiffusionPipeline:
    """Return a pipeline of the family for 16 x 16 images, with weights from the seed."""
    if family not in get_args(TinyFamily):
        raise ValueError(f"family must be one of {get_args(TinyFamily)}, got {family!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "sd3":
            pipeline = _sd3()
        elif family == "sdxl":
            pipeline = _sdxl()
        else:
            pipeline = _sd("epsilon" if family == "sd" else "v_prediction")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_tokenizer(max_length: int = _TOKENS) -> Any:
    """Return a CLIP tokenizer with the printable ASCII characters as its vocabulary."""
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def _sd(prediction_type: Literal["epsilon", "v_prediction"]) -> DiffusionPipeline:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    absent: Any = None
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=UNet2DConditionModel(**_unet_config(), cross_attention_dim=_WIDTH),
        scheduler=_vp_scheduler(prediction_type),
        safety_checker=absent,
        feature_extractor=absent,
        requires_safety_checker=False,
    )


def _sdxl() -> DiffusionPipeline:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **_unet_config(),
        cross_attention_dim=2 * _WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        text_encoder_2=_text_encoder(with_projection=True),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=_vp_scheduler("epsilon"),
        add_watermarker=False,
    )


def _sd3() -> DiffusionPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=_LATENT_SIZE,
        patch_size=2,
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    absent: Any = None
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_text_encoder(with_projection=True),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=_text_encoder(with_projection=True),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=absent,
        tokenizer_3=absent,
    )


def _unet_config() -> dict[str, Any]:
    return {
        "sample_size": _LATENT_SIZE,
        "in_channels": _LATENT_CHANNELS,
        "out_channels": _LATENT_CHANNELS,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }


def _vp_scheduler(prediction_type: Literal["epsilon", "v_prediction"]) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _vae(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    config: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": _LATENT_CHANNELS,
        "norm_num_groups": 4,
        "sample_size": 2 * _LATENT_SIZE,
    }
    return AutoencoderKL(**config, **options)


def _text_encoder(with_projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=_TOKENS,
        projection_dim=_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config)
