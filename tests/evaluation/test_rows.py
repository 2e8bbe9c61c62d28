"""Pictures from pipelines, and the rows of a run: student, teacher at few and at full steps, and the floor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stepdistill.assets import resolve_path
from stepdistill.denoisers import load_teacher
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.errors import UserError
from stepdistill.evaluation import extractors
from stepdistill.evaluation.application import EvaluationOptions
from stepdistill.evaluation.document import ModelRecord, ResultRow
from stepdistill.evaluation.embedded import problem
from stepdistill.evaluation.generation import Generation, counted_evaluations, generate, prompt_seed
from stepdistill.evaluation.pages.tables import read_pictures
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet, load_prompt_set
from stepdistill.evaluation.protocols import Protocol, protocol_named
from stepdistill.evaluation.reductions import Reference
from stepdistill.evaluation.rows import NO_COST, RunEvaluation, Teacher, floor, locked
from stepdistill.evaluation.run_record import identity
from stepdistill.evaluation.samplers import stock_samplers
from stepdistill.evaluation.sources import Source, default_protocol, describe
from stepdistill.testing import tiny_pipeline

CONTRACT = {
    "model", "method", "steps", "nfe", "frechet_distance", "frechet_distance_to_teacher", "kid", "clip_score",
    "prompt_accuracy", "coverage", "background_error", "guidance_scale", "latency_s", "n",
}  # fmt: skip
CAPTIONS, SEEDS = ["a", "b c", "dog", "x on red"], [prompt_seed(0, i) for i in range(4)]
SD, SD3 = tiny_pipeline("sd"), tiny_pipeline("sd3")


@pytest.mark.parametrize("pipe", [SD, SD3])
def test_pictures_do_not_depend_on_the_batch(pipe: Any) -> None:
    each = Generation(pipe, steps=2, guidance_scale=3.0)
    whole = generate(each, CAPTIONS, SEEDS)
    parts = torch.cat([generate(each, CAPTIONS[i : i + 1], SEEDS[i : i + 1]) for i in range(4)])
    assert whole.shape == (4, 3, 16, 16)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole[:1], generate(each, CAPTIONS[:1], [7]), atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_noise_between_steps_is_each_pictures_own(family: str) -> None:
    """Stable Diffusion 3's pipeline passes its scheduler no generator; the global one would change with every call."""
    teacher = load_teacher(tiny_pipeline(family))
    assert isinstance(teacher, PipelineDenoiser)
    few_step = teacher.few_step(StudentSampler(teacher.few_step_times(2, "sde"), "sde"))
    own = teacher.pipe.scheduler
    each = Generation(teacher.pipe, arguments=few_step.arguments, scheduler=few_step.scheduler)
    whole = generate(each, CAPTIONS, SEEDS)
    state = torch.get_rng_state()
    again = torch.cat([generate(each, CAPTIONS[i : i + 1], SEEDS[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, again, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert teacher.pipe.scheduler is own


@pytest.mark.parametrize(("pipe", "scale", "expected"), [(SD, 1.0, 3), (SD, 4.0, 6), (SD3, 4.0, 6)])
def test_guided_calls_count_twice(pipe: Any, scale: float, expected: int) -> None:
    each = Generation(pipe, steps=3, guidance_scale=scale)
    with counted_evaluations(pipe) as rows:
        generate(each, ["a", "b"], [0, 1])
    assert sum(rows) / 2 == expected


@pytest.mark.parametrize(
    ("pipe", "names"), [(SD, {"Euler", "DDIM trailing", "DPM-Solver++"}), (SD3, {"Euler, shift 3"})]
)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_stock_sampler_runs(pipe: Any, names: set[str], steps: int) -> None:
    samplers, own = stock_samplers(pipe), pipe.scheduler
    assert names <= set(samplers)
    for name, scheduler in samplers.items():
        each = Generation(pipe, steps=steps, guidance_scale=2.0, scheduler=scheduler)
        with counted_evaluations(pipe) as rows:
            images = generate(each, ["a"], [0])
        assert images.isfinite().all(), name
        assert sum(rows) == 2 * steps, name
    assert pipe.scheduler is own


def test_a_clean_copy_has_the_identity_of_the_original() -> None:
    """Cached rows of a teacher are found whatever run it is loaded in, from whatever path."""
    teacher = load_teacher(tiny_pipeline("sd"))
    teacher.role("student", Roles(mode="shared", rank=2))
    assert isinstance(teacher, PipelineDenoiser)
    stock = teacher.pipeline(StudentSampler(teacher.few_step_times(2, "sde"), "sde"))
    stock.scheduler = teacher.pipe.scheduler
    call, protocol = {"num_inference_steps": 2, "guidance_scale": 2.0}, protocol_named("emoji")

    def record(pipe: Any, source: str, **changes: Any) -> dict[str, Any]:
        return identity(protocol, describe(pipe, call | changes, Source(source)).model, "png")

    original = record(tiny_pipeline("sd"), "here")
    assert record(stock, "there") == original
    assert record(stock, "there", guidance_scale=3.0) != original
    with torch.no_grad():
        stock.unet.conv_in.weight.add_(0.1)
    assert record(stock, "there") != original


class Shade:
    """Mean colours as features, and a score; a tiny stand-in for the networks of a real protocol."""

    name, is_per_prompt = "shade", False

    def record(self) -> dict[str, Any]:
        return {"extractor": self.name}

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        pixels = extractors.of_pictures(pictures).float() / 255
        features = torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)
        return {"features": features, "score": features.sum(1), "clip": features.sum(1)}


PROTOCOL = Protocol("tiny", prompts=None, num_prompts=6, variants=(("fid", "shade"), ("clip", "shade")))
PROMPTS = PromptSet.of([f"prompt {number}" for number in range(6)])


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunEvaluation:
    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(extractors.EXTRACTORS, "shade", lambda protocol, device: Shade())
    options = EvaluationOptions(tmp_path / "run", batch_size=4, cost=NO_COST)
    return RunEvaluation(PROTOCOL, PROMPTS, None, options, ProcessGroup())


TEACHER = Teacher(SD, "tiny", 3, 2.0, {})


def student(steps: int, scale: float = 1.0) -> Any:
    call = {"num_inference_steps": steps, "guidance_scale": scale}
    return describe(SD, call, Source("tiny", name=f"student {steps} steps", method="dmd2"))


def test_rows_keep_the_contract(rows: RunEvaluation) -> None:
    document = rows.run(TEACHER, [student(1), student(2)])
    assert json.loads((rows.options.out / "results.json").read_text()) == document
    assert (document["schema"], document["protocol"]["hash"]) == (1, PROTOCOL.hash)
    assert all(set(row) >= CONTRACT for row in document["rows"])
    found = [ResultRow.read(row | {"later": 1}) for row in document["rows"]]
    assert [(row.model, row.steps, row.nfe) for row in found] == [
        ("teacher", 3, 6.0), ("teacher", 1, 2.0), ("teacher", 2, 4.0), ("student", 1, 1.0), ("student", 2, 2.0),
    ]  # fmt: skip
    full, few, *_, last = found
    assert (full.frechet_distance, full.frechet_distance_to_teacher) == (None, None), "there is no reference"
    assert few.frechet_distance_to_teacher is not None
    assert few.frechet_distance_to_teacher > 0
    assert (last.method, last.sampler, last.dtype, last.n) == ("dmd2", "DDIM", "float32", 6)
    assert all(row.clip_score is not None and row.coverage is None for row in found)
    drawn = read_pictures(rows.options.out)
    assert drawn is not None
    assert set(drawn.rows) == {row.name for row in found}
    assert all(len(pictures) == 6 for pictures in drawn.rows.values())
    assert drawn.captions == PROMPTS.prompts


def test_a_new_student_replaces_the_earlier_ones_pictures(rows: RunEvaluation) -> None:
    first = rows.run(TEACHER, [student(1)])["rows"][-1]
    assert rows.run(TEACHER, [student(1)])["rows"][-1] == first
    assert rows.run(TEACHER, [student(1, scale=3.0)])["rows"][-1]["clip_score"] != first["clip_score"]


def test_runs_share_a_teachers_folder(rows: RunEvaluation, tmp_path: Path) -> None:
    blocks: list[Any] = []
    shared = replace(rows.options, teacher=tmp_path / "shared")
    expected = replace(rows, options=shared).run(TEACHER, [student(2)])["rows"]
    again = replace(shared, out=tmp_path / "other", progress=lambda name, done, total: blocks.append((name, total)))
    assert replace(rows, options=again).run(TEACHER, [student(2)])["rows"] == expected
    assert sum(name == "pictures" for name, _ in blocks) == 2, "the student's alone"
    with pytest.raises(UserError, match="another run"):
        replace(rows, options=again).run(replace(TEACHER, guidance_scale=3.0), [student(2)])


@pytest.fixture
def emoji(rows: RunEvaluation, monkeypatch: pytest.MonkeyPatch) -> RunEvaluation:
    """The emoji protocol with the stand-in for its networks, and captions that allow many looks."""
    monkeypatch.setitem(extractors.EXTRACTORS, "emoji-clip", lambda protocol, device: Shade())
    monkeypatch.setattr("stepdistill.evaluation.application.scene_reference", _reference)
    monkeypatch.setattr(problem, "COVERAGE_SAMPLES", 2)
    monkeypatch.setitem(extractors.EXTRACTORS, "emoji-coverage", lambda protocol, device: Looks())
    protocol = replace(protocol_named("emoji"), sampler_search=4)
    metrics = ["frechet_distance", "clip", "caption_coverage"]
    return replace(rows, protocol=protocol, prompts=load_prompt_set(protocol, limit=6), metrics=metrics)


class Looks(Shade):
    name, is_per_prompt = "emoji-coverage", True

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        assert {record.sample for record in records} == {1, 2}
        return {"caption_coverage": torch.full((len(pictures) // 2,), 0.5)}


def _reference(extractor: Any, count: int) -> Any:
    assert count == 6, "as many scenes as captions, for the sampler search too"
    values = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    return Reference.of("scenes", values)


@pytest.mark.filterwarnings("ignore:Frechet distance")
def test_the_emoji_protocol_has_a_floor_and_searches_the_teachers_sampler(
    emoji: RunEvaluation, tmp_path: Path
) -> None:
    blocks: list[str] = []
    seen = replace(emoji, options=replace(emoji.options, progress=lambda name, *_: blocks.append(name)))
    found = [ResultRow.read(row) for row in seen.run(TEACHER, [student(1)])["rows"]]
    assert [row.name for row in found] == ["teacher 3 steps", "teacher 1 step", "student 1 steps", "floor"]
    full, few, _, real = found
    assert few.sampler_search is not None
    assert set(few.sampler_search) == set(stock_samplers(SD))
    assert min(few.sampler_search, key=lambda name: few.sampler_search[name]) == few.sampler  # type: ignore[index]
    assert full.sampler_search is None
    assert (real.frechet_distance_to_teacher, real.nfe, real.steps) == (None, None, None)
    assert {row.coverage for row in found} == {0.5}
    assert {row.n for row in found} == {6}
    blocks.clear()
    other = replace(seen, options=replace(seen.options, out=tmp_path / "second"))
    again = [ResultRow.read(row) for row in other.run(TEACHER, [student(1)])["rows"]]
    assert again == found
    assert blocks.count("pictures") == 2 + 2, "the student's captions and coverage; teacher and floor are cached"


def test_the_shipped_teacher_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make demo` takes the teacher's row at 50 steps from the assets."""
    from diffusers import StableDiffusionPipeline

    monkeypatch.setenv("STEPDISTILL_CACHE", str(tmp_path / "cache"))
    pipe = StableDiffusionPipeline.from_pretrained(resolve_path("assets/emoji-sd"))
    protocol = protocol_named("emoji")
    prompts = load_prompt_set(protocol, limit=500)
    rows = RunEvaluation(
        protocol, prompts, None, EvaluationOptions(tmp_path, batch_size=100, cost=NO_COST), ProcessGroup()
    )
    folder, is_shared = rows.folder_of(Teacher(pipe, "assets/emoji-sd", 50, 2.0, {}).at(50))
    assert is_shared
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == 500
    assert (folder / "coverage/scores/emoji-coverage.parquet").is_file()


def test_the_floor_has_a_folder_of_its_own(rows: RunEvaluation) -> None:
    emoji = replace(rows, protocol=protocol_named("emoji"))
    assert emoji.folder_of(floor())[0] != emoji.folder_of(TEACHER.at(3))[0]
    assert rows.folder_of(TEACHER.at(3)) == (rows.options.out / "evaluation/teacher-3-steps", False)


def test_only_embedded_teachers_and_their_exports_have_a_default_protocol(tmp_path: Path) -> None:
    assert default_protocol("assets/emoji-sd3") == "emoji"
    assert default_protocol("stabilityai/stable-diffusion-xl-base-1.0") is None
    assert default_protocol(str(tmp_path)) is None


def test_one_run_at_a_time_writes_a_shared_folder(tmp_path: Path) -> None:
    import fcntl

    with (
        locked(tmp_path / "x", ProcessGroup()),
        (tmp_path / ".x.lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_rows_list_every_measure() -> None:
    row = ResultRow.of(ModelRecord(name="x", source="y"), {}, _no_cost(), n=3)
    assert {field.name for field in fields(ResultRow)} >= CONTRACT
    assert (row.model, row.n, row.frechet_distance) == ("student", 3, None)


def _no_cost() -> Any:
    from stepdistill.evaluation.document import CostRecord

    return CostRecord()
