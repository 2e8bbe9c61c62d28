"""Scores by CLIP models: equal to transformers' own, prefix and truncation, scales, gradients, weights under their own name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_reference as reference
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepdistill.errors import UserError
from stepdistill.metrics import load_scorer
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.networks.openclip import ARCHITECTURES
from stepdistill.metrics.networks.weights import sha256
from stepdistill.metrics.preprocess import Preprocess, to_pictures
from stepdistill.metrics.scorers.base import CallableScorer
from stepdistill.metrics.scorers.clip_score import ClipScorer, unescaped
from stepdistill.testing.tiny import tiny_tokenizer

PROMPTS = ["ab", "c d"]
SIDE = reference.PATCH * reference.GRID
LONG = "a b c d e f g h i j k l m n o p q r s t"


def smooth(height: int = 24, width: int = 40) -> torch.Tensor:
    small = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, (height, width), mode="bilinear")


def test_the_logit_scale_gives_transformers_own_logits(clip: ClipFeatures) -> None:
    """PickScore: the model card's score is the diagonal of `logits_per_image`."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pixels = processor(to_pictures(smooth()), return_tensors="pt").pixel_values
    tokens = clip.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = clip.model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    preprocess = Preprocess(16, crop="floor")
    logit = ClipScorer(clip, name="logit", scale="logit", preprocess=preprocess)(smooth(), PROMPTS)
    assert torch.allclose(logit, expected, atol=1e-4)
    cosine = ClipScorer(clip, name="cosine", scale=1.0, preprocess=preprocess)(smooth(), PROMPTS)
    assert torch.allclose(cosine * clip.model.logit_scale.exp(), expected, atol=1e-4)


def test_a_prefix_is_prepended_to_every_prompt(clip: ClipFeatures) -> None:
    plain = ClipScorer(clip, name="plain")
    prefixed = ClipScorer(clip, name="prefixed", prefix="x y ")
    assert torch.equal(prefixed(smooth(), PROMPTS), plain(smooth(), ["x y ab", "x y c d"]))
    assert not torch.allclose(prefixed(smooth(), PROMPTS), plain(smooth(), PROMPTS))


