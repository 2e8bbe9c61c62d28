from itertools import pairwise

import diffusers
import pytest
import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.guidance import Guidance, guide
from stepdistill.diffusion.schedules.families import (
    EDMSchedule,
    FlowSchedule,
    TrigSchedule,
    VPSchedule,
    schedule_from_scheduler,
)
from stepdistill.diffusion.solver import ddim_step, euler_step, heun_step, teacher_trajectory, velocity
from stepdistill.testing import GaussianTeacher, MixtureTeacher

SD = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCHEDULES = {"vp": schedule_from_scheduler(SD), "flow": FlowSchedule(), "edm": EDMSchedule(), "trig": TrigSchedule()}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def gaussian(schedule):
    mean, std = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 0.2]).double()
    return GaussianTeacher(mean, std, schedule, uncond_mean=torch.zeros(2).double())


def noise(n=16, *shape):
    return torch.randn(n, *(shape or (2,)), generator=torch.Generator().manual_seed(0)).double()


def estimate(schedule, t):
    x0, eps = noise(4), noise(4) + 1
    return Denoised(x0, eps, torch.full((4,), t).double())


def test_a_ddim_step_to_zero_is_x0_exactly(schedule):
    out = estimate(schedule, 0.7)
    assert torch.equal(ddim_step(out, torch.zeros(4).double(), schedule), out.x0)


def test_euler_is_ddim_on_a_flow_schedule():
    out, s = estimate(FlowSchedule(), 0.7), torch.full((4,), 0.2).double()
    torch.testing.assert_close(euler_step(out, s, FlowSchedule()), ddim_step(out, s, FlowSchedule()))


def test_velocity_is_the_derivative_of_the_flow_map(schedule):
    teacher, x, h = gaussian(schedule), noise(), 1e-6
    t = torch.linspace(0.1, 0.9, 16).double()
    difference = (teacher.flow_map(x, t, t + h) - teacher.flow_map(x, t, t - h)) / (2 * h)
    out = teacher(x, t, teacher.encode(["a"]))
    torch.testing.assert_close(velocity(out, schedule), difference, rtol=1e-6, atol=1e-6)


def test_trig_ddim_is_the_rotation():
    schedule, teacher, x = TrigSchedule(), gaussian(TrigSchedule()), noise()
    t, s = torch.full((16,), 0.8).double(), torch.full((16,), 0.5).double()
    out = teacher(x, t, teacher.encode(["a"]))
    angle = (schedule.angle(t) - schedule.angle(s))[:, None]
    field = (schedule.alpha(t)[:, None] * out.eps) - schedule.sigma(t)[:, None] * out.x0
    torch.testing.assert_close(ddim_step(out, s, schedule), angle.cos() * x - angle.sin() * field)


@pytest.mark.parametrize("index", [999, 749, 259, 249])
def test_ddim_step_is_that_of_diffusers(index):
    schedule = SCHEDULES["vp"]
    assert isinstance(schedule, VPSchedule)
    scheduler = diffusers.DDIMScheduler.from_config(
        SD.config, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(1000)
    scheduler.num_inference_steps = 4
    x, eps = noise().float(), noise().float() + 0.3
    t, s = schedule.time(torch.tensor([index])), schedule.time(torch.tensor([index - 250]).clamp(min=0))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    out = Denoised((x - sigma * eps) / alpha, eps, t)
    stock = scheduler.step(eps, index, x, eta=0.0).prev_sample  # type: ignore[union-attr]
    torch.testing.assert_close(ddim_step(out, s, schedule), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 2), ("euler", 2), ("heun", 3)])
