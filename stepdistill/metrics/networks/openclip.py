"""Everything about open_clip: its checkpoints as a transformers `CLIPModel`, and the package itself as a reference backend.

The conversion only renames, splits and transposes, so embeddings are equal. Sizes are read from the weights; what the
shapes leave open, the number of heads and the activation, is looked up by open_clip's name of the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from stepdistill.errors import UserError
from stepdistill.metrics.networks.clip import ClipNetwork
from stepdistill.metrics.preprocess import Preprocess


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
"""By open_clip's name. OpenAI's own weights use quick_gelu."""

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
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # [sic] in transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def clip_model(
    weights: Mapping[str, Tensor], architecture: Architecture | str, *, source: str = "the weights"
) -> CLIPModel:
    """Build a frozen float32 `CLIPModel` from weights under open_clip's or transformers' names.

    Args:
        weights: the state dict.
        architecture: a name in `ARCHITECTURES`, or an entry.
        source: how errors refer to the weights.

    Raises:
        UserError: the weights are not a CLIP model with two transformer towers, or not of this architecture.
    """
    if isinstance(architecture, str):
        architecture = ARCHITECTURES[architecture]
    try:
        state = from_open_clip(weights) if "visual.conv1.weight" in weights else dict(weights)
        config = config_of(state, architecture)
    except KeyError as error:
        raise UserError(f"{source}: not a CLIP model with two transformer towers, {error} is missing") from error
    state = {name: value.float() for name, value in state.items() if not name.endswith(".position_ids")}
    with torch.device("meta"):
        needed = {name: value.shape for name, value in CLIPModel(config).state_dict().items()}
    wrong = sorted(needed.keys() ^ state.keys()) or [name for name in needed if needed[name] != state[name].shape]
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights are missing, unexpected or of another shape, first '{wrong[0]}'"
        )
    model: Any = CLIPModel.from_pretrained(None, config=config, state_dict=state)
    return model.eval().requires_grad_(False)


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of open_clip's `CLIP` to that of transformers' `CLIPModel`.

    Raises:
        UserError: a weight does not belong to a plain CLIP.
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
            raise UserError(f"'{name}' does not belong to open_clip's CLIP with two transformer towers")
    return state


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    """Rename one weight of a transformer layer. open_clip stacks query, key and value."""
    tower, _, rest = name.partition(".resblocks.")
    number, _, rest = rest.partition(".")
    target = f"{_TOWERS[tower]}.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{target}.self_attn.{part}_proj.{kind}": piece for part, piece in parts}
    module, _, kind = rest.rpartition(".")
    return {f"{target}.{_LAYER[module]}.{kind}": value}


def config_of(state: Mapping[str, Tensor], architecture: Architecture) -> CLIPConfig:
    """Read the configuration from the shapes of weights under transformers' names."""
    vocabulary, _ = state["text_model.embeddings.token_embedding.weight"].shape
    length, _ = state["text_model.embeddings.position_embedding.weight"].shape
    positions, _ = state["vision_model.embeddings.position_embedding.weight"].shape
    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    projection, _ = state["text_projection.weight"].shape
    # In every CLIP vocabulary the last two tokens are start and end; text is pooled at the end token.
    text = {"vocab_size": vocabulary, "max_position_embeddings": length, "projection_dim": projection}
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    side = patch * math.isqrt(positions - 1)  # one position is the class token's
    vision = {"image_size": side, "patch_size": patch, "projection_dim": projection}
    text |= _sizes(state, "text_model", architecture.text_heads, architecture.activation)
    vision |= _sizes(state, "vision_model", architecture.vision_heads, architecture.activation)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


def _sizes(state: Mapping[str, Tensor], tower: str, heads: int, activation: str) -> dict[str, Any]:
    inner, width = state[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder.layers.")}
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers)}
    return sizes | {"num_attention_heads": heads, "hidden_act": activation}


class OpenClipFeatures(ClipNetwork):
    """A model of the open_clip package with its tokenizer: the reference backend, of the extra `[openclip]`.

    Args:
        model: an `open_clip.CLIP`; it is frozen.
        tokenizer: texts to tokens, truncated before the end token.
        name: label of the numbers.
    """

    def __init__(self, model: Any, tokenizer: Callable[[list[str]], Tensor], *, name: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        size: Any = model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.preprocess = Preprocess(self.image_size)
        self.num_features = int(model.visual.output_dim)

    @classmethod
    def from_tensors(cls, weights: Mapping[str, Tensor], architecture: str, *, name: str) -> OpenClipFeatures:
        """Load weights into open_clip's own model of this architecture, in float32.

        Raises:
            UserError: open_clip is not installed, or the weights belong to another architecture.
        """
        try:
            import open_clip  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            raise UserError(
                "backend=open_clip needs open_clip: pip install 'stepdistill[openclip]', or use backend=transformers"
            ) from error
        model = open_clip.create_model(architecture)
        try:
            model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"the weights do not fit open_clip's {architecture}: {reason}") from error
        return cls(model, open_clip.get_tokenizer(architecture), name=f"{name}/open_clip")

    def embed(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels.to(self.device)).float()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(captions)).to(self.device)).float()
