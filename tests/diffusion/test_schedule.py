import math

import diffusers
import pytest
import torch

from stepdistill.diffusion.schedules.base import NoiseSchedule
from stepdistill.diffusion.schedules.families import (
    EDMSchedule,
    FlowSchedule,
    TrigSchedule,
    VPSchedule,
    schedule_from_scheduler,
)
from stepdistill.diffusion.schedules.monotone_cubic import MonotoneCubic
from stepdistill.diffusion.times import shift_time
from stepdistill.errors import UserError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "vp": schedule_from_scheduler({"num_train_timesteps": 1000, **SD}),
    "vp_zero_snr": schedule_from_scheduler({"num_train_timesteps": 1000, "rescale_betas_zero_snr": True, **SD}),
    "flow": FlowSchedule(),
    "edm": EDMSchedule(),
    "trig": TrigSchedule(),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request) -> NoiseSchedule:
    return SCHEDULES[request.param]


TABLES = {
    "scaled_linear": diffusers.DDPMScheduler(**SD),
    "linear": diffusers.DDPMScheduler(),
    "squaredcos": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "sigmoid": diffusers.DDPMScheduler(beta_schedule="sigmoid"),
    "laplace": diffusers.DDPMScheduler(beta_schedule="laplace"),
    "trained": diffusers.DDIMScheduler(trained_betas=torch.linspace(1e-4, 0.03, 100).tolist()),
    "zero_snr": diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **SD),
    "short": diffusers.LCMScheduler(num_train_timesteps=50, **SD),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("table", TABLES)
def test_vp_equals_the_diffusers_table_at_every_training_index(table, dtype):
    scheduler = TABLES[table]
    schedule = schedule_from_scheduler(scheduler)
    assert isinstance(schedule, VPSchedule)
    index = torch.arange(len(scheduler.alphas_cumprod))
    t = schedule.time(index.to(dtype))
    torch.testing.assert_close(schedule.index(t), index.to(dtype), atol=2e-4, rtol=0)
    alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    torch.testing.assert_close(schedule.alpha(t), alphas_cumprod.sqrt(), atol=1.5e-6, rtol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - alphas_cumprod).sqrt(), atol=1.5e-6, rtol=0)


def test_vp_add_noise_equals_diffusers_at_every_training_index():
    scheduler = diffusers.DDPMScheduler(**SD)
    schedule = schedule_from_scheduler(scheduler)
    assert isinstance(schedule, VPSchedule)
    index = torch.arange(1000)
    x0, eps = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
    ours = schedule.add_noise(x0, eps, schedule.time(index))
    torch.testing.assert_close(ours, scheduler.add_noise(x0, eps, index), atol=5e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers_at_every_training_index(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    assert schedule_from_scheduler(scheduler) == FlowSchedule()
    t = shift_time(torch.arange(1000, 0, -1) / 1000, shift)
    torch.testing.assert_close(t, scheduler.sigmas)
    x0, eps = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
    ours = FlowSchedule().add_noise(x0, eps, scheduler.timesteps / 1000)
    torch.testing.assert_close(ours, scheduler.scale_noise(x0, scheduler.timesteps, eps), atol=1e-6, rtol=0)


def test_edm_equals_the_diffusers_karras_grid():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    schedule = schedule_from_scheduler(scheduler)
    assert schedule == EDMSchedule(0.01, 50.0, 5.0)
    assert schedule.prior_std == 50.0
    scheduler.set_timesteps(9)
    torch.testing.assert_close(schedule.sigma(torch.linspace(1, 0, 9)), scheduler.sigmas[:-1].float())


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.FlowMatchLCMScheduler(), FlowSchedule()),
        (diffusers.FlowMatchHeunDiscreteScheduler(), FlowSchedule()),
        (
            diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
            FlowSchedule(),
        ),
        (diffusers.EDMDPMSolverMultistepScheduler(), EDMSchedule()),
        (diffusers.SCMScheduler(), TrigSchedule()),
    ],
)
def test_schedule_of_other_schedulers(scheduler, expected):
    assert schedule_from_scheduler(scheduler) == expected


