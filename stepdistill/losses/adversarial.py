"""GAN losses on logits (larger means more real) and the R1 gradient penalty. All are means over the batch.

The optimal discriminator's logit is log r with r = p_real / p_fake at the input. The generator's gradient is then
-(1 / (1 + r)) grad log r for the non-saturating loss, and -grad log r, that of the reverse KL, for the hinge loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from stepdistill.diffusion.schedules.base import at_least_float32
from stepdistill.typing import Latents


def non_saturating_generator(logits: Tensor) -> Tensor:
    """softplus(-D(fake)) (https://arxiv.org/abs/1406.2661, section 3).

    >>> non_saturating_generator(torch.zeros(3))
    tensor(0.6931)
    """
    return softplus(-at_least_float32(logits)).mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-D(real)) + softplus(D(fake)).

    >>> non_saturating_discriminator(torch.zeros(3), torch.zeros(3))
    tensor(1.3863)
    """
    return softplus(-at_least_float32(real)).mean() + softplus(at_least_float32(fake)).mean()


def hinge_generator(logits: Tensor) -> Tensor:
    """-D(fake).

    >>> hinge_generator(torch.tensor([1.0, 3.0]))
    tensor(-2.)
    """
    return -at_least_float32(logits).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """relu(1 - D(real)) + relu(1 + D(fake)) (https://arxiv.org/abs/1802.05957, eq. 16).

    >>> hinge_discriminator(torch.tensor([2.0]), torch.tensor([-0.5]))
    tensor(0.5000)
    """
    return relu(1 - at_least_float32(real)).mean() + relu(1 + at_least_float32(fake)).mean()


def r1_penalty(logits: Tensor, inputs: Latents | Sequence[Latents], *, gamma: float = 1.0) -> Tensor:
    """gamma / 2 |grad D|^2 per sample, by double backward (https://arxiv.org/abs/1801.04406, eq. 9).

    `inputs` (a tensor, or several features of the same samples) must require a gradient and `logits` be
    computed from it. Several logits of one sample are averaged.

    >>> x = torch.zeros(5, 3, requires_grad=True)
    >>> r1_penalty(x @ torch.tensor([1.0, 2.0, 2.0]), x, gamma=2.0).item()
    9.0
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    gradients = torch.autograd.grad(_per_sample_mean(logits).sum(), inputs, create_graph=True)
    squares = [at_least_float32(gradient).square().flatten(1).sum(1) for gradient in gradients]
    return 0.5 * gamma * torch.stack(squares).sum(0).mean()


def _per_sample_mean(logits: Tensor) -> Tensor:
    return logits.flatten(1).mean(1) if logits.ndim > 1 else logits
