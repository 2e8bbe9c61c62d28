"""The input of a turn."""

from __future__ import annotations

from dataclasses import dataclass

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.errors import UserError
from stepdistill.typing import Latents


@dataclass(frozen=True)
class Pairs:
    """Noises and the end points of the teacher's guided ODE from them, row by row.

    Attributes:
        noise: standard normal, before the schedule's `prior_std`, (B, *shape).
        x0: the teacher's latents, (B, *shape).
        cond: conditioning of the prompts, B rows.
    """

    noise: Latents
    x0: Latents
    cond: Conditioning


@dataclass
class Batch:
    """Prompts, randomness and data of one turn.

    Attributes:
        cond: conditioning of the prompts, B rows.
        uncond: conditioning of the negative prompt, B rows.
        rng: named random draws, one generator per sample.
        step: optimisation step, for schedules that depend on it.
        shape: shape of one latent, without the batch dimension.
        latents: real latents, or None. They belong to other prompts than `cond`.
        latents_cond: conditioning of the real latents.
        prompts: the texts behind `cond`, for rewards that read them; may be empty.
        pairs: noises with the teacher's images of them, or None. They belong to other prompts than `cond`.
    """

    cond: Conditioning
    uncond: Conditioning
    rng: RandomStream
    step: int
    shape: tuple[int, ...]
    latents: Latents | None = None
    latents_cond: Conditioning | None = None
    prompts: tuple[str, ...] = ()
    pairs: Pairs | None = None

    def noise(self, purpose: str) -> Latents:
        """Standard normal noise of shape (B, *shape)."""
        return self.rng.normal(purpose, self.shape)

    def real(self) -> tuple[Latents, Conditioning]:
        """Return the real latents and their conditioning.

        Raises:
            UserError: the recipe has no images.
        """
        if self.latents is None or self.latents_cond is None:
            raise UserError("this method needs real images: set data.images")
        return self.latents, self.latents_cond
