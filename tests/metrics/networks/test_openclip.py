"""open_clip's weights as a transformers model: equal embeddings, tower by tower."""

from __future__ import annotations

import json

import open_clip_reference as reference
import pytest
import torch

from stepdistill.errors import UserError
from stepdistill.metrics.networks.openclip import ARCHITECTURES, Architecture, clip_model, from_open_clip

TINY = Architecture(vision_heads=reference.HEADS["visual"], text_heads=reference.HEADS["text"])


QUICK = Architecture(TINY.vision_heads, TINY.text_heads, "quick_gelu")


STATE = reference.random_state()


def tokens() -> torch.Tensor:
    """A short caption, one that fills the context, and one whose end is last."""
    rows = torch.randint(0, reference.END, (3, reference.LENGTH), generator=torch.Generator().manual_seed(2))
    rows[0, 5], rows[0, 6:] = reference.END, 0
    rows[1, -1] = rows[2, -2] = reference.END
    rows[2, -1] = 0
    return rows


@pytest.mark.parametrize("architecture", [TINY, QUICK], ids=["gelu", "quick_gelu"])
def test_both_towers_equal_the_reference(architecture: Architecture) -> None:
    quick = architecture.activation == "quick_gelu"
    model = clip_model(STATE, architecture)
    side = reference.PATCH * reference.GRID
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    image = model.get_image_features(pixel_values=pixels).pooler_output
    text = model.get_text_features(input_ids=tokens()).pooler_output
    assert torch.allclose(image, reference.encode_image(pixels, STATE, quick=quick), atol=2e-5)
    assert torch.allclose(text, reference.encode_text(tokens(), STATE, quick=quick), atol=2e-5)
    assert not torch.allclose(image, reference.encode_image(pixels, STATE, quick=not quick), atol=1e-3)
    assert model.logit_scale.item() == 4.0


def test_the_number_of_heads_matters() -> None:
    """A wrong entry in the table would load without an error; so the tables of both sides are compared below."""
    pixels = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    wrong = clip_model(STATE, Architecture(4, 6)).get_image_features(pixel_values=pixels).pooler_output
    assert not torch.allclose(wrong, reference.encode_image(pixels, STATE), atol=1e-3)


def test_either_naming_and_precision_loads() -> None:
    """fp16 as in HPSv2's files; transformers' names as in PickScore's, with the buffers that old files carry."""
    halves = {name: value.half() for name, value in STATE.items()}
    model = clip_model(halves, TINY)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    renamed = {name: value.half().float() for name, value in from_open_clip(STATE).items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(reference.LENGTH)[None]
    twin = clip_model(renamed, TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in twin.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj": None}, "visual_projection"),
        ({"visual.attnpool.probe": torch.zeros(1)}, "attnpool"),
        ({"transformer.resblocks.1.ln_1.bias": None}, "1 weights are missing"),
        ({"token_embedding.weight": None}, "token_embedding"),
        ({"ln_final.bias": torch.zeros(3)}, "of another shape"),
    ],
)
def test_other_weights_are_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    state = {name: value for name, value in (STATE | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        clip_model(state, TINY, source="file.pt")


def test_the_table_is_that_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    for name, ours in ARCHITECTURES.items():
        theirs = json.loads(json.dumps(open_clip.get_model_config(name)))
        vision, text = theirs["vision_cfg"], theirs["text_cfg"]
        assert vision["width"] // vision.get("head_width", 64) == ours.vision_heads, name
        assert text["heads"] == ours.text_heads, name
        assert theirs.get("quick_gelu", False) == (ours.activation == "quick_gelu"), name


def test_equals_open_clip() -> None:
    """The real class, at the reference's sizes."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    width, layers = reference.WIDTH, reference.LAYERS
    side = reference.PATCH * reference.GRID
    theirs = open_clip.CLIP(
        embed_dim=reference.DIM,
        vision_cfg={"image_size": side, "patch_size": reference.PATCH, "width": width["visual"], "layers": layers["visual"],
                    "head_width": width["visual"] // reference.HEADS["visual"]},
        text_cfg={"context_length": reference.LENGTH, "vocab_size": reference.VOCABULARY, "width": width["text"],
                  "heads": reference.HEADS["text"], "layers": layers["text"]},
    ).eval()  # fmt: skip
    assert theirs.load_state_dict(STATE, strict=True)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        image, text = theirs.encode_image(pixels), theirs.encode_text(tokens())
        model = clip_model(theirs.state_dict(), TINY)
        ours = model.get_image_features(pixel_values=pixels).pooler_output
        assert torch.allclose(ours, image, atol=2e-5)
        assert torch.allclose(model.get_text_features(input_ids=tokens()).pooler_output, text, atol=2e-5)
