import pytest
import torch

from stepdistill.denoisers.config import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.families import EDMSchedule, FlowSchedule, TrigSchedule, schedule_from_scheduler
from stepdistill.errors import UserError
from stepdistill.testing import AffineDenoiser, GaussianDenoiser, GaussianTeacher, MixtureTeacher, MLPDenoiser, fit

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


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(schedule, prediction="v"):
    mean, std = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 0.2]).double()
    return GaussianTeacher(mean, std, schedule, prediction=prediction, uncond_mean=torch.zeros(2).double())


def mixture(schedule, prediction="v", dim=1):
    means = torch.tensor([[-1.5], [1.0], [2.0]]).double().repeat(1, dim)
    stds = torch.tensor([0.3, 0.5, 0.1]).double()
    return MixtureTeacher(torch.tensor([0.3, 0.5, 0.2]).double(), means, stds, schedule, prediction=prediction)


def times(n, lo=0.05, hi=0.95):
    return torch.linspace(lo, hi, n, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("make", [gaussian, lambda s, p="v": mixture(s, p, dim=2)])
def test_estimates_do_not_depend_on_the_prediction(schedule, prediction, make):
    teacher, reference = make(schedule, prediction), make(schedule)
    t = times(12)
    x = schedule.add_noise(normal(12, 2), normal(12, 2, seed=1), t)
    out, expected = (network(x, t, network.uncond(1)) for network in (teacher, reference))
    torch.testing.assert_close(out.x0, expected.x0, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(out.eps, expected.eps, rtol=1e-7, atol=1e-9)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    torch.testing.assert_close(alpha * out.x0 + sigma * out.eps, x)


def test_eps_is_the_gradient_of_the_mixtures_log_density(schedule):
    teacher, t = mixture(schedule, dim=2), times(20)
    x = schedule.add_noise(normal(20, 2), normal(20, 2, seed=1), t).requires_grad_()
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    var = alpha**2 * teacher.stds**2 + sigma**2  # (B, K)
    square = (x[:, None] - alpha[..., None] * teacher.means).square().sum(-1)
    log_density = torch.logsumexp(teacher.weights.log() - 0.5 * square / var - var.log(), dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    eps = teacher(x.detach(), t, teacher.uncond(1)).eps
    torch.testing.assert_close(eps, -sigma * score, rtol=1e-7, atol=1e-9)


def test_x0_is_the_posterior_mean_by_quadrature(schedule):
    teacher, t = mixture(schedule), times(9, 0.2, 0.9)
    x = schedule.add_noise(normal(9, 1), normal(9, 1, seed=1), t)
    grid = torch.linspace(-6, 7, 40001, dtype=torch.float64)
    density = sum(
        w / s * torch.exp(-0.5 * ((grid - m) / s) ** 2)
        for w, m, s in zip(teacher.weights, teacher.means[:, 0], teacher.stds, strict=True)
    )
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    posterior = density * torch.exp(-0.5 * ((x - alpha * grid) / sigma) ** 2)
    expected = (posterior * grid).sum(1, keepdim=True) / posterior.sum(1, keepdim=True)
    torch.testing.assert_close(teacher(x, t, teacher.uncond(1)).x0, expected, rtol=1e-6, atol=1e-6)


def test_a_mixture_of_one_is_the_gaussian(schedule):
    mean, std = torch.tensor([[0.7]]).double(), torch.tensor([0.4]).double()
    one = MixtureTeacher(torch.ones(1).double(), mean, std, schedule)
    reference = GaussianTeacher(mean[0], std, schedule)
    t, x = times(10), normal(10, 1)
    torch.testing.assert_close(one(x, t, one.uncond(1)).x0, reference(x, t, reference.uncond(1)).x0)
    x_t = schedule.add_noise(x, normal(10, 1, seed=1), t)
    s = 0.5 * t
    torch.testing.assert_close(one.flow_map(x_t, t, s), reference.flow_map(x_t, t, s), rtol=1e-6, atol=1e-6)
    zero = torch.zeros_like(t)
    torch.testing.assert_close(one.flow_map(x_t, t, zero), reference.flow_map(x_t, t, zero), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_the_flow_map_is_a_semigroup(schedule, make):
    teacher = make(schedule)
    t = times(10)
    x = schedule.add_noise(normal(10, *teacher.latent_shape()), normal(10, *teacher.latent_shape(), seed=1), t)
    middle, s = 0.6 * t, 0.3 * t
    torch.testing.assert_close(teacher.flow_map(x, t, t), x, rtol=1e-7, atol=1e-7)
    composed = teacher.flow_map(teacher.flow_map(x, t, middle), middle, s)
    torch.testing.assert_close(composed, teacher.flow_map(x, t, s), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_the_flow_map_carries_noised_data_to_data(schedule, make):
    """Quantiles of x_t go to quantiles of the data, so moments agree to the accuracy of the grid."""
    teacher = make(schedule)
    data = teacher.sample(200_000)
    assert data.shape == (200_000, *teacher.latent_shape())
    t = torch.full((20_000,), 0.6, dtype=torch.float64)
    x_t = schedule.add_noise(data[:20_000].double(), normal(20_000, *teacher.latent_shape()), t)
    x_0 = teacher.flow_map(x_t, t, torch.zeros_like(t))
    torch.testing.assert_close(x_0.mean(0), data.double().mean(0), atol=0.04, rtol=0)
    torch.testing.assert_close(x_0.std(0), data.double().std(0), atol=0.04, rtol=0)


def test_float32_and_the_edges_are_finite(schedule):
    for teacher in (GaussianTeacher(1.0, 0.5, schedule), mixture(schedule, dim=2)):
        x = normal(2, *teacher.latent_shape()).float()
        out = teacher(x, torch.tensor([0.0, 1.0]), teacher.uncond(1))
        assert out.x0.dtype == torch.float32
        assert out.x0.isfinite().all()
        assert out.eps.isfinite().all()


def test_prompts_choose_the_mean():
    named = {"b": torch.tensor([9.0])}
    teacher = GaussianTeacher(1.0, 0.5, uncond_mean=-2.0, named_means=named)
    assert teacher.encode(["a", "b", ""])["mean"].flatten().tolist() == [1.0, 9.0, -2.0]
    assert torch.equal(teacher.uncond(3)["mean"], torch.full((3, 1), -2.0))
    samples = teacher.sample(4000, cond=teacher.encode(["b"]))
    assert samples.mean().item() == pytest.approx(9.0, abs=0.05)


def test_prompts_choose_components():
    teacher = mixture(FlowSchedule())
    weights = teacher.encode(["0 2", "1", "all"])["weights"]
    expected = torch.tensor([[0.6, 0.0, 0.4], [0.0, 1.0, 0.0], [0.3, 0.5, 0.2]]).double()
    torch.testing.assert_close(weights, expected)
    assert teacher.sample(1000, cond=teacher.encode(["0"])).mean().item() == pytest.approx(-1.5, abs=0.05)
    t, x = times(5), normal(5, 1)
    only = GaussianTeacher(teacher.means[1], teacher.stds[1], FlowSchedule())
    torch.testing.assert_close(teacher(x, t, teacher.encode(["1"])).x0, only(x, t, only.uncond(1)).x0)
    with pytest.raises(UserError, match="7"):
        teacher.encode(["7"])


def test_guidance_moves_the_mean_of_a_gaussian(schedule):
    teacher, t = gaussian(schedule), times(8)
    cond, uncond = teacher.encode(["a"]), teacher.uncond(1)
    x = schedule.add_noise(normal(8, 2), normal(8, 2, seed=1), t)
    guided = Conditioning({"mean": uncond["mean"] + 4.0 * (cond["mean"] - uncond["mean"])})
    expected = teacher(x, t, guided)
    out = teacher(x, t, cond, Guidance(4.0, uncond))
    torch.testing.assert_close(out.x0, expected.x0, rtol=1e-7, atol=1e-9)


def test_the_one_dimensional_map_refuses_more_dimensions():
    with pytest.raises(ValueError, match="one-dimensional"):
        mixture(FlowSchedule(), dim=2).flow_map(normal(2, 2), times(2), 0.5 * times(2))


def test_gaussian_roles(schedule):
    teacher = GaussianTeacher(1.0, 0.5, schedule)
    student, fake = teacher.role("student", Roles()), teacher.role("fake_score", Roles())
    assert isinstance(student, AffineDenoiser)
    assert isinstance(fake, GaussianDenoiser)
    assert sum(p.numel() for p in student.trainable_parameters()) == 2
    assert teacher.trainable_parameters() == []
    t, x = torch.linspace(0.1, 0.9, 6), normal(6, 1).float()
    assert torch.equal(student(x, t, student.uncond(1)).x0, x)
    assert torch.equal(fake(x, t, fake.uncond(1)).x0, teacher(x, t, teacher.uncond(1)).x0)
    tensors = fake.role_state_dict()
    assert set(tensors) == {"mean", "log_std"}
    fake.load_role_state_dict({name: tensor + 1 for name, tensor in tensors.items()})
    assert not torch.equal(fake(x, t, fake.uncond(1)).x0, teacher(x, t, teacher.uncond(1)).x0)


def test_gaussian_fake_score_learns_the_students_law():
    fake = GaussianTeacher(1.0, 0.5).role("fake_score", Roles())
    optimizer = torch.optim.Adam(fake.trainable_parameters(), lr=0.03)
    data = 0.2 + 1.1 * normal(4096, 1).float()
    for step in range(300):
        eps, t = normal(4096, 1, seed=step).float(), torch.linspace(0.02, 0.98, 4096)
        out = fake(fake.schedule.add_noise(data, eps, t), t, fake.uncond(1))
        optimizer.zero_grad()
        (out.eps - out.x0 - eps + data).square().mean().backward()
        optimizer.step()
    assert fake.mean.item() == pytest.approx(0.2, abs=0.05)
    assert fake.log_std.exp().item() == pytest.approx(1.1, abs=0.05)


def test_mlp_fits_a_conditional_mixture_and_taps_features():
    teacher = MixtureTeacher([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.2])
    network = teacher.role("student", Roles())
    assert isinstance(network, MLPDenoiser)
    prompts = ["0", "1", ""]
    cond = Conditioning.cat([teacher.encode([prompt]).expand(1000) for prompt in prompts])
    data = torch.cat([teacher.sample(1000, cond=teacher.encode([prompt])) for prompt in prompts])
    t = torch.linspace(0.05, 0.95, 3000)
    x_t = teacher.schedule.add_noise(data, normal(3000, 2).float(), t)

    def error():
        with torch.no_grad():
            return (network(x_t, t, cond).x0 - teacher(x_t, t, cond).x0).square().mean().item()

    before = error()
    fit(network, teacher, data, cond, num_steps=300, batch_size=256)
    assert error() < 0.25 * before
    taps = network.features(x_t[:5], t[:5], cond[:5])
    assert [tuple(tap.shape) for tap in taps] == [(5, 1, 64)] * 2
    twin = network.role("fake_score", Roles())
    assert twin is not network
    assert torch.equal(twin(x_t, t, cond).x0, network(x_t, t, cond).x0)
    assert twin.schedule is network.schedule
