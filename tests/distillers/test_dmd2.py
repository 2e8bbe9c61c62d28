"""DMD2 against closed forms and identities."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import stepdistill as sd
from stepdistill.critics.config import GANConfig
from stepdistill.data.source import data_from_prompts
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import Samples, backward_simulation, sample
from stepdistill.distillers.base import Batch, Distiller, PerTime
from stepdistill.distillers.distribution import dmd2, matching
from stepdistill.distillers.distribution.config import DMD2Config
from stepdistill.errors import UserError
from stepdistill.losses.adversarial import non_saturating_discriminator
from stepdistill.losses.score import dm_gradient, score_difference, surrogate_loss
from stepdistill.testing import (
    AffineDenoiser,
    GaussianDenoiser,
    GaussianTeacher,
    tiny_pipeline,
    train_toy,
    turn_losses,
)

FAMILIES = ["sd", "sd-v", "sdxl", "sd3"]

FEW_LAYERS = sd.Roles(rank=2, target_modules=["to_q", "to_v"])
"""For what holds whichever layers are adapted: an adapter on all of them takes ten times as long to build."""


def batch_of(distiller: Distiller, size: int = 2, *, step: int = 0, latents: bool = False) -> Batch:
    teacher = distiller.teacher
    data = data_from_prompts(teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=step, indices=range(size), size=size)
    if latents:
        batch.latents = torch.randn(size, *batch.shape, generator=torch.Generator().manual_seed(1))
        batch.latents_cond = batch.cond
    return batch


def renoised(distiller: sd.DMD2, samples: Samples, rng: sd.RandomStream) -> tuple[torch.Tensor, ...]:
    """What the fake score is fitted at."""
    schedule = distiller.fake_score.schedule
    return matching.renoise(schedule, samples, distiller.critic_times, rng, t_name="t", eps_name="eps")


def gradients(distiller: Distiller) -> dict[str, torch.Tensor]:
    return {
        f"{turn}.{i}": parameter.grad.clone()
        for turn, parameters in distiller.players().items()
        for i, parameter in enumerate(parameters)
        if parameter.grad is not None
    }


def test_equal_scores_inject_exactly_nothing() -> None:
    for family in FAMILIES:
        teacher = sd.load_teacher(tiny_pipeline(family))
        distiller = sd.DMD2(teacher, DMD2Config(num_steps=2, guidance_scale=1.0), roles=sd.Roles(rank=2))
        losses = distiller.student_step(batch_of(distiller))
        losses.backward()
        assert losses.logs["gradient_norm"] == 0
        assert all(grad.abs().max() == 0 for grad in gradients(distiller).values())


def test_injected_gradient_is_the_kl_gradient_of_two_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[d surrogate / d bias] is d KL / d bias at one noise level, up to the known weight (sigma^2 / alpha) / alpha."""
    teacher = GaussianTeacher(1.0, 0.5)
    config = DMD2Config(num_steps=1, guidance_scale=1.0, renoise_lo=0.4, renoise_hi=0.4)
    monkeypatch.setattr(dmd2, "dm_gradient", lambda x0, real, fake: score_difference(real, fake))  # no normaliser
    fake_score = GaussianDenoiser(  # the affine student's true law at gain 1, bias 0
        torch.zeros(1), torch.ones(1), teacher.schedule, prompts=teacher.prompts
    )
    distiller = sd.DMD2(teacher, config, fake_score=fake_score)
    size = 20_000
    data = data_from_prompts(teacher, ["x"])
    distiller.student_step(data.batch(seed=3, step=0, indices=range(size), size=size)).backward()
    alpha, sigma = 0.6, 0.4
    q_var, p_var = alpha**2 * 1.0 + sigma**2, alpha**2 * 0.25 + sigma**2
    d_kl_d_mean = alpha * (0.0 - alpha * 1.0) / p_var
    d_kl_d_gain = alpha**2 * 1.0 * (1 / p_var - 1 / q_var)
    weight = sigma**2 / alpha / alpha
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    assert student.bias.grad is not None
    assert student.gain.grad is not None
    assert student.bias.grad.item() == pytest.approx(weight * d_kl_d_mean, rel=0.03)
    assert student.gain.grad.item() == pytest.approx(weight * d_kl_d_gain, rel=0.05)


