"""SANA-Sprint: both parts on one call of the student, the maximal time, and who gets which gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.distillers.consistency import sana_sprint
from stepdistill.distillers.consistency.config import SANASprintConfig, SCMConfig
from stepdistill.errors import UserError
from stepdistill.testing import MixtureTeacher, MLPDenoiser, fit, tiny_pipeline, train_toy


def tiny_batch(distiller: Distiller, size: int = 2, step: int = 1000) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=step, indices=range(size), size=size)
    batch.latents = torch.randn(size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents_cond = batch.cond
    return batch


def perturbed(distiller: Distiller) -> Distiller:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameters in distiller.players().values():
            for parameter in parameters:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return distiller


def student_gradients(distiller: Distiller) -> list[torch.Tensor]:
    found = []
    for parameter in distiller.student.trainable_parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
        parameter.grad = None
    return found


def test_the_consistency_part_is_scm() -> None:
    """The same draws, the same tangent: the adversarial part is beside it, in the same student call."""
    teacher = sd.load_teacher(tiny_pipeline("sd3"))
    sprint = sd.SANASprint(teacher, SANASprintConfig(), roles=sd.Roles(rank=2))
    options = {"time_mean": 0.9, "time_std": 1.6}
    scm = sd.SCM(teacher, SCMConfig(**options), student=sprint.student)
    both, alone = sprint.student_step(tiny_batch(sprint)), scm.student_step(tiny_batch(scm))
    assert set(both.terms) == {"consistency", "gan_student"}
    torch.testing.assert_close(both.terms["consistency"], alone.terms["consistency"])


class Uncut:
    """In place of the hand-off: the judges stay on the student's own graph."""

    def __init__(self, x0: torch.Tensor, student: Denoiser) -> None:
        self.leaf = x0

    def backward(self) -> None:
        pass


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_cut_graph_gives_the_joint_gradient(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's features come between the student's forward and its backward; checkpointed blocks must not mind."""

    def build() -> sd.SANASprint:
        distiller = sd.SANASprint(sd.load_teacher(tiny_pipeline("sd")), SANASprintConfig(), roles=sd.Roles(rank=2))
        perturbed(distiller)
        return distiller

    with monkeypatch.context() as patch:
        patch.setattr(sana_sprint, "Handoff", Uncut)
        joint = build()
        joint.student_step(tiny_batch(joint)).backward()
        expected = student_gradients(joint)
    distiller = build()
    if checkpointing:
        distiller.student.enable_gradient_checkpointing()
        distiller.teacher.network.train()
    distiller.student_step(tiny_batch(distiller)).backward()
    for found, wanted in zip(student_gradients(distiller), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_both_parts_reach_the_student() -> None:
    def gradient(weight: float) -> torch.Tensor:
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        config = SANASprintConfig(gan={"student_weight": weight})
        distiller = perturbed(sd.SANASprint(teacher, config, roles=sd.Roles(rank=2)))
        distiller.student_step(tiny_batch(distiller)).backward()
        return torch.cat([grad.flatten() for grad in student_gradients(distiller)])

    least, one, two = gradient(1e-9), gradient(1.0), gradient(2.0)
    assert (one - least).norm() > 1e-4 * least.norm()
    torch.testing.assert_close(two - least, 2 * (one - least), rtol=1e-2, atol=1e-5)


def test_adversarial_inputs_are_at_the_maximal_time_as_often_as_asked() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd3"))
    for prob in (0.0, 0.5, 1.0):
        distiller = sd.SANASprint(teacher, SANASprintConfig(max_time_prob=prob), roles=sd.Roles(rank=2))
        x0 = torch.zeros(400, *teacher.latent_shape())
        x_t, t = distiller.adversarial_input(x0, sd.RandomStream(0, 0, tuple(range(400))))
        at_max = t == 1
        assert at_max.float().mean().item() == pytest.approx(prob, abs=0.06)
        if prob:
            assert x_t[at_max].std().item() == pytest.approx(1.0, abs=0.02)


def test_the_critics_judge_the_students_samples_of_this_iteration() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.SANASprint(teacher, SANASprintConfig(), roles=sd.Roles(rank=2))
    assert tuple(distiller.turns(0)) == ("student", "critic")
    batch = tiny_batch(distiller)
    samples = distiller.student_step(batch).samples
    assert samples is not None
    assert not samples.x0.requires_grad
    losses = distiller.critic_step(batch, samples)
    losses.backward()
    assert all(p.grad is None for p in distiller.student.trainable_parameters())
    moved = replace(samples, x0=samples.x0 + 1)
    assert distiller.critic_step(batch, moved).total.item() != losses.total.item()
    assert distiller.critic_step(batch).total.isfinite()


def test_an_untrained_head_pays_two_for_a_hinge() -> None:
    """Logits near zero: relu(1 - 0) + relu(1 + 0)."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.SANASprint(teacher, SANASprintConfig(), roles=sd.Roles(rank=2))
    with torch.no_grad():
        for parameter in distiller.gan.parameters():
            parameter.zero_()
    losses = distiller.critic_step(tiny_batch(distiller))
    assert losses.terms["gan_critic"].item() == pytest.approx(2.0)
    assert losses.total.item() == pytest.approx(1.0)  # the paper's factor of one half


def test_a_partial_choice_of_adversarial_options_keeps_the_methods_own() -> None:
    config = SANASprintConfig(gan={"student_weight": 0.1})
    assert (config.gan.critic_weight, config.gan.features) == (0.5, "teacher")
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    with pytest.raises(UserError, match="features=teacher"):
        sd.SANASprint(teacher, SANASprintConfig(gan={"features": "fake_score"}), roles=sd.Roles(rank=2))


@pytest.mark.slow
def test_a_toy_learns_with_its_critics() -> None:
    """A 2-D mixture: one step lands on the three modes; the untrained student's lands between them."""
    modes = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.2]])
    oracle = MixtureTeacher([1.0, 1.0, 1.0], modes, [0.15] * 3, sd.TrigSchedule())
    data, cond = oracle.sample(20_000), oracle.encode(["x"])
    teacher = MLPDenoiser((2,), oracle.schedule, prompts=oracle.prompts, width=64)
    fit(teacher, oracle, data, cond.expand(len(data)), num_steps=800)
    config = SANASprintConfig(
        guidance_scale=1.0, tangent_warmup_steps=50, time_mean=0.0, gan={"student_weight": 0.05, "width": 32}
    )
    student = teacher.role("student", sd.Roles(mode="full"))
    teacher.requires_grad_(False)
    teacher.is_trainable = False
    distiller = sd.SANASprint(teacher, config, student=student)
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))

    def distance() -> float:
        with torch.no_grad():
            x0 = student(noise, torch.ones(2000), cond).x0
        return torch.cdist(x0, modes).min(dim=1).values.mean().item()

    before = distance()
    train_toy(distiller, cond, data, num_steps=300, batch_size=128, learning_rate=2e-3)
    assert before > 0.8
    assert distance() < 0.45  # exact samples: 0.19


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = SANASprintConfig(guidance_range=(2.0, 6.0))
    distiller = sd.SANASprint(teacher, config, roles=sd.Roles(rank=4))
    batch = tiny_batch(distiller)
    student = distiller.student_step(batch)
    losses = student.terms | distiller.critic_step(batch, student.samples).terms
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"consistency": 0.629354, "gan_student": 0.0622162, "gan_critic": 2.00676}