def test_prefix_and_prompt_are_truncated_before_the_end_token(
    clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    whole = clip.model.get_text_features

    def spy(input_ids: torch.Tensor, **rest: Any) -> Any:
        seen.append(input_ids)
        return whole(input_ids=input_ids, **rest)

    monkeypatch.setattr(clip.model, "get_text_features", spy)
    ClipScorer(clip, name="x", prefix="xy ")(smooth()[:1], [LONG])
    start, x, y = seen[0][0, :3].tolist()
    expected = clip.tokenizer("xy", add_special_tokens=False).input_ids
    assert [x, y] == expected
    assert start == clip.tokenizer.bos_token_id
    assert seen[0].shape == (1, 16)
    assert seen[0][0, -1] == clip.tokenizer.eos_token_id
    assert (seen[0] == clip.tokenizer.eos_token_id).sum() == 1


def test_scale_and_clamp(clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    cosine = ClipScorer(clip, name="x", scale=1.0)(smooth(), PROMPTS)
    assert torch.allclose(ClipScorer(clip, name="x")(smooth(), PROMPTS), 100 * cosine, atol=1e-4)
    clamped = ClipScorer(clip, name="x", scale=2.5, is_clamped=True)
    first, texts = clamped(smooth(), PROMPTS), clip.texts
    monkeypatch.setattr(clip, "texts", lambda captions: -texts(captions))
    second = clamped(smooth(), PROMPTS)  # with opposite texts: one of the two is negative and clamped
    assert torch.allclose(first - second, 2.5 * cosine, atol=1e-6)
    assert torch.equal(first * second, torch.zeros(2))


def test_entities_are_resolved_where_open_clip_does(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", is_unescaped=True)
    assert torch.equal(scorer(smooth(), ["a&amp;b", " c"]), ClipScorer(clip, name="x")(smooth(), ["a&b", "c"]))


def test_a_reward_follows_its_images_and_agrees_with_the_metric(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", preprocess=Preprocess(16))
    leaf = smooth(64, 64).requires_grad_()
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
        scorer = ClipScorer(clip, name="x", preprocess=Preprocess(16, resize=resize))
        pictures = [*to_pictures(smooth()), *to_pictures(smooth(32, 20))]
        together = scorer(pictures, [*PROMPTS, *PROMPTS])
        apart = torch.cat([scorer(smooth(), PROMPTS), scorer(smooth(32, 20), PROMPTS)])
        assert torch.allclose(together, apart, atol=1e-4)


def test_grey_and_transparent_pictures_become_rgb(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x", preprocess=Preprocess(16))
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    assert torch.equal(scorer([grey], ["a"]), scorer([grey.convert("RGB")], ["a"]))


def test_one_prompt_for_every_image(clip: ClipFeatures) -> None:
    scorer = ClipScorer(clip, name="x")
    for rate in (scorer, scorer.reward, CallableScorer(lambda images, prompts: [0.0], name="y")):
        with pytest.raises(ValueError, match="2 images but 1 prompts"):
            rate(smooth(), ["a"])


def test_the_description_holds_what_the_number_depends_on(clip: ClipFeatures) -> None:
    preprocess = Preprocess(16, first_square=20)
    found = ClipScorer(clip, name="n", prefix="p ", scale=1.0, preprocess=preprocess).description()
    assert found["name"] == "n"
    assert (found["model"], found["prefix"], found["scale"]) == ("random", "p ", 1.0)
    assert found["transform"]["first_square"] == 20


def test_other_weights_carry_their_own_name(weights: Path) -> None:
    own = weights.rename(weights.with_name("tuned.pt"))
    scorer = load_scorer("hps/v2.1", weights=own, tokenizer=weights.parent / "words")
    assert scorer.name == f"hps/v2.1:tuned.pt@{sha256(own)[:8]}"


def test_dmd2s_clip_score(weights: Path, publish: Any, cosines: Any, images: torch.Tensor) -> None:
    """The prefix is "A photo depicts ", images are resized to 256 pixels first, the scale is the cosine's."""
    publish("vit-g-14-laion2b", weights)
    scorer = load_scorer("clip/vit-g-14-laion2b-dmd2", weights=weights, tokenizer=weights.parent / "words")
    expected = cosines(Preprocess(SIDE, first_square=256), ["A photo depicts ab", "A photo depicts c & d"])
    # Both prompts are truncated: a letter is a token here.
    assert torch.allclose(scorer(images, ["ab", "c & d"]), expected, atol=1e-5)
    assert scorer.name == "clip/vit-g-14-laion2b-dmd2"
    found = scorer.description()
    assert (found["prefix"], found["scale"]) == ("A photo depicts ", 1.0)
    assert found["transform"]["first_square"] == 256
    plain = load_scorer("clip/vit-g-14-laion2b", weights=weights, tokenizer=weights.parent / "words")
    assert (plain.description()["prefix"], plain.description()["scale"]) == ("", 100.0)


def test_clipscore_as_defined(weights: Path, publish: Any, cosines: Any, images: torch.Tensor) -> None:
    """2.5 max(cos, 0) with the prefix, https://arxiv.org/abs/2104.08718."""
    publish("vit-b-32-openai", weights, architecture="ViT-H-14")
    name = "clip/vit-b-32-openai-clipscore"
    scorer = load_scorer(name, weights=weights, tokenizer=weights.parent / "words")
    cosine = cosines(Preprocess(SIDE), ["A photo depicts a", "A photo depicts b"])
    assert torch.allclose(scorer(images, ["a", "b"]), 2.5 * cosine.clamp_min(0), atol=1e-5)
    assert scorer.description()["is_clamped"]


def test_open_clip_as_backend(
    weights: Path, publish: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file through open_clip's own classes gives the same scores."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    vision = {"image_size": SIDE, "patch_size": reference.PATCH, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 16, "vocab_size": reference.VOCABULARY, "width": 24, "heads": 3, "layers": 3}
    config = {"embed_dim": reference.DIM, "vision_cfg": vision, "text_cfg": text}
    (weights.parent / "configs").mkdir()
    (weights.parent / "configs" / "ViT-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(weights.parent / "configs")
    words = tiny_tokenizer(reference.LENGTH)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor(words(texts, padding="max_length", max_length=16, truncation=True).input_ids)

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenize)
    monkeypatch.setitem(ARCHITECTURES, "ViT-tiny", ARCHITECTURES["ViT-H-14"])
    publish("hps-v2.1", weights, architecture="ViT-tiny")
    ours = load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words")
    theirs = load_scorer("hps/v2.1", weights=weights, backend="open_clip")
    assert torch.allclose(ours(images, PROMPTS), theirs(images, PROMPTS), atol=1e-3)
    assert theirs.description()["model"].endswith("/open_clip")
    assert theirs.features.num_features == reference.DIM


def test_the_open_clip_backend_names_its_extra(weights: Path, publish: Any) -> None:
    if find_spec("open_clip") is not None:
        pytest.skip("open_clip is installed")
    publish("hps-v2.1", weights)
    with pytest.raises(UserError, match=r"pip install 'stepdistill\[openclip\]'"):
        load_scorer("hps/v2.1", weights=weights, backend="open_clip")


def test_tokens_are_those_of_open_clip(tmp_path: Path) -> None:
    """transformers' tokenizer on OpenAI's vocabulary, after the entities are resolved, against open_clip's."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    from transformers import CLIPTokenizer

    theirs = open_clip.get_tokenizer("ViT-H-14")
    merges = [pair for pair, _ in sorted(theirs.bpe_ranks.items(), key=lambda item: item[1])]
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    ours = CLIPTokenizer(
        vocab={renamed.get(w, w): n for w, n in theirs.encoder.items()}, merges=merges, model_max_length=77
    )
    prompts = [
        "A photo depicts a cat", "Two  DOGS,\nrunning!", "it's 3.5m x 1920x1080 (8k) -- ultra-detailed", "caf\u00e9 &amp; \u00fcber",
        "word " * 120, "", "\u732b", ":-) #wow @home 100%", "A photo depicts " + "a very long caption " * 40,
    ]  # fmt: skip
    expected = theirs(prompts)
    rows = ours([unescaped(p) for p in prompts], padding="max_length", truncation=True, max_length=77).input_ids
    for prompt, row, other in zip(prompts, rows, expected.tolist(), strict=True):
        end = other.index(49407)
        assert row[: end + 1] == other[: end + 1], prompt
    assert theirs("A photo depicts")[0, 1:4].tolist() == [320, 1125, 29340]
    pasted = torch.cat([expected[:, :1], torch.tensor([[320, 1125, 29340]] * len(prompts)), expected[:, 1:]], 1)[
        :, :77
    ]
    pasted[:, 76] = torch.where(pasted[:, 76] > 0, 49407, pasted[:, 76])  # as DMD2 puts its prefix in
    prefixed = theirs([f"A photo depicts {prompt}" for prompt in prompts])
    assert torch.equal(pasted, prefixed)
