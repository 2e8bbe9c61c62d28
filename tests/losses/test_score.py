import numpy as np
import pytest
import torch

from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import conditional_target, from_x0_eps, to_x0_eps
from stepdistill.diffusion.schedules.families import EDMSchedule, FlowSchedule, TrigSchedule, schedule_from_scheduler
from stepdistill.losses.regression import pseudo_huber
from stepdistill.losses.score import denoising_error, denoising_loss, dm_gradient, score_difference, surrogate_loss
from stepdistill.testing import GaussianTeacher

SCHEDULES = {
    "vp": schedule_from_scheduler(
        {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ),
    "flow": FlowSchedule(),
    "edm": EDMSchedule(),
    "trig": TrigSchedule(),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-20])
def test_the_surrogate_injects_the_gradient_exactly(size):
    x = (100 * normal(4, 3, 2)).requires_grad_()
    gradient = size * normal(4, 3, 2, seed=1)
    loss = surrogate_loss(x, gradient)
    loss.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient / x.numel(), rtol=2e-7, atol=0)
    torch.testing.assert_close(loss, 0.5 * gradient.square().mean())


def test_the_surrogate_takes_half_precision_samples():
    x = normal(4, 3).bfloat16().requires_grad_()
    gradient = normal(4, 3, seed=1)
    surrogate_loss(x, gradient).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (gradient / 12).bfloat16())


def test_no_gradient_flows_through_the_direction():
    x, real, fake = (normal(4, 3, seed=i).requires_grad_() for i in range(3))
    gradient = dm_gradient(x, real, fake)
    assert not gradient.requires_grad
    surrogate_loss(x, real * 1.0).backward()
    assert real.grad is None


def test_equal_scores_give_exactly_zero():
    x0, real = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    assert torch.equal(dm_gradient(x0, real, real.clone()), torch.zeros(4, 3, 2))
    assert torch.equal(dm_gradient(real, real, real), torch.zeros(4, 3, 2))


def test_the_normaliser_is_per_sample():
    x0, real, fake = (normal(4, 3, 2, seed=i) for i in range(3))
    whole = dm_gradient(x0, real, fake)
    for i in range(4):
        torch.testing.assert_close(whole[i], (fake - real)[i] / (x0 - real)[i].abs().mean())
        torch.testing.assert_close(whole[i : i + 1], dm_gradient(x0[i : i + 1], real[i : i + 1], fake[i : i + 1]))


def test_the_normaliser_has_a_floor():
    real = torch.zeros(2, 3)
    assert dm_gradient(real, real, real + 1).max().item() == pytest.approx(1e5, rel=1e-5)


def test_differences_are_formed_in_float32():
    real = torch.full((1, 4), 100.0)
    fake = real + 0.01
    torch.testing.assert_close(score_difference(real, fake), fake - real)
    half = score_difference(real.bfloat16(), (real + 1).bfloat16())
    assert half.dtype == dm_gradient(real, real.bfloat16(), real.bfloat16()).dtype == torch.float32


def in_space(difference, alpha, sigma, space):
    """A difference of x0 at one x_t in another space: the factors in the head of `losses.score`."""
    factors = {
        "x0": 1 + 0 * alpha,
        "eps": -alpha / sigma,
        "v": -(alpha**2 + sigma**2) / sigma,
        "flow": -(alpha + sigma) / sigma,
        "score": alpha / sigma**2,
        "kl": alpha**2 / sigma**2,
    }
    return factors[space][:, None] * difference


@pytest.mark.parametrize("space", ["x0", "eps", "v", "flow"])
def test_differences_are_proportional_in_every_space(schedule, space):
    """Two networks' estimates at one x_t: the difference is one field times a number."""
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t, out_fake, out_real = (normal(8, 3, seed=i, dtype=torch.float64) for i in range(3))
    fake, real = (to_x0_eps("v", out, x_t, alpha, sigma) for out in (out_fake, out_real))
    direct = from_x0_eps(space, *fake, alpha, sigma) - from_x0_eps(space, *real, alpha, sigma)
    torch.testing.assert_close(
        in_space(score_difference(real[0], fake[0]), alpha, sigma, space), direct, rtol=1e-7, atol=1e-9
    )


