"""Closed-form teachers: exact estimates, flow maps and samples on any schedule.

A Gaussian N(m, S^2) noised to t is N(alpha m, V) with V = alpha^2 S^2 + sigma^2, hence
  x0_hat = m + alpha S^2 / V (x - alpha m),  eps_hat = sigma / V (x - alpha m),
  flow map X(x, t, s) = alpha_s m + sqrt(V_s / V_t) (x - alpha_t m).
A mixture weights its components' estimates by their posterior probabilities; in one dimension its flow map is
the monotone quantile map CDF_s^-1(CDF_t(x)). At s = 0 both maps return data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.config import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.prediction import Prediction, from_x0_eps
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.testing.prompts import ComponentPrompts, MeanPrompts
from stepdistill.testing.toys import AffineDenoiser, GaussianDenoiser, MLPDenoiser, gaussian_posterior
from stepdistill.typing import Latents, Times

_BISECTIONS = 80


class GaussianTeacher(Denoiser):
    """The exact denoiser of N(mean, std^2); the prompt selects the mean.

    Args:
        mean: conditional mean, of the shape of one sample (a number: shape (1,)).
        std: standard deviation, a number or one per element.
        schedule: noise schedule; default: flow.
        prediction: output of `forward_network`; "v" is well-conditioned at both ends of every schedule.
        uncond_mean: mean of the empty prompt; default: `mean`.
        named_means: means of particular prompts.

    >>> teacher = GaussianTeacher(1.0, 0.5)
    >>> x = torch.tensor([[0.3]])
    >>> teacher.flow_map(x, torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([[1.1500]])
    """

    def __init__(
        self,
        mean: float | Tensor,
        std: float | Tensor,
        schedule: NoiseSchedule | None = None,
        *,
        prediction: Prediction = "v",
        uncond_mean: float | Tensor | None = None,
        named_means: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.schedule = FlowSchedule() if schedule is None else schedule
        self.prediction = prediction
        self.mean = _sample_shaped(mean)
        self.std = _sample_shaped(std).expand_as(self.mean)
        uncond_mean = self.mean if uncond_mean is None else _sample_shaped(uncond_mean).expand_as(self.mean)
        self.prompts = MeanPrompts(self.mean, uncond_mean, named_means or {})

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0, eps = gaussian_posterior(x_t, alpha, sigma, cond["mean"].to(x_t), self.std.to(x_t))
        return from_x0_eps(self.prediction, x0, eps, alpha, sigma)

    def flow_map(self, x_t: Latents, t: Times, s: Times, cond: Conditioning | None = None) -> Latents:
        """Solve the ODE exactly from x_t at t to s; for a guided ODE pass the guided mean as `cond`."""
        mean = (self.mean if cond is None else cond["mean"]).to(x_t)
        (alpha_t, var_t), (alpha_s, var_s) = self._marginal(t, x_t), self._marginal(s, x_t)
        return alpha_s * mean + (var_s / var_t).sqrt() * (x_t - alpha_t * mean)

    def sample(self, n: int, *, seed: int = 0, cond: Conditioning | None = None) -> Latents:
        """Draw n samples of the data."""
        noise = torch.randn(n, *self.mean.shape, generator=torch.Generator().manual_seed(seed))
        return (self.mean if cond is None else cond["mean"]) + self.std * noise

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.prompts.encode(prompts)

    def uncond(self, n: int) -> Conditioning:
        return self.prompts.encode([""] * n)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    def role(self, name: str, roles: Roles) -> Denoiser:
        """Return an affine student initialised to the identity, or a Gaussian fake score equal to the teacher."""
        if name == "student":
            return AffineDenoiser(self.latent_shape(), self.schedule, prompts=self.prompts)
        return GaussianDenoiser(self.mean, self.std, self.schedule, prompts=self.prompts)

    def _marginal(self, t: Times, x: Latents) -> tuple[Tensor, Tensor]:
        alpha, sigma = (per_sample(level, x) for level in self.schedule.level(t))
        return alpha, alpha**2 * self.std.to(x) ** 2 + sigma**2


class MixtureTeacher(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians; a prompt lists components, "" selects all.

    Args:
        weights: (K,) probabilities.
        means: (K, *shape).
        stds: (K,) standard deviations.
        schedule: noise schedule; default: flow.
        prediction: output of `forward_network`.

    >>> teacher = MixtureTeacher([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> teacher(torch.zeros(1, 1), torch.tensor([0.5]), teacher.encode(["1"])).x0
    tensor([[0.9901]])
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float],
        schedule: NoiseSchedule | None = None,
        *,
        prediction: Prediction = "v",
    ) -> None:
        super().__init__()
        self.schedule = FlowSchedule() if schedule is None else schedule
        self.prediction = prediction
        weights = torch.as_tensor(weights)
        self.weights = weights / weights.sum()
        self.means, self.stds = torch.as_tensor(means), torch.as_tensor(stds)
        if not len(self.weights) == len(self.means) == len(self.stds):
            raise ValueError("a mixture needs as many weights as means and stds")
        self.prompts = ComponentPrompts(self.weights)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        weights, means = cond["weights"].to(x_t), self.means.to(x_t).flatten(1)
        x = x_t.flatten(1)[:, None]  # (B, 1, D)
        a, sd = alpha[:, None, None], sigma[:, None, None]
        var = a**2 * self.stds.to(x_t)[:, None] ** 2 + sd**2  # (B, K, 1)
        residual = x - a * means  # (B, K, D)
        # p(k | x) ~ w_k N(x; alpha m_k, V_k), up to a factor that all components share
        log_density = -0.5 * (residual**2 / var + var.log()).sum(-1)
        posterior = torch.softmax(weights.log() + log_density, dim=1)[..., None]
        x0 = (posterior * (means + a * self.stds.to(x_t)[:, None] ** 2 / var * residual)).sum(1)
        eps = (posterior * sd / var * residual).sum(1)
        return from_x0_eps(self.prediction, x0.view_as(x_t), eps.view_as(x_t), alpha, sigma)

    def cdf(self, x: Latents, t: Times, cond: Conditioning | None = None) -> Latents:
        """Return the distribution function of x_t for one-dimensional data, in float64."""
        if self.means[0].numel() != 1:
            raise ValueError("cdf and flow_map need one-dimensional data")
        alpha, sigma = (level[:, None].double() for level in self.schedule.level(t))
        std = (alpha**2 * self.stds.double() ** 2 + sigma**2).sqrt()  # (B, K)
        mean = alpha * self.means.double().flatten()
        weights = self.weights[None] if cond is None else cond["weights"]
        below = torch.special.ndtr((x.double().flatten(1) - mean) / std)
        return (weights.double() * below).sum(1).view_as(x)

    def flow_map(self, x_t: Latents, t: Times, s: Times, cond: Conditioning | None = None) -> Latents:
        """Solve the ODE exactly from x_t at t to s, by the quantile map; one-dimensional data only."""
        level = self.cdf(x_t, t, cond)
        _, sigma = self.schedule.level(s)
        # All quantiles that float64 resolves lie within 12 standard deviations of some mean.
        reach = self.means.abs().max().double() + 12 * (self.stds.max().double() + sigma.double().max())
        lo, hi = torch.full_like(level, -reach.item()), torch.full_like(level, reach.item())
        for _ in range(_BISECTIONS):
            middle = (lo + hi) / 2
            below = self.cdf(middle, s, cond) < level
            lo, hi = torch.where(below, middle, lo), torch.where(below, hi, middle)
        return ((lo + hi) / 2).to(x_t.dtype)

    def sample(self, n: int, *, seed: int = 0, cond: Conditioning | None = None) -> Latents:
        """Draw n samples of the data."""
        generator = torch.Generator().manual_seed(seed)
        weights = self.weights.expand(n, -1) if cond is None else cond.expand(n)["weights"]
        component = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(n, *self.means.shape[1:], generator=generator)
        return self.means[component] + per_sample(self.stds[component], noise) * noise

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.prompts.encode(prompts)

    def uncond(self, n: int) -> Conditioning:
        return self.prompts.encode([""] * n)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def role(self, name: str, roles: Roles) -> Denoiser:
        """Return an untrained MLP; `fit` initialises it to the teacher."""
        return MLPDenoiser(
            self.latent_shape(),
            self.schedule,
            prompts=self.prompts,
            cond_dim=len(self.weights),
            seed=0 if name == "student" else 1,
        )


def _sample_shaped(value: float | Tensor) -> Tensor:
    return torch.atleast_1d(torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float32))
