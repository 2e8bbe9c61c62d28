"""PSO against closed forms: exact ratios, the bandit's optimum, Diffusion-DPO, the reference's zero point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import markov_rollout, sample
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.diffusion.transitions import Transition, log_ratio
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.distillers.preference import pso
from stepdistill.distillers.preference.config import PSOConfig
from stepdistill.errors import UserError
from stepdistill.losses.preference import clip_log_ratio, logistic_preference
from stepdistill.testing import BulkStream, GaussianTeacher, tiny_pipeline

FEW_LAYERS = sd.Roles(rank=2, target_modules=["to_q", "to_v"])
"""For what holds whichever layers are adapted: an adapter on all of them takes ten times as long to build."""


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    assert len(images) == len(prompts)
    return images.flatten(1).mean(1)


def tiny(family: str = "sd", *, roles: sd.Roles = FEW_LAYERS, **options: object) -> sd.PSO:
    settings: dict[str, object] = {"num_steps": 2, "reward": "brightness"} | options
    config, teacher = PSOConfig.model_validate(settings), sd.load_teacher(tiny_pipeline(family))
    return sd.PSO(teacher, config, roles=roles, reward=brightness)


def batch_of(distiller: Distiller, size: int = 2) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=0, indices=range(size), size=size)
    batch.latents = torch.randn(size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents_cond = batch.cond
    return batch


def perturb(distiller: Distiller, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in distiller.student.trainable_parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_at_the_reference_the_loss_is_log_two(family: str, mode: str) -> None:
    distiller = tiny(family, mode=mode)
    losses = distiller.student_step(batch_of(distiller))
    assert losses.terms["preference"].item() == pytest.approx(math.log(2), abs=1e-6)
    losses.backward()
    grads = [p.grad for p in distiller.student.trainable_parameters() if p.grad is not None]
    assert any(grad.abs().max() > 0 for grad in grads)


def test_at_the_reference_winner_and_loser_pull_by_known_amounts() -> None:
    """dL / d mean = -+ beta / 2 (x_s - mean) / (D std^2)."""
    beta, std = 50.0, 0.5
    mean = torch.zeros(2, 4, requires_grad=True)
    x_s = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    level = torch.full((2,), std)
    ratio = log_ratio(x_s, Transition(mean, level), Transition(torch.zeros(2, 4), level), reduction="mean")
    winner, loser = clip_log_ratio(ratio, 0.1).chunk(2)
    logistic_preference(beta * (winner - loser)).backward()
    assert mean.grad is not None
    sign = torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(mean.grad, sign * beta / 2 * x_s / (4 * std**2))


def test_a_clipped_ratio_bounds_the_loss_and_stops_the_gradient() -> None:
    far = torch.tensor([3.0], requires_grad=True)
    loss = logistic_preference(50 * (clip_log_ratio(far, 0.1) - clip_log_ratio(-far, 0.1)))
    floor = math.log1p(math.exp(-50 * (math.log(1.1) - math.log(0.9))))
    assert loss.item() == pytest.approx(floor, rel=1e-4)
    loss.backward()
    assert far.grad == 0


class Bandit(Denoiser):
    """First step: the learnt arm. Last step: what it is given. So the action is the state between the two."""

    def __init__(self, arm: float) -> None:
        super().__init__()
        self.schedule, self.prediction = FlowSchedule(), "x0"
        self.arm = nn.Parameter(torch.tensor([arm]))

    def forward_network(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return torch.where(t[:, None] > 0.9, self.arm.expand_as(x_t), x_t)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.mark.parametrize("kernel", ["renoise", "ancestral"])
def test_the_bandit_finds_its_optimum(kernel: str) -> None:
    """Labels from Bradley-Terry with reward a x: the optimal mean is mean_ref + a std^2 / beta."""
    arm, slope, beta, size = 0.3, 2.0, 1.0, 2048
    gumbel = torch.distributions.Gumbel(0.0, 1.0)

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return slope * images.flatten() + gumbel.sample((len(images),))

    settings = {
        "num_steps": 2, "reward": "x", "beta": beta, "clip_range": None, "reduction": "sum", "kernel": kernel,
    }  # fmt: skip
    distiller = sd.PSO(Bandit(arm), PSOConfig.model_validate(settings), reward=reward)
    student = distiller.student
    assert isinstance(student, Bandit)
    optimizer = torch.optim.Adam([student.arm], betas=(0.5, 0.99))
    cond = Conditioning({"none": torch.zeros(size, 1)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(200):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
            rng = BulkStream(0, step, tuple(range(size)))
            losses = distiller.student_step(Batch(cond, cond, rng, step, (1,), prompts=("",) * size))
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
    alpha, std = 0.5, 0.5  # of the state at t = 1/2; from pure noise both kernels renoise
    expected = arm + slope * std**2 / beta / alpha
    assert student.arm.item() == pytest.approx(expected, abs=0.06)
    assert distiller.teacher.arm.item() == pytest.approx(arm)


@pytest.mark.parametrize("family", ["sd", "sd-v", "sd3"])
def test_diffusion_dpo_on_the_grid_is_a_special_case(family: str) -> None:
    """Eq. 14 of Diffusion-DPO, by the networks' raw outputs: -log sigmoid(-beta/2 [(e_th - e_ref)_w - (e_th - e_ref)_l])."""
    beta = 7.0 if family == "sd" else 1000.0  # random networks differ more in eps
    distiller = tiny(
        family,
        roles=sd.Roles(rank=2),
        mode="offline",
        beta=beta / 2,
        negative_weight=1.0,
        prior_weight=0.0,
        error_weight="snr",
    )
    perturb(distiller)
    batch = batch_of(distiller)
    losses = distiller.student_step(batch)
    rng, times = batch.rng.fork("student"), torch.tensor(distiller.sampler().times)
    assert batch.latents is not None
    noise = rng.normal("noise", batch.shape)
    losers = sample(distiller.teacher, distiller.sampler(), noise, batch.cond, rng)
    t = times[(rng.uniform("t") * 2).long()]
    eps = rng.normal("eps", batch.shape)
    alpha, sigma = (level[:, None, None, None] for level in distiller.teacher.schedule.level(t))

    def error(network: Denoiser, x0: Tensor) -> Tensor:
        x_t = alpha * x0 + sigma * eps
        network.activate()
        raw = network.forward_network(x_t, t, batch.cond)
        predicted = {"eps": raw, "v": sigma * x_t + alpha * raw, "flow": x_t + alpha * raw}[network.prediction]
        return (predicted - eps).square().flatten(1).mean(1)

    with torch.no_grad():
        student, reference = distiller.student, distiller.teacher
        inside = (error(student, batch.latents) - error(reference, batch.latents)) - (
            error(student, losers) - error(reference, losers)
        )
        expected = -torch.nn.functional.logsigmoid(-beta / 2 * inside).mean()
    assert losses.terms["preference"].item() == pytest.approx(expected.item(), rel=2e-4)
    assert abs(losses.terms["preference"].item() - math.log(2)) > 1e-3
    assert losses.total.item() == pytest.approx(losses.terms["preference"].item())


