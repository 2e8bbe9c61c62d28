"""The judge, the floor and the columns of the embedded problem, on real scenes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld, Placement
from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Assignment
from stepdistill.evaluation.embedded.extractors import CoverageExtractor, EmojiExtractor
from stepdistill.evaluation.embedded.glyph_judge import GlyphJudge
from stepdistill.evaluation.embedded.problem import (
    COVERAGE_MIN_LOOKS,
    COVERAGE_SAMPLES,
    answers_of,
    coverage_assignment,
    floor_painter,
    true_placement,
)
from stepdistill.evaluation.generation import prompt_seed
from stepdistill.evaluation.picture_store import PictureRecord
from stepdistill.evaluation.prompt_sets import PromptSet, load_prompt_set
from stepdistill.evaluation.protocols import protocol_named
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.preprocess import to_pictures


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
    return [Placement(i * 5 % len(world), (0, 4, 8)[i % 3], p.flip, p.scale, p.x, p.y) for i, p in enumerate(drawn)]


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


def test_an_empty_picture_is_judged(world, judge) -> None:
    verdict = judge(torch.ones(1, 3, 64, 64))
    assert verdict.backgrounds.tolist() == [8]


def test_the_floor_is_right_and_varies(whole_world: EmojiWorld) -> None:
    captions = PromptSet.of(whole_world.scenes(EVALUATION_SEED, range(12))[1])
    records = [Assignment(captions).record(index) for index in range(12)]
    first, second = (floor_painter(whole_world, seed)(records) for seed in (1, 2))
    assert torch.equal(first, floor_painter(whole_world, 1)(records))
    assert not torch.equal(first, second)
    assert torch.equal(first[3:4], floor_painter(whole_world, 1)(records[3:4])), "whatever the batch"
    for record, answers in zip(records, answers_of(captions.prompts, whole_world), strict=True):
        shown = true_placement(whole_world, answers, 1, record["index"])
        assert whole_world.looks[shown.glyph] in answers.looks
        assert shown.background in answers.backgrounds
        assert abs(float(answers.probabilities.sum()) - 1) < 1e-9


def test_coverage_takes_several_pictures_of_captions_with_many_looks(whole_world: EmojiWorld) -> None:
    prompts = load_prompt_set(protocol_named("emoji"), limit=60)
    found = coverage_assignment(prompts, 7, whole_world)
    assert found is not None
    assert found.numbers is not None
    looks = [len(whole_world.answers(caption).looks) for caption in prompts.prompts]
    assert all(looks[number] >= COVERAGE_MIN_LOOKS for number in found.numbers)
    assert len(set(found.prompts.prompts)) == len(found.prompts)
    records = [found.record(index) for index in range(COVERAGE_SAMPLES + 1)]
    assert [record["sample"] for record in records] == [*range(1, COVERAGE_SAMPLES + 1), 1]
    assert records[-1]["seed"] == prompt_seed(7, found.numbers[1], 1), "the caption's own number"
    assert coverage_assignment(PromptSet.of(["red heart"]), 7, whole_world) is None


def test_the_extractors_judge_real_scenes(world: EmojiWorld, judge: GlyphJudge, clip: ClipFeatures) -> None:
    """Real scenes are right, on their background, and as varied as the data."""
    emoji, covered = EmojiExtractor(clip, world), CoverageExtractor(world)
    emoji.judge = covered.judge = judge
    shown = placements(world, 6)
    captions = [f"{world.names[p.glyph]} on {world.backgrounds[p.background]}" for p in shown]
    pictures = to_pictures(world.draw(shown))
    records = [
        PictureRecord(**Assignment(PromptSet.of(captions)).record(i), file="", bytes=0, digest="") for i in range(6)
    ]
    values = emoji(pictures, records)
    assert values["features"].shape == (6, clip.num_features)
    assert values["prompt_accuracy"].tolist() == [1.0] * 6
    assert values["background_error"].max() < 10
    assert values["background"].tolist() == [p.background for p in shown]
    assert values["allowed_backgrounds"].sum(1).tolist() == [1] * 6
    pairs = [replace(each, prompt=captions[i // 2]) for i, each in enumerate(records)]
    found = covered([pictures[i // 2] for i in range(6)], pairs)["caption_coverage"]
    assert (found > 0).all()


def test_other_pictures_and_prompts_are_refused(clip: ClipFeatures, whole_world: EmojiWorld) -> None:
    extractor = EmojiExtractor(clip, whole_world)
    record = PictureRecord(0, 0, 0, "a portrait of a knight", "0", None, 0, "", 0, "")
    with pytest.raises(UserError, match="'a portrait of a knight' is not an emoji caption"):
        extractor([Image.new("RGB", (64, 64))], [record])
    with pytest.raises(UserError, match="pictures of 64 x 64 pixels, not 32 x 32"):
        extractor([Image.new("RGB", (32, 32))], [replace(record, prompt="fox")])
