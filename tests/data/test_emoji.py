"""The emoji scenes: what is drawn, what is said, and that the inverse of the captions is exact."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stepdistill.assets import asset_path
from stepdistill.data.captions import BACKGROUNDS, CaptionGrammar
from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld()


def test_a_scene_is_a_function_of_seed_and_index(world: EmojiWorld) -> None:
    together, captions = world.scenes(3, [5, 6, 7])
    alone, caption = world.scenes(3, [6])
    assert torch.equal(together[1], alone[0])
    assert captions[1] == caption[0]
    assert alone.shape == (1, 3, 64, 64)
    assert together.min() >= 0
    assert together.max() <= 1
    assert not torch.equal(together[1], world.scenes(4, [6])[0][0])


def test_the_corners_show_the_background(world: EmojiWorld) -> None:
    placements = [world.describe(1, index)[0] for index in range(64)]
    for placement, image in zip(placements, world.draw(placements), strict=True):
        corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1]].T
        error = (corners - world.background_colors[placement.background]).abs().amax(-1)
        assert error.median() < 1e-3


def test_every_caption_is_true_of_its_scene(world: EmojiWorld) -> None:
    for index in range(400):
        placement, caption = world.describe(2, index)
        known = world.answers(caption)
        assert placement.glyph in known.glyphs, caption
        assert placement.background in known.backgrounds, caption
        assert world.looks[placement.glyph] in known.looks
        assert known.probabilities.sum() == pytest.approx(1)
        assert (known.probabilities > 0).all()


def test_captions_leave_room(world: EmojiWorld) -> None:
    counts = [len(world.answers(world.describe(2, index)[1]).looks) for index in range(400)]
    assert np.median(counts) >= 10
    assert np.mean(np.array(counts) == 1) < 0.3


def test_the_conditional_is_that_of_the_captions_drawn() -> None:
    names = ["man: dark skin tone", "man: light skin tone", "woman: dark skin tone", "cat"]
    grammar = CaptionGrammar(names, ["person", "person", "person-role", "animal-mammal"], [0, 1, 2, 3])
    rng = np.random.default_rng(0)
    glyphs = rng.integers(4, size=20_000)
    said = np.array([grammar.caption(int(glyph), 0, rng).removesuffix(" on red") for glyph in glyphs])
    for caption in ("man", "person", "dark skin tone", "man light skin tone", "mammal"):
        known = grammar.answers(caption)
        drawn = np.bincount(glyphs[said == caption], minlength=4) / (said == caption).sum()
        expected = np.zeros(4)
        expected[known.looks] = known.probabilities
        assert drawn == pytest.approx(expected, abs=0.04), caption


def test_order_and_number_of_words_matter(world: EmojiWorld) -> None:
    pair = world.answers("handshake light skin tone dark skin tone")
    assert len(pair.glyphs) == 1
    assert len(world.answers("mammal").glyphs) == 66
    assert {world.names[glyph] for glyph in world.answers("astronaut").glyphs} >= {"astronaut", "woman astronaut"}


def test_backgrounds_are_read_back(world: EmojiWorld) -> None:
    assert world.answers("mammal on blue").backgrounds.tolist() == [list(BACKGROUNDS).index("blue")]
    assert len(world.answers("mammal").backgrounds) == len(BACKGROUNDS)
    assert len(world.answers("mammal on beige").backgrounds) == 0
    assert len(world.answers("no such thing").glyphs) == 0


def test_expected_distinct_is_the_mean_over_draws(world: EmojiWorld) -> None:
    known = world.answers("musical")
    rng = np.random.default_rng(0)
    draws = [len(set(rng.choice(known.looks, 8, p=known.probabilities))) for _ in range(4000)]
    assert known.expected_distinct(8) == pytest.approx(np.mean(draws), abs=0.1)


def test_glyphs_drawn_alike_count_as_one(world: EmojiWorld) -> None:
    france, clipperton = world.names.index("flag: France"), world.names.index("flag: Clipperton Island")
    assert world.looks[france] == world.looks[clipperton]
    assert clipperton in world.answers("flag france").glyphs


def test_the_frozen_captions_are_those_of_the_evaluation_scenes(world: EmojiWorld) -> None:
    table = pq.read_table(asset_path("emoji/eval_captions.parquet")).to_pylist()
    assert len(table) == 2000
    for row in table[::50]:
        placement, caption = world.describe(EVALUATION_SEED, row["index"])
        known = world.answers(caption)
        assert (row["caption"], row["glyph"]) == (caption, placement.glyph)
        assert row["right_glyphs"] == known.glyphs.tolist()
        assert row["right_backgrounds"] == known.backgrounds.tolist()