def test_errors_of_gaussians_are_their_log_likelihood_ratio() -> None:
    """E_eps[-(e_th - e_ref) | x0] = 2 sd^2 t^2 / D_t^2 log(p_th(x0) / p_ref(x0)) on the flow path."""
    sd_data, t_value, size = 0.7, 0.6, 400_000
    networks = [GaussianTeacher(mean, sd_data) for mean in (0.4, -0.2)]
    distiller = sd.PSO(networks[1], PSOConfig(mode="offline"))
    eps = torch.randn(size, 1, generator=torch.Generator().manual_seed(0))
    t = torch.full((size,), t_value)
    for x0_value in (0.9, -0.5):
        x0 = torch.full((size, 1), x0_value)
        errors = []
        for network in networks:
            cond = network.encode(["x"]).expand(size)
            errors.append(distiller.pair_errors(network, x0, x0, eps, t, cond)[0].mean())
        spread = ((1 - t_value) * sd_data) ** 2 + t_value**2
        log_density = [-((x0_value - mean) ** 2) / (2 * sd_data**2) for mean in (0.4, -0.2)]
        expected = 2 * sd_data**2 * t_value**2 / spread**2 * (log_density[0] - log_density[1])
        assert (errors[1] - errors[0]).item() == pytest.approx(expected, abs=0.01)