def test_local_order(schedule, solver, order):
    """One step of h = 0.1, 0.05, 0.025 against the exact flow map: the error falls by 2^order."""
    teacher, x = gaussian(schedule), noise()
    cond, t = teacher.encode(["a"]), torch.full((16,), 0.5).double()
    out = teacher(x, t, cond)
    errors = []
    for h in (0.04, 0.02, 0.01):
        s = t - h
        if solver == "heun":
            x_s = heun_step(lambda x, t: teacher(x, t, cond), out, s, schedule)
        else:
            x_s = (ddim_step if solver == "ddim" else euler_step)(out, s, schedule)
        errors.append((x_s - teacher.flow_map(x, t, s)).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize(("solver", "tolerance", "rate"), [("ddim", 2e-2, 2), ("heun", 2e-3, 4)])
def test_the_trajectory_converges_to_the_exact_flow_map(schedule, solver, tolerance, rate):
    teacher, errors = gaussian(schedule), []
    for n in (100, 200):
        times = torch.linspace(1, 0, n + 1)[:-1].tolist()
        path = teacher_trajectory(teacher, noise(), teacher.encode(["a"]), times, solver=solver)
        assert (len(path.states), len(path.estimates), path.times[-1]) == (n + 1, n, 0)
        i = 8 * n // 10
        exact = teacher.flow_map(path.states[0], torch.ones(16).double(), torch.full((16,), path.times[i]).double())
        errors.append((path.states[i] - exact).abs().max().item())
        # The last step jumps to the data: from VP's t = 1/n it is a long one.
        exact = teacher.flow_map(path.states[0], torch.ones(16).double(), torch.zeros(16).double())
        assert (path.x0 - exact).abs().max() < 0.06
    assert errors[0] < tolerance
    assert errors[0] / errors[1] == pytest.approx(rate, rel=0.1)


def test_euler_ends_on_the_data_of_a_flow():
    teacher = gaussian(FlowSchedule())
    path = teacher_trajectory(
        teacher, noise(), teacher.encode(["a"]), torch.linspace(1, 0, 201).tolist(), solver="euler"
    )
    exact = teacher.flow_map(noise(), torch.ones(16).double(), torch.zeros(16).double())
    torch.testing.assert_close(path.x0, exact, atol=1e-2, rtol=0)


def test_the_mixtures_quantile_map_is_the_ode(schedule):
    teacher = MixtureTeacher(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[-1.5], [1.0]]).double(),
        torch.tensor([0.3, 0.5]).double(),
        schedule,
    )
    times = schedule.time_from_log_snr(torch.linspace(-5, 6, 600, dtype=torch.float64))
    start = schedule.sigma(times[:1]) * noise(64, 1)
    path = teacher_trajectory(teacher, start / schedule.prior_std, teacher.uncond(64), times.tolist(), solver="heun")
    exact = teacher.flow_map(start, times[0].expand(64), times[-1].expand(64))
    torch.testing.assert_close(path.states[-2], exact, atol=1e-4, rtol=0)


def test_a_guided_trajectory_follows_the_guided_ode():
    """With one covariance for cond and uncond, guidance only moves the mean."""
    teacher, scale = gaussian(FlowSchedule()), 3.0
    cond, uncond = teacher.encode(["a"] * 16), teacher.uncond(16)
    path = teacher_trajectory(
        teacher, noise(), cond, torch.linspace(1, 0, 201).tolist(), Guidance(scale, teacher.uncond(1)), solver="heun"
    )
    guided = Conditioning({"mean": guide(cond["mean"], uncond["mean"], scale)})
    exact = teacher.flow_map(noise(), torch.ones(16).double(), torch.zeros(16).double(), guided)
    torch.testing.assert_close(path.x0, exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("solver", "calls"), [("ddim", 4), ("euler", 4), ("heun", 7)])
def test_number_of_network_calls(solver, calls, monkeypatch):
    teacher, counted = gaussian(FlowSchedule()), []
    forward = teacher.forward_network
    monkeypatch.setattr(teacher, "forward_network", lambda *args: counted.append(1) or forward(*args))
    teacher_trajectory(teacher, noise(), teacher.encode(["a"]), (1.0, 0.75, 0.5, 0.25), solver=solver)
    assert len(counted) == calls


def test_the_start_is_scaled_to_the_schedule_and_no_graph_is_kept():
    teacher = gaussian(EDMSchedule())
    path = teacher_trajectory(teacher, noise().requires_grad_(), teacher.encode(["a"]), (1.0, 0.5))
    torch.testing.assert_close(path.states[0], 80.0 * noise())
    assert not path.x0.requires_grad


@pytest.mark.parametrize("times", [(0.5, 0.7), (0.5, 0.5), (0.0,), (0.5, -0.1)])
def test_times_must_descend(times):
    teacher = gaussian(FlowSchedule())
    with pytest.raises(ValueError, match="descending"):
        teacher_trajectory(teacher, noise(), teacher.encode(["a"]), times)


def test_unknown_solver_is_named():
    teacher = gaussian(FlowSchedule())
    with pytest.raises(ValueError, match="rk4"):
        teacher_trajectory(teacher, noise(), teacher.uncond(1), (1.0,), solver="rk4")  # type: ignore
