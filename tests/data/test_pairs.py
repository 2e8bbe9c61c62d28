"""What the name of a file of pairs depends on: nobody reads pairs of another teacher, prompt, seed or shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stepdistill.data.config import PairsConfig
from stepdistill.data.trajectories import TeacherPairs, teacher_pairs
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.schedules.families import EDMSchedule
from stepdistill.testing import GaussianTeacher

MEANS = {"a": torch.tensor([1.0]), "b": torch.tensor([-2.0]), "": torch.tensor([0.5])}


def teacher_of(**options: Any) -> GaussianTeacher:
    return GaussianTeacher(0.0, 0.5, named_means=MEANS, **options)


def pairs_of(
    folder: Path | None = None,
    *,
    teacher: GaussianTeacher | None = None,
    prompts: tuple[str, ...] = ("a", "b"),
    uncond: str = "",
    seed: int = 0,
    **options: Any,
) -> TeacherPairs:
    teacher = teacher or teacher_of()
    settings = {"num": 6, "shard_size": 4, "steps": 3, "guidance_scale": 2.0, "batch_size": 3} | options
    return teacher_pairs(
        teacher,
        teacher.encode(prompts),
        teacher.encode([uncond]),
        PairsConfig.model_validate(settings),
        seed=seed,
        cache_dir=None if folder is None else str(folder),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"uncond": "b"},
        {"prompts": ("b", "a")},
        {"teacher": teacher_of(schedule=EDMSchedule())},
        {"steps": 4},
        {"guidance_scale": 3.0},
        {"solver": "euler"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_pairs_of_other_settings_are_not_read(tmp_path: Path, change: dict[str, Any]) -> None:
    pairs_of(tmp_path)
    found, expected = pairs_of(tmp_path, **change), pairs_of(**change)
    assert torch.equal(found.noise, expected.noise)
    assert torch.equal(found.x0, expected.x0)


def test_pairs_of_another_prediction_are_other_files(tmp_path: Path) -> None:
    """An x0 and a v network of equal weights are two teachers."""
    pairs_of(tmp_path)
    before = set(tmp_path.iterdir())
    pairs_of(tmp_path, teacher=teacher_of(prediction="flow"))
    assert len(set(tmp_path.iterdir()) - before) == 2


def test_shards_of_one_size_and_prompt_are_two_files(tmp_path: Path) -> None:
    found = pairs_of(tmp_path, prompts=("a",), num=8)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(found.noise, pairs_of(prompts=("a",), num=8).noise)
    assert len(found.noise.unique()) == 8


def test_noise_is_that_of_the_pairs_number_and_of_the_seed() -> None:
    pairs = pairs_of(seed=3, num=6)
    assert len(pairs) == 6
    expected = RandomStream(3, 0, tuple(range(6)), "cpu", "pairs").normal("noise", (1,))
    assert torch.equal(pairs.noise, expected)
    assert torch.equal(pairs_of(seed=3, num=6, shard_size=6, batch_size=6).noise, expected)
