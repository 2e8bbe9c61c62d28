"""Phased DMD: one phase is DMD, the sub-interval target is unbiased, experts keep to their phases, the export switches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.rollout import Samples, backward_simulation, sample
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.times import ShiftedUniform
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.distillers.distribution import matching
from stepdistill.distillers.distribution.config import DMD2Config, PhasedDMDConfig
from stepdistill.distillers.distribution.phased_dmd import subinterval_weight
from stepdistill.errors import UserError
from stepdistill.export.contract import read_contract
from stepdistill.export.gate import trainer_images
from stepdistill.export.use import load_export
from stepdistill.testing import BulkStream, GaussianDenoiser, GaussianTeacher, tiny_pipeline, turn_losses

FEW_LAYERS = sd.Roles(rank=2, target_modules=["to_q", "to_v"])
"""For what holds whichever layers are adapted: an adapter on all of them takes ten times as long to build."""


def tiny(family: str = "sd", *, roles: sd.Roles = FEW_LAYERS, **options: object) -> sd.PhasedDMD:
    settings: dict[str, object] = {"num_steps": 4, "guidance_scale": 3.0} | options
    teacher = sd.load_teacher(tiny_pipeline(family))
    return sd.PhasedDMD(teacher, PhasedDMDConfig.model_validate(settings), roles=roles)


def perturb(distiller: Distiller, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameters in distiller.players().values():
        for parameter in parameters:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


def batch_of(distiller: Distiller, size: int = 2, step: int = 0) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    return data.batch(seed=0, step=step, indices=range(size), size=size)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("rollout", ["sde", "ode"])
def test_one_phase_is_dmd2(family: str, rollout: str) -> None:
    """The same losses and the same gradients of both players."""
    phased = tiny(family, num_phases=1, rollout=rollout)
    plain = sd.DMD2(
        sd.load_teacher(tiny_pipeline(family)),
        DMD2Config(num_steps=4, guidance_scale=3.0, rollout=rollout),
        roles=FEW_LAYERS,
    )
    found = []
    for distiller in (phased, plain):
        perturb(distiller)
        batch, losses, grads = batch_of(distiller), {}, []
        for turn, each in turn_losses(distiller, batch):
            each.backward()
            losses |= {name: term.item() for name, term in each.terms.items()}
            grads += [p.grad.clone() for p in distiller.players()[turn] if p.grad is not None]
        found.append((losses, grads))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_phases_split_the_grid_and_hand_over() -> None:
    distiller = tiny(num_steps=6, num_phases=3)
    times = distiller.sampler().times
    assert distiller.ends == (times[2], times[4], 0.0)
    owners = [distiller.experts.index(distiller.student.at(t)) for t in times]
    assert owners == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match=r"method\.num_steps"):
        tiny(num_steps=4, num_phases=3)


def test_the_phases_take_turns_or_follow_each_other() -> None:
    turns = tiny(student_every=2)
    assert [turns.phase_at(step) for step in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    stages = tiny(phase_iterations=3)
    assert [stages.phase_at(step) for step in range(8)] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_only_the_phase_at_turn_gets_gradients() -> None:
    distiller = tiny(student_every=1)
    perturb(distiller)
    for step, phase in ((0, 0), (1, 1)):
        for turn, groups in (("student", distiller.experts), ("critic", distiller.fake_scores)):
            batch = batch_of(distiller, step=step)
            losses = distiller.student_step(batch) if turn == "student" else distiller.critic_step(batch)
            losses.backward()
            for number, network in enumerate(groups):
                reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in network.trainable_parameters())
                assert reached == (number == phase)
            for parameters in distiller.players().values():
                for parameter in parameters:
                    parameter.grad = None


def test_the_rollout_stops_at_the_edge_after_a_random_exit() -> None:
    """An exact student that leaves at the last step of its phase is at the state that inference has there."""
    teacher = GaussianTeacher(torch.full((3,), 1.0), 0.5)
    sampler = StudentSampler((1.0, 0.75, 0.5, 0.25), "ode")
    cond, rng = teacher.encode(["x"] * 6), BulkStream(0, 0, tuple(range(6)))
    noise = rng.normal("noise", (3,))
    stopped = backward_simulation(teacher, sampler, noise, cond, rng, exit_step=1, stop_at=0.5)
    further = backward_simulation(teacher, sampler, noise, cond, rng, exit_step=2)
    torch.testing.assert_close(stopped.x_s, further.x_t)
    early = backward_simulation(teacher, sampler, noise, cond, rng, exit_step=0, stop_at=0.5)
    assert not torch.allclose(early.x_s, stopped.x_s)
    assert torch.equal(further.x_s, further.x0)
    exits = {sd.RandomStream(0, step, (0,)).fork("student").shared_integer("exit_step", 2) for step in range(32)}
    assert exits == {0, 1}


def test_a_fake_score_of_one_phase_learns_the_law_of_the_data() -> None:
    """It sees x_s at s = 1/2 alone, never data; a target made of x_s as if it were data gives another law."""
    teacher = GaussianTeacher(torch.full((4,), 1.0), 0.5)
    config = PhasedDMDConfig(num_steps=2, guidance_scale=1.0, student_every=1)
    distiller = sd.PhasedDMD(teacher, config)
    assert distiller.ends == (0.5, 0.0)
    size, steps = 512, 300
    fake = distiller.fake_scores[0]
    assert isinstance(fake, GaussianDenoiser)
    fake.mean.data.fill_(0.0)
    fake.log_std.data.fill_(0.0)
    optimizer = torch.optim.Adam(fake.trainable_parameters(), betas=(0.5, 0.99))
    cond, uncond = teacher.encode(["x"]).expand(size), teacher.uncond(1).expand(size)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        rng = BulkStream(0, 2 * step, tuple(range(size)))  # even iterations belong to the first phase
        x0 = 1.0 + 0.5 * rng.normal("data", (4,))
        x_s = 0.5 * x0 + 0.5 * rng.normal("data_eps", (4,))
        batch = Batch(cond, uncond, rng, 2 * step, (4,))
        optimizer.zero_grad()
        distiller.critic_step(batch, Samples(x_s, 0.5, x0, x_s, 1.0, exit_step=0)).backward()
        optimizer.step()
    assert fake.mean.mean().item() == pytest.approx(1.0, abs=0.03)
    assert fake.log_std.exp().mean().item() == pytest.approx(0.5, abs=0.04)


def test_times_keep_above_the_end_of_the_phase_and_weights_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MARGIN_ABOVE_S", 0.001)
    distiller = tiny(num_steps=2, renoise_shift=3.0, student_every=1)
    end, schedule = distiller.ends[0], distiller.teacher.schedule
    x = torch.zeros(4000, 1)
    samples = Samples(x, end, x, x, 1.0, exit_step=0)

    def times(law: ShiftedUniform, name: str) -> torch.Tensor:
        rng = BulkStream(0, 0, tuple(range(4000)))
        return matching.renoise(schedule, samples, law, rng, t_name=name, eps_name="eps")[1]

    compared, learnt = times(distiller.times, "renoise_t"), times(distiller.critic_times, "t")
    for t in (compared, learnt):
        assert end + 0.0009 < t.min() < end + 0.01
        assert t.max() > 0.97
    weight = subinterval_weight(schedule, end, learnt)
    a, g = schedule.transition(torch.full_like(learnt, end), learnt)
    gain = (schedule.sigma(learnt) / g) ** 2
    assert (weight * gain).max() <= 10.001
    assert weight.max() <= 1
    assert weight.min() < 1
    assert a.max() < 1
    assert torch.equal(subinterval_weight(schedule, 0.0, learnt), torch.ones(4000))
    later = times(tiny(num_steps=2, critic_shift=3.0, student_every=1).critic_times, "t")
    assert end + 0.0009 < later.min() < end + 0.01
    assert later.median() > learnt.median() + 0.05


@pytest.mark.slow
def test_two_experts_reach_the_teacher() -> None:
    """Each maps one law to the next; together they draw N(1, 0.25)."""
    teacher = GaussianTeacher(torch.full((16,), 1.0), 0.5)
    config = PhasedDMDConfig(num_steps=2, guidance_scale=1.0, student_every=3)
    distiller = sd.PhasedDMD(teacher, config)
    players, size, steps = distiller.players(), 128, 1500
    optimizers = {turn: torch.optim.Adam(p, betas=(0.5, 0.99)) for turn, p in players.items()}
    cond, uncond = teacher.encode(["x"]).expand(size), teacher.uncond(1).expand(size)
    for step in range(steps):
        batch = Batch(cond, uncond, BulkStream(0, step, tuple(range(size))), step, (16,))
        for turn, losses in turn_losses(distiller, batch):
            losses.backward()
            for group in optimizers[turn].param_groups:
                group["lr"] = (1e-2 if turn == "student" else 5e-2) * (1 - step / steps)
            optimizers[turn].step()
            optimizers[turn].zero_grad()
    rng = BulkStream(1, 0, tuple(range(4000)))
    cond = teacher.encode(["x"]).expand(4000)
    noise = rng.normal("noise", (16,))
    middle = backward_simulation(
        distiller.student, distiller.sampler(), noise, cond, rng, exit_step=0, stop_at=0.5
    ).x_s
    assert middle.mean().item() == pytest.approx(0.5, abs=0.05)
    assert middle.std(0).mean().item() == pytest.approx((0.25**2 + 0.5**2) ** 0.5, abs=0.06)
    x0 = sample(distiller.student, distiller.sampler(), noise, cond, rng)
    assert x0.mean().item() == pytest.approx(1.0, abs=0.06)
    assert x0.std(0).mean().item() == pytest.approx(0.5, abs=0.06)


def test_a_run_averages_keeps_and_restores_every_expert(tmp_path: Path) -> None:
    distiller = tiny(num_steps=2, student_every=1)
    config = sd.TrainConfig(
        train_batch_size=1, max_train_steps=2, learning_rate=1e-2, output_dir=str(tmp_path), device="cpu"
    )
    trainer = sd.Trainer(distiller, config, ["a red fox"])
    before = [p.detach().clone() for e in distiller.experts for p in e.trainable_parameters()]
    trainer.fit()
    after = [p.detach() for e in distiller.experts for p in e.trainable_parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    half = len(moved) // 2
    assert any(moved[:half])
    assert any(moved[half:])
    trainer.keep_best(2, 1.0)
    kept = list((tmp_path / "best").rglob("*.safetensors"))
    assert {file.stem for file in kept} == {"student", "student_2"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_export_switches_experts_in_stock_diffusers(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The reload gate compares a fresh process with the trainer; here also the package's own loader."""
    if family == "sd3":  # a fresh process for one family is enough
        request.getfixturevalue("gate_in_this_process")
    folder = tmp_path / "base"
    tiny_pipeline(family).save_pretrained(folder)
    distiller = sd.PhasedDMD(sd.load_teacher(folder), PhasedDMDConfig(num_steps=4), roles=sd.Roles(rank=2))
    perturb(distiller, 0.3)
    contract = sd.export(distiller, tmp_path / "out", prompts=["a red fox"])
    assert contract.step_adapters == ["phase_1", "phase_1", "phase_2", "phase_2"]
    assert contract.verified["diffusers"].passed
    assert contract.verified["diffusers"].effect > 1e-3
    assert {"phase_1.safetensors", "phase_2.safetensors"} <= set(read_contract(tmp_path / "out").files)
    pipe, call = load_export(tmp_path / "out", base=str(folder))
    images = []
    for _ in range(2):  # the callback goes round to the first expert
        torch.manual_seed(0)
        images.append(torch.from_numpy(pipe("a red fox", **call, output_type="np").images[0]))
    assert torch.equal(images[0], images[1])
    swapped = contract.model_copy(update={"step_adapters": ["phase_1"] * 4})
    torch.manual_seed(0)
    alone = pipe("a red fox", **sd.apply_sampler(pipe, swapped), output_type="np").images[0]
    assert (torch.from_numpy(alone) - images[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_pipeline_runs_each_expert_at_its_times(family: str) -> None:
    distiller = tiny(family, roles=sd.Roles(rank=2))
    perturb(distiller, 0.3)
    student = distiller.student
    assert isinstance(student, PipelineDenoiser)
    expected = trainer_images(student, distiller.sampler(), ["a red fox"])
    pipe, call = distiller.pipeline(), student.call_arguments(distiller.sampler())
    for _ in range(2):
        torch.manual_seed(0)
        found = pipe("a red fox", **call, output_type="pt").images
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=5e-4)
    student.successor = None
    alone = trainer_images(student, distiller.sampler(), ["a red fox"])
    assert (alone - expected).abs().max() > 1e-3


def test_full_copies_cannot_share_a_stock_pipeline() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    copies = sd.PhasedDMD(teacher, PhasedDMDConfig(num_steps=2), roles=sd.Roles(mode="full"))
    for make in (copies.pipeline, lambda: sd.export(copies, "never-written")):
        with pytest.raises(UserError, match=r"roles\.mode=shared"):
            make()


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    found = {}
    for step in (0, 5):
        distiller = tiny(roles=sd.Roles(rank=2))
        batch = batch_of(distiller, step=step)
        student = distiller.student_step(batch)
        losses = student.terms | distiller.critic_step(batch, student.samples).terms
        found |= {f"{step}.{name}": value.item() for name, value in losses.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"0.dm": 2.368408e-4, "0.fake_score": 1.4212832, "5.dm": 3.239124e-4, "5.fake_score": 1.0733533}
