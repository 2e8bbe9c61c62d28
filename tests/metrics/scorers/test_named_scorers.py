"""Scorers by name: the published file under its checksum, other weights under their own name, options and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stepdistill.errors import UserError
from stepdistill.metrics.networks.clip_weights import ARCHITECTURES, Architecture
from stepdistill.metrics.networks.extractors import ClipFeatures
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.networks.weights import WeightFile, sha256
from stepdistill.metrics.scorers import clip_sources, named_scorers
from stepdistill.metrics.scorers.clip_sources import CLIP_SOURCES
from stepdistill.metrics.scorers.external import CommandScorer
from stepdistill.metrics.scorers.named_scorers import ALIASES, SCORERS, load_scorer
from stepdistill.metrics.scorers.prompt_scorers import ClipScorer, linear_head
from stepdistill.testing import open_clip as reference
from stepdistill.testing.tiny import tiny_tokenizer

SIDE = reference.PATCH * reference.GRID
PROMPTS = ["ab", "c & d"]
STATE = reference.random_state()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny stand-in for `HPS_v2.1_compressed.pt`, its architecture, and a tokenizer beside it."""
    heads = Architecture(reference.HEADS["visual"], reference.HEADS["text"])
    for name in ("ViT-H-14", "ViT-g-14"):
        monkeypatch.setitem(ARCHITECTURES, name, heads)
    tiny_tokenizer(reference.LENGTH).save_pretrained(tmp_path / "words")
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: value.half() for name, value in STATE.items()}}, file)
    return file


def publish(monkeypatch: pytest.MonkeyPatch, model: str, file: Path) -> None:
    """Make a file the published one."""
    source = replace(CLIP_SOURCES[model], filename=file.name, sha256=sha256(file))
    monkeypatch.setattr(clip_sources, "CLIP_SOURCES", {**CLIP_SOURCES, model: source})


def images() -> torch.Tensor:
    return torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))


def cosines(transform: PictureTransform, prompts: list[str]) -> torch.Tensor:
    """By the reference forward of the same half-precision weights."""
    state = {name: value.half().float() for name, value in STATE.items()}
    rows = tiny_tokenizer(reference.LENGTH)(
        prompts, padding="max_length", max_length=reference.LENGTH, truncation=True
    ).input_ids
    text = reference.encode_text(torch.tensor(rows), state)
    return F.cosine_similarity(reference.encode_image(transform(images()), state), text)


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_of_the_published_file(weights: Path, monkeypatch: pytest.MonkeyPatch, antialias: bool) -> None:
    publish(monkeypatch, "hps-v2.1", weights)
    scorer = load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words", antialias=antialias)
    expected = 100 * cosines(PictureTransform(SIDE, resize="tensor", antialias=antialias), PROMPTS)
    assert torch.allclose(scorer(images(), ["ab", "c &amp; d"]), expected, atol=1e-3)
    assert scorer.name == ("hps/v2.1" if antialias else "hps/v2.1-aliased")
    assert scorer.description()["model"] == f"hps-v2.1@{sha256(weights)[:8]}"


def test_the_two_versions_are_not_taken_for_each_other(weights: Path) -> None:
    """Under the published name the checksum decides; v2.0's file is refused as v2.1, and so is any other."""
    with pytest.raises(UserError, match=r"not the published HPS_v2\.1_compressed\.pt"):
        load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words")
    hashes = {model: source.sha256 for model, source in CLIP_SOURCES.items()}
    assert len(set(hashes.values())) == len(hashes)


def test_other_weights_carry_their_own_name(weights: Path) -> None:
    own = weights.rename(weights.with_name("tuned.pt"))
    scorer = load_scorer("hps/v2.1", weights=own, tokenizer=weights.parent / "words")
    assert scorer.name == f"hps/v2.1:tuned.pt@{sha256(own)[:8]}"


def test_a_model_folder_stands_in(clip: ClipFeatures, tmp_path: Path) -> None:
    clip.model.save_pretrained(tmp_path / "mine")
    clip.tokenizer.save_pretrained(tmp_path / "mine")
    scorer = load_scorer("pickscore", weights=tmp_path / "mine")
    assert scorer.name.startswith("pickscore/logit:mine@")
    pictures = images()
    expected = ClipScorer(clip, name="x", scale="logit", transform=PictureTransform(16, crop="floor"))(
        pictures, PROMPTS
    )
    assert torch.allclose(scorer(pictures, PROMPTS), expected, atol=1e-5)
    cosine = load_scorer("pickscore/cosine", weights=tmp_path / "mine")
    assert torch.allclose(cosine(pictures, PROMPTS) * clip.logit_scale, expected, atol=1e-4)


