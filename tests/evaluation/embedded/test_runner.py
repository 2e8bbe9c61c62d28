"""From pipelines to rows: seeds, counts, the store and the schema of results.json."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stepdistill.denoisers import load_teacher
from stepdistill.denoisers.config import Roles
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.evaluation.embedded.measurements import Measurements, Row, caption_scores
from stepdistill.evaluation.embedded.runner import Draws, RunOptions, evaluate, measure_generation
from stepdistill.evaluation.embedded.samplers import best_stock_sampler, stock_samplers, teacher_comparison
from stepdistill.evaluation.embedded.scorers import Answers
from stepdistill.evaluation.embedded.store import MeasurementStore
from stepdistill.evaluation.generation import Generation, counted_evaluations, generate, prompt_seed
from stepdistill.evaluation.pages.tables import write_results
from stepdistill.testing import tiny_pipeline

CONTRACT = {
    "model", "method", "steps", "nfe", "frechet_distance", "frechet_distance_to_teacher", "kid", "clip_score",
    "prompt_accuracy", "coverage", "background_error", "guidance_scale", "latency_s", "n",
}  # fmt: skip
FAST = RunOptions(batch_size=5, latency_repeats=0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(autouse=True)
def _quiet(recwarn) -> None:
    """A dozen pictures in eight dimensions are biased, and the tests know."""


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_pictures_do_not_depend_on_the_batch(family: str) -> None:
    each = Generation(tiny_pipeline(family), steps=2, guidance_scale=3.0)
    captions = ["a", "b c", "dog", "x on red"]
    seeds = [prompt_seed(0, i) for i in range(4)]
    whole = generate(each, captions, seeds)
    parts = torch.cat([generate(each, captions[i : i + 1], seeds[i : i + 1]) for i in range(4)])
    assert whole.shape == (4, 3, 16, 16)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole[:1], generate(each, captions[:1], [7]), atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_noise_between_steps_is_each_pictures_own(family: str) -> None:
    """Stable Diffusion 3's pipeline gives its scheduler no generator; without one the pictures would be another draw each time."""
    teacher = load_teacher(tiny_pipeline(family))
    assert isinstance(teacher, PipelineDenoiser)
    few_step = teacher.few_step(StudentSampler(teacher.few_step_times(2, "sde"), "sde"))
    each = Generation(teacher.pipe, arguments=few_step.arguments, scheduler=few_step.scheduler)
    seeds = [prompt_seed(0, i) for i in range(3)]
    whole = generate(each, ["a", "b c", "dog"], seeds)
    state = torch.get_rng_state()
    again = torch.cat(
        [generate(each, [caption], [seed]) for caption, seed in zip(["a", "b c", "dog"], seeds, strict=True)]
    )
    assert torch.allclose(whole, again, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(teacher.pipe.scheduler, type(tiny_pipeline(family).scheduler))


@pytest.mark.parametrize(("family", "scale", "expected"), [("sd", 1.0, 3), ("sd", 4.0, 6), ("sd3", 4.0, 6)])
def test_guided_calls_count_twice(family: str, scale: float, expected: int) -> None:
    each = Generation(tiny_pipeline(family), steps=3, guidance_scale=scale)
    with counted_evaluations(each.pipeline) as rows:
        generate(each, ["a", "b"], [0, 1])
    assert sum(rows) / 2 == expected


def test_rows_keep_the_contract(evaluator, pipe, discs, tmp_path) -> None:
    def perfect(captions, seeds):
        glyphs = [0 if caption.startswith("small") else 2 for caption in captions]
        return discs(glyphs, ["rgbw".index(caption[-1]) for caption in captions], seed=seeds[0] % 1000)

    generations = {
        "teacher, 3 steps": Generation(pipe, "teacher", steps=3, guidance_scale=2.0),
        "teacher, 1 step": Generation(pipe, "teacher", steps=1, guidance_scale=2.0),
        "student": Generation(perfect, method="DMD2", steps=1, guidance_scale=1.0),
    }
    evaluator = replace(
        evaluator,
        protocol=replace(evaluator.protocol, coverage_min_glyphs=2, coverage_captions=2, coverage_seeds=3),
    )
    results = evaluate(generations, evaluator=evaluator, options=FAST)
    write_results(results, tmp_path)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["schema"] == 1
    assert document["protocol"]["hash"] == evaluator.protocol.hash
    assert [row["model"] for row in document["rows"]] == ["teacher", "teacher", "student", "floor"]
    assert all(set(row) >= CONTRACT for row in document["rows"])
    teacher, few, student, floor = results.rows
    assert (teacher.nfe, few.nfe, student.nfe, floor.nfe) == (6.0, 2.0, None, None)
    assert teacher.frechet_distance_to_teacher is None
    assert few.frechet_distance_to_teacher is not None
    assert student.latency_s is None
    assert student.background_error is not None
    assert student.background_error < 5 < (teacher.background_error or 0)
    assert student.frechet_distance is not None
    assert student.frechet_distance < (teacher.frechet_distance or 0)
    assert student.coverage is not None
    assert Row.read(document["rows"][0] | {"later": 1}) == teacher
    assert set(results.pictures) == set(generations)
    assert len(results.captions) == len(results.pictures["student"]) == 12


def test_numbers_do_not_depend_on_the_batch(evaluator, pipe) -> None:
    each = Generation(pipe, steps=1, guidance_scale=1.0)
    draws = Draws.main(evaluator)
    runs = [
        measure_generation("x", each, draws, evaluator, replace(FAST, batch_size=size)) for size in (3, 12)
    ]
    assert torch.allclose(runs[0].features, runs[1].features, atol=1e-4)


def test_cached_generations_are_made_once(evaluator, tmp_path) -> None:
    pipe, seen = tiny_pipeline("sd"), []
    options = replace(FAST, store=MeasurementStore((), tmp_path), progress=lambda *call: seen.append(call))
    each = Generation(pipe, "teacher", steps=1, guidance_scale=2.0, is_cached=True)
    draws = Draws.main(evaluator)
    first = measure_generation("t", each, draws, evaluator, options)
    calls = len(seen)
    again = measure_generation("t", each, draws, evaluator, options)
    fewer = measure_generation("t", each, replace(draws, captions=draws.captions[:8]), evaluator, options)
    assert calls == len(seen) == 3
    assert torch.equal(first.features, again.features)
    assert again.nfe == first.nfe == 2.0
    assert len(fewer) == 8
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(0.1)
    changed = measure_generation("t", each, draws, evaluator, options)
    assert len(seen) == 6
    assert not torch.equal(first.features, changed.features)
    measure_generation("t", replace(each, guidance_scale=3.0), draws, evaluator, options)
    assert len(seen) == 9


def test_a_clean_copy_has_the_address_of_the_original() -> None:
    teacher = load_teacher(tiny_pipeline("sd"))
    student = teacher.role("student", Roles(mode="shared", rank=2))
    assert isinstance(teacher, PipelineDenoiser)
    stock = teacher.pipeline(StudentSampler(teacher.few_step_times(2, "sde"), "sde"))
    stock.scheduler = teacher.pipe.scheduler
    original, copy = (
        Generation(pipe, "teacher", steps=2, guidance_scale=2.0).cache_key(torch.float32, "x")
        for pipe in (tiny_pipeline("sd"), stock)
    )
    assert original == copy
    with pytest.raises(ValueError, match="adapters"):
        Generation(student.pipe, "teacher", steps=2).cache_key(torch.float32, "x")


def test_a_callable_has_no_address() -> None:
    with pytest.raises(ValueError, match="callable"):
        Generation(lambda captions, seeds: torch.zeros(len(captions), 3, 8, 8)).cache_key(torch.float32, "")


def test_latency_is_measured(evaluator, pipe) -> None:
    each = {"student": Generation(pipe, steps=1, guidance_scale=1.0)}
    row = evaluate(
        each, evaluator=evaluator, options=RunOptions(latency_repeats=1, with_coverage=False)
    ).rows[0]
    assert row.latency_s is not None
    assert 0 < row.latency_s < 5
    assert row.coverage is None
    assert row.images_per_s is not None


@pytest.mark.parametrize(
    ("family", "names"), [("sd", {"Euler", "DDIM trailing", "DPM-Solver++"}), ("sd3", {"Euler, shift 3"})]
)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_stock_sampler_runs(family: str, names: set[str], steps: int) -> None:
    pipe = tiny_pipeline(family)
    samplers = stock_samplers(pipe)
    assert names <= set(samplers)
    own = pipe.scheduler
    for name, scheduler in samplers.items():
        each = Generation(pipe, "teacher", steps=steps, guidance_scale=2.0, scheduler=scheduler, sampler=name)
        with counted_evaluations(pipe) as rows:
            images = generate(each, ["a"], [0])
        assert images.isfinite().all(), name
        assert sum(rows) == 2 * steps, name
    assert pipe.scheduler is own


def test_the_best_sampler_is_the_nearest(evaluator, tmp_path) -> None:
    pipe = tiny_pipeline("sd")
    options = replace(FAST, store=MeasurementStore((), tmp_path))
    best = best_stock_sampler(
        pipe, steps=1, guidance_scales=(1.0, 2.0), evaluator=evaluator, options=options, subset=10
    )
    assert best.search is not None
    assert len(best.search) == 2 * len(stock_samplers(pipe))
    assert (
        min(best.search, key=lambda label: best.search[label])
        == f"{best.sampler}, guidance {best.guidance_scale:g}"
    )
    students = [Generation(pipe, steps=steps, guidance_scale=1.0) for steps in (1, 2)]
    rows = teacher_comparison(
        pipe, students, guidance_scale=2.0, steps=3, evaluator=evaluator, options=options
    )
    assert [(each.model, each.steps) for each in rows.values()] == [
        ("teacher", 3),
        ("teacher", 1),
        ("teacher", 2),
        ("student", 1),
        ("student", 2),
    ]


def test_measurements_survive_the_disk(evaluator, discs, tmp_path) -> None:
    measured = evaluator.measure(discs([0, 1], [0, 1]), ["a", "b"])
    measured = replace(measured, nfe=2.0, seconds=0.5)
    measured.save(tmp_path / "m.safetensors")
    loaded = Measurements.load(tmp_path / "m.safetensors")
    assert (loaded.nfe, loaded.seconds) == (2.0, 0.5)
    assert all(torch.equal(tensor, measured.tensors()[name]) for name, tensor in loaded.tensors().items())


def test_the_protocols_hash_names_all_but_the_count(evaluator) -> None:
    protocol = evaluator.protocol
    assert protocol.with_images(5).hash == protocol.hash
    assert replace(protocol, seed=1).hash != protocol.hash


def test_shares_of_backgrounds_are_a_score_of_their_own() -> None:
    """Right pictures all on one background: nothing but the imbalance tells."""
    answers = [Answers.uniform([0], [0, 1])] * 4
    scores = [
        caption_scores(
            Measurements(
                features=torch.zeros(4, 2),
                clip_scores=torch.ones(4),
                glyphs=torch.zeros(4, dtype=torch.long),
                backgrounds=backgrounds,
                colours=torch.eye(3)[backgrounds],
                pictures=torch.zeros(0, 3, 1, 1, dtype=torch.uint8),
            ),
            answers,
            torch.eye(3)[:2],
        )
        for backgrounds in (torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.long))
    ]
    even, uneven = (each.pop("background_imbalance") for each in scores)
    assert (even, uneven) == (0.0, 0.5)
    assert scores[0] == scores[1]
