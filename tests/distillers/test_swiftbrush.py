"""SwiftBrush and what varies it, against closed forms and identities."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import guide
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.distillers.distribution.config import SwiftBrushConfig
from stepdistill.distillers.distribution.matching import Scores
from stepdistill.distillers.distribution.swiftbrush import merge_weights, vsd_gradient
from stepdistill.distillers.turn import PerTime
from stepdistill.errors import UserError
from stepdistill.testing import AffineDenoiser, GaussianTeacher, tiny_pipeline, train_toy, turn_losses
from stepdistill.testing.toys import gaussian_posterior

FEW_LAYERS = sd.Roles(rank=2, target_modules=["to_q", "to_v"])
"""For what holds whichever layers are adapted: an adapter on all of them takes ten times as long to build."""


def tiny(family: str = "sd", *, roles: sd.Roles = FEW_LAYERS, **options: object) -> sd.SwiftBrush:
    teacher = sd.load_teacher(tiny_pipeline(family))
    return sd.SwiftBrush(teacher, SwiftBrushConfig(**options), roles=roles)


def batch_of(distiller: Distiller, size: int = 2) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    return data.batch(seed=0, step=0, indices=range(size), size=size)


@pytest.mark.parametrize("family", ["sd", "sd-v", "sd3"])
@pytest.mark.parametrize("scale_max", [None, 7.0])
def test_a_fresh_fake_score_injects_exactly_nothing(family: str, scale_max: float | None) -> None:
    """Both sides are guided alike, with the same draw of the scale: at LoRA B = 0 they agree bitwise."""
    losses = tiny(family, guidance_scale=4.5, guidance_scale_max=scale_max)
    assert losses.student_step(batch_of(losses)).logs["gradient_norm"] == 0


@pytest.mark.parametrize("family", ["sd", "sd-v", "sd3"])
def test_the_gradient_is_sigma_squared_times_the_difference_of_eps(family: str) -> None:
    distiller = tiny(family)
    schedule = distiller.teacher.schedule
    x0, real, fake = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.8])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    found = vsd_gradient(schedule, Scores(real, fake, t))
    # At one x_t the difference in eps is -(alpha / sigma) times that in x0.
    eps_difference = per_sample(alpha / sigma, x0) * (fake - real)  # eps_real - eps_fake
    torch.testing.assert_close(found, per_sample(sigma**2, x0) * eps_difference)


def test_random_guidance_within_one_point_is_swiftbrush() -> None:
    plain, pinned = tiny(guidance_scale=3.0), tiny(guidance_scale=3.0, guidance_scale_max=3.0)
    for distiller in (plain, pinned):
        for parameter in distiller.fake_score.trainable_parameters():
            parameter.data += 0.05
    values = [each.student_step(batch_of(each)).terms["dm"].item() for each in (plain, pinned)]
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_random_scales_stay_in_their_interval() -> None:
    distiller = tiny(guidance_scale=2.0, guidance_scale_max=6.0)
    guidance, fake_guidance = distiller.guidances(batch_of(distiller, 64))
    scales = guidance.scale
    assert fake_guidance is guidance
    assert isinstance(scales, torch.Tensor)
    assert 2 <= scales.min() < 3
    assert 5 < scales.max() <= 6


def test_domain_weights_are_two_guidance_scales() -> None:
    """DSD: a (cond - fake) + b (cond - uncond) is a times SwiftBrush with scales 1 + b / a and 1."""
    a, b = 0.5, 1.5
    cond, uncond, fake = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))
    teacher = GaussianTeacher(torch.zeros(5), 1.0)
    distiller = sd.SwiftBrush(teacher, SwiftBrushConfig(guidance_scale=1 + b / a, fake_guidance_scale=1.0))
    t = torch.full((3,), 0.4)
    guidance, fake_guidance = distiller.guidances(batch_of(distiller))
    assert fake_guidance.is_off
    scores = Scores(guide(cond, uncond, guidance.scale), fake, t)
    found = a * vsd_gradient(teacher.schedule, scores)
    direct = (a * (cond - fake) + b * (cond - uncond)) * -0.6 * 0.4
    torch.testing.assert_close(found, direct)


@pytest.mark.parametrize("entropy", [1.0, 0.8, 0.5])
def test_entropy_weight_shrinks_the_stationary_variance(entropy: float) -> None:
    """ESD on N(0, S^2), conditioned on the sample itself: E[g x] = 0 where the noised variance is lambda that of the teacher."""
    std, t = 1.0, torch.full((200_000,), 0.3)
    distiller = sd.SwiftBrush(
        GaussianTeacher(0.0, std), SwiftBrushConfig(guidance_scale=1.0, fake_guidance_scale=1 - entropy)
    )
    alpha, sigma = 0.7, 0.3
    stationary = (entropy * (alpha**2 * std**2 + sigma**2) - sigma**2) / alpha**2
    fake_scale = distiller.guidances(batch_of(distiller))[1].scale
    generator = torch.Generator().manual_seed(0)
    unit, eps = torch.randn(2, len(t), 1, generator=generator)

    def pull(variance: float) -> float:
        x0 = unit * variance**0.5
        levels = torch.full_like(t, alpha), torch.full_like(t, sigma)
        x_t, zero = alpha * x0 + sigma * eps, torch.zeros(1)
        real = gaussian_posterior(x_t, *levels, zero, torch.tensor([std]))[0]
        uncond = gaussian_posterior(x_t, *levels, zero, torch.tensor([variance**0.5]))[0]
        fake = guide(x0, uncond, fake_scale)  # the estimate given the sample is the sample
        return (vsd_gradient(distiller.teacher.schedule, Scores(real, fake, t)) * x0).mean().item()

    assert pull(stationary) == pytest.approx(0.0, abs=5e-4)
    assert pull(1.3 * stationary) > 1e-3  # a descent step along +g shrinks what is too wide
    assert pull(0.7 * stationary) < -1e-3


@pytest.mark.slow
def test_affine_student_reaches_the_teacher() -> None:
    teacher = GaussianTeacher(torch.full((16,), 1.0), 0.5)
    config = SwiftBrushConfig(guidance_scale=1.0, prompt_dropout=0.0, critic_space="v", student_every=4)
    distiller = sd.SwiftBrush(teacher, config)
    train_toy(distiller, teacher.encode(["x"]), num_steps=1600, batch_size=128, learning_rate=2e-2)
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    assert student.bias.mean().item() == pytest.approx(1.0, abs=0.05)
    assert student.gain.abs().mean().item() == pytest.approx(0.5, abs=0.05)


def test_dropped_prompts_are_the_fake_scores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for dropout in (0.0, 1.0):
        distiller = tiny(prompt_dropout=dropout)
        batch = batch_of(distiller)
        calls = Mock(side_effect=distiller.fake_score.forward_network)
        monkeypatch.setattr(distiller.fake_score, "forward_network", calls)
        assert list(turn_losses(distiller, batch))
        compared, fitted = (call.args[2]["tokens"] for call in calls.call_args_list)
        assert torch.equal(compared[: len(batch.cond)], batch.cond["tokens"])
        assert torch.equal(fitted, (batch.uncond if dropout else batch.cond)["tokens"])
    first = Conditioning.where(torch.tensor([True, False]), batch.uncond, batch.cond)["tokens"]
    assert torch.equal(first[0], batch.uncond["tokens"][0])
    assert torch.equal(first[1], batch.cond["tokens"][1])


def test_critic_error_weighs_alpha_squared() -> None:
    distiller = tiny(prompt_dropout=0.0)
    losses = distiller.critic_step(batch_of(distiller))
    curve = losses.logs["fake_score"]
    assert isinstance(curve, PerTime)
    alpha = distiller.teacher.schedule.alpha(curve.t)
    assert losses.terms["fake_score"].item() == pytest.approx((alpha**2 * curve.values).mean().item())


def similarity_of(value: float):
    return lambda images, prompts: images.flatten(1).mean(1) * 0 + value


@pytest.mark.parametrize(("value", "expected"), [(0.9, 0.0), (0.1, 0.25)])
def test_the_clip_loss_is_zero_above_its_threshold(value: float, expected: float) -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = SwiftBrushConfig(reward="given", clip_threshold=0.35)
    distiller = sd.SwiftBrush(teacher, config, roles=FEW_LAYERS, reward=similarity_of(value))
    losses = distiller.student_step(batch_of(distiller))
    assert losses.terms["clip"].item() == pytest.approx(expected)
    assert losses.weights["clip"] == 0.1


def test_the_clip_loss_pulls_towards_its_reward_and_decays() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = SwiftBrushConfig(reward="brightness", clip_threshold=2.0, clip_decay_steps=4)
    bright = lambda images, prompts: images.flatten(1).mean(1)  # noqa: E731
    distiller = sd.SwiftBrush(teacher, config, roles=FEW_LAYERS, reward=bright)
    batch = batch_of(distiller)
    optimizer = torch.optim.Adam(distiller.student.trainable_parameters(), 1e-2)
    values = []
    for _ in range(8):
        losses = distiller.student_step(batch)
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        values.append(losses.logs["similarity"])
    assert values[-1] > values[0]
    full = distiller.student_step(batch).terms["clip"].item()
    batch.step = 2
    assert distiller.student_step(batch).terms["clip"].item() == pytest.approx(full / 2)
    batch.step = 9
    assert distiller.student_step(batch).terms["clip"].item() == 0


def test_a_reward_without_a_gradient_is_refused() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = SwiftBrushConfig(reward="a command")
    constant = lambda images, prompts: torch.zeros(len(images))  # noqa: E731
    distiller = sd.SwiftBrush(teacher, config, roles=FEW_LAYERS, reward=constant)
    with pytest.raises(UserError, match="no gradient"):
        distiller.student_step(batch_of(distiller))


def test_a_named_reward_has_to_be_given() -> None:
    with pytest.raises(UserError, match="load_reward"):
        tiny(reward="emoji_clip")


def test_merged_weights_have_their_ends_and_their_middle() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    assert torch.equal(merge_weights(a, b, part=1.0)["w"], a["w"])
    assert torch.equal(merge_weights(a, b, part=0.0)["w"], b["w"])
    assert merge_weights(a, b, part=0.5)["w"].tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_weights(a, {"v": torch.zeros(2)}, part=0.5)


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    distiller = tiny(roles=sd.Roles(rank=2), fake_guidance_scale=1.0)
    batch = batch_of(distiller)
    student = distiller.student_step(batch)
    losses = student.terms | distiller.critic_step(batch, student.samples).terms
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"dm": 1.650498e-06, "fake_score": 0.4042038}