def test_dmd2s_clip_score(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prefix is the words "A photo depicts ", its pictures pass 256 pixels, its scale is the cosine."""
    publish(monkeypatch, "vit-g-14-laion2b", weights)
    scorer = load_scorer("clip/vit-g-14-laion2b-dmd2", weights=weights, tokenizer=weights.parent / "words")
    transform = PictureTransform(SIDE, first_square=256)
    expected = cosines(transform, ["A photo depicts ab", "A photo depicts c & d"])
    assert torch.allclose(
        scorer(images(), PROMPTS), expected, atol=1e-5
    )  # both are cut: a letter is a token here
    assert scorer.name == "clip/vit-g-14-laion2b-dmd2"
    told = scorer.description()
    assert (told["prefix"], told["scale"], told["transform"]["first_square"]) == (
        "A photo depicts ",
        1.0,
        256,
    )
    plain = load_scorer("clip/vit-g-14-laion2b", weights=weights, tokenizer=weights.parent / "words")
    assert (plain.description()["prefix"], plain.description()["scale"]) == ("", 100.0)


def test_the_aesthetic_score_refuses_other_backbones(clip: ClipFeatures, tmp_path: Path) -> None:
    clip.model.save_pretrained(tmp_path / "other")
    clip.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"OpenAI's ViT-L/14 alone"):
        load_scorer("aesthetic", backbone=tmp_path / "other")


def test_the_aesthetic_score_of_the_published_files(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "vit-l-14-openai", weights)
    monkeypatch.setitem(ARCHITECTURES, "ViT-L-14-quickgelu", ARCHITECTURES["ViT-H-14"])
    head = linear_head([reference.DIM, 1024, 128, 64, 16, 1])
    file = weights.parent / "head.pth"
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, file)
    scorer = load_scorer("aesthetic", weights=file, backbone=weights, tokenizer=weights.parent / "words")
    state = {name: value.half().float() for name, value in STATE.items()}
    embedding = reference.encode_image(PictureTransform(SIDE)(images()), state)
    expected = head(F.normalize(embedding, dim=1))[:, 0]
    assert torch.allclose(scorer(images(), PROMPTS), expected, atol=1e-5)
    torch.save({"layers.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="aesthetic head"):
        load_scorer("aesthetic", weights=file, backbone=weights, tokenizer=weights.parent / "words")


def test_the_aesthetic_heads_address_names_its_file() -> None:
    head: WeightFile = named_scorers.AESTHETIC_HEAD
    assert head.url.rpartition("/")[2].replace("%2B", "+") == head.name


@pytest.mark.parametrize("backend_name", ["open_clip"])
def test_open_clip_as_back_end(weights: Path, monkeypatch: pytest.MonkeyPatch, backend_name: str) -> None:
    """The same file through open_clip's own classes gives the same scores."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    config = {
        "embed_dim": reference.DIM,
        "vision_cfg": {
            "image_size": SIDE,
            "patch_size": reference.PATCH,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": reference.VOCABULARY,
            "width": 24,
            "heads": 3,
            "layers": 3,
        },
    }
    (weights.parent / "configs").mkdir()
    (weights.parent / "configs" / "ViT-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(weights.parent / "configs")
    words = tiny_tokenizer(reference.LENGTH)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor(words(texts, padding="max_length", max_length=16, truncation=True).input_ids)

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenize)
    monkeypatch.setitem(ARCHITECTURES, "ViT-tiny", ARCHITECTURES["ViT-H-14"])
    source = replace(CLIP_SOURCES["hps-v2.1"], architecture="ViT-tiny", sha256=sha256(weights))
    monkeypatch.setattr(clip_sources, "CLIP_SOURCES", {"hps-v2.1": source})
    ours = load_scorer("hps/v2.1", weights=weights, tokenizer=weights.parent / "words")
    theirs = load_scorer("hps/v2.1", weights=weights, backend=backend_name)
    assert torch.allclose(ours(images(), PROMPTS), theirs(images(), PROMPTS), atol=1e-3)
    assert theirs.description()["model"].endswith("/open_clip")


def test_tokens_are_those_of_open_clip(tmp_path: Path) -> None:
    """transformers' tokenizer on OpenAI's vocabulary, after the entities are resolved, against open_clip's."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    from transformers import CLIPTokenizer

    from stepdistill.metrics.scorers.prompt_scorers import unescaped

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
    rows = ours(
        [unescaped(p) for p in prompts], padding="max_length", truncation=True, max_length=77
    ).input_ids
    for prompt, row, other in zip(prompts, rows, expected.tolist(), strict=True):
        end = other.index(49407)
        assert row[: end + 1] == other[: end + 1], prompt
    assert theirs("A photo depicts")[0, 1:4].tolist() == [320, 1125, 29340]
    pasted = torch.cat(
        [expected[:, :1], torch.tensor([[320, 1125, 29340]] * len(prompts)), expected[:, 1:]], 1
    )[:, :77]
    pasted[:, 76] = torch.where(pasted[:, 76] > 0, 49407, pasted[:, 76])  # as DMD2 puts its prefix in
    prefixed = theirs([f"A photo depicts {prompt}" for prompt in prompts])
    assert torch.equal(pasted, prefixed)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"hps/v2\.0 has no option 'wights'; it has weights, tokenizer"):
        load_scorer("hpsv2", wights="x")
    with pytest.raises(UserError, match="emoji_clip has no option 'weights'; it has none"):
        load_scorer("emoji_clip", weights="x")
    with pytest.raises(UserError, match="is a function and has no option 'weights'"):
        load_scorer("torch:numel", weights="x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picscore", "did you mean 'pickscore'"),
        ("hps", r"use one of .*hps/v2\.1"),
        ("no_such_module:f", "cannot be imported"),
        ("torch:no_such_thing", "cannot be imported"),
    ],
)
def test_unknown_names_say_what_to_write(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(name)


def test_commands_and_functions_have_names() -> None:
    scorer = load_scorer("my-judge", command=["judge"])
    assert isinstance(scorer, CommandScorer)
    assert scorer.name == "my-judge"
    assert load_scorer("torch:numel").name == "torch:numel"
    assert load_scorer(torch.numel).name.endswith("numel")
    assert isinstance(load_scorer("hpsv3", command="judge --v3"), CommandScorer)
    assert set(ALIASES.values()) <= set(SCORERS)
