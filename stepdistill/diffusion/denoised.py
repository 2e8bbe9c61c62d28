"""The output of a denoiser, and the denoiser interface that samplers and solvers rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.base import NoiseSchedule
from stepdistill.typing import Latents, Times


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoiser's estimates at x_t, in float32 or wider; they satisfy alpha x0 + sigma eps = x_t.

    Attributes:
        x0: estimate of the clean latents, (B, *shape).
        eps: estimate of the noise, (B, *shape).
        t: times of the estimates, (B,).
    """

    x0: Latents
    eps: Latents
    t: Times


class DenoisingNetwork(Protocol):
    """The subset of `Denoiser` that samplers and solvers call."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule of the network."""
        ...

    def at(self, t: float) -> DenoisingNetwork:
        """Return the network to call at time t."""
        ...

    def __call__(self, x_t: Latents, t: Times, cond: Conditioning, guidance: Guidance | None = None) -> Denoised:
        """Return the estimates of x0 and eps at x_t."""
        ...
