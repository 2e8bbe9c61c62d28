"""PSO: Pairwise Sample Optimization, Miao et al., ICLR 2025, https://arxiv.org/abs/2410.03190.

Tunes a student that already runs in few steps (the "teacher" here; adapter off, it is the reference). Fitting targets would bring
back the blur, as the mean of what is possible is not what a few-step student draws; so a target's likelihood is raised relative to
that of a sample.
- online: two trajectories per prompt, a reward picks the winner, and the likelihoods are those of the sampler's own transitions;
- offline: winners are images, losers are samples, and likelihoods are replaced by denoising errors on the student's own grid;
- hinge: the same without a reference, for a style or a concept.
Diffusion-DPO (https://arxiv.org/abs/2311.12908) on the student's grid is `mode` offline, `negative_weight` 1, `prior_weight` 0,
`error_weight` snr (errors of eps) and half its beta.
Deviations from the released code: one random transition per iteration on fresh trajectories, instead of all of them in turn on kept
ones; noise is drawn per sample; losers are drawn anew for each batch; two trajectories may share their start (`shared_start`), which
takes the luck of the start out of their rewards. The default reduction is the released one, a mean over
elements; a sum makes beta the one of the formulae.
The file is longer than others as it holds two losses, of trajectories and of images, with their options in common.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from stepdistill.critics.reward import Reward, RewardConfig
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import markov_rollout, sample
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.times import Grid
from stepdistill.diffusion.transitions import Kernel, Reduction
from stepdistill.distillers.base import Batch, Distiller, Losses, PerTime
from stepdistill.distillers.config import DistillerConfig
from stepdistill.distillers.preference.likelihood import ErrorWeight, denoising_errors, transition_log_ratio
from stepdistill.errors import UserError
from stepdistill.losses.preference import clip_log_ratio, hinge_preference, logistic_preference
from stepdistill.typing import Latents, Times


class PSOConfig(DistillerConfig):
    """Options of PSO."""

    guidance_scale: float = Field(default=1.0, ge=1.0, le=1.0, description="off: few-step students take none")
    mode: Literal["online", "offline", "hinge"] = Field(
        default="online",
        description="online: a reward ranks samples; offline: images against samples; hinge: the same without a reference",
    )
    rollout: Literal["sde", "ode"] = Field(
        default="sde", description="how the student is run; ode has no density and cannot be tuned online"
    )
    kernel: Kernel = Field(
        default="renoise",
        description="online: transitions; ancestral for students of the Euler-ancestral sampler",
    )
    reward: RewardConfig | None = Field(
        default=None,
        description="online: what ranks the images: a scorer ('emoji_clip', 'hps/v2.1', 'pickscore', ...), alone or as "
        "{name: ..., weights: ...}, or package.module:function",
    )
    shared_start: bool = Field(
        default=False,
        description="online: both trajectories of a prompt start from the same noise, so that their rewards differ by the "
        "transitions alone, which are what is learnt",
    )
    beta: float = Field(
        default=50.0, gt=0.0, description="how sharply the margin counts, given the reduction"
    )
    reduction: Reduction = Field(
        default="mean",
        description="over a latent's elements; with mean, beta is D times that of the formulae",
    )
    clip_range: float | None = Field(
        default=0.1, gt=0.0, lt=1.0, description="online: ratios count within 1 -+ this; null: unclipped"
    )
    negative_weight: float = Field(
        default=0.1,
        ge=0.0,
        description="offline: weight of the loser's error; 0.1 is the released code's for concepts, near 1 what is common to "
        "both, a blur, cancels",
    )
    prior_weight: float = Field(
        default=0.5, ge=0.0, description="offline: weight of the loss that keeps losers denoisable"
    )
    error_weight: ErrorWeight = Field(
        default="inverse_variance", description="offline: x0's error over sigma^2, or that of eps (snr)"
    )
    losers: Literal["reference", "student"] = Field(
        default="reference", description="offline: whose samples the winners are set against"
    )


class PSO(Distiller):
    """Pairwise sample optimisation of a few-step model.

    Args:
        reward: ranks images; what `config.reward` names.
    """

    paper = "https://arxiv.org/abs/2410.03190"
    status = "verified"
    Config = PSOConfig
    config: PSOConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: PSOConfig | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        self.reward = reward
        if self.config.mode != "online":
            return
        if reward is None:
            raise UserError("method.mode=online needs a reward: set method.reward (emoji_clip)")
        if self.config.num_steps < 2 or self.config.rollout == "ode":
            raise UserError(
                "a last or deterministic step has no density: use method.mode=offline, or rollout=sde with num_steps of 2 or more"
            )

    def student_step(self, batch: Batch) -> Losses:
        """The pairwise loss."""
        self.train_only("student")
        return self.online(batch) if self.config.mode == "online" else self.offline(batch)

    def online(self, batch: Batch) -> Losses:
        """-log sigmoid(beta (log c_winner - log c_loser)) of two trajectories' clipped ratios at one random transition."""
        config, rng, times = self.config, batch.rng.fork("student"), self.sampler().times
        step = rng.shared_integer("transition", len(times) - 1)
        pairs, rewards, streams = [], [], (rng.fork("first"), rng.fork("second"))
        for stream in streams:
            start = streams[0] if config.shared_start else stream
            noise = start.normal("noise", batch.shape)
            states, x0 = markov_rollout(self.student, times, noise, batch.cond, stream, config.kernel)
            pairs.append(torch.stack(states[step : step + 2]))
            rewards.append(self.rate(x0, batch))
        x_t, x_s = torch.cat(pairs, dim=1)
        ratio = transition_log_ratio(
            self.student,
            self.teacher,
            (x_t, x_s),
            (times[step], times[step + 1]),
            Conditioning.cat([batch.cond, batch.cond]),
            kernel=config.kernel,
            reduction=config.reduction,
        )
        clipped = ratio if config.clip_range is None else clip_log_ratio(ratio, config.clip_range)
        first, second = clipped.chunk(2)
        preferred = torch.sign(rewards[0] - rewards[1])  # 0 where they tie: no gradient
        margin = config.beta * preferred * (first - second)
        logs: dict[str, Tensor | PerTime] = {
            "reward": torch.cat(rewards).mean(),
            "accuracy": (margin.detach() > 0).float().mean(),
            "log_ratio": ratio.detach().abs().mean(),
        }
        return Losses({"preference": logistic_preference(margin)}, logs=logs)

    def offline(self, batch: Batch) -> Losses:
        """-log sigmoid or hinge of the gap between the loser's and the winner's error, above the reference's gap or zero."""
        config, rng = self.config, batch.rng.fork("student")
        winners, cond = batch.real()
        drawn_from = self.teacher if config.losers == "reference" else self.student
        losers = sample(drawn_from, self.sampler(), rng.normal("noise", batch.shape), cond, rng)
        t = Grid(self.sampler().times)(rng.uniform("t"))
        eps = rng.normal("eps", batch.shape)  # shared by the pair, so that its part of the errors cancels
        reference: Tensor | float = 0.0
        if config.mode == "offline":
            with torch.no_grad():
                reference = self.gap(*self.pair_errors(self.teacher, winners, losers, eps, t, cond))
        won, lost = self.pair_errors(self.student, winners, losers, eps, t, cond)
        margin = config.beta * (self.gap(won, lost) - reference)
        loss = logistic_preference(margin) if config.mode == "offline" else hinge_preference(margin)
        logs: dict[str, Tensor | PerTime] = {
            "accuracy": (margin.detach() > 0).float().mean(),
            "winner_error": won.detach().mean(),
            "loser_error": lost.detach().mean(),
        }
        return Losses({"preference": loss, "prior": lost.mean()}, {"prior": config.prior_weight}, logs)

    @torch.no_grad()
    def rate(self, x0: Latents, batch: Batch) -> Tensor:
        """The rewards of samples, (B,)."""
        assert self.reward is not None  # checked when made
        return self.reward(self.teacher.decode(x0), batch.prompts).to(x0.device).detach()

    def pair_errors(
        self, network: Denoiser, winners: Latents, losers: Latents, eps: Latents, t: Times, cond: Conditioning
    ) -> tuple[Times, Times]:
        """A network's errors of winners and losers, at the same times and noises."""
        won, lost = denoising_errors(
            network,
            torch.cat([winners, losers]),
            torch.cat([eps, eps]),
            torch.cat([t, t]),
            Conditioning.cat([cond, cond]),
            weight=self.config.error_weight,
            reduction=self.config.reduction,
        ).chunk(2)
        return won, lost

    def gap(self, won: Times, lost: Times) -> Times:
        """By how much the loser's error exceeds the winner's."""
        return self.config.negative_weight * lost - won

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """The grid that the student already runs on."""
        times = self.student_times(num_steps or self.config.num_steps, self.config.rollout)
        return StudentSampler(times, self.config.rollout)
