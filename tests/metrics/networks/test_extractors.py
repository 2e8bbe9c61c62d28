"""CLIP features against transformers' own preprocessing and forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from stepdistill.errors import UserError
from stepdistill.metrics.networks.extractors import ClipFeatures
from stepdistill.metrics.preprocess import Preprocess, quantise, resize, to_pictures


def test_preprocessing_equals_transformers() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    theirs = processor(picture, return_tensors="pt").pixel_values
    ours = Preprocess(16)(pixels[None].float() / 255)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_pictures_and_tensors_score_the_same(clip: ClipFeatures) -> None:
    images = torch.rand(3, 3, 16, 16)
    saved = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in to_pictures(images)]) / 255
    assert torch.equal(quantise(images), quantise(saved))
    assert torch.equal(clip(images), clip(saved))


def test_resize_keeps_the_centre() -> None:
    assert resize(torch.rand(1, 3, 20, 40), 10).shape == (1, 3, 10, 10)
    flat = torch.full((1, 3, 20, 40), 0.25)
    assert torch.allclose(resize(flat, 8), torch.tensor(0.25))


def test_features_are_those_of_the_model(clip: ClipFeatures) -> None:
    images, captions = torch.rand(2, 3, 16, 16), ["ab", "c"]
    tokens = clip.tokenizer(captions, padding=True, return_tensors="pt")
    out = clip.model(pixel_values=clip.preprocess(images), **tokens)
    image, text = clip(images), clip.texts(captions)
    assert torch.allclose(image / image.norm(dim=1, keepdim=True), out.image_embeds, atol=1e-6)
    assert torch.allclose(text / text.norm(dim=1, keepdim=True), out.text_embeds, atol=1e-6)
    assert clip.images(images).pooled.shape == (2, 16)


def test_long_captions_keep_their_end_token(clip: ClipFeatures) -> None:
    tokens = clip.tokenizer(
        ["a b c d e f g h i j k l m n o p q r s t"], truncation=True, max_length=clip.max_tokens
    )
    assert len(tokens.input_ids[0]) == 16
    assert tokens.input_ids[0][-1] == clip.tokenizer.eos_token_id
    assert clip.texts(["a b c d e f g h i j k l m n o p q r s t"]).shape == (1, 8)


def test_batching_does_not_change_features(clip: ClipFeatures) -> None:
    images = torch.rand(6, 3, 16, 16)
    assert torch.allclose(clip(images), torch.cat([clip(part) for part in images.split(4)]), atol=1e-6)


def test_folder_round_trip(clip: ClipFeatures, tmp_path) -> None:
    clip.model.save_pretrained(tmp_path / "eye")
    clip.tokenizer.save_pretrained(tmp_path / "eye")
    loaded = ClipFeatures.from_folder(tmp_path / "eye")
    assert loaded.name.startswith("eye@")
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    images = torch.rand(2, 3, 16, 16)
    # Weights read from a file lie elsewhere in memory, and products round by how they are aligned.
    assert torch.allclose(loaded(images), clip(images), atol=1e-6)
    assert torch.allclose(loaded.texts(["ab c"]), clip.texts(["ab c"]), atol=1e-6)


def test_a_missing_folder_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no CLIP model in"):
        ClipFeatures.from_folder(tmp_path)