@pytest.mark.slow
def test_affine_student_reaches_the_teacher_at_critic_ratio_five() -> None:
    """Spec C1: N(1, 0.25) within 0.02, with an online fake score of two parameters."""
    teacher = GaussianTeacher(torch.full((16,), 1.0), 0.5)  # 16 copies: the normaliser is a mean over elements
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=1, guidance_scale=1.0, student_every=5))
    cond = teacher.encode(["x"])
    train_toy(distiller, cond, num_steps=2000, batch_size=64, learning_rate=1e-2, critic_learning_rate=2e-2)
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    assert student.bias.mean().item() == pytest.approx(1.0, abs=0.02)
    assert student.gain.abs().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("mode", ["shared", "full"])
@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_turns_touch_only_their_player(family: str, mode: str, features: str) -> None:
    teacher = sd.load_teacher(tiny_pipeline(family))
    config = DMD2Config(
        num_steps=2, guidance_scale=3.0, gan=GANConfig(student_weight=1e-2, features=features, r1_weight=1.0)
    )
    distiller = sd.DMD2(teacher, config, roles=sd.Roles(mode=mode, rank=2))
    before = {name: p.detach().clone() for name, p in teacher.named_parameters() if "lora" not in name}
    distiller.student_step(batch_of(distiller, latents=True)).backward()
    assert {key.split(".")[0] for key in gradients(distiller)} == {"student"}
    for parameters in distiller.players().values():
        for parameter in parameters:
            parameter.grad = None
    losses = distiller.critic_step(batch_of(distiller, latents=True))
    assert set(losses.terms) == {"fake_score", "gan_critic", "r1"}
    losses.backward()
    assert {key.split(".")[0] for key in gradients(distiller)} == {"critic"}
    for name, parameter in teacher.named_parameters():
        if "lora" not in name:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def _perturbed(distiller: Distiller, seed: int = 5) -> None:
    """Move both adapters off their zero start, so that roles differ."""
    generator = torch.Generator().manual_seed(seed)
    for parameters in distiller.players().values():
        for parameter in parameters:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def _joint_gradients(distiller: sd.DMD2, batch: Batch) -> dict[str, torch.Tensor]:
    """The same loss on one uncut graph: the student's x0 feeds the judges directly."""
    rng = distiller.begin("student", batch)
    samples = distiller.simulate(batch, rng, distiller.exit_step(batch.step, rng))
    x0, scores = samples.x0, distiller.compare(samples, batch, rng)
    losses = {"dm": surrogate_loss(x0, dm_gradient(x0, scores.real, scores.fake))}
    assert distiller.gan is not None
    losses["gan_student"] = distiller.gan.student_loss(distiller.fake_score, x0, batch.cond, rng)
    total = sum(distiller.weights().get(name, 1.0) * loss for name, loss in losses.items())
    assert isinstance(total, torch.Tensor)
    total.backward()
    return gradients(distiller)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_two_stage_backward_is_the_joint_graph_bitwise(family: str) -> None:
    """Also under gradient checkpointing, where the joint graph would recompute the student under the wrong adapter."""

    def build() -> sd.DMD2:
        teacher = sd.load_teacher(tiny_pipeline(family))
        config = DMD2Config(num_steps=2, guidance_scale=3.0, gan=GANConfig(student_weight=1e-2))
        distiller = sd.DMD2(teacher, config, roles=sd.Roles(rank=2))
        _perturbed(distiller)
        return distiller

    joint = build()
    expected = _joint_gradients(joint, batch_of(joint))
    for checkpointing in (False, True):
        distiller = build()
        if checkpointing:
            distiller.student.enable_gradient_checkpointing()
            distiller.teacher.network.train()
        distiller.student_step(batch_of(distiller)).backward()
        found = gradients(distiller)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_training_inputs_have_the_distribution_of_inference_inputs() -> None:
    """Spec 3.2 toy (b): the state at the second step is what inference feeds it; noised real data is not."""
    teacher = GaussianTeacher(1.0, 0.5)
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=2, guidance_scale=1.0))
    student = distiller.student
    assert isinstance(student, AffineDenoiser)
    student.gain.data.fill_(0.2)
    student.bias.data.fill_(-0.5)
    size = 20_000
    batch = data_from_prompts(teacher, ["x"]).batch(seed=0, step=0, indices=range(size), size=size)
    sampler = distiller.sampler()
    rollout = backward_simulation(student, sampler, batch.noise("z"), batch.cond, batch.rng, exit_step=1)
    t = sampler.times[1]
    inference_mean, inference_std = (1 - t) * -0.5, (((1 - t) * 0.2) ** 2 + t**2) ** 0.5
    assert rollout.x_t.mean().item() == pytest.approx(inference_mean, abs=0.02)
    assert rollout.x_t.std().item() == pytest.approx(inference_std, abs=0.02)
    noised_data = teacher.schedule.add_noise(teacher.sample(size), batch.noise("e"), torch.full((size,), t))
    assert abs(noised_data.mean().item() - inference_mean) > 0.3


