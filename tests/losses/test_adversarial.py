import math

import pytest
import torch

from stepdistill.losses.adversarial import (
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    r1_penalty,
)


def log_ratio(x):
    """log p/q of p = N(1, 0.5^2) against q = N(0, 1): the logit of the optimal discriminator."""
    return (-0.5 * ((x - 1) / 0.5) ** 2 - math.log(0.5) + 0.5 * x**2)[:, 0]


@pytest.fixture
def points():
    return torch.linspace(-2, 3, 21, dtype=torch.float64)[:, None].requires_grad_()


def gradients(loss, points):
    n = len(points)
    (slope,) = torch.autograd.grad(log_ratio(points).sum(), points)
    (gradient,) = torch.autograd.grad(loss, points)
    return n * gradient, slope


def test_non_saturating_gradient_is_the_weighted_density_ratio(points):
    gradient, slope = gradients(non_saturating_generator(log_ratio(points)), points)
    ratio = log_ratio(points).detach().exp()[:, None]
    torch.testing.assert_close(gradient, -slope / (1 + ratio))


def test_hinge_gradient_is_that_of_the_reverse_kl(points):
    gradient, slope = gradients(hinge_generator(log_ratio(points)), points)
    torch.testing.assert_close(gradient, -slope)


def test_the_non_saturating_discriminator_is_minimised_by_the_log_ratio():
    """On a grid that carries both densities, the loss is stationary in every logit at log p/q."""
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)[:, None]
    q = torch.exp(-0.5 * x**2)[:, 0] / math.sqrt(2 * math.pi)
    p = q * log_ratio(x).exp()
    logits = log_ratio(x).requires_grad_()
    n = len(x)
    # A weighted mean of the loss is the mean over a sample that holds each point as often as its weight says.
    loss = sum(
        n * non_saturating_discriminator(logits[i : i + 1], logits[i : i + 1].detach()) * p[i]
        + n * non_saturating_discriminator(logits[i : i + 1].detach(), logits[i : i + 1]) * q[i]
        for i in range(0, n, 50)
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_values_at_an_undecided_discriminator():
    zero = torch.zeros(4)
    assert non_saturating_generator(zero).item() == pytest.approx(math.log(2))
    assert non_saturating_discriminator(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert hinge_discriminator(zero, zero).item() == 2.0


def test_hinge_is_flat_beyond_the_margin():
    real, fake = torch.tensor([1.5, 9.0], requires_grad=True), torch.tensor([-1.5, -9.0], requires_grad=True)
    loss = hinge_discriminator(real, fake)
    loss.backward()
    assert loss.item() == 0.0
    assert real.grad is not None
    assert real.grad.abs().sum() == 0


def test_losses_point_the_right_way():
    logits = torch.zeros(3, requires_grad=True)
    for generator in (non_saturating_generator, hinge_generator):
        (gradient,) = torch.autograd.grad(generator(logits), logits)
        assert (gradient < 0).all()
    for discriminator in (non_saturating_discriminator, hinge_discriminator):
        (real,) = torch.autograd.grad(discriminator(logits, torch.zeros(3)), logits)
        (fake,) = torch.autograd.grad(discriminator(torch.zeros(3), logits), logits)
        assert (real < 0).all()
        assert (fake > 0).all()


def test_large_logits_stay_finite():
    huge = torch.tensor([-1e4, 1e4], dtype=torch.float16)
    assert non_saturating_generator(huge).isfinite()
    assert non_saturating_discriminator(huge, huge).isfinite()


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    w = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    penalty = r1_penalty((x * w).sum((1, 2, 3)), x, gamma=0.7)
    torch.testing.assert_close(penalty, 0.35 * w.square().sum())
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 0.7 * w)


def test_r1_over_several_features_is_the_sum_and_patch_logits_are_averaged():
    x, y = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(2))
    both = r1_penalty(x.square().sum(1) + y.sum(1), [x, y])
    torch.testing.assert_close(both, 0.5 * (4 * x.square().sum(1).mean() + 3))
    patches = torch.stack([x.sum(1), 3 * x.sum(1)], dim=1)
    torch.testing.assert_close(r1_penalty(patches, x), 0.5 * torch.tensor(4.0 * 3))
