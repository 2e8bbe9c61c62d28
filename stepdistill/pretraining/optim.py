"""Optimisers of the embedded teachers: AdamW, or Muon for hidden matrices and AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stepdistill.pretraining.recipe import Budget
from stepdistill.training.device import has_bf16_units

OUTER_LAYERS = ("embedding", "conv_in", "conv_out", "pos_embed")  # substrings of parameter names
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, *, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """Approximate the nearest orthogonal matrix by Newton-Schulz iteration; singular values end up near 0.7 to 1.2.

    >>> values = torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([3.0, 1.0])), dtype=torch.float32))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    # x <- a x + b (x x^T) x + c (x x^T)^2 x, with the coefficients of https://kellerjordan.github.io/posts/muon/
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / wide.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if wide is not matrix else x).to(matrix.dtype)


class FlattenedMuon(torch.optim.Muon):
    """`torch.optim.Muon` for weights of any shape, viewed as matrices (out channels, rest).

    The matrices share memory with the weights. Updates are scaled to the RMS of AdamW's, so that both optimisers
    use one learning rate (`match_rms_adamw`, https://arxiv.org/abs/2502.16982, section 2.2). The step is not
    PyTorch's: that always computes in bf16, which is slow on CPUs without bf16 units, and accepts only 2D
    parameters.

    >>> weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
    >>> optimizer = FlattenedMuon([weight], lr=0.1, weight_decay=0.0)
    >>> weight.grad = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> optimizer.step()
    >>> round(float(weight.detach().square().mean().sqrt()), 2)  # 0.2 times the learning rate, nearly
    0.02
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        self.weights = list(weights)
        self.matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in self.weights]
        is_half = len(self.weights) > 0 and has_bf16_units(self.weights[0].device)
        self.dtype = torch.bfloat16 if is_half else torch.float32
        super().__init__(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        beta, rate = group["momentum"], group["lr"]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            if weight.grad is None:
                continue
            gradient = weight.grad.flatten(1)
            momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            momentum.lerp_(gradient, 1 - beta)
            # Nesterov momentum, decoupled weight decay, and 0.2 sqrt(max(rows, columns)) to match AdamW's RMS of 0.2.
            update = orthogonalize(gradient.lerp(momentum, beta), dtype=self.dtype)
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(update, alpha=-0.2 * rate * math.sqrt(max(matrix.shape)))


def is_hidden_matrix(name: str, weight: nn.Parameter) -> bool:
    """Return whether Muon applies: a matrix or kernel that is no embedding and no first or last layer.

    >>> is_hidden_matrix("unet.conv_in.weight", nn.Parameter(torch.zeros(4, 4, 3, 3)))
    False
    """
    return weight.ndim > 1 and not any(part in name for part in OUTER_LAYERS)


def build_optimizers(networks: nn.Module, budget: Budget) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers of a run by name; each trainable weight belongs to exactly one."""
    named = [(name, weight) for name, weight in networks.named_parameters() if weight.requires_grad]
    use_muon = {name: budget.optimizer == "muon" and is_hidden_matrix(name, weight) for name, weight in named}
    by_muon = [weight for name, weight in named if use_muon[name]]
    rest = [weight for name, weight in named if not use_muon[name]]
    groups = [
        {"params": [weight for weight in rest if weight.ndim > 1], "weight_decay": budget.weight_decay},
        {"params": [weight for weight in rest if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=budget.learning_rate, betas=budget.betas, fused=True)
    if not by_muon:
        return {"optimizer": adamw}
    muon = FlattenedMuon(by_muon, lr=budget.learning_rate, weight_decay=budget.weight_decay)
    return {"optimizer": adamw, "muon": muon}
