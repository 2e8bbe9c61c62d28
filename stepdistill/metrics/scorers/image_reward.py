"""ImageReward (https://arxiv.org/abs/2304.05977): BLIP encodes image and prompt together, a linear head rates them.

The published weights use BLIP's own names and are renamed to transformers' BLIP, without the `image-reward` package. Two
settings differ from transformers' defaults: the vision tower's norms have eps 1e-6 (not 1e-5), and the text tower has one
head per 64 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedTokenizerBase,
)

from stepdistill.errors import UserError
from stepdistill.metrics.networks.weights import Location, WeightFile, pretrained, read_tensors
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.base import NetworkScorer, linear_head

IMAGE_REWARD = WeightFile(
    "ImageReward.pt", "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6", repo="THUDM/ImageReward"
)

# Mean and standard deviation of the head's output over the training set, where the reward has mean 0 and variance 1.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35  # as in the authors' code; longer prompts are truncated
HEAD_WIDTH = 64
HEAD = (1024, 128, 64, 16, 1)

_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")


class ImageRewardScorer(NetworkScorer):
    """The reward of an image for a prompt, about -2 to 2.

    Args:
        vision: the image tower.
        text: the prompt tower, with cross-attention to the image.
        head: state of the first token to one number.
        tokenizer: BERT's, lower case.
        name: label of the numbers.
        model: name and checksum of the weights.
    """

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "image_reward",
        model: str = "ImageReward-v1.0",
    ) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head
        self.tokenizer = tokenizer
        self.name, self.model = name, model
        size: Any = vision.config.image_size
        self.preprocess = Preprocess(size)
        self.eval().requires_grad_(False)

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, **names: str
    ) -> ImageRewardScorer:
        """Build the scorer from the published state dict.

        Raises:
            UserError: a weight is missing or unexpected.
        """
        vision, text, head = split_weights(weights)
        try:
            towers = (
                BlipVisionModel(_vision_config(vision)),
                BlipTextModel(_text_config(text), add_pooling_layer=False),
            )
        except KeyError as error:
            raise UserError(f"these are not the weights of ImageReward: {error} is missing") from error
        networks = (*towers, linear_head([text["embeddings.word_embeddings.weight"].shape[1], *HEAD]))
        for network, state in zip(networks, (vision, text, head), strict=True):
            wrong = sorted(network.state_dict().keys() ^ state.keys())
            if wrong:
                raise UserError(f"these are not the weights of ImageReward: '{wrong[0]}' is missing or unexpected")
            network.load_state_dict(state)
        return cls(*networks, tokenizer, **names)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        picture = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state
        states = self.text(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=picture
        ).last_hidden_state
        return (self.head(states[:, 0]).squeeze(1).float() - MEAN) / STD

    def description(self) -> dict[str, Any]:
        return super().description() | {"model": self.model}


def image_reward_scorer(*, weights: Location = None, tokenizer: Location = None) -> ImageRewardScorer:
    """Load ImageReward-v1.0.

    Args:
        weights: `ImageReward.pt`, or the folder that holds it.
        tokenizer: folder of the tokenizer of bert-base-uncased.
    """
    file = IMAGE_REWARD.locate(weights)
    model = IMAGE_REWARD.label("ImageReward", file)
    name = "image_reward" if IMAGE_REWARD.is_published(file) else f"image_reward:{model}"
    words = pretrained(BertTokenizer, "google-bert/bert-base-uncased", tokenizer)
    return ImageRewardScorer.from_weights(read_tensors(file), words, name=name, model=model)


def split_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split the published weights into image tower, prompt tower and head, under transformers' names."""
    vision: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("blip.visual_encoder."):
            vision[_vision_name(name.removeprefix("blip.visual_encoder."))] = value
        elif name.startswith("blip.text_encoder."):
            if not name.endswith(".position_ids"):
                text[name.removeprefix("blip.text_encoder.")] = value
        elif name.startswith("mlp.layers."):
            head[name.removeprefix("mlp.layers.")] = value
        elif not name.startswith(_UNUSED):
            raise UserError(f"'{name}' does not belong to ImageReward")
    return vision, text, head


def _vision_name(name: str) -> str:
    if not name.startswith("blocks."):
        return _VISION.get(name, name)
    _, number, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    return f"encoder.layers.{number}.{_BLOCK.get(module, module)}.{kind}"


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    inner, width = state["encoder.layers.0.mlp.fc1.weight"].shape
    patch = state["embeddings.patch_embedding.weight"].shape[-1]
    positions = state["embeddings.position_embedding"].shape[1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")}),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor]) -> BlipTextConfig:
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")}),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,
    )
