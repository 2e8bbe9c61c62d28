"""The reload gate's bound in numbers, and noise in the order of a stock pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stepdistill.denoisers import load_teacher
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.export.contract import Verification
from stepdistill.export.gate import PipelineNoise, compare, same_arithmetic, trainer_images
from stepdistill.testing import tiny_pipeline

PIXELS = torch.zeros(1, 3, 2, 2)


def pixels(*values: float) -> torch.Tensor:
    """A picture of zeros but for its first pixels."""
    image = PIXELS.clone()
    image.view(-1)[: len(values)] = torch.tensor(values)
    return image


def check(made: torch.Tensor, teacher: torch.Tensor, *, is_exact: bool) -> Verification:
    return compare({"kohya": made}, PIXELS, teacher, is_exact=is_exact)["kohya"]


@pytest.mark.parametrize(
    ("effect", "tolerance"),
    [(1.0, 1e-3), (0.01, 0.01 / 20), (1e-4, 5e-5)],
    ids=["at most", "a twentieth of the effect", "at least"],
)
def test_the_float32_bound_is_a_part_of_the_students_effect(effect: float, tolerance: float) -> None:
    """Of the largest pixel, and in absolute value: a negative difference counts as well."""
    found = check(pixels(-2 * tolerance), pixels(effect), is_exact=True)
    assert found.tolerance == pytest.approx(tolerance)
    assert (found.statistic, found.effect) == ("max", pytest.approx(effect))
    assert found.max_difference == pytest.approx(2 * tolerance)
    assert found.mean_difference == pytest.approx(2 * tolerance / 12)
    assert not found.passed
    assert check(pixels(-0.9 * tolerance), pixels(effect), is_exact=True).passed


@pytest.mark.parametrize(
    ("effect", "tolerance"), [(0.6, 0.05), (0.1, 0.1 / 5), (0.01, 1e-2)], ids=["at most", "a fifth", "at least"]
)
def test_the_half_precision_bound_is_of_means(effect: float, tolerance: float) -> None:
    """One pixel may be far off as long as the mean is small."""
    teacher = torch.full_like(PIXELS, effect)
    found = check(pixels(10 * tolerance), teacher, is_exact=False)
    assert (found.tolerance, found.statistic) == (pytest.approx(tolerance), "mean")
    assert found.passed
    assert not check(torch.full_like(PIXELS, 1.1 * tolerance), teacher, is_exact=False).passed


def test_the_effect_behind_a_half_precision_bound_is_a_mean_too() -> None:
    found = check(PIXELS, pixels(0.9), is_exact=False)
    assert found.tolerance == pytest.approx(0.9 / 12 / 5)


def test_pictures_of_another_size_never_pass() -> None:
    found = check(torch.zeros(1, 3, 4, 4), pixels(1.0), is_exact=True)
    assert found.max_difference == float("inf")
    assert not found.passed


@pytest.mark.parametrize(("family", "step_dtype"), [("sd", torch.float16), ("sd3", torch.float32)])
def test_noise_has_the_dtype_of_the_stock_pipeline(family: str, step_dtype: torch.dtype) -> None:
    """Flow schedulers step in float32 whatever the latents are in."""
    student: Any = load_teacher(tiny_pipeline(family), dtype=torch.float16)
    noise = PipelineNoise(student)
    assert noise.normal("start", (4, 8, 8)).dtype == torch.float16
    assert noise.normal("step 1", (4, 8, 8)).dtype == step_dtype


def test_the_trainers_images_are_those_of_a_stock_pipeline_seed_by_seed() -> None:
    student: Any = load_teacher(tiny_pipeline("sd"))
    sampler = StudentSampler(student.few_step_times(2, "sde"), "sde")
    images = trainer_images(student, sampler, ["a fox", "a fox"])
    stock = student.pipeline(sampler)
    stock.set_progress_bar_config(disable=True)
    for seed, image in enumerate(images):
        torch.manual_seed(seed)
        made = stock("a fox", **student.call_arguments(sampler), output_type="pt").images[0]
        torch.testing.assert_close(made, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "inference", "stored", "expected"),
    [
        ("cpu", torch.float32, torch.float32, True),
        ("cpu", torch.float32, torch.float16, False),
        ("cpu", torch.bfloat16, torch.float32, False),
        ("cuda", torch.float32, torch.float32, False),
    ],
)
def test_only_float32_on_a_cpu_is_compared_pixel_by_pixel(
    device: str, inference: torch.dtype, stored: torch.dtype, expected: bool
) -> None:
    student: Any = SimpleNamespace(device=torch.device(device), inference_dtype=inference)
    assert same_arithmetic(student, stored) == expected