def test_the_score_difference_is_the_difference_of_scores(schedule):
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = schedule.add_noise(normal(8, 1, dtype=torch.float64), normal(8, 1, seed=1, dtype=torch.float64), t)
    fake, real = GaussianTeacher(0.2, 0.7, schedule), GaussianTeacher(1.0, 0.5, schedule)
    a, b = (teacher(x_t, t, teacher.uncond(1)) for teacher in (fake, real))

    def log_density(teacher, x):
        var = alpha**2 * teacher.std.double() ** 2 + sigma**2
        return (-0.5 * (x[:, 0] - alpha * teacher.mean.double()) ** 2 / var).sum()

    x = x_t.clone().requires_grad_()
    (score_fake,) = torch.autograd.grad(log_density(fake, x), x)
    (score_real,) = torch.autograd.grad(log_density(real, x), x)
    difference = in_space(score_difference(b.x0, a.x0), alpha, sigma, "score")
    torch.testing.assert_close(difference, score_fake - score_real, rtol=1e-5, atol=1e-6)
    kl = in_space(score_difference(b.x0, a.x0), alpha, sigma, "kl")
    torch.testing.assert_close(kl, alpha[:, None] * difference)


@pytest.mark.parametrize("time", [0.2, 0.6, 0.9])
def test_the_injected_gradient_is_the_gradient_of_the_kl_divergence(schedule, time):
    """d KL(q_t || p_t) = E[alpha (s_q - s_p) dG] for the student G(z) = gain z + bias, by exact quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z, eps = (torch.from_numpy(grid).flatten()[:, None] for grid in np.meshgrid(nodes, nodes, indexing="ij"))
    probability = torch.from_numpy(np.outer(weights, weights)).flatten() / (2 * np.pi)
    t = torch.full((64,), time, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gain, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.8, -0.3))

    teacher = GaussianTeacher(torch.tensor([1.0]).double(), torch.tensor([0.5]).double(), schedule)
    fake_score = GaussianTeacher(bias.detach()[None], gain.detach()[None], schedule)
    x0 = gain * z + bias
    x_t = schedule.add_noise(x0.detach(), eps, t)
    real, fake = (network(x_t, t, network.uncond(1)).x0 for network in (teacher, fake_score))
    gradient = in_space(score_difference(real, fake), alpha, sigma, "kl") * probability[:, None]
    (surrogate_loss(x0, gradient) * x0.numel()).backward()

    a, s = alpha[0], sigma[0]
    g, b = gain.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    var_q, var_p = a**2 * g**2 + s**2, a**2 * 0.25 + s**2
    kl = 0.5 * (var_q / var_p + a**2 * (1 - b) ** 2 / var_p - 1 + (var_p / var_q).log())
    kl.backward()
    torch.testing.assert_close(gain.grad, g.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bias.grad, b.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_the_critics_loss_is_the_networks_own_regression(schedule, prediction):
    t = torch.linspace(0.2, 0.9, 6)
    x0, eps, output = (normal(6, 3, seed=i) for i in range(3))
    alpha, sigma, x_t = schedule.alpha(t), schedule.sigma(t), schedule.add_noise(x0, eps, t)
    estimate = Denoised(*to_x0_eps(prediction, output, x_t, alpha, sigma), t)
    target = conditional_target(schedule, x0, eps, None, t, prediction)
    error = denoising_error(schedule, prediction, estimate, target)
    torch.testing.assert_close(error, (output - target).square().mean(1), rtol=1e-3, atol=1e-4)
    weight = torch.arange(6.0)
    loss = denoising_loss(schedule, prediction, estimate, target, weight=weight)
    torch.testing.assert_close(loss, (weight * error).mean())
    torch.testing.assert_close(denoising_loss(schedule, prediction, estimate, target), error.mean())


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_the_true_denoiser_minimises_the_critics_loss(schedule, prediction):
    """At the data's own Gaussian the gradient vanishes, in expectation over eps and x0."""
    n, t_value = 200_000, 0.5
    fake = GaussianTeacher(0.3, 0.8, schedule).role("fake_score", None)  # type: ignore[arg-type]
    t = torch.full((n,), t_value)
    x0, eps = 0.3 + 0.8 * normal(n, 1), normal(n, 1, seed=1)
    out = fake(schedule.add_noise(x0, eps, t), t, fake.uncond(1))
    target = conditional_target(schedule, x0, eps, None, t, prediction)
    denoising_loss(schedule, prediction, out, target).backward()
    scale = 1 + target.square().mean().item()
    for parameter in fake.trainable_parameters():
        assert parameter.grad is not None
        assert abs(parameter.grad.item()) < 0.02 * scale


def test_targets_get_no_gradient():
    x, target = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    out = Denoised(x, x, torch.full((4,), 0.5))
    denoising_loss(FlowSchedule(), "flow", out, target).backward()
    pseudo_huber(x, target, c=0.1).backward()
    assert target.grad is None


def test_pseudo_huber_is_quadratic_below_c_and_linear_above():
    zero = torch.zeros(1, 4)
    assert pseudo_huber(zero + 1e-3, zero, c=1.0).item() == pytest.approx(0.5e-6, rel=0.2)
    assert pseudo_huber(zero + 1e3, zero, c=1.0).item() == pytest.approx(999.0, rel=1e-3)
