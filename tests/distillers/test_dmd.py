"""DMD against closed forms and identities: matching as in DMD2, and the regression that pins the coupling."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import stepdistill as sd
from stepdistill.critics import perceptual
from stepdistill.data.source import data_from_prompts
from stepdistill.distillers.base import Batch, Distiller, Pairs
from stepdistill.distillers.distribution.config import DMD2Config, DMDConfig
from stepdistill.errors import UserError
from stepdistill.testing import AffineDenoiser, GaussianTeacher, tiny_pipeline, train_toy

EXACT = {"regression": "pseudo_huber"}


def batch_of(distiller: Distiller, size: int = 2) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=0, indices=range(size), size=size)
    noise, x0 = torch.randn(2, size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.pairs = Pairs(noise, x0, batch.cond[list(range(size))[::-1]])
    return batch


def tiny(kind: type[Distiller], config: object) -> Distiller:
    distiller = kind(sd.load_teacher(tiny_pipeline("sd")), config, roles=sd.Roles(rank=2))
    generator = torch.Generator().manual_seed(5)
    for parameters in distiller.players().values():
        for parameter in parameters:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return distiller


def test_equal_scores_leave_the_regression_alone() -> None:
    distiller = sd.DMD(
        sd.load_teacher(tiny_pipeline("sd")), DMDConfig(guidance_scale=1.0, **EXACT), roles=sd.Roles(rank=2)
    )
    losses = distiller.student_step(batch_of(distiller))
    assert losses.terms["dm"] == 0
    assert losses.terms["regression"] > 0


def test_the_matching_half_is_dmd2_in_one_step() -> None:
    old = tiny(sd.DMD, DMDConfig(guidance_scale=3.0, **EXACT))
    new = tiny(sd.DMD2, DMD2Config(num_steps=1, guidance_scale=3.0, student_every=1))
    batches = batch_of(old), batch_of(new)
    pairs = zip((old, new), batches, strict=True)
    first, second = (each.student_step(batch) for each, batch in pairs)
    assert first.terms["dm"] > 0
    torch.testing.assert_close(first.terms["dm"], second.terms["dm"], rtol=1e-4, atol=0)
    assert first.samples is not None
    assert second.samples is not None
    torch.testing.assert_close(first.samples.x0, second.samples.x0, rtol=1e-4, atol=1e-5)
    fitted = [
        each.critic_step(batch, losses.samples).terms["fake_score"]
        for each, batch, losses in zip((old, new), batches, (first, second), strict=True)
    ]
    torch.testing.assert_close(*fitted, rtol=1e-4, atol=0)


def test_with_several_steps_the_first_is_regressed_and_the_others_are_dmd2s() -> None:
    settings = {"num_steps": 3, "guidance_scale": 3.0, "student_every": 1, "fake_score_per_step": True}
    old = tiny(sd.DMD, DMDConfig.model_validate({**settings, **EXACT}))
    new = tiny(sd.DMD2, DMD2Config.model_validate(settings))
    data, pairs = data_from_prompts(old.teacher, ["a red fox", "two cats"]), batch_of(old).pairs
    for step in range(3):
        losses = []
        for distiller in (old, new):
            batch = data.batch(seed=0, step=step, indices=range(2), size=2)
            batch.pairs = pairs
            losses.append(distiller.student_step(batch))
        assert set(losses[0].terms) == ({"dm", "regression"} if step == 0 else {"dm"})
        torch.testing.assert_close(losses[0].terms["dm"], losses[1].terms["dm"], rtol=1e-4, atol=0)


def test_the_teachers_own_flow_map_has_no_regression_loss() -> None:
    teacher = GaussianTeacher(torch.full((4,), 1.0), 0.5)
    distiller = sd.DMD(teacher, DMDConfig(guidance_scale=1.0, **EXACT))
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    student.gain.data.fill_(0.5)
    student.bias.data.fill_(1.0)
    batch = batch_of(distiller, 8)
    assert batch.pairs is not None
    ends = torch.zeros(8)
    x0 = teacher.flow_map(batch.pairs.noise, torch.ones(8), ends)
    batch.pairs = Pairs(batch.pairs.noise, x0, batch.pairs.cond)
    assert distiller.student_step(batch).terms["regression"].item() == pytest.approx(0.0, abs=1e-7)
    batch.pairs = Pairs(batch.pairs.noise, x0 + 0.1, batch.pairs.cond)
    assert distiller.student_step(batch).terms["regression"].item() > 0.05


def trained(regression_weight: float) -> AffineDenoiser:
    """An affine student of N(1, 0.25) that starts mirrored: right in law at gain -0.5, like the teacher only at +0.5."""
    teacher = GaussianTeacher(torch.full((16,), 1.0), 0.5)
    config = DMDConfig(guidance_scale=1.0, regression_weight=regression_weight, **EXACT)
    distiller = sd.DMD(teacher, config)
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    student.gain.data.fill_(-0.4)
    noise = torch.randn(4096, 16, generator=torch.Generator().manual_seed(2))
    cond, ends = teacher.encode(["x"]), torch.zeros(4096)
    pairs = Pairs(noise, teacher.flow_map(noise, 1 - ends, ends), cond.expand(4096))
    options = {"batch_size": 64, "learning_rate": 1e-2, "critic_learning_rate": 3e-2}
    train_toy(distiller, cond, pairs=pairs, num_steps=700, **options)
    return student


@pytest.mark.slow
def test_the_regression_decides_which_noise_becomes_which_image() -> None:
    pinned = trained(regression_weight=4.0)
    assert pinned.bias.mean().item() == pytest.approx(1.0, abs=0.03)
    assert pinned.gain.mean().item() == pytest.approx(0.5, abs=0.03)
    free = trained(regression_weight=0.0)
    assert free.bias.mean().item() == pytest.approx(1.0, abs=0.06)
    assert free.gain.mean().item() == pytest.approx(-0.5, abs=0.06)


def test_without_pairs_it_says_what_to_set() -> None:
    distiller = tiny(sd.DMD, DMDConfig(**EXACT))
    batch = batch_of(distiller)
    batch.pairs = None
    with pytest.raises(UserError, match=r"data\.pairs\.num"):
        distiller.student_step(batch)


def test_lpips_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape[-2:] == b.shape[-2:] == (224, 224)
            return (a - b).abs().flatten(1).mean(1)

    monkeypatch.setattr(perceptual, "lpips_is_installed", lambda: False)
    with pytest.raises(UserError, match=r"stepdistill\[fidelity\]"):
        perceptual.PerceptualDistance()
    monkeypatch.setattr(perceptual, "lpips_is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Network))
    distiller = tiny(sd.DMD, DMDConfig(regression="lpips"))
    losses = distiller.student_step(batch_of(distiller))
    assert 0 < losses.terms["regression"] < 2
    losses.backward()
    assert any(p.grad is not None for p in distiller.student.trainable_parameters())


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.DMD(teacher, DMDConfig(guidance_scale=3.0, **EXACT), roles=sd.Roles(rank=4))
    batch = batch_of(distiller)
    student = distiller.student_step(batch)
    losses = student.terms | distiller.critic_step(batch, student.samples).terms
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"dm": 7.942317e-06, "regression": 12.79515, "fake_score": 1.0837796}
