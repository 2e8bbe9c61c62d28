"""CLIP weights of any origin as a transformers `CLIPModel`: transformers' own names, or those of open_clip.

The conversion only renames, splits and transposes, so both give the same embeddings. All sizes are read off the weights; what
weights do not tell, the number of heads and the activation, is looked up by the architecture's name (open_clip's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from stepdistill.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """What the shapes of the weights leave open."""

    vision_heads: int
    text_heads: int
    activation: Literal["gelu", "quick_gelu"] = "gelu"


ARCHITECTURES = {
    "ViT-B-32": Architecture(12, 8),
    "ViT-B-32-quickgelu": Architecture(12, 8, "quick_gelu"),
    "ViT-B-16": Architecture(12, 8),
    "ViT-B-16-quickgelu": Architecture(12, 8, "quick_gelu"),
    "ViT-L-14": Architecture(16, 12),
    "ViT-L-14-quickgelu": Architecture(16, 12, "quick_gelu"),
    "ViT-H-14": Architecture(16, 16),
    "ViT-g-14": Architecture(16, 16),
    "ViT-bigG-14": Architecture(16, 20),
}
"""By open_clip's name. OpenAI's own weights are the quickgelu ones."""

_TOWERS = {"transformer": "text_model", "visual.transformer": "vision_model"}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_RENAMED = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def clip_model(
    weights: Mapping[str, Tensor], architecture: Architecture | str, *, source: str = "the weights"
) -> CLIPModel:
    """A frozen float32 `CLIPModel` of weights in either naming.

    Args:
        weights: the state dict.
        architecture: one of `ARCHITECTURES`, or the entry itself.
        source: what to call the weights in an error.

    Raises:
        UserError: they are not those of a CLIP model with two transformer towers, or not of this architecture.
    """
    if isinstance(architecture, str):
        architecture = ARCHITECTURES[architecture]
    try:
        state = from_open_clip(weights) if "visual.conv1.weight" in weights else dict(weights)
        config = config_of(state, architecture)
    except KeyError as error:
        raise UserError(f"{source}: no CLIP model of two transformers, {error} is missing") from error
    state = {name: value.float() for name, value in state.items() if not name.endswith(".position_ids")}
    with torch.device("meta"):
        needed = {name: value.shape for name, value in CLIPModel(config).state_dict().items()}
    wrong = sorted(needed.keys() ^ state.keys()) or [
        name for name in needed if needed[name] != state[name].shape
    ]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights are missing, too many or of another shape, '{wrong[0]}' first"
        )
    model: Any = CLIPModel.from_pretrained(None, config=config, state_dict=state)
    return model.eval().requires_grad_(False)


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open_clip's `CLIP` under the names of transformers' `CLIPModel`.

    Raises:
        UserError: there is a weight that a plain CLIP does not have.
    """
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _RENAMED:
            state[_RENAMED[name]] = value
        elif name in _TRANSPOSED:
            state[_TRANSPOSED[name]] = value.T.contiguous()
        elif ".resblocks." in name:
            state |= _layer(name, value)
        elif name != "attn_mask":
            raise UserError(f"'{name}' is no weight of open_clip's CLIP with two transformer towers")
    return state


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    """One weight of a transformer layer; query, key and value are stacked in open_clip."""
    tower, _, rest = name.partition(".resblocks.")
    number, _, rest = rest.partition(".")
    target = f"{_TOWERS[tower]}.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{target}.self_attn.{part}_proj.{kind}": piece
            for part, piece in zip("qkv", value.chunk(3), strict=True)
        }
    module, _, kind = rest.rpartition(".")
    return {f"{target}.{_LAYER[module]}.{kind}": value}


def config_of(state: Mapping[str, Tensor], architecture: Architecture) -> CLIPConfig:
    """The configuration of weights under transformers' names: sizes from their shapes.

    The end token is the vocabulary's last, as in all CLIP models.
    """
    vocabulary, _ = state["text_model.embeddings.token_embedding.weight"].shape
    length, _ = state["text_model.embeddings.position_embedding.weight"].shape
    positions, _ = state["vision_model.embeddings.position_embedding.weight"].shape
    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    projection, _ = state["text_projection.weight"].shape
    return CLIPConfig(
        text_config=_sizes(state, "text_model", architecture.text_heads, architecture.activation)
        | {"vocab_size": vocabulary, "max_position_embeddings": length, "projection_dim": projection}
        | {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1},
        vision_config=_sizes(state, "vision_model", architecture.vision_heads, architecture.activation)
        | {
            "image_size": patch * math.isqrt(positions - 1),
            "patch_size": patch,
            "projection_dim": projection,
        },
        projection_dim=projection,
    )


def _sizes(state: Mapping[str, Tensor], tower: str, heads: int, activation: str) -> dict[str, Any]:
    inner, width = state[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder.layers.")}
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers)}
    return sizes | {"num_attention_heads": heads, "hidden_act": activation}
