"""CLIP and CMMD features against transformers' own preprocessing and forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from stepdistill.errors import UserError
from stepdistill.metrics import CMMDFeatures
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.preprocess import quantise, to_pictures


def test_pictures_and_tensors_score_the_same(clip: ClipFeatures) -> None:
    images = torch.rand(3, 3, 16, 16)
    saved = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in to_pictures(images)]) / 255
    assert torch.equal(quantise(images), quantise(saved))
    assert torch.equal(clip(images), clip(saved))


def test_features_are_those_of_the_model(clip: ClipFeatures) -> None:
    images, captions = torch.rand(2, 3, 16, 16), ["ab", "c"]
    tokens = clip.tokenizer(captions, padding=True, return_tensors="pt")
    out = clip.model(pixel_values=clip.preprocess(images), **tokens)
    image, text = clip(images), clip.texts(captions)
    assert torch.allclose(image / image.norm(dim=1, keepdim=True), out.image_embeds, atol=1e-6)
    assert torch.allclose(text / text.norm(dim=1, keepdim=True), out.text_embeds, atol=1e-6)
    assert clip.images(images).pooled.shape == (2, 16)


def test_long_captions_keep_their_end_token(clip: ClipFeatures) -> None:
    tokens = clip.tokenizer(["a b c d e f g h i j k l m n o p q r s t"], truncation=True, max_length=clip.max_tokens)
    assert len(tokens.input_ids[0]) == 16
    assert tokens.input_ids[0][-1] == clip.tokenizer.eos_token_id
    assert clip.texts(["a b c d e f g h i j k l m n o p q r s t"]).shape == (1, 8)


def test_batching_does_not_change_features(clip: ClipFeatures) -> None:
    images = torch.rand(6, 3, 16, 16)
    assert torch.allclose(clip(images), torch.cat([clip(part) for part in images.split(4)]), atol=1e-6)


def test_folder_round_trip(clip: ClipFeatures, clip_folder: Path) -> None:
    loaded = ClipFeatures.from_folder(clip_folder)
    assert loaded.name.startswith("mine@")
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    images = torch.rand(2, 3, 16, 16)
    # Not bitwise: matrix products round by the memory alignment of the weights.
    assert torch.allclose(loaded(images), clip(images), atol=1e-6)
    assert torch.allclose(loaded.texts(["ab c"]), clip.texts(["ab c"]), atol=1e-6)


def test_a_missing_folder_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no CLIP model in"):
        ClipFeatures.from_folder(tmp_path)


def numbered(width: int, height: int) -> Image.Image:
    """A picture whose red level is the column and whose green level is the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_cmmd_features_are_the_published_steps() -> None:
    """Centre square, PIL bicubic, CLIP's normalisation, unit projected embedding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=8))
    extractor = CMMDFeatures(model, name="tiny")
    picture = numbered(61, 40)
    cut = picture.crop((10, 0, 50, 40)).resize((28, 28), Image.Resampling.BICUBIC)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    with torch.no_grad():
        embeds = model.eval()(**processor(cut, return_tensors="pt")).image_embeds
    found = extractor([picture])
    assert torch.allclose(found, F.normalize(embeds, dim=1), atol=1e-5)
    assert found.norm(dim=1).tolist() == pytest.approx([1.0])
    assert (extractor.name, extractor.num_features) == ("tiny/cmmd", 8)
