"""The evaluation of a run: the protocol its recipe names, and the student at the steps it names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from stepdistill.cli import evaluate as evaluate_command
from stepdistill.data.emoji import EmojiWorld
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation import extractors
from stepdistill.evaluation.embedded.extractors import EmojiExtractor
from stepdistill.evaluation.generation import Generation, generate
from stepdistill.evaluation.protocols import protocol_named
from stepdistill.evaluation.reductions import Reference
from stepdistill.evaluation.rows import RunEvaluation
from stepdistill.evaluation.sources import Drawn
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.testing import tiny_pipeline
from stepdistill.training import evaluation
from stepdistill.training.evaluation import (
    PictureScorer,
    evaluate_run,
    evaluation_at_the_end,
    picture_scorer,
    protocol_of,
    student_rows,
)
from stepdistill.training.recipe import Recipe, load_recipe
from stepdistill.training.run import build_distiller, distill


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "tiny-sdxl"
    tiny_pipeline("sdxl").save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> Path:
    """An SDXL run under a protocol that is not the emoji protocol."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\ntwo cats\nan old man\n")
    document = {
        "model": {"pretrained_model_name_or_path": str(teacher)},
        "roles": {"mode": "shared", "rank": 2},
        "method": {"name": "dmd2", "num_steps": 2, "guidance_scale": 2.0},
        "data": {"prompts": str(prompts)},
        "train": {
            "train_batch_size": 2, "max_train_steps": 1, "output_dir": str(tmp_path / "run"), "device": "cpu",
            "mixed_precision": "no",
        },
        "validation": {
            "every": 9, "teacher_steps": 3, "num_evaluated": 3, "protocol": "partiprompts",
            "protocol_prompts": str(prompts),
        },
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class ClipScores:
    """The protocol's CLIP score, by a tiny random model."""

    name, is_per_prompt = "clip/random", False

    def __init__(self, clip: ClipFeatures) -> None:
        self.clip = clip

    def record(self) -> dict[str, Any]:
        return {"extractor": self.name}

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        images = extractors.of_pictures(pictures).float() / 255
        texts = self.clip.texts([record.prompt for record in records])
        return {"score": 100 * torch.cosine_similarity(self.clip(images), texts)}


@pytest.fixture(autouse=True)
def _tiny_clip_and_no_export(monkeypatch: pytest.MonkeyPatch, clip: ClipFeatures) -> None:
    monkeypatch.setitem(extractors.EXTRACTORS, "clip/vit-l-14-openai", lambda *_: ClipScores(clip))
    monkeypatch.setattr("stepdistill.training.run.export_student", lambda *_: None)  # loads in a fresh process


@pytest.mark.slow
def test_a_run_evaluates_the_protocol_of_its_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At its end and by `evaluate RUN`: teacher at full and at the student's steps, student; no floor, no emoji."""
    run_dir = distill(load_recipe(recipe))
    document = json.loads((run_dir / "results.json").read_text())
    assert document["protocol"]["name"] == "partiprompts"
    rows = document["rows"]
    assert [(row["model"], row["steps"], row["n"]) for row in rows] == [
        ("teacher", 3, 3), ("teacher", 2, 3), ("student", 2, 3),
    ]  # fmt: skip
    assert all(row["clip_score"] is not None for row in rows)
    assert all(row["prompt_accuracy"] is None and row["coverage"] is None for row in rows)
    assert (run_dir / "evaluation/student-2-steps/manifest.jsonl").is_file()
    assert "partiprompts" in (run_dir / "report.html").read_text()
    capsys.readouterr()
    evaluate_command.evaluate(run=run_dir, n=2, as_json=True)
    again = json.loads(capsys.readouterr().out)
    assert [row["n"] for row in again["rows"]] == [2, 2, 2]


def test_without_a_protocol_the_evaluation_is_skipped_with_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = load_recipe(recipe, ["validation.protocol=null"])
    run_dir = distill(resolved)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stepdistill:")]
    assert len(lines) == 1
    assert "set validation.protocol" in lines[0]
    assert not (run_dir / "results.json").exists()
    with pytest.raises(UserError, match="--protocol NAME is required"):
        evaluate_command.evaluate(run=run_dir)


@pytest.mark.parametrize(
    ("model", "protocol", "expected"),
    [
        ("assets/emoji-sd", "null", "emoji"),
        ("assets/emoji-sd3", "null", "emoji"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "null", None),
        ("stabilityai/stable-diffusion-xl-base-1.0", "mjhq30k", "mjhq30k"),
    ],
)
def test_the_emoji_protocol_is_the_default_of_the_embedded_teachers_alone(
    recipe: Path, model: str, protocol: str, expected: str | None
) -> None:
    overrides = [f"model.pretrained_model_name_or_path={model}", f"validation.protocol={protocol}"]
    found = protocol_of(load_recipe(recipe, overrides))
    assert (None if found is None else found.name) == expected


def test_an_evaluation_that_cannot_be_is_refused_before_training(recipe: Path) -> None:
    for override, message in {
        "validation.protocol=parti": "unknown protocol 'parti'",
        "validation.protocol_prompts=none.txt": "there is no file",
        "validation.num_evaluated=4": "there are only 3 prompts",
    }.items():
        with pytest.raises(UserError, match=message):
            evaluation_at_the_end(load_recipe(recipe, [override]))
    with pytest.raises(UserError, match=r"set validation\.num_scored=0"):
        picture_scorer(load_recipe(recipe, ["validation.num_scored=8"]))
    assert evaluation_at_the_end(load_recipe(recipe, ["validation.num_evaluated=0"])) is None


def built(name: str, *overrides: str) -> tuple[Distiller, Recipe]:
    recipe = load_recipe(f"recipes/{name}.yaml", overrides)
    return build_distiller(recipe), recipe


@pytest.mark.parametrize(
    ("recipe_name", "steps", "expected"),
    [
        ("emoji_lcm_4step", "[]", [4]),
        ("emoji_lcm_4step", "[1,2,4]", [1, 2, 4]),
        ("emoji_phased_dmd_4step", "[2,4]", [2, 4]),
    ],
)
def test_a_student_is_drawn_at_each_number_of_steps(recipe_name: str, steps: str, expected: list[int]) -> None:
    rows = student_rows(*built(recipe_name, f"validation.evaluated_steps={steps}"))
    assert [row.model.steps for row in rows] == expected
    painters = [row.painter for row in rows if isinstance(row.painter, Generation)]
    assert len({id(painter.pipeline) for painter in painters}) == 1
    times = [
        len(painter.scheduler.timesteps) for painter in painters if generate(painter, ["fox"], [0]).isfinite().all()
    ]
    assert times == expected


def test_a_grid_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"no grid of 3 steps"):
        student_rows(*built("emoji_lcm_4step", "validation.evaluated_steps=[3]"))


