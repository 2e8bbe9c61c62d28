"""TBCM: the route, its stored velocities, and what is learned from prompts alone."""

from __future__ import annotations

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.guidance import Guidance, guide
from stepdistill.diffusion.solver import teacher_trajectory
from stepdistill.distillers.base import Batch, Distiller, PerTime
from stepdistill.distillers.consistency.config import TBCMConfig
from stepdistill.distillers.consistency.guided import teacher_guidance
from stepdistill.distillers.consistency.tbcm import joined
from stepdistill.testing import BulkStream, GaussianTeacher, MixtureTeacher, MLPDenoiser, fit, tiny_pipeline, train_toy
from stepdistill.typing import Latents, Times


class CountingTeacher(GaussianTeacher):
    calls = 0

    def forward(self, x_t: Latents, t: Times, cond: Conditioning, guidance: Guidance | None = None) -> Denoised:
        self.calls += 1
        return super().forward(x_t, t, cond, guidance)


class ExactMap(Denoiser):
    """x0 is the end of the guided teacher's trajectory, whose mean is the guided one."""

    def __init__(self, teacher: GaussianTeacher, cond: Conditioning) -> None:
        super().__init__()
        self.teacher, self.cond, self.schedule, self.prediction = teacher, cond, teacher.schedule, "x0"
        self.is_trainable = True

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.teacher.flow_map(x_t, t, torch.zeros_like(t), self.cond)


def prompt_batch(teacher: Denoiser, n: int = 8, step: int = 0) -> Batch:
    cond, stream = teacher.encode(["x"]).expand(n), BulkStream(0, step, tuple(range(n)))
    return Batch(cond, teacher.uncond(1).expand(n), stream, step, teacher.latent_shape())


def tiny_batch(distiller: Distiller, step: int = 1000) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    return data.batch(seed=0, step=step, indices=range(2), size=2)


def test_the_route_is_stratified_over_the_reference_grid() -> None:
    distiller = sd.TBCM(GaussianTeacher(1.0, 0.5), TBCMConfig(route_points=8))
    routes = [distiller.route(sd.RandomStream(0, step, (0,))) for step in range(200)]
    times = torch.tensor(routes)
    assert (times[:, 0] == 1).all()
    for i in range(1, 8):
        lo, hi = 1 - i / 8, 1 - (i - 1) / 8
        assert times[:, i].min() >= lo
        assert times[:, i].max() < hi
        assert times[:, i].mean().item() == pytest.approx((lo + hi) / 2, abs=0.02)
    assert distiller.route(sd.RandomStream(0, 7, (3,))) == routes[7]  # the same on every rank
    shifted = sd.TBCM(GaussianTeacher(1.0, 0.5), TBCMConfig(route_points=8, grid_shift=4.0))
    assert torch.tensor(shifted.route(sd.RandomStream(0, 0, (0,)))).mean() > times.mean() + 0.15


@pytest.mark.parametrize(
    "schedule", [sd.FlowSchedule(), sd.TrigSchedule(), sd.load_teacher(tiny_pipeline("sd")).schedule]
)
def test_the_route_converges_to_the_guided_flow_map(schedule: sd.NoiseSchedule) -> None:
    """Spec 4.5: guided Gaussians of one covariance are a Gaussian at the guided mean; the endpoint is O(1/R) off."""
    teacher = GaussianTeacher(1.0, 0.5, schedule, uncond_mean=-0.5)
    batch = prompt_batch(teacher, 64)
    mean = guide(batch.cond["mean"], batch.uncond["mean"], 3.0)
    noise = batch.noise("z") * schedule.prior_std
    start, end = torch.ones(64), torch.zeros(64)
    exact = teacher.flow_map(noise, start, end, Conditioning({"mean": mean}))
    errors = []
    for num in (20, 40):
        times = [1 - i / num for i in range(num)]
        x0 = teacher_trajectory(teacher, batch.noise("z"), batch.cond, times, Guidance(3.0, batch.uncond)).x0
        errors.append((x0 - exact).abs().mean().item())
    assert errors[0] < 0.1
    assert 1.6 < errors[0] / errors[1] < 2.6


def test_stored_estimates_are_the_teachers_and_it_is_called_once_per_point() -> None:
    teacher = CountingTeacher(1.0, 0.5, uncond_mean=-0.5)
    config = TBCMConfig(route_points=8, guidance_range=(2.0, 5.0))
    student = MLPDenoiser((1,), teacher.schedule, prompts=teacher.prompts, width=16)
    distiller = sd.TBCM(teacher, config, student=student)
    batch = prompt_batch(teacher)
    logged = distiller.student_step(batch).logs["tangent"]
    assert teacher.calls == 8
    assert isinstance(logged, PerTime)
    assert len(logged.values) == 7 * 8  # pure noise has no tangent on a flow schedule
    guidance = teacher_guidance(config, batch.uncond, batch.rng)
    route = teacher_trajectory(teacher, batch.noise("z"), batch.cond, distiller.route(batch.rng), guidance)
    x_t, stored, told = joined(route, batch.cond, 1)
    scales = guidance.scale_at(torch.ones(8)).repeat(7)
    again = teacher(x_t, stored.t, told, guidance=Guidance(scales, batch.uncond[torch.zeros(56).long()]))
    torch.testing.assert_close(stored.x0, again.x0)
    torch.testing.assert_close(stored.eps, again.eps)