def test_only_the_exit_step_keeps_a_graph_and_its_choice_is_shared() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=4), roles=FEW_LAYERS)
    batch = batch_of(distiller)
    rollout = backward_simulation(
        distiller.student, distiller.sampler(), batch.noise("z"), batch.cond, batch.rng, exit_step=2
    )
    assert rollout.x0.requires_grad
    assert not rollout.x_t.requires_grad
    draws = {batch.rng.shared_integer("exit_step", 4)}
    half = data_from_prompts(teacher, ["a", "b"]).batch(seed=0, step=0, indices=[1], size=2)
    draws.add(half.rng.shared_integer("exit_step", 4))
    assert len(draws) == 1
    seen = {sd.RandomStream(0, step, (0,)).shared_integer("exit_step", 4) for step in range(64)}
    assert seen == {0, 1, 2, 3}


def test_critics_reuse_the_students_samples_of_the_same_iteration() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=2, student_every=3), roles=FEW_LAYERS)
    assert [tuple(distiller.turns(step)) for step in range(4)] == [
        ("student", "critic"), ("critic",), ("critic",), ("student", "critic"),
    ]  # fmt: skip
    batch = batch_of(distiller)
    samples = distiller.student_step(batch).samples
    assert samples is not None
    assert not samples.x0.requires_grad
    reused, fresh = distiller.critic_step(batch, samples), distiller.critic_step(batch)
    x_t, t, _ = renoised(distiller, samples, batch.rng.fork("critic"))
    error = (
        distiller.fake_score(x_t, t, batch.cond).eps - batch.rng.fork("critic").normal("eps", batch.shape)
    ).square()
    assert reused.total.item() == pytest.approx(error.mean().item(), rel=1e-5)
    assert reused.total.item() != pytest.approx(fresh.total.item(), rel=1e-5)


