"""ImageReward on tiny random weights under the published names, against the model written out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizer

from stepdistill.errors import UserError
from stepdistill.metrics.scorers.image_reward import MAX_TOKENS, MEAN, STD, ImageRewardScorer

WIDTH, LAYERS, PATCH, GRID = {"vision": 128, "text": 192}, 2, 8, 2


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", "red", "blue"]


SIDE = PATCH * GRID


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def linear(name: str, rows: int, columns: int, draw: torch.Generator) -> dict[str, Tensor]:
    weight = torch.randn(rows, columns, generator=draw) / columns**0.5
    return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(rows, generator=draw)}


def layer_norm(name: str, width: int, draw: torch.Generator) -> dict[str, Tensor]:
    weight = 1 + 0.3 * torch.randn(width, generator=draw)
    return {f"{name}.weight": weight, f"{name}.bias": 0.3 * torch.randn(width, generator=draw)}


def published(seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the names and shapes of `ImageReward.pt`, but small."""
    g = torch.Generator().manual_seed(seed)
    v, t = WIDTH["vision"], WIDTH["text"]
    e, d = "blip.visual_encoder", "blip.text_encoder"
    state = {
        # Small, so that what the first norm adds to the variance shows.
        f"{e}.cls_token": 0.01 * torch.randn(1, 1, v, generator=g),
        f"{e}.pos_embed": 0.01 * torch.randn(1, GRID**2 + 1, v, generator=g),
        f"{e}.patch_embed.proj.weight": 0.001 * torch.randn(v, 3, PATCH, PATCH, generator=g),
        f"{e}.patch_embed.proj.bias": 0.01 * torch.randn(v, generator=g),
        f"{d}.embeddings.word_embeddings.weight": torch.randn(len(WORDS), t, generator=g),
        f"{d}.embeddings.position_embeddings.weight": torch.randn(40, t, generator=g),
        f"{d}.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.zeros(1),
        "blip.text_proj.bias": torch.zeros(1),
    }
    state |= layer_norm(f"{e}.norm", v, g) | layer_norm(f"{d}.embeddings.LayerNorm", t, g)
    for i in range(LAYERS):
        b, layer = f"{e}.blocks.{i}", f"{d}.encoder.layer.{i}"
        state |= layer_norm(f"{b}.norm1", v, g) | layer_norm(f"{b}.norm2", v, g)
        state |= linear(f"{b}.attn.qkv", 3 * v, v, g) | linear(f"{b}.attn.proj", v, v, g)
        state |= linear(f"{b}.mlp.fc1", 2 * v, v, g) | linear(f"{b}.mlp.fc2", v, 2 * v, g)
        for kind, source in (("attention", t), ("crossattention", v)):
            state |= linear(f"{layer}.{kind}.self.query", t, t, g) | linear(f"{layer}.{kind}.output.dense", t, t, g)
            state |= linear(f"{layer}.{kind}.self.key", t, source, g) | linear(
                f"{layer}.{kind}.self.value", t, source, g
            )
            state |= layer_norm(f"{layer}.{kind}.output.LayerNorm", t, g)
        state |= linear(f"{layer}.intermediate.dense", 2 * t, t, g) | linear(f"{layer}.output.dense", t, 2 * t, g)
        state |= layer_norm(f"{layer}.output.LayerNorm", t, g)
    widths = [t, 1024, 128, 64, 16, 1]
    for number, (inner, outer) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        state |= linear(f"mlp.layers.{number}", outer, inner, g)
    return state


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Heads of 64."""
    q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in (q, k, v))
    logits = q @ k.transpose(-1, -2) / 8
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def reference(pixels: Tensor, tokens: Tensor, state: dict[str, Tensor]) -> Tensor:
    """ViT with 1e-6 in its norms; BERT with post-norm and, after self-attention, cross-attention; linear head; shift."""

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    e, d = "blip.visual_encoder", "blip.text_encoder"
    patch = f"{e}.patch_embed.proj"
    x = F.conv2d(pixels, state[f"{patch}.weight"], state[f"{patch}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{e}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{e}.pos_embed"]
    for i in range(LAYERS):
        b = f"{e}.blocks.{i}"
        qkv = dense(norm(x, f"{b}.norm1", 1e-6), f"{b}.attn.qkv").chunk(3, -1)
        x = x + dense(attend(*qkv), f"{b}.attn.proj")
        x = x + dense(F.gelu(dense(norm(x, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    picture = norm(x, f"{e}.norm", 1e-6)

    h = state[f"{d}.embeddings.word_embeddings.weight"][tokens]
    h = h + state[f"{d}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    h = norm(h, f"{d}.embeddings.LayerNorm", 1e-12)
    for i in range(LAYERS):
        layer = f"{d}.encoder.layer.{i}"
        for kind, source, mask in (("attention", None, tokens != 0), ("crossattention", picture, None)):
            keys = h if source is None else source
            own = f"{layer}.{kind}.self"
            mixed = attend(dense(h, f"{own}.query"), dense(keys, f"{own}.key"), dense(keys, f"{own}.value"), mask)
            h = norm(dense(mixed, f"{layer}.{kind}.output.dense") + h, f"{layer}.{kind}.output.LayerNorm", 1e-12)
        inner = dense(F.gelu(dense(h, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        h = norm(inner + h, f"{layer}.output.LayerNorm", 1e-12)
    score = h[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = dense(score, f"mlp.layers.{number}")
    return (score[:, 0] - MEAN) / STD


@pytest.fixture(scope="module")
def scorer() -> ImageRewardScorer:
    return ImageRewardScorer.from_weights(published(), tokenizer())


def test_equals_the_model_written_out(scorer: ImageRewardScorer) -> None:
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    prompts = ["a cat", "red dogs blue cats a dog", "a " * 60]
    rows = tokenizer()(prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    assert {len(row) for row in rows} == {35}
    expected = reference(pixels, torch.tensor(rows), published())
    assert torch.allclose(scorer.rate(pixels, prompts), expected, atol=2e-4)
    assert expected.std() > 0.05


def test_pictures_are_resized_to_the_models_size(scorer: ImageRewardScorer) -> None:
    images = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(2))
    assert scorer.preprocess.size == SIDE
    scores = scorer(images, ["a cat", "a dog"])
    assert scores.shape == (2,)
    assert torch.equal(scores, scorer.rate(scorer.preprocess(images), ["a cat", "a dog"]))
    assert not torch.allclose(scores, scorer(images, ["red", "blue"]))


def test_a_reward_has_gradients_and_the_network_none(scorer: ImageRewardScorer) -> None:
    leaf = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(3)).requires_grad_()
    scorer.reward(leaf, ["a cat", "a dog"]).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in scorer.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blip.visual_encoder.norm.bias": None}, "post_layernorm.bias"),
        ({"mlp.layers.3.weight": torch.zeros(1)}, "3.weight"),
        ({"vae.weight": torch.zeros(1)}, "vae.weight"),
        ({"blip.text_encoder.embeddings.word_embeddings.weight": None}, "word_embeddings"),
    ],
)
def test_other_weights_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    weights = {name: value for name, value in (published() | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        ImageRewardScorer.from_weights(weights, tokenizer())