def test_its_loss_is_that_of_scm_at_the_same_points() -> None:
    """Stored velocities in place of fresh calls change nothing: the reduction to sCM on the route's states."""
    teacher = GaussianTeacher(1.0, 0.5, uncond_mean=-0.5)
    student = MLPDenoiser((1,), teacher.schedule, prompts=teacher.prompts, width=16)
    distiller = sd.TBCM(teacher, TBCMConfig(guidance_scale=3.0, tangent_warmup_steps=0), student=student)
    batch = prompt_batch(teacher)
    rng = batch.rng.fork("student")
    noise, route = rng.normal("noise", batch.shape), distiller.route(rng)
    states = teacher_trajectory(teacher, noise, batch.cond, route, Guidance(3.0, batch.uncond)).states
    x_t, n = torch.cat(states[1:-1]), 8 * (len(route) - 1)
    t = torch.tensor(route[1:]).repeat_interleave(8)
    cond, uncond = teacher.encode(["x"]).expand(n), teacher.uncond(1).expand(n)
    fresh = teacher(x_t, t, cond, guidance=Guidance(3.0, uncond))
    scm = sd.SCM(teacher, distiller.config, student=student)
    expected = scm.tangent_losses(scm.field(x_t, t, cond), scm.derivative(x_t, fresh, cond), x_t, fresh, 0)
    assert distiller.student_step(batch).total.item() == pytest.approx(expected.total.item(), rel=1e-4)


@pytest.mark.parametrize("form", ["continuous", "discrete"])
def test_the_exact_map_has_next_to_nothing_to_learn(form: str) -> None:
    teacher = GaussianTeacher(torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5]), uncond_mean=torch.zeros(2))
    batch = prompt_batch(teacher, 64)
    cond = Conditioning({"mean": guide(batch.cond["mean"], batch.uncond["mean"], 3.0)[:1]})
    values = []
    for num in (40, 80):
        config = TBCMConfig(form=form, route_points=num, guidance_scale=3.0)
        distiller = sd.TBCM(teacher, config, student=ExactMap(teacher, cond))
        logged = distiller.student_step(batch).logs["tangent" if form == "continuous" else "gap"]
        assert isinstance(logged, PerTime)
        values.append(logged.values.mean().item())
    if form == "continuous":
        assert values[0] < 1e-5
    else:
        assert values[0] < 1e-2
        assert values[0] / values[1] > 3.0  # local error of second order


def test_a_vp_start_is_trained_and_pure_noise_is_not() -> None:
    assert sd.TBCM(GaussianTeacher(0.0, 1.0), TBCMConfig()).first == 1
    vp = sd.load_teacher(tiny_pipeline("sd"))
    assert sd.TBCM(vp, TBCMConfig(), roles=sd.Roles(rank=2)).first == 0


def test_the_students_derivative_calms_down_late() -> None:
    config = TBCMConfig(tangent_warmup_steps=100, calm_after=1000)
    distiller = sd.TBCM(GaussianTeacher(0.0, 1.0), config)
    weights = [distiller.tangent_weight(step) for step in (50, 500, 1000, 2000, 3000, 5000)]
    assert weights == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.75])


@pytest.mark.slow
@pytest.mark.parametrize(("form", "num_steps", "bound"), [("continuous", 300, 0.16), ("discrete", 500, 0.25)])
def test_a_toy_learns_the_quantile_map_from_prompts_alone(form: str, num_steps: int, bound: float) -> None:
    """RMSE of one step against the exact flow map; the teacher's own single step is 1.27 off."""
    teacher = MixtureTeacher([0.5, 0.5], [[-1.5], [1.0]], [0.3, 0.5], sd.TrigSchedule())
    data, cond = teacher.sample(20_000), teacher.encode(["x"])
    student = MLPDenoiser((1,), teacher.schedule, prompts=teacher.prompts)
    fit(student, teacher, data, cond.expand(len(data)), num_steps=400)
    config = TBCMConfig(
        form=form, guidance_scale=1.0, route_points=24, huber_c=0.1, tangent_constant=1.0, tangent_warmup_steps=50
    )
    distiller = sd.TBCM(teacher, config, student=student)
    train_toy(distiller, cond, num_steps=num_steps, batch_size=24, learning_rate=3e-3)
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(5))
    ones = torch.ones(4000)
    exact = teacher.flow_map(noise, ones, torch.zeros(4000))
    with torch.no_grad():
        error = (student(noise, ones, cond).x0 - exact).square().mean().sqrt()
    assert error < bound


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    found = {}
    for form in ("continuous", "discrete"):
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        config = TBCMConfig(form=form, route_points=4, guidance_range=(2.0, 6.0), learn_variance=False)
        distiller = sd.TBCM(teacher, config, roles=sd.Roles(rank=4))
        found[form] = distiller.student_step(tiny_batch(distiller)).total.item()
    assert found == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"continuous": 0.883367, "discrete": 0.424741}