def test_each_step_has_a_fake_score_that_was_fitted_to_it_ahead_of_the_students_turn() -> None:
    config = DMD2Config(num_steps=3, student_every=2, fake_score_per_step=True)
    distiller = sd.DMD2(sd.load_teacher(tiny_pipeline("sd")), config, roles=FEW_LAYERS)
    sampled: list[int] = []
    original = distiller.exit_step
    distiller.exit_step = lambda step, rng: sampled.append(original(step, rng)) or sampled[-1]
    assert len({id(each) for each in distiller.fake_scores}) == 3
    for step in range(7):
        batch = batch_of(distiller, step=step)
        for _, losses in turn_losses(distiller, batch):
            losses.backward()
        trained = [
            i
            for i, fake_score in enumerate(distiller.fake_scores)
            if any(p.grad is not None and p.grad.abs().max() > 0 for p in fake_score.trainable_parameters())
        ]
        assert trained == [sampled[-1]]
        for parameters in distiller.players().values():
            for parameter in parameters:
                parameter.grad = None
    assert sampled == [0, 1, 1, 2, 2, 0, 0]  # the student moves at 0, 2, 4 and 6, each time on another step


def test_with_one_step_a_fake_score_per_step_is_the_paper() -> None:
    losses = []
    for per_step in (False, True):
        config = DMD2Config(num_steps=1, fake_score_per_step=per_step)
        distiller = sd.DMD2(sd.load_teacher(tiny_pipeline("sd")), config, roles=FEW_LAYERS)
        _perturbed(distiller)
        batch = batch_of(distiller)
        losses.append([distiller.student_step(batch).total.item(), distiller.critic_step(batch).total.item()])
    assert losses[0] == losses[1]


class _DullFirstStep(AffineDenoiser):
    """The affine student, but for its first step, which always comes out with a deviation of 0.64."""

    def forward_network(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        return torch.where(t[:, None] > 0.75, (0.64 + 0 * self.gain) * x_t, super().forward_network(x_t, t, cond))


@pytest.mark.slow
@pytest.mark.parametrize("per_step", [False, True])
def test_one_fake_score_matches_the_mixture_of_all_steps(per_step: bool) -> None:
    """A step that stays at 0.64 makes the last one overshoot, towards sqrt(2 - 0.64^2), unless each has its own fake score."""
    teacher = GaussianTeacher(torch.zeros(16), 1.0)
    student = _DullFirstStep((16,), teacher.schedule, prompts=teacher.prompts)
    config = DMD2Config(num_steps=2, guidance_scale=1.0, student_every=5, fake_score_per_step=per_step)
    distiller = sd.DMD2(teacher, config, student=student)
    train_toy(distiller, teacher.encode(["x"]), num_steps=3000, batch_size=64, learning_rate=5e-3)
    rng = sd.RandomStream(1, 0, tuple(range(500)))
    noise = rng.normal("noise", (16,))
    out = sample(student, distiller.sampler(), noise, teacher.encode(["x"]).expand(500), rng)
    assert abs(out.std().item() - 1) < 0.05 if per_step else out.std().item() > 1.1


def test_gan_without_images_says_what_to_set() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=1, gan=GANConfig(student_weight=1e-3)), roles=FEW_LAYERS)
    with pytest.raises(UserError, match=r"data\.images"):
        distiller.critic_step(batch_of(distiller))


