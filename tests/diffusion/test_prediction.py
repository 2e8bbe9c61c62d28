import pytest
import torch

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import conditional_target, from_x0_eps, jump_gain, to_x0_eps
from stepdistill.diffusion.schedules.families import EDMSchedule, FlowSchedule, TrigSchedule, schedule_from_scheduler
from stepdistill.diffusion.solver import ddim_step
from stepdistill.diffusion.trigflow import field_gain, trig_field

SCHEDULES = {
    "vp": schedule_from_scheduler(
        {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ),
    "flow": FlowSchedule(),
    "edm": EDMSchedule(),
    "trig": TrigSchedule(),
}
PREDICTIONS = ("x0", "eps", "v", "flow")


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


@pytest.fixture(params=PREDICTIONS)
def prediction(request):
    return request.param


def batch(dtype=torch.float64, n=64):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 2, 3, dtype=dtype, generator=generator)
    return x0, eps, torch.linspace(0.05, 0.95, n, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_round_trip(schedule, prediction, dtype, tolerance):
    x0, eps, t = batch(dtype)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    output = from_x0_eps(prediction, x0, eps, alpha, sigma)
    x0_again, eps_again = to_x0_eps(prediction, output, schedule.add_noise(x0, eps, t), alpha, sigma)
    # An error of one rounding in x_t or the output is amplified by 1 / alpha in x0 and by 1 / sigma in eps.
    gain_x0 = (1 + sigma.abs() / alpha)[:, None, None]
    gain_eps = (1 + alpha.abs() / sigma)[:, None, None]
    assert ((x0_again - x0).abs() / gain_x0).max() < tolerance
    assert ((eps_again - eps).abs() / gain_eps).max() < tolerance


def test_every_pair_of_predictions_agrees(schedule):
    x0, eps, t = batch()
    alpha, sigma, x_t = schedule.alpha(t), schedule.sigma(t), schedule.add_noise(x0, eps, t)
    for source in PREDICTIONS:
        pair = to_x0_eps(source, from_x0_eps(source, x0, eps, alpha, sigma), x_t, alpha, sigma)
        for goal in PREDICTIONS:
            direct = from_x0_eps(goal, x0, eps, alpha, sigma)
            torch.testing.assert_close(from_x0_eps(goal, *pair, alpha, sigma), direct, rtol=1e-8, atol=1e-8)


def test_the_networks_own_quantity_passes_through_bitwise(schedule):
    x0, eps, t = batch(torch.float32)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert torch.equal(to_x0_eps("x0", x0, eps, alpha, sigma)[0], x0)
    assert torch.equal(to_x0_eps("eps", eps, x0, alpha, sigma)[1], eps)


def test_both_estimates_explain_x_t(schedule, prediction):
    output, x_t, t = batch()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = to_x0_eps(prediction, output, x_t, alpha, sigma)
    torch.testing.assert_close(alpha[:, None, None] * x0 + sigma[:, None, None] * eps, x_t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_edges(schedule, prediction, dtype):
    output, x_t, _ = batch(dtype, n=2)
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    for alpha, sigma in [(schedule.alpha(ends), schedule.sigma(ends)), schedule.level(ends)]:
        x0, eps = to_x0_eps(prediction, output, x_t, alpha, sigma)
        assert x0.isfinite().all()
        assert eps.isfinite().all()


def test_the_well_conditioned_edges_are_exact():
    output, x_t, _ = batch(torch.float32, n=2)
    zero, one = torch.zeros(2), torch.ones(2)
    assert torch.equal(to_x0_eps("flow", output, x_t, one, zero)[0], x_t)
    assert torch.equal(to_x0_eps("flow", output, x_t, zero, one)[1], x_t)
    assert torch.equal(to_x0_eps("v", output, x_t, one, zero)[1], output)
    assert torch.equal(to_x0_eps("v", output, x_t, zero, one)[0], -output)


def test_half_precision_is_computed_in_float32():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    half = torch.full((4,), 0.5)
    x0, eps = to_x0_eps("v", x, x, half, half)
    assert x0.dtype == eps.dtype == torch.float32
    assert from_x0_eps("flow", x, x, half, half).dtype == torch.float32


def test_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="score"):
        to_x0_eps("score", *torch.zeros(2, 1, 1), *torch.ones(2, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conditional_target_from_the_data_is_the_ordinary_target_exactly(schedule, prediction, dtype):
    x0, eps, t = batch(dtype)
    ordinary = from_x0_eps(prediction, x0, eps, schedule.alpha(t), schedule.sigma(t))
    assert torch.equal(conditional_target(schedule, x0, eps, None, t, prediction), ordinary)
    assert torch.equal(conditional_target(schedule, x0, eps, torch.zeros_like(t), t, prediction), ordinary)


def test_conditional_target_is_the_formula_of_phased_dmd(schedule, prediction):
    x_s, eps, t = batch()
    s = 0.4 * t
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    alpha_s, sigma_s = schedule.alpha(s)[:, None, None], schedule.sigma(s)[:, None, None]
    g = (sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2).sqrt()
    x_t = alpha / alpha_s * x_s + g * eps
    torch.testing.assert_close(x_t, schedule.renoise(x_s, eps, s, t))
    eps_target = sigma / g * eps
    x0_target = (x_t - sigma * eps_target) / alpha
    expected = from_x0_eps(prediction, x0_target, eps_target, schedule.alpha(t), schedule.sigma(t))
    target = conditional_target(schedule, x_s, eps, s, t, prediction)
    torch.testing.assert_close(target, expected, rtol=1e-7, atol=1e-7)


def test_conditional_target_explains_x_t_and_carries_the_conditional_score(schedule):
    x_s, eps, t = batch()
    s = 0.7 * t
    x_t = schedule.renoise(x_s, eps, s, t)
    x0_target, eps_target = (conditional_target(schedule, x_s, eps, s, t, kind) for kind in ("x0", "eps"))
    torch.testing.assert_close(schedule.add_noise(x0_target, eps_target, t), x_t)
    g = schedule.transition(s, t)[1][:, None, None]
    torch.testing.assert_close(eps_target / schedule.sigma(t)[:, None, None], eps / g)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_regression_on_the_conditional_target_gives_the_posterior_of_the_data(schedule, prediction, fraction):
    """x0 ~ N(m, S^2): all is jointly Gaussian, so the regression is a ratio of covariances, exactly."""
    mean, std, x = 0.7, 0.6, 1.3
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    s = fraction * t
    (alpha_s, sigma_s), (alpha, sigma) = schedule.level(s), schedule.level(t)
    a, g = schedule.transition(s, t)
    zero, one = torch.zeros(9, 1, dtype=torch.float64), torch.ones(9, 1, dtype=torch.float64)
    of_x_s = conditional_target(schedule, one, zero, s, t, prediction)[:, 0]
    of_eps = conditional_target(schedule, zero, one, s, t, prediction)[:, 0]
    var_s = alpha_s**2 * std**2 + sigma_s**2
    var_t = a**2 * var_s + g**2
    regression = of_x_s * alpha_s * mean + (of_x_s * a * var_s + of_eps * g) / var_t * (x - alpha * mean)
    x0 = mean + alpha * std**2 / var_t * (x - alpha * mean)
    eps = sigma / var_t * (x - alpha * mean)
    expected = from_x0_eps(prediction, x0[:, None], eps[:, None], alpha, sigma)[:, 0]
    torch.testing.assert_close(regression, expected, rtol=1e-9, atol=1e-9)


def test_conditional_target_of_an_empty_interval_is_finite(schedule, prediction):
    x, eps, t = batch(torch.float32)
    assert conditional_target(schedule, x, eps, t, t, prediction).isfinite().all()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_the_gain_of_a_jump_is_its_derivative_by_the_networks_output(schedule, prediction, fraction):
    x0, eps, t = batch()
    alpha, sigma = schedule.level(t)
    x_t = schedule.add_noise(x0, eps, t)
    output = from_x0_eps(prediction, x0, eps, alpha, sigma).requires_grad_()
    jump = ddim_step(Denoised(*to_x0_eps(prediction, output, x_t, alpha, sigma), t), fraction * t, schedule)
    (slope,) = torch.autograd.grad(jump.sum(), output)
    gain = jump_gain(prediction, schedule, t, fraction * t)
    assert (slope.abs() - gain[:, None, None]).abs().max() < 1e-9 * gain.max()


def test_the_gain_of_the_field_is_its_derivative_by_the_networks_output(schedule, prediction):
    x0, eps, t = batch()
    alpha, sigma = schedule.level(t)
    x_t = schedule.add_noise(x0, eps, t)
    output = from_x0_eps(prediction, x0, eps, alpha, sigma).requires_grad_()
    F = trig_field(Denoised(*to_x0_eps(prediction, output, x_t, alpha, sigma), t), schedule)
    (slope,) = torch.autograd.grad(F.sum(), output)
    gain = field_gain(prediction, schedule, t)
    assert (slope.abs() - gain[:, None, None]).abs().max() < 1e-9 * gain.max()
