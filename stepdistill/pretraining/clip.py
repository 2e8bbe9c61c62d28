"""The embedded CLIP model, trained on scenes and captions with auxiliary losses that separate the glyphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stepdistill.assets import resolve_path
from stepdistill.data.emoji import EmojiWorld
from stepdistill.pretraining.recipe import PretrainRecipe
from stepdistill.pretraining.stage import Stage, edit_json, load_weights

TOKENIZER_CAPTIONS = 60_000
IDENTITY_SCALE = 16.0  # logit scale of the cosine classifiers


def train_tokenizer(captions: Sequence[str], vocabulary: int, max_length: int) -> CLIPTokenizer:
    """Train the byte-pair vocabulary of a stock CLIP tokenizer on captions."""
    trained = CLIPTokenizer().train_new_from_iterator([list(captions)], vocab_size=vocabulary)
    assert isinstance(trained, CLIPTokenizer)
    trained.model_max_length = max_length
    return trained


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Return token ids padded to the model's length, as the diffusers pipelines do."""
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(captions), return_tensors="pt", **options).input_ids


def term_targets(world: EmojiWorld) -> Tensor:
    """Return the uniform distribution over each glyph's words, (glyphs, words)."""
    spoken = [{*units, *tags} for units, tags in zip(world.grammar.units, world.grammar.tags, strict=True)]
    number = {term: place for place, term in enumerate(sorted(set().union(*spoken)))}
    targets = torch.zeros(len(spoken), len(number))
    for glyph, terms in enumerate(spoken):
        targets[glyph, [number[term] for term in terms]] = 1 / len(terms)
    return targets


class ClipStage(Stage):
    """CLIP's symmetric contrastive loss, plus cosine classifiers of glyph, words and background."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.world = EmojiWorld()
        text: dict[str, Any] = recipe.network["text"]
        self.tokenizer = self.own_tokenizer(text["vocab_size"], text["max_position_embeddings"])
        ids = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        width = int(recipe.network["joint"]["projection_dim"])
        config = CLIPConfig(
            text_config={**text, **ids, "projection_dim": width},
            vision_config={**recipe.network["vision"], "projection_dim": width},
            projection_dim=width,
        )
        self.clip: Any = CLIPModel(config)
        if recipe.train.compile:
            self.clip.vision_model.compile()
        self.looks = torch.tensor(self.world.looks)
        self.terms = term_targets(self.world)
        backgrounds = len(self.world.backgrounds)
        classes = {"glyphs": len(self.world), "terms": self.terms.shape[1], "backgrounds": backgrounds}
        heads = {name: nn.Linear(width, count, bias=False) for name, count in classes.items()}
        self.networks = nn.ModuleDict({"clip": self.clip, **heads})
        self.identity_weight = recipe.options.get("identity_weight", 1.0)

    def own_tokenizer(self, vocabulary: int, max_length: int) -> CLIPTokenizer:
        """Load the tokenizer of the run or of `start_from`, or train it: retraining would change the token ids."""
        start = self.recipe.start_from
        folder = self.recipe.output_dir / "tokenizer" if start is None else resolve_path(start)
        if start is None and not folder.exists():
            seed = self.recipe.scenes.seed
            captions = [self.world.describe(seed, index)[1] for index in range(TOKENIZER_CAPTIONS)]
            train_tokenizer(captions, vocabulary, max_length).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        size, seed = self.recipe.train.batch_size, self.recipe.scenes.seed
        described = [self.world.describe(seed, index) for index in range(step * size, (step + 1) * size)]
        images = self.world.draw([placement for placement, _ in described]) * 2 - 1
        tokens = tokenize(self.tokenizer, [caption for _, caption in described])
        output = self.clip(input_ids=tokens, pixel_values=images)
        logits = output.logits_per_image.float()
        targets = torch.arange(size)
        contrast = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        embedding = F.normalize(output.image_embeds.float(), dim=-1)
        numbers = torch.tensor([placement.glyph for placement, _ in described])
        looks = self.looks[numbers]
        scores = {name: self.scores(name, embedding) for name in ("glyphs", "terms", "backgrounds")}
        identity = F.cross_entropy(scores["glyphs"], looks)
        words = F.cross_entropy(scores["terms"], self.terms[numbers])
        ground = F.cross_entropy(
            scores["backgrounds"], torch.tensor([placement.background for placement, _ in described])
        )
        accuracy = (scores["glyphs"].argmax(-1) == looks).float().mean()
        logs = {"contrast": contrast, "identity": identity, "words": words, "glyph_accuracy": accuracy}
        return contrast + self.identity_weight * (identity + words + ground), logs

    def scores(self, name: str, embedding: Tensor) -> Tensor:
        """Return the logits of a cosine classifier."""
        head = self.networks[name]
        assert isinstance(head, nn.Linear)
        return IDENTITY_SCALE * embedding @ F.normalize(head.weight.float(), dim=-1).T

    def start_from(self, folder: Path) -> None:
        """Load both towers; the auxiliary classifiers are not exported and restart from scratch."""
        load_weights(self.clip, folder / "model.safetensors")

    def export(self, folder: Path) -> None:
        self.clip.half().save_pretrained(folder)
        self.clip.float()
        edit_json(folder / "config.json", dtype="float32")
        self.tokenizer.save_pretrained(folder)
        size = self.clip.config.vision_config.image_size
        preprocessing = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_convert_rgb": True,
            "resample": 3,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
