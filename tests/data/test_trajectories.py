"""Pairs are where the teacher's ODE ends, and are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stepdistill as sd
from stepdistill.data.config import PairsConfig
from stepdistill.data.trajectories import TeacherPairs, teacher_pairs
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.denoised import Denoised
from stepdistill.testing import GaussianTeacher, tiny_pipeline


class CountedTeacher(GaussianTeacher):
    """Counts its calls, and gives up when it has none left."""

    calls, limit = 0, 10**9

    def forward(self, *args: object, **options: object) -> Denoised:
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        return super().forward(*args, **options)


def counted() -> CountedTeacher:
    return CountedTeacher(torch.full((3,), 1.0), 0.5, uncond_mean=0.0, named_means={"b": torch.full((3,), -2.0)})


def pairs_of(teacher: Denoiser, folder: Path | None, **options: object) -> TeacherPairs:
    settings = {"num": 10, "shard_size": 4, "batch_size": 3, "steps": 5, "guidance_scale": 1.0} | options
    return teacher_pairs(
        teacher,
        teacher.encode(["a", "b"]),
        teacher.uncond(1),
        PairsConfig.model_validate(settings),
        cache_dir=None if folder is None else str(folder),
    )


def test_pairs_end_where_the_exact_flow_ends() -> None:
    teacher = counted()
    pairs = pairs_of(teacher, None, steps=400, num=4)
    cond = teacher.encode(["a", "b", "a", "b"])
    exact = teacher.flow_map(pairs.noise, torch.ones(4), torch.zeros(4), cond)
    torch.testing.assert_close(pairs.x0, exact, rtol=0, atol=0.02)
    guided = pairs_of(teacher, None, steps=400, num=4, guidance_scale=2.0)
    assert torch.equal(guided.noise, pairs.noise)
    towards = torch.tensor([2.0, -4.0, 2.0, -4.0])[:, None]  # uncond 0, doubled
    torch.testing.assert_close(guided.x0 - 0.5 * pairs.noise, towards.expand(4, 3), rtol=0, atol=0.05)


def test_an_interrupted_computation_resumes(tmp_path: Path) -> None:
    whole = pairs_of(counted(), None)
    stopped = counted()
    stopped.limit = 2 * 5 + 7  # the first shard is two batches of five steps
    with pytest.raises(KeyboardInterrupt):
        pairs_of(stopped, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    again = counted()
    resumed = pairs_of(again, tmp_path)
    assert again.calls == 5 * (2 + 1)  # one call per step and batch of what was left
    assert torch.equal(resumed.x0, whole.x0)
    third = counted()
    assert torch.equal(pairs_of(third, tmp_path).noise, whole.noise)
    assert third.calls == 0


@pytest.mark.parametrize("change", [{"steps": 6}, {"guidance_scale": 2.0}, {"solver": "heun"}])
def test_other_settings_are_other_pairs(tmp_path: Path, change: dict[str, object]) -> None:
    pairs_of(counted(), tmp_path)
    other = counted()
    pairs_of(other, tmp_path, **change)
    assert other.calls > 0


def test_more_pairs_keep_the_full_files(tmp_path: Path) -> None:
    first = pairs_of(counted(), tmp_path, num=8)
    teacher = counted()
    longer = pairs_of(teacher, tmp_path, num=12)
    assert teacher.calls == 2 * 5
    assert torch.equal(longer.x0[:8], first.x0)


def test_adapters_do_not_change_a_teachers_name_and_weights_do(tmp_path: Path) -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    pairs = pairs_of(teacher, tmp_path, num=2, steps=2)
    teacher.role("student", sd.Roles(rank=2))
    assert torch.equal(pairs_of(teacher, tmp_path, num=2, steps=2).x0, pairs.x0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    with torch.no_grad():
        next(teacher.network.parameters()).add_(0.1)
    assert not torch.equal(pairs_of(teacher, tmp_path, num=2, steps=2).x0, pairs.x0)
