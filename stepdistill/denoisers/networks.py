"""The network of each pipeline and the layers that a LoRA adapts by default, for adapters and for `stepdistill plan`.

This module imports no torch. A family that is not listed here is planned by building its network without weights.
"""

from __future__ import annotations

# The layers of LCM-LoRA and of DMD2's LoRA, so that ranks and scales compare.
UNET_LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
SD3_LORA_TARGETS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)

NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": ("unet", UNET_LORA_TARGETS),
    "StableDiffusionXLPipeline": ("unet", UNET_LORA_TARGETS),
    "StableDiffusion3Pipeline": ("transformer", SD3_LORA_TARGETS),
}
"""Pipeline class name -> (component that is distilled, layers of a LoRA)."""
