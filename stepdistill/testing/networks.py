"""Random weights that keep activations of order one, for comparing two implementations of a network."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fill_at_random(network: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite all weights and batch-norm statistics from a seed, in place; return the network."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)  # He's gain for ReLU
        elif name.endswith(("running_var", ".weight")):
            tensor.copy_(1 + 0.2 * noise.tanh())
        else:
            tensor.copy_(0.2 * noise)
    return network
