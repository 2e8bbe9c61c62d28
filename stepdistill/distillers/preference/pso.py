"""PSO: Pairwise Sample Optimization, Miao et al., ICLR 2025, https://arxiv.org/abs/2410.03190.

Tunes a student that already runs in few steps; it is the "teacher" here, and with its adapter off the reference. Fitting targets would
bring back the blur, because a few-step student does not draw the mean of what is possible; so a target's likelihood is raised relative
to that of a sample.
- online: two trajectories per prompt, a reward picks the winner, likelihoods are those of the sampler's own transitions;
- offline: winners are images, losers are samples, and denoising errors on the student's grid replace likelihoods;
- hinge: offline without a reference, for a style or a concept.

Diffusion-DPO (https://arxiv.org/abs/2311.12908) on the student's grid is `mode` offline, `negative_weight` 1, `prior_weight` 0,
`error_weight` snr (errors of eps) and half its beta.

Deviations from the released code: one random transition per iteration on fresh trajectories, instead of all of them in turn on stored
ones; noise is drawn per sample; losers are drawn for each batch; two trajectories may share their start (`shared_start`), which
removes the luck of the start from their rewards. The default reduction is the released one, a mean over elements; with a sum, beta is
that of the formulae.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import markov_rollout, sample
from stepdistill.diffusion.times import Grid
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.preference.config import PSOConfig
from stepdistill.distillers.preference.likelihood import denoising_errors, transition_log_ratio
from stepdistill.distillers.turn import Logs, Losses
from stepdistill.errors import UserError
from stepdistill.losses.preference import clip_log_ratio, hinge_preference, logistic_preference
from stepdistill.typing import Latents, Times


class PSO(Distiller):
    """Tune a few-step student by pairwise sample optimisation: rewards, images or a style."""

    paper = "https://arxiv.org/abs/2410.03190"
    status = "verified"
    passes = 12.0
    Config = PSOConfig
    config: PSOConfig

    def setup(self) -> None:
        if self.config.mode != "online":
            return
        if self.reward is None:
            raise UserError("method.mode=online needs a reward: set method.reward (emoji_clip)")
        if self.config.num_steps < 2 or self.config.rollout == "ode":
            raise UserError(
                "the last step and deterministic steps have no density: use method.mode=offline, or rollout=sde with "
                "num_steps of 2 or more"
            )

    def student_step(self, batch: Batch) -> Losses:
        """The pairwise loss of the chosen mode."""
        rng = self.begin("student", batch)
        return self.online(batch, rng) if self.config.mode == "online" else self.offline(batch, rng)

    def online(self, batch: Batch, rng: RandomStream) -> Losses:
        """-log sigmoid(beta (log c_winner - log c_loser)) of two trajectories' clipped ratios at one random transition."""
        config, times = self.config, self.sampler().times
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
        logs: Logs = {
            "reward": torch.cat(rewards).mean(),
            "accuracy": (margin.detach() > 0).float().mean(),
            "log_ratio": ratio.detach().abs().mean(),
        }
        return Losses({"preference": logistic_preference(margin)}, logs=logs)

    def offline(self, batch: Batch, rng: RandomStream) -> Losses:
        """-log sigmoid or hinge of the gap between the loser's and the winner's error, relative to the reference's gap or zero."""
        config = self.config
        winners, cond = batch.real()
        drawn_from = self.teacher if config.losers == "reference" else self.student
        losers = sample(drawn_from, self.sampler(), rng.normal("noise", batch.shape), cond, rng)
        t = Grid(self.sampler().times)(rng.uniform("t"))
        eps = rng.normal("eps", batch.shape)  # shared by the pair, so that its contribution to the errors cancels
        reference: Tensor | float = 0.0
        if config.mode == "offline":
            with torch.no_grad():
                reference = self.gap(*self.pair_errors(self.teacher, winners, losers, eps, t, cond))
        won, lost = self.pair_errors(self.student, winners, losers, eps, t, cond)
        margin = config.beta * (self.gap(won, lost) - reference)
        loss = logistic_preference(margin) if config.mode == "offline" else hinge_preference(margin)
        logs: Logs = {
            "accuracy": (margin.detach() > 0).float().mean(),
            "winner_error": won.detach().mean(),
            "loser_error": lost.detach().mean(),
        }
        return Losses({"preference": loss, "prior": lost.mean()}, {"prior": config.prior_weight}, logs)

    @torch.no_grad()
    def rate(self, x0: Latents, batch: Batch) -> Tensor:
        """Rewards of samples, (B,)."""
        assert self.reward is not None  # checked in setup
        return self.reward(self.teacher.decode(x0), batch.prompts).to(x0.device).detach()

    def pair_errors(
        self, network: Denoiser, winners: Latents, losers: Latents, eps: Latents, t: Times, cond: Conditioning
    ) -> tuple[Times, Times]:
        """A network's errors on winners and losers, at the same times and noises."""
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
        """Margin of the loser's error over the winner's."""
        return self.config.negative_weight * lost - won
