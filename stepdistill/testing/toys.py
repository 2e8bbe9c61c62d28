"""Small trainable denoisers: the two-parameter student, the Gaussian fake score, an MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.prediction import Prediction, from_x0_eps
from stepdistill.diffusion.schedules.base import NoiseSchedule, per_sample
from stepdistill.losses.score import denoising_loss
from stepdistill.testing.prompts import Prompts
from stepdistill.typing import Latents, Times


def gaussian_posterior(x_t: Latents, alpha: Times, sigma: Times, mean: Tensor, std: Tensor) -> tuple[Latents, Latents]:
    """Return (x0, eps) of Gaussian data N(mean, std^2) at x_t, without dividing by alpha or sigma.

    >>> half, zero, one = torch.tensor([0.5]), torch.zeros(1), torch.ones(1)
    >>> gaussian_posterior(torch.ones(1, 1), half, half, mean=zero, std=one)
    (tensor([[1.]]), tensor([[1.]]))
    """
    alpha, sigma = per_sample(alpha, x_t), per_sample(sigma, x_t)
    # E[x0 | x_t] = m + alpha S^2 / V (x_t - alpha m),  E[eps | x_t] = sigma / V (x_t - alpha m),  V = Var x_t
    residual = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    return mean + alpha * std**2 * residual, sigma * residual


class ToyDenoiser(Denoiser):
    """Base class of the toys: a state of any shape and the teacher's prompts."""

    def __init__(
        self, shape: Sequence[int], schedule: NoiseSchedule, prediction: Prediction, prompts: Prompts
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.schedule = schedule
        self.prediction = prediction
        self.prompts = prompts
        self.is_trainable = True

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.prompts.encode(prompts)

    def uncond(self, n: int) -> Conditioning:
        return self.prompts.encode([""] * n)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return self.shape


class AffineDenoiser(ToyDenoiser):
    """x0 = gain x_t + bias elementwise, independent of t and prompt; maps pure noise to N(bias, gain^2)."""

    def __init__(self, shape: Sequence[int], schedule: NoiseSchedule, *, prompts: Prompts) -> None:
        super().__init__(shape, schedule, "x0", prompts)
        self.gain = nn.Parameter(torch.ones(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.gain * x_t + self.bias


class GaussianDenoiser(ToyDenoiser):
    """The exact denoiser of a Gaussian with learnable mean and log std: a fake score without model error."""

    def __init__(
        self, mean: Tensor, std: Tensor, schedule: NoiseSchedule, *, prompts: Prompts, prediction: Prediction = "v"
    ) -> None:
        super().__init__(mean.shape, schedule, prediction, prompts)
        self.mean = nn.Parameter(mean.clone())
        self.log_std = nn.Parameter(std.log().expand_as(mean).clone())

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x0, eps = gaussian_posterior(x_t, alpha, sigma, self.mean, self.log_std.exp())
        return from_x0_eps(self.prediction, x0, eps, alpha, sigma)


class MLP(nn.Module):
    """SiLU layers on the flattened state, the time and an optional conditioning vector."""

    def __init__(self, size: int, cond_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(size + 3 + cond_dim, width)
        self.hidden = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(depth - 1))
        self.outputs = nn.Sequential(nn.SiLU(), nn.Linear(width, size))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Apply to x (B, D), t (B,) and cond (B, C)."""
        parts = [x, t[:, None], torch.sin(torch.pi * t)[:, None], torch.cos(torch.pi * t)[:, None]]
        hidden = self.inputs(torch.cat(parts if cond is None else [*parts, cond], dim=1))
        for layer in self.hidden:
            hidden = layer(hidden)
        return self.outputs(hidden)


class MLPDenoiser(ToyDenoiser):
    """A small network for low-dimensional data, with a feature tap per hidden layer.

    The input is scaled to unit variance for data of unit variance. `cond_dim` is the size of the conditioning's
    only tensor; 0 ignores the prompt.
    """

    def __init__(
        self,
        shape: Sequence[int],
        schedule: NoiseSchedule,
        *,
        prompts: Prompts,
        prediction: Prediction = "v",
        cond_dim: int = 0,
        width: int = 64,
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__(shape, schedule, prediction, prompts)
        self.cond_dim = cond_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = MLP(torch.Size(self.shape).numel(), cond_dim, width, depth)
        self.feature_layers = tuple(f"hidden.{i}" for i in range(depth - 1))

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        norm = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t))[:, None].to(x_t.dtype)
        vector = next(iter(cond.tensors.values())).flatten(1).to(x_t) if self.cond_dim else None
        return self.network(x_t.flatten(1) / norm, t.to(x_t.dtype), vector).view_as(x_t)

    def select(self, output: Tensor) -> Tensor:
        """Return a hidden vector as a single token (B, 1, C)."""
        return output[:, None]


def fit(
    network: Denoiser,
    teacher: Denoiser,
    data: Latents,
    cond: Conditioning,
    *,
    num_steps: int = 1000,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Denoiser:
    """Regress a toy network on the teacher's predictions at noised `data`; `cond` has one row per sample."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.trainable_parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(data), (batch_size,), generator=generator)
        t = torch.rand(batch_size, generator=generator)
        eps = torch.randn(data[rows].shape, generator=generator)
        x_t = teacher.schedule.add_noise(data[rows], eps, t)
        with torch.no_grad():
            exact = teacher(x_t, t, cond[rows])
        alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
        target = from_x0_eps(network.prediction, exact.x0, exact.eps, alpha, sigma)
        optimizer.zero_grad()
        denoising_loss(teacher.schedule, network.prediction, network(x_t, t, cond[rows]), target).backward()
        optimizer.step()
        decay.step()
    return network
