"""sCM against closed forms: the tangent, its ways of computation, and the flow map of a mixture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.choices import Differentiation
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.derivative import directional_derivative
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.diffusion.trigflow import noise_direction, trig_field, trig_level, trig_state, trig_x0
from stepdistill.distillers.base import Batch, Distiller, PerTime
from stepdistill.distillers.consistency.config import SCMConfig
from stepdistill.losses.consistency import consistency_tangent, tangent_loss
from stepdistill.testing import GaussianTeacher, MixtureTeacher, MLPDenoiser, fit, tiny_pipeline, train_toy
from stepdistill.training.precision import PlainAttentionWhereShort
from stepdistill.training.validation import Validator

VP = sd.load_teacher(tiny_pipeline("sd")).schedule
SCHEDULES = {"flow": sd.FlowSchedule(), "trig": sd.TrigSchedule(), "vp": VP, "edm": sd.EDMSchedule()}
MEAN, STD = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 1.5]).double()


class ExactMap(Denoiser):
    """The optimum: x0 is the end of the teacher's trajectory."""

    def __init__(self, teacher: GaussianTeacher) -> None:
        super().__init__()
        self.teacher, self.schedule, self.prediction = teacher, teacher.schedule, "x0"
        self.is_trainable = True

    def forward_network(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        return self.teacher.flow_map(x_t, t, torch.zeros_like(t), cond)


def gaussian_scm(schedule: NoiseSchedule, student: Denoiser | None = None, **options: object) -> sd.SCM:
    teacher = GaussianTeacher(MEAN, STD, schedule)
    student = student or MLPDenoiser((2,), schedule, prompts=teacher.prompts, width=16).double()
    return sd.SCM(teacher, SCMConfig(guidance_scale=1.0, **options), student=student)


def points(distiller: sd.SCM, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(0)
    teacher = distiller.teacher
    t = 0.08 + 0.84 * torch.rand(n, generator=generator).double()
    x0 = MEAN + STD * torch.randn(n, 2, generator=generator).double()
    x_t = teacher.schedule.add_noise(x0, torch.randn(n, 2, generator=generator).double(), t)
    return x_t, t, teacher.encode(["x"]).expand(n)


def tangent_at(distiller: sd.SCM) -> torch.Tensor:
    x_t, t, cond = points(distiller)
    schedule = distiller.schedule
    teacher = distiller.teacher(x_t, t, cond)
    dF = distiller.derivative(x_t, teacher, cond)
    F = distiller.field(x_t, t, cond)
    x = trig_state(x_t, t, schedule)
    return consistency_tangent(x, F, trig_field(teacher, schedule), dF, *trig_level(schedule, t))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_tangent_is_the_change_of_x0_along_the_trajectory(name: str) -> None:
    """Spec 4.1a: off the optimum g = cos t df/dt, here against differences of x0 along the exact flow map."""
    distiller = gaussian_scm(SCHEDULES[name])
    teacher = distiller.teacher
    assert isinstance(teacher, GaussianTeacher)
    x_t, t, cond = points(distiller)
    schedule = distiller.schedule

    def angle(t: torch.Tensor) -> torch.Tensor:
        cos, sin = trig_level(schedule, t)
        return torch.atan2(sin, cos)

    h = 1e-5
    with torch.no_grad():
        ends = [distiller.student(teacher.flow_map(x_t, t, s, cond), s, cond).x0 for s in (t + h, t - h)]
        slope = (ends[0] - ends[1]) / per_sample(angle(t + h) - angle(t - h), x_t)
    expected = per_sample(trig_level(schedule, t)[0], x_t) * slope
    torch.testing.assert_close(tangent_at(distiller), expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().mean() > 1e-2


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_tangent_vanishes_on_the_exact_map(name: str) -> None:
    teacher = GaussianTeacher(MEAN, STD, SCHEDULES[name])
    distiller = gaussian_scm(SCHEDULES[name], ExactMap(teacher))
    assert tangent_at(distiller).abs().max() < 1e-9


def test_data_of_unit_scale_have_no_tangent_at_the_identity() -> None:
    """Spec 4.1g: N(0, 1) does not move, the teacher's field is zero and f = x."""
    teacher = GaussianTeacher(torch.zeros(2).double(), torch.ones(2).double(), sd.TrigSchedule())
    x = torch.randn(8, 2).double()
    t = torch.rand(8).double()
    out = teacher(x, t, teacher.encode(["x"]).expand(8))
    assert trig_field(out, teacher.schedule).abs().max() < 1e-12
    assert ExactMap(teacher)(x, t, teacher.encode(["x"]).expand(8)).x0.sub(x).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["flow", "vp"])
@pytest.mark.parametrize("prediction", ["eps", "v", "flow", "x0"])
def test_every_prediction_and_schedule_has_the_same_field(name: str, prediction: str) -> None:
    """Spec 4.1e: the field of an eps, v or flow teacher is that of the TrigFlow teacher at equal SNR."""
    trig = GaussianTeacher(MEAN, STD, sd.TrigSchedule())
    other = GaussianTeacher(MEAN, STD, SCHEDULES[name], prediction=prediction)
    generator = torch.Generator().manual_seed(0)
    t = 0.1 + 0.8 * torch.rand(16, generator=generator).double()
    x_t = torch.randn(16, 2, generator=generator).double()
    cond = trig.encode(["x"]).expand(16)
    x_trig = trig_state(x_t, t, other.schedule)
    t_trig = trig.schedule.time_from_log_snr(other.schedule.log_snr(t))
    field = trig_field(other(x_t, t, cond), other.schedule)
    torch.testing.assert_close(trig_x0(field, x_t, t, other.schedule), other(x_t, t, cond).x0)
    torch.testing.assert_close(field, trig_field(trig(x_trig, t_trig, cond), trig.schedule))
    dx, dt = noise_direction(trig(x_trig, t_trig, cond), trig.schedule)
    cos, sin = trig_level(trig.schedule, t_trig)
    torch.testing.assert_close(dx, per_sample(cos * sin, x_t) * field)  # the rearranged tangent of the paper
    torch.testing.assert_close(dt * math.pi / 2, cos * sin)


def test_without_the_students_derivative_it_is_denoising() -> None:
    """Spec 4.5: at r = 0, before normalisation, F is regressed on the teacher's field with weight cos^2."""
    F = torch.randn(4, 3, requires_grad=True)
    x, F_teacher, dF, t = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3), torch.rand(4)
    g = consistency_tangent(x, F, F_teacher, dF, t.cos(), t.sin(), warmup=0.0)
    tangent_loss(F, g).backward()
    found = F.grad
    F.grad = None
    (t.cos() ** 2 * (F - F_teacher).square().mean(1)).mean().backward()
    torch.testing.assert_close(found, F.grad)


def tiny_batch(distiller: Distiller, size: int = 2, step: int = 1000) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=step, indices=range(size), size=size)
    batch.latents = torch.randn(size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents_cond = batch.cond
    return batch


def derivative_of(distiller: sd.SCM, how: str, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    twin = sd.SCM(distiller.teacher, SCMConfig(tangent=how), student=distiller.student)
    batch = tiny_batch(twin)
    x_t, t = batch.noise("x").to(memory_format=layout), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        teacher = twin.teacher(x_t, t, batch.cond, guidance=Guidance(3.0, batch.uncond))
    return twin.derivative(x_t, teacher, batch.cond)


@pytest.mark.parametrize("family", ["sd", "sd-v", "sdxl", "sd3"])
def test_four_ways_to_the_derivative_agree_on_real_networks(family: str) -> None:
    teacher = sd.load_teacher(tiny_pipeline(family))
    distiller = sd.SCM(teacher, SCMConfig(), roles=sd.Roles(rank=2))
    exact = derivative_of(distiller, "jvp")
    assert exact.abs().mean() > 1e-3
    torch.testing.assert_close(derivative_of(distiller, "jvp", torch.channels_last), exact, rtol=1e-3, atol=1e-5)
    # One-sided differences are of first order.
    for how, bound in {"semi": 0.02, "finite": 0.02, "backward": 0.15}.items():
        error = (derivative_of(distiller, how) - exact).norm() / exact.norm()
        assert error < bound, how


@pytest.mark.parametrize("how", ["semi", "finite", "backward"])
def test_differences_stay_within_the_schedule(how: Differentiation) -> None:
    """At either end there is room on one side only: f = x t has the derivative t dx + x dt there too."""
    x, t = torch.full((3, 1), 2.0, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    asked: list[torch.Tensor] = []

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(t)
        return x * t[:, None]

    dx, dt = torch.full_like(x, 3.0), torch.full_like(t, 0.5)
    out = directional_derivative(function, x, t, dx, dt, how=how, step=1e-6)
    torch.testing.assert_close(out, t[:, None] * dx + x * dt[:, None], rtol=0, atol=1e-5)
    assert all(((times >= 0) & (times <= 1)).all() for times in asked)


def test_the_derivative_minds_neither_autocast_nor_checkpointing() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.SCM(teacher, SCMConfig(), roles=sd.Roles(rank=2))
    plain = derivative_of(distiller, "jvp")
    distiller.student.enable_gradient_checkpointing()
    teacher.network.train()
    batch = tiny_batch(distiller)
    x_t, t = batch.noise("x"), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        guided = teacher(x_t, t, batch.cond, guidance=Guidance(3.0, batch.uncond))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with PlainAttentionWhereShort():
            torch.testing.assert_close(distiller.derivative(x_t, guided, batch.cond), plain)
        losses = distiller.student_step(batch)
    losses.backward()
    assert all(p.grad is not None for p in distiller.log_variance.parameters())


def test_the_raw_tangent_is_logged_whatever_the_warm_up() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    logs = []
    for step in (0, 1000):
        distiller = sd.SCM(teacher, SCMConfig(), roles=sd.Roles(rank=2))
        batch = tiny_batch(distiller)
        batch.step = step
        logged = distiller.student_step(batch).logs["tangent"]
        assert isinstance(logged, PerTime)
        logs.append(logged.values)
    torch.testing.assert_close(logs[0], logs[1])


def test_validations_log_the_distance_to_the_trajectorys_end(tmp_path: Path) -> None:
    """Zero for an untrained student and a teacher that takes one unguided step; not zero for a guided one."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    data = data_from_prompts(teacher, ["a red fox", "two cats"])
    errors = []
    for scale in (1.0, 4.0):
        distiller = sd.SCM(teacher, SCMConfig(guidance_scale=scale), roles=sd.Roles(rank=2))
        validator = Validator(distiller, data, sd.ValidationConfig(teacher_steps=1), tmp_path)
        errors.append(validator.run(0)["health/endpoint_error"])
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3


def test_warm_up_and_weights() -> None:
    distiller = sd.SCM(GaussianTeacher(0.0, 1.0), SCMConfig(tangent_warmup_steps=100))
    assert [distiller.tangent_weight(step) for step in (0, 50, 100, 500)] == [0.0, 0.5, 1.0, 1.0]
    error = torch.tensor([2.0])
    w = torch.zeros(1, requires_grad=True)
    tangent_loss(torch.zeros(1, 1, requires_grad=True), error.sqrt()[:, None], w).backward()
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(1 - 2.0)  # least where w = log E


@pytest.mark.slow
def test_a_toy_learns_the_quantile_map() -> None:
    """Spec 4.2: RMSE of the one-step map against the exact one; the teacher's own single step is 1.27 off."""
    teacher = MixtureTeacher([0.5, 0.5], [[-1.5], [1.0]], [0.3, 0.5], sd.TrigSchedule())
    data, cond = teacher.sample(20_000), teacher.encode(["x"])
    student = MLPDenoiser((1,), teacher.schedule, prompts=teacher.prompts)
    fit(student, teacher, data, cond.expand(len(data)), num_steps=500)
    # In one dimension the normalised tangent is a sign: a larger constant keeps some of its size.
    config = SCMConfig(guidance_scale=1.0, tangent_constant=1.0, tangent_warmup_steps=100, time_mean=0.0, time_std=1.6)
    distiller = sd.SCM(teacher, config, student=student)
    train_toy(distiller, cond, data, num_steps=800, batch_size=256, learning_rate=2e-3)
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(5))
    ones = torch.ones(4000)
    exact = teacher.flow_map(noise, ones, torch.zeros(4000))
    with torch.no_grad():
        error = (student(noise, ones, cond).x0 - exact).square().mean().sqrt()
    assert error < 0.08


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    found = {}
    for step in (0, 1000):
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        config = SCMConfig(guidance_range=(2.0, 6.0), learn_variance=False)
        distiller = sd.SCM(teacher, config, roles=sd.Roles(rank=4))
        batch = tiny_batch(distiller)
        batch.step = step
        losses = distiller.student_step(batch)
        tangent = losses.logs["tangent"]
        assert isinstance(tangent, PerTime)
        found[step] = (losses.total.item(), tangent.values.mean().item())
    assert found[0] == pytest.approx(GOLDEN[0], rel=1e-4)
    assert found[1000] == pytest.approx(GOLDEN[1000], rel=1e-4)


GOLDEN = {0: (0.315080, 0.204259), 1000: (0.393504, 0.204259)}
