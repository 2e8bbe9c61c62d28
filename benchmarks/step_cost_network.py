"""What both sides of `step_cost.py` train: one SD3 transformer, one problem size."""

from __future__ import annotations

CONFIG = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 256,
    "caption_projection_dim": 256,
    "pooled_projection_dim": 256,
    "pos_embed_max_size": 64,
}
SHAPE = (16, 32, 32)
BATCH, TOKENS, CRITIC_TURNS = 2, 77, 4
GUIDANCE = 4.0
HEAD_BLOCK = 3
