"""The judge and the true law of pictures, on real scenes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld, Placement
from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.emoji import evaluation_captions, true_pictures
from stepdistill.evaluation.embedded.glyph_judge import GlyphJudge
from stepdistill.evaluation.embedded.scorers import is_right


@pytest.fixture(scope="module")
def whole_world() -> EmojiWorld:
    return EmojiWorld()


@pytest.fixture(scope="module")
def world(whole_world: EmojiWorld) -> EmojiWorld:
    """Every twentieth glyph."""
    small, kept = copy.copy(whole_world), slice(None, None, 20)
    small.glyphs = whole_world.glyphs[kept].clone()
    small.names, small.looks = whole_world.names[kept], whole_world.looks[kept]
    return small


@pytest.fixture(scope="module")
def judge(world: EmojiWorld, tmp_path_factory: pytest.TempPathFactory) -> GlyphJudge:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        judge = GlyphJudge(world)
        for background in (0, 4, 8):
            judge.templates(background)
    return judge


def placements(world: EmojiWorld, count: int = 60) -> list[Placement]:
    drawn = [world.describe(3, index)[0] for index in range(count)]
    return [
        Placement(i * 5 % len(world), (0, 4, 8)[i % 3], p.flip, p.scale, p.x, p.y)
        for i, p in enumerate(drawn)
    ]


@pytest.mark.parametrize(("damage", "at_least"), [("none", 0.98), ("noise", 0.95), ("blur", 0.95)])
def test_the_judge_knows_glyphs_wherever_they_stand(world, judge, damage: str, at_least: float) -> None:
    shown = placements(world)
    images = world.draw(shown)
    if damage == "noise":
        images = images + 0.04 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    if damage == "blur":
        images = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    verdict = judge(images.clamp(0, 1))
    right = verdict.glyphs == torch.tensor([world.looks[p.glyph] for p in shown])
    assert right.float().mean() >= at_least
    assert verdict.backgrounds.tolist() == [p.background for p in shown]
    assert (verdict.colours - world.background_colors[[p.background for p in shown]]).abs().max() < 0.05


def test_an_empty_picture_is_judged_without_fuss(world, judge) -> None:
    verdict = judge(torch.ones(1, 3, 64, 64))
    assert verdict.backgrounds.tolist() == [8]


def test_true_pictures_are_right_and_vary(whole_world: EmojiWorld) -> None:
    world = whole_world
    prompts = evaluation_captions(world, 12)
    scenes, captions = world.scenes(EVALUATION_SEED, range(12))
    assert prompts.captions == captions
    first, second = (true_pictures(world, prompts, seed) for seed in (1, 2))
    assert first.shape == scenes.shape
    assert torch.equal(first, true_pictures(world, prompts, 1))
    assert not torch.equal(first, second)
    for index, answers in enumerate(prompts.answers):
        shown, _ = world.describe(EVALUATION_SEED, index)
        look, ground = torch.tensor([world.looks[shown.glyph]]), torch.tensor([shown.background])
        assert is_right(look, ground, answers).item()
        assert abs(float(answers.weights.sum()) - 1) < 1e-9


def test_there_are_only_so_many_captions(whole_world: EmojiWorld) -> None:
    with pytest.raises(UserError, match="2000 evaluation captions"):
        evaluation_captions(whole_world, 2001)
