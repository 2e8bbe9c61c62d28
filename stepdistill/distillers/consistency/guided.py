"""Guidance of the consistency methods' teacher, the student's guidance input, and the loss's space."""

from __future__ import annotations

from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance, RandomScale
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.distillers.consistency.config import GuidedConfig
from stepdistill.typing import Latents, Times


def teacher_guidance(config: GuidedConfig, uncond: Conditioning, rng: RandomStream) -> Guidance:
    """The teacher's guidance: the fixed scale, or one drawn per sample."""
    if config.guidance_range is None:
        return Guidance(config.guidance_scale, uncond)
    return Guidance(RandomScale(*config.guidance_range)(rng.uniform("guidance_scale")), uncond)


def with_guidance_scale(student: Denoiser, cond: Conditioning, guidance: Guidance) -> Conditioning:
    """The student's conditioning, with the drawn scale if the student has an input for it."""
    if student.embedded_guidance is None or not isinstance(guidance.scale, Tensor):
        return cond
    return cond.with_guidance_scale(guidance.scale)


def balanced(config: GuidedConfig, prediction: Latents, gain: Times) -> Latents:
    """The same values; for `loss_space: output` their gradient is divided by their gain over the network's output.

    A loss in latents pulls at the output of an eps network sigma_t / alpha_t times as hard as at the x0 it gives: 45 times at pure
    noise, 0.2 times at the last step. The first jumps of the chain, on which the others rest, would be learnt last.
    """
    if config.loss_space == "latent":
        return prediction
    return prediction.detach() + (prediction - prediction.detach()) / per_sample(gain, prediction)