def test_the_reduction_is_a_factor_of_the_elements() -> None:
    by_mean, by_sum = tiny(mode="offline", reduction="mean"), tiny(mode="offline", reduction="sum")
    for distiller in (by_mean, by_sum):
        perturb(distiller)
    mean, total = (each.student_step(batch_of(each)).terms["prior"].item() for each in (by_mean, by_sum))
    assert total == pytest.approx(mean * 4 * 8 * 8, rel=1e-5)


def test_the_hinge_needs_no_reference() -> None:
    distiller = tiny(mode="hinge", beta=2.0, negative_weight=0.3)
    perturb(distiller)
    batch = batch_of(distiller)
    losses = distiller.student_step(batch)
    won, lost = losses.logs["winner_error"], losses.logs["loser_error"]
    # Means of a hinge are the hinge of means where both samples are on one side of it.
    assert losses.terms["preference"].item() == pytest.approx(1 - 2.0 * (0.3 * lost - won).item(), rel=1e-4)
    assert losses.weights["prior"] == 0.5


def test_offline_learning_prefers_its_winners() -> None:
    distiller = tiny(mode="offline", beta=200.0, negative_weight=1.0, prior_weight=0.0)
    batch = batch_of(distiller)
    optimizer = torch.optim.Adam(distiller.student.trainable_parameters(), 3e-3)
    values = []
    for _ in range(12):
        losses = distiller.student_step(batch)
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        values.append(losses.terms["preference"].item())
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("shared", [False, True])
def test_trajectories_may_share_their_start(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor] = []
    ends: list[Tensor] = []

    def recorded(*args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
        states, x0 = markov_rollout(*args, **kwargs)
        starts.append(states[0])
        ends.append(states[1])
        return states, x0

    monkeypatch.setattr(pso, "markov_rollout", recorded)
    distiller = tiny(shared_start=shared)
    distiller.student_step(batch_of(distiller))
    assert torch.equal(*starts) == shared
    assert not torch.equal(*ends)


def test_ties_give_no_gradient() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = PSOConfig(num_steps=2, reward="same")
    same = lambda images, prompts: torch.zeros(len(images))  # noqa: E731
    distiller = sd.PSO(teacher, config, roles=FEW_LAYERS, reward=same)
    perturb(distiller)
    losses = distiller.student_step(batch_of(distiller))
    losses.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in distiller.student.trainable_parameters())


@pytest.mark.parametrize(("options", "message"), [({"num_steps": 1}, "num_steps"), ({"rollout": "ode"}, "no density")])
def test_steps_without_density_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_what_is_missing_is_named() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    with pytest.raises(UserError, match=r"method\.reward"):
        sd.PSO(teacher, PSOConfig(), roles=FEW_LAYERS)
    distiller = sd.PSO(teacher, PSOConfig(mode="offline"), roles=FEW_LAYERS)
    batch = batch_of(distiller)
    batch.latents = None
    with pytest.raises(UserError, match=r"data\.images"):
        distiller.student_step(batch)


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    found = {}
    for mode in ("online", "offline"):
        distiller = tiny(roles=sd.Roles(rank=2), mode=mode, num_steps=3, clip_range=None)
        perturb(distiller)
        losses = distiller.student_step(batch_of(distiller))
        found |= {f"{mode}.{name}": value.item() for name, value in losses.terms.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-3)


GOLDEN = {"online.preference": 0.6013076, "offline.preference": 3.1228397, "offline.prior": 11.066948}