@pytest.mark.parametrize("steps", ["[0]", "[9]", "four"])
def test_only_one_to_eight_steps_are_evaluated(steps: str) -> None:
    with pytest.raises(UserError, match="evaluated_steps"):
        load_recipe("recipes/emoji_lcm_4step.yaml", [f"validation.evaluated_steps={steps}"])


@pytest.mark.parametrize("asked", [True, False])
def test_coverage_is_measured_if_the_recipe_asks_for_it(asked: bool) -> None:
    overrides = [f"validation.with_coverage={str(asked).lower()}", "validation.num_evaluated=16"]
    plan = evaluation_at_the_end(load_recipe("recipes/emoji_lcm_4step.yaml", overrides))
    assert plan is not None
    assert (plan.metrics is not None and "caption_coverage" in plan.metrics) == asked


def test_teacher_and_students_are_evaluated_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[RunEvaluation, Any, list[Drawn]]] = []
    monkeypatch.setattr(RunEvaluation, "run", lambda *call: seen.append(call) or {})
    distiller, recipe = built("emoji_lcm_4step", "validation.num_evaluated=16", "train.mixed_precision=bf16")
    plan = evaluation_at_the_end(recipe)
    assert plan is not None
    evaluate_run(distiller, recipe, plan)
    ((rows, teacher, students),) = seen
    assert (rows.protocol, len(rows.prompts), rows.options.batch_size) == (protocol_named("emoji"), 16, 100)
    assert (teacher.steps, teacher.guidance_scale) == (50, 2.0)
    assert {teacher.autocast, *(row.painter.autocast for row in students)} == {torch.bfloat16}  # type: ignore[union-attr]
    assert {row.model.dtype for row in students} == {"bfloat16"}


def test_pictures_are_scored_during_training(monkeypatch: pytest.MonkeyPatch, clip: ClipFeatures) -> None:
    """Real scenes of emoji captions satisfy them; a blank picture does not."""
    world = EmojiWorld()
    counts: list[int] = []

    def reference(extractor: Any, count: int) -> Reference:
        counts.append(count)
        return Reference.of("scenes", torch.rand(40, clip.num_features))

    monkeypatch.setattr(evaluation, "EmojiExtractor", lambda: EmojiExtractor(clip, world))
    monkeypatch.setattr(evaluation, "scene_reference", reference)
    scorer = PictureScorer(protocol_named("emoji"))
    scenes, captions = world.scenes(5, range(6))
    names = {"frechet_distance", "clip_score", "prompt_accuracy", "background_error", "background_imbalance"}
    found = scorer(scenes, captions)
    assert set(found) == names
    assert found["prompt_accuracy"] == 1.0
    assert scorer(torch.ones_like(scenes), captions)["prompt_accuracy"] < 0.5
    assert counts == [2000], "the reference of the whole protocol, whatever the number of pictures"
