"""Scores by CLIP models: equal to transformers' own, prefix and cut, scales, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil

from stepdistill.metrics.networks.extractors import ClipFeatures
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.preprocess import to_pictures
from stepdistill.metrics.scorers.prompt_scorers import (
    AestheticScorer,
    CallableScorer,
    ClipScorer,
    linear_head,
)

PROMPTS = ["ab", "c d"]
LONG = "a b c d e f g h i j k l m n o p q r s t"


def images(height: int = 24, width: int = 40) -> torch.Tensor:
    small = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, (height, width), mode="bilinear")


def test_the_logit_scale_gives_transformers_own_logits(clip: ClipFeatures) -> None:
    """PickScore: the model card's score is the diagonal of `logits_per_image`."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = processor(to_pictures(images()), return_tensors="pt").pixel_values
    tokens = clip.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = clip.model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    transform = PictureTransform(16, crop="floor")
    logit = ClipScorer(clip, name="logit", scale="logit", transform=transform)(images(), PROMPTS)
    assert torch.allclose(logit, expected, atol=1e-4)
    cosine = ClipScorer(clip, name="cosine", scale=1.0, transform=transform)(images(), PROMPTS)
    assert torch.allclose(cosine * clip.model.logit_scale.exp(), expected, atol=1e-4)


def test_a_prefix_stands_before_every_prompt(clip: ClipFeatures) -> None:
    plain = ClipScorer(clip, name="plain")
    prefixed = ClipScorer(clip, name="prefixed", prefix="x y ")
    assert torch.equal(prefixed(images(), PROMPTS), plain(images(), ["x y ab", "x y c d"]))
    assert not torch.allclose(prefixed(images(), PROMPTS), plain(images(), PROMPTS))


def test_prefix_and_prompt_are_cut_before_the_end_token(
    clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    whole = clip.model.get_text_features

    def spy(input_ids: torch.Tensor, **rest: Any) -> Any:
        seen.append(input_ids)
        return whole(input_ids=input_ids, **rest)

    monkeypatch.setattr(clip.model, "get_text_features", spy)
    ClipScorer(clip, name="x", prefix="xy ")(images()[:1], [LONG])
    start, x, y = seen[0][0, :3].tolist()
    expected = clip.tokenizer("xy", add_special_tokens=False).input_ids
    assert [x, y] == expected
    assert start == clip.tokenizer.bos_token_id
    assert seen[0].shape == (1, 16)
    assert seen[0][0, -1] == clip.tokenizer.eos_token_id
    assert (seen[0] == clip.tokenizer.eos_token_id).sum() == 1


def test_scale_and_clamp(clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    cosine = ClipScorer(clip, name="x", scale=1.0)(images(), PROMPTS)
    assert torch.allclose(ClipScorer(clip, name="x")(images(), PROMPTS), 100 * cosine, atol=1e-4)
    clamped = ClipScorer(clip, name="x", scale=2.5, is_clamped=True)
    first, texts = clamped(images(), PROMPTS), clip.texts
    monkeypatch.setattr(clip, "texts", lambda captions: -texts(captions))
    second = clamped(images(), PROMPTS)  # of the opposite texts: one of the two is negative, and becomes zero
    assert torch.allclose(first - second, 2.5 * cosine, atol=1e-6)
    assert torch.equal(first * second, torch.zeros(2))


def test_entities_are_resolved_where_open_clip_does(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", is_unescaped=True)
    assert torch.equal(
        scorer(images(), ["a&amp;b", " c"]), ClipScorer(clip, name="x")(images(), ["a&b", "c"])
    )


def test_a_reward_follows_its_images_and_agrees_with_the_metric(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", transform=PictureTransform(16))
    leaf = images(64, 64).requires_grad_()
    reward = scorer.reward(leaf, PROMPTS)
    reward.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in scorer.parameters())
    metric = scorer(leaf, PROMPTS)
    assert not metric.requires_grad
    assert torch.allclose(reward, metric, atol=0.3)


def test_pictures_of_any_size_and_tensors_score_the_same(clip: ClipFeatures) -> None:
    for resize in ("pil", "tensor"):
        scorer = ClipScorer(clip, name="x", transform=PictureTransform(16, resize=resize))
        pictures = [*to_pictures(images()), *to_pictures(images(32, 20))]
        together = scorer(pictures, [*PROMPTS, *PROMPTS])
        apart = torch.cat([scorer(images(), PROMPTS), scorer(images(32, 20), PROMPTS)])
        assert torch.allclose(together, apart, atol=1e-4)


def test_grey_and_transparent_pictures_become_rgb(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", transform=PictureTransform(16))
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    assert torch.equal(scorer([grey], ["a"]), scorer([grey.convert("RGB")], ["a"]))


def test_one_prompt_for_every_image(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x")
    for rate in (scorer, scorer.reward, CallableScorer(lambda images, prompts: [0.0], name="y")):
        with pytest.raises(ValueError, match="2 images but 1 prompts"):
            rate(images(), ["a"])


def test_the_description_tells_what_the_number_depends_on(clip: ClipFeatures) -> None:
    transform = PictureTransform(16, first_square=20)
    told = ClipScorer(clip, name="n", prefix="p ", scale=1.0, transform=transform).description()
    assert told["name"] == "n"
    assert (told["model"], told["prefix"], told["scale"]) == ("random", "p ", 1.0)
    assert told["transform"]["first_square"] == 20


def test_the_aesthetic_head_reads_unit_embeddings_of_the_picture_alone(clip: ClipFeatures) -> None:
    head = linear_head([8, 4, 3, 3, 2, 1])
    scorer = AestheticScorer(clip, head, name="x")
    matrix, offset = torch.eye(8), torch.zeros(8)
    for layer in head:
        if isinstance(layer, nn.Linear):
            matrix, offset = layer.weight @ matrix, layer.weight @ offset + layer.bias
    embedding = clip(images(16, 16))
    expected = (embedding / embedding.norm(dim=1, keepdim=True)) @ matrix.T + offset
    scores = scorer(images(16, 16), PROMPTS)
    assert torch.allclose(scores, expected[:, 0], atol=1e-5)
    assert torch.equal(scores, scorer(images(16, 16), ["other", "words"]))
    leaf = images(16, 16).requires_grad_()
    scorer.reward(leaf, PROMPTS).sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_any_function_scores(form: Any) -> None:
    scorer = CallableScorer(lambda images, prompts: form([float(len(p)) for p in prompts]), name="length")
    assert scorer(images(), PROMPTS).tolist() == [2.0, 3.0]
    assert scorer.description() == {"name": "length"}


def test_a_function_with_one_number_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(\) for 2 images"):
        CallableScorer(lambda images, prompts: images.mean(), name="mean")(images(), PROMPTS)