@pytest.mark.parametrize("config", [{"_class_name": "MyScheduler"}, {"beta_schedule": "odd"}])
def test_unknown_scheduler_is_a_user_error(config):
    config = {"num_train_timesteps": 10, "beta_start": 0.1, "beta_end": 0.2, **config}
    with pytest.raises(UserError, match=r"MyScheduler|odd"):
        schedule_from_scheduler(config)


def inner_times(n: int = 201) -> torch.Tensor:
    return torch.linspace(0.011, 0.987, n, dtype=torch.float64)


def test_derivatives_agree_with_finite_differences(schedule):
    t, h = inner_times(), 1e-6
    for value, slope in [
        (schedule.alpha, schedule.d_alpha),
        (schedule.sigma, schedule.d_sigma),
        (schedule.log_snr, schedule.d_log_snr),
    ]:
        difference = (value(t + h) - value(t - h)) / (2 * h)
        torch.testing.assert_close(slope(t), difference, rtol=2e-6, atol=2e-6)


def test_derivatives_agree_with_forward_mode_autodiff(schedule):
    t = inner_times()
    for value, slope in [(schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)]:
        _, tangent = torch.func.jvp(value, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(slope(t), tangent, rtol=1e-9, atol=1e-12)


def test_vp_log_snr_is_continuous_with_its_derivative_at_every_index():
    schedule = SCHEDULES["vp"]
    knots, h = torch.arange(1, 999, dtype=torch.float64) / 999, 1e-9
    for value in (schedule.log_snr, schedule.d_log_snr):
        left, right = value(knots - h), value(knots + h)
        scale = value(knots).abs().max()
        assert (left - right).abs().max() < 1e-5 * scale


def test_log_snr_falls_and_has_an_inverse(schedule):
    t = torch.linspace(0.001, 0.999, 777, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.time_from_log_snr(log_snr), t, atol=1e-9, rtol=0)


def test_log_snr_is_its_definition(schedule):
    t = inner_times()
    definition = (schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2).log()
    torch.testing.assert_close(schedule.log_snr(t), definition, atol=1e-9, rtol=0)
    slope = 2 * (schedule.d_alpha(t) / schedule.alpha(t) - schedule.d_sigma(t) / schedule.sigma(t))
    torch.testing.assert_close(schedule.d_log_snr(t), slope, rtol=1e-7, atol=1e-7)


def test_transition_preserves_the_marginals(schedule):
    s, t = (
        torch.tensor([0.1, 0.3, 0.5, 0.0], dtype=torch.float64),
        torch.tensor([0.4, 0.9, 0.51, 0.6], dtype=torch.float64),
    )
    a, g = schedule.transition(s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.level(s), schedule.level(t)
    torch.testing.assert_close(a * alpha_s, alpha_t)
    torch.testing.assert_close(a**2 * sigma_s**2 + g**2, sigma_t**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_renoise_from_the_data_is_add_noise_and_to_the_same_time_is_nothing(schedule, dtype):
    x, eps = torch.randn(2, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0], dtype=dtype)
    torch.testing.assert_close(schedule.renoise(x, eps, torch.zeros_like(t), t), schedule.add_noise(x, eps, t))
    torch.testing.assert_close(schedule.renoise(x[:4], eps[:4], t[:4], t[:4]), x[:4])


def test_stable_diffusion_times_on_the_other_schedules():
    vp = SCHEDULES["vp"]
    index = torch.tensor([19, 259, 499, 739, 979, 999], dtype=torch.float64)
    log_snr = vp.log_snr(vp.time(index))
    angle = TrigSchedule().angle(TrigSchedule().time_from_log_snr(log_snr))
    flow = FlowSchedule().time_from_log_snr(log_snr)
    sigma = vp.sigma(vp.time(index)) / vp.alpha(vp.time(index))
    torch.testing.assert_close(
        angle, torch.tensor([0.1336, 0.6236, 1.0158, 1.3206, 1.4938, 1.5025]).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        flow, torch.tensor([0.1185, 0.4184, 0.6173, 0.7964, 0.9284, 0.9360]).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        sigma, torch.tensor([0.1345, 0.7194, 1.613, 3.913, 12.97, 14.61]).double(), atol=0, rtol=5e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_at_the_edges(schedule, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    values = [
        schedule.alpha(ends),
        schedule.sigma(ends),
        schedule.d_alpha(ends),
        schedule.d_sigma(ends),
        *schedule.transition(ends, torch.ones(2, dtype=dtype)),
        *schedule.transition(torch.zeros(2, dtype=dtype), ends),
    ]
    assert all(value.isfinite().all() for value in values)
    assert not schedule.log_snr(ends).isnan().any()
    assert not schedule.d_log_snr(ends).isnan().any()
    assert not schedule.time_from_log_snr(schedule.log_snr(ends)).isnan().any()
    alpha, sigma = schedule.level(torch.zeros(1, dtype=dtype))
    assert (alpha.item(), sigma.item()) == (1.0, 0.0)


def test_zero_terminal_snr_keeps_a_finite_log_snr():
    schedule, one = SCHEDULES["vp_zero_snr"], torch.ones(1)
    assert 0 < schedule.alpha(one).item() <= 1.01e-6
    assert schedule.sigma(one).item() == pytest.approx(1.0)
    assert math.isfinite(schedule.log_snr(one).item())


def test_dtypes(schedule):
    t = torch.tensor([0.25, 0.5], dtype=torch.bfloat16)
    assert schedule.alpha(t).dtype == schedule.d_log_snr(t).dtype == torch.float32
    assert schedule.sigma(t.double()).dtype == torch.float64
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert schedule.add_noise(x, x, t.float()).dtype == torch.bfloat16
    assert schedule.renoise(x, x, torch.zeros(2), t.float()).dtype == torch.bfloat16


def test_float32_time_is_precise_enough_for_float64_algebra(schedule):
    t = torch.linspace(0.01, 0.99, 99)
    torch.testing.assert_close(schedule.alpha(t).double(), schedule.alpha(t.double()), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(schedule.sigma(t).double(), schedule.sigma(t.double()), rtol=1e-6, atol=1e-7)


def test_a_table_that_is_not_monotone_is_refused():
    with pytest.raises(ValueError, match="monotone"):
        VPSchedule([0.9, 0.5, 0.6, 0.1])


def test_monotone_cubic_on_a_curved_table():
    values = torch.tensor([0.0, 1.0, 1.1, 4.0, 9.0])
    curve = MonotoneCubic(values)
    x = torch.linspace(0, 4, 401)
    y = curve(x)
    assert (y.diff() > 0).all()
    torch.testing.assert_close(curve(torch.arange(5.0)), values.double())
    torch.testing.assert_close(curve.inverse(y), x.double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(curve.inverse(values), torch.arange(5.0).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(curve.inverse(torch.tensor([-3.0, 99.0])), torch.tensor([0.0, 4.0]).double())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu(schedule):
    s, t = torch.linspace(0, 0.5, 9), torch.linspace(0.1, 1, 9)
    for here, there in zip(schedule.transition(s, t), schedule.transition(s.cuda(), t.cuda()), strict=True):
        torch.testing.assert_close(there.cpu(), here)
    inner = schedule.log_snr(t[:-1])
    torch.testing.assert_close(schedule.time_from_log_snr(inner.cuda()).cpu(), schedule.time_from_log_snr(inner))
    torch.testing.assert_close(schedule.d_alpha(t.cuda()).cpu(), schedule.d_alpha(t))