def test_the_critic_space_only_weights_times() -> None:
    """An error in v is the error in eps over alpha: the same optimum, with high noise counting."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    per_time = []
    for space in ("own", "v"):
        distiller = sd.DMD2(teacher, DMD2Config(num_steps=1, critic_space=space), roles=FEW_LAYERS)
        per_time.append(distiller.critic_step(batch_of(distiller)).logs["fake_score"])
    own, v = per_time
    assert isinstance(own, PerTime)
    assert isinstance(v, PerTime)
    alpha = teacher.schedule.alpha(own.t)
    torch.testing.assert_close(v.values, own.values / alpha**2, rtol=1e-4, atol=0)


def test_the_shifts_move_compared_and_learnt_times_apart_from_each_other() -> None:
    u = (torch.arange(1000) + 0.5) / 1000
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    gan = GANConfig(student_weight=1e-3)
    config = DMD2Config(num_steps=1, renoise_shift=2.0, critic_shift=3.0, gan=gan)
    distiller = sd.DMD2(teacher, config, roles=FEW_LAYERS)
    assert distiller.times(u).median().item() == pytest.approx(2 / 3, abs=2e-3)
    assert distiller.critic_times(u).median().item() == pytest.approx(3 / 4, abs=2e-3)
    assert distiller.gan is not None
    assert distiller.gan.times == distiller.critic_times, "real latents are judged where samples are"
    rng = sd.RandomStream(0, 0, tuple(range(512)))
    x0 = torch.zeros(512, *teacher.latent_shape())
    samples = Samples(x_s=x0, s=0.0, x0=x0, x_t=x0, t=1.0, exit_step=0)
    learnt = renoised(distiller, samples, rng)[1]
    assert learnt.median().item() == pytest.approx(3 / 4, abs=0.05)


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    config = DMD2Config(num_steps=4, guidance_scale=4.0, gan=GANConfig(student_weight=1e-2))
    distiller = sd.DMD2(teacher, config, roles=sd.Roles(rank=4))
    batch = batch_of(distiller, latents=True)
    student = distiller.student_step(batch)
    losses = student.terms | distiller.critic_step(batch, student.samples).terms
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {"dm": 1.78685e-05, "gan_student": 0.717217, "fake_score": 1.08378, "gan_critic": 1.393455}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_may_begin_below_one(family: str) -> None:
    """Every time is one that the stock scheduler can be told, and the grid is the whole one, shrunk."""
    teacher = sd.load_teacher(tiny_pipeline(family))
    whole, late = (
        sd.DMD2(teacher, DMD2Config(num_steps=4, first_time=first), roles=FEW_LAYERS).sampler().times
        for first in (1.0, 0.8)
    )
    assert late == pytest.approx([0.8 * t for t in whole], abs=1e-3)
    assert late == tuple(teacher.nearest_time(t) for t in late)


@pytest.mark.parametrize("kind", ["sde", "ode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_grid_may_lean_towards_noise(family: str, kind: Literal["sde", "ode"]) -> None:
    """s t / (1 + (s - 1) t) of each time; the stock scheduler calls the network exactly there."""
    teacher = sd.load_teacher(tiny_pipeline(family))
    plain, shifted = (
        sd.DMD2(teacher, DMD2Config(num_steps=4, grid_shift=shift, rollout=kind), roles=FEW_LAYERS).sampler()
        for shift in (1.0, 3.0)
    )
    assert shifted.times == pytest.approx([3 * t / (1 + 2 * t) for t in plain.times], abs=1e-3)
    pipe = teacher.pipeline(shifted)
    pipe("fox", output_type="latent", **teacher.call_arguments(shifted))
    fed = teacher.model_time(torch.tensor(shifted.times))
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(fed.tolist(), abs=1e-2)


def test_the_first_gradient_of_an_eps_student_does_not_drown_the_others_below_one() -> None:
    """One unit of error in eps moves x0 by sigma / alpha: at the end of the schedule that is all that the optimiser sees."""
    schedule = sd.load_teacher(tiny_pipeline("sd")).schedule
    last, late = torch.tensor([1.0]), torch.tensor([0.8])
    assert schedule.sigma(last) / schedule.alpha(last) > 1.7 * schedule.sigma(late) / schedule.alpha(late)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("train_backbone", [False, True])
def test_the_heads_judge_the_pass_that_the_fake_score_makes_anyway(train_backbone: bool, checkpointing: bool) -> None:
    """One whole pass on samples and one part of a pass on real latents; the loss is that of passes of their own."""
    teacher = sd.load_teacher(tiny_pipeline("sd3"))
    gan = GANConfig(student_weight=1e-2, train_backbone=train_backbone)
    distiller = sd.DMD2(teacher, DMD2Config(num_steps=1, gan=gan), roles=FEW_LAYERS)
    if checkpointing:
        distiller.student.enable_gradient_checkpointing()
        teacher.network.train()
    _perturbed(distiller)
    batch = batch_of(distiller, latents=True)
    x0 = batch.rng.normal("samples", batch.shape)
    samples = Samples(x_s=x0, s=0.0, x0=x0, x_t=x0, t=1.0, exit_step=0)
    calls: list[int] = []
    handle = teacher.network.register_forward_pre_hook(lambda *_: calls.append(1))
    losses = distiller.critic_step(batch, samples)
    handle.remove()
    assert len(calls) == 2
    rng, heads = batch.rng.fork("critic"), distiller.gan
    assert heads is not None
    assert batch.latents is not None
    assert batch.latents_cond is not None
    x_t, t, _ = renoised(distiller, samples, rng)
    fake = heads.heads(distiller.fake_score.features(x_t, t, batch.cond))
    x_t, t = heads.noised(distiller.fake_score, batch.latents, rng.fork("gan_real"))
    real = heads.heads(distiller.fake_score.features(x_t, t, batch.latents_cond))
    torch.testing.assert_close(losses.terms["gan_critic"], non_saturating_discriminator(real, fake))
    alone = torch.autograd.grad(
        losses.terms["gan_critic"], distiller.fake_score.trainable_parameters(), allow_unused=True
    )
    assert any(g is not None for g in alone) == train_backbone


def test_each_fake_score_is_judged_at_its_own_turn() -> None:
    """With a fake score for each step the adversarial gradient reaches the one at turn, and no other."""
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    gan = GANConfig(student_weight=1e-2, critic_weight=1.0)
    config = DMD2Config(num_steps=2, fake_score_per_step=True, student_every=1, gan=gan)
    distiller = sd.DMD2(teacher, config, roles=FEW_LAYERS)
    for step in range(2):
        losses = distiller.critic_step(batch_of(distiller, latents=True, step=step))
        losses.terms["gan_critic"].backward()
        moved = [any(p.grad is not None for p in f.trainable_parameters()) for f in distiller.fake_scores]
        assert moved == [step == 0, step == 1]
        for fake_score in distiller.fake_scores:
            for parameter in fake_score.trainable_parameters():
                parameter.grad = None


@pytest.mark.parametrize("method", ["dmd2", "swiftbrush"])
def test_outside_its_interval_there_is_no_guidance(method: str) -> None:
    """Scores compared at t in [0.6, 0.9] do not see a guidance that ends at 0.5."""
    kind = sd.distillers.METHODS[method]
    kept = {"num_steps": 1, "renoise_lo": 0.6, "renoise_hi": 0.9}
    losses = []
    for options in (
        {"guidance_scale": 1.0},
        {"guidance_scale": 4.0, "guidance_interval": (0.0, 0.5)},
        {"guidance_scale": 4.0},
    ):
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        distiller = kind(teacher, kind.Config(**kept, **options), roles=FEW_LAYERS)
        _perturbed(distiller)
        losses.append(distiller.student_step(batch_of(distiller)).terms["dm"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_an_empty_interval_of_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="0 <= lo < hi <= 1"):
        DMD2Config(guidance_interval=(0.7, 0.2))


def test_checkpointing_changes_no_gradient_of_the_critics_where_the_teacher_judges() -> None:
    """The fake score's blocks run again in the backward pass: under its own adapter, not under the teacher's."""
    found = []
    for checkpointing in (False, True):
        teacher = sd.load_teacher(tiny_pipeline("sd3"))
        gan = GANConfig(student_weight=1e-2, features="teacher")
        distiller = sd.DMD2(teacher, DMD2Config(num_steps=1, gan=gan), roles=FEW_LAYERS)
        if checkpointing:
            distiller.student.enable_gradient_checkpointing()
            teacher.network.train()
        _perturbed(distiller)
        distiller.critic_step(batch_of(distiller, latents=True)).backward()
        found.append(gradients(distiller))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
