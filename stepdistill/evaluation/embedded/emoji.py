"""The embedded problem as an `Evaluator`: frozen captions, real scenes of those captions, and a judge that knows every glyph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stepdistill.assets import asset_path, cache_folder
from stepdistill.data.cache import cached, fingerprint
from stepdistill.data.captions import AnswerSet
from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld, Placement
from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.evaluator import CaptionSet, Evaluator, measured_in_batches
from stepdistill.evaluation.embedded.glyph_judge import GlyphJudge
from stepdistill.evaluation.embedded.measurements import Measurements
from stepdistill.evaluation.embedded.scorers import Answers
from stepdistill.evaluation.generation import batches
from stepdistill.evaluation.protocols import EMOJI, Protocol
from stepdistill.metrics.networks.clip import ClipFeatures, emoji_clip
from stepdistill.typing import Images


def load_evaluator(
    protocol: Protocol = EMOJI,
    *,
    features: ClipFeatures | None = None,
    world: EmojiWorld | None = None,
    with_floor: bool = True,
) -> Evaluator:
    """Captions, eye and real pictures of the embedded problem.

    The reference is the scenes that the captions were drawn from; the floor is one more draw from the true law of pictures
    given each caption, so it is what a perfect generator would score. What takes seconds is kept in the user's cache.
    Where only generated pictures are scored, `with_floor=False` is quicker.
    """
    world, features = world or EmojiWorld(), features or emoji_clip()
    prompts = evaluation_captions(world, protocol.num_images)
    empty = Measurements.empty(features.num_features)
    bare = Evaluator(protocol, features, GlyphJudge(world), prompts, reference=empty)
    own = range(len(prompts))
    reference = _kept(world, bare, "reference", lambda: world.scenes(EVALUATION_SEED, own)[0], prompts)
    if not with_floor:
        return replace(bare, reference=reference)
    floor = _kept(
        world, bare, "floor", lambda: true_pictures(world, prompts, protocol.reference_seed), prompts
    )
    repeated = bare.coverage_prompts()[0].repeated(protocol.coverage_seeds)
    variety = _kept(
        world, bare, "variety", lambda: true_pictures(world, repeated, protocol.reference_seed + 1), repeated
    )
    return replace(bare, reference=reference, floor=floor, floor_variety=variety)


def evaluation_captions(world: EmojiWorld, count: int | None = None) -> CaptionSet:
    """The first `count` of the frozen evaluation captions with their right answers; all of them if None."""
    table = pq.read_table(asset_path("emoji/eval_captions.parquet"), columns=["caption"])
    captions: list[str] = table["caption"].to_pylist()
    if count is not None and count > len(captions):
        raise UserError(
            f"there are {len(captions)} evaluation captions, so at most as many images, not {count}"
        )
    answers = [answers_of(world.answers(caption)) for caption in captions[:count]]
    return CaptionSet(captions[:count], answers)


def answers_of(known: AnswerSet) -> Answers:
    """Right looks with their law, and right backgrounds. A look is what can be told apart by eye: some glyphs share one."""
    looks, law = torch.from_numpy(known.looks).long(), torch.from_numpy(known.probabilities)
    return Answers(looks, law, torch.from_numpy(known.backgrounds).long())


def true_pictures(world: EmojiWorld, prompts: CaptionSet, seed: int) -> Images:
    """One draw for each caption from the true law of pictures given the caption."""
    looks = np.asarray(world.looks)
    placements: list[Placement] = []
    for index, answers in enumerate(prompts.answers):
        rng = np.random.default_rng((seed, index, 1))
        look = rng.choice(answers.glyphs.numpy(), p=answers.weights.numpy() / float(answers.weights.sum()))
        glyph, background = rng.choice(np.flatnonzero(looks == look)), rng.choice(answers.backgrounds.numpy())
        placements.append(
            replace(world.describe(seed, index)[0], glyph=int(glyph), background=int(background))
        )
    return torch.cat([world.draw(placements[rows]) for rows in batches(len(placements), 256)])


def _kept(
    world: EmojiWorld, evaluator: Evaluator, what: str, pictures: Callable[[], Images], prompts: CaptionSet
) -> Measurements:
    """Measurements of real pictures, from the cache where it has them; a few scenes stand for the law of them all."""

    def compute() -> dict[str, Tensor]:
        return measured_in_batches(evaluator, pictures(), prompts.captions).tensors()

    law = world.scenes(EVALUATION_SEED, range(4))[0]
    key = {
        "scenes": fingerprint([("scenes", law)]),
        "what": what,
        "protocol": evaluator.protocol.hash,
        "eye": evaluator.features.name,
        "captions": _digest(prompts.captions),
    }
    return Measurements.of(cached(cache_folder("real"), key, compute))


def _digest(captions: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(captions).encode(), digest_size=12).hexdigest()
