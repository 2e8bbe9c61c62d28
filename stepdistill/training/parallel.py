"""Data parallelism; no other file knows about processes.

Every process holds the whole backbone and trains on its share of each step's samples. The gradients of the turn's player are averaged
in one flat bucket after the backward pass. DistributedDataParallel would arm its hooks in forward passes that must not synchronise
(rollouts, frozen networks) and would miss the second stage of the backward pass; a LoRA's gradient is small, so reducing it at the end
costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes.

    A gradient missing on some processes counts as zero there. One missing on all of them stays missing: with zeros, Adam's momentum
    would move parameters that this step did not train, such as those of another phase's expert.
    """
    if not is_distributed():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    is_held = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
    flat = torch.cat([gradient.flatten().float() for gradient in gradients] + [is_held.to(gradients[0].device)])
    dist.all_reduce(flat)
    # Read from the device only if a gradient is missing here; otherwise every count is known to be positive.
    counts = is_held if bool(is_held.all()) else flat[-len(parameters) :].cpu()
    flat /= dist.get_world_size()
    offset = 0
    for parameter, gradient, count in zip(parameters, gradients, counts.tolist(), strict=True):
        if count > 0:
            mean = flat[offset : offset + gradient.numel()].view_as(gradient)
            parameter.grad = gradient.copy_(mean)
        offset += gradient.numel()


def share_of(size: int, rank: int, world: int) -> range:
    """Return the sample numbers of a step that belong to one process.

    >>> [list(share_of(4, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3]]
    """
    per_process = size // world
    return range(rank * per_process, (rank + 1) * per_process)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any process."""
    if not is_distributed():
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def barrier() -> None:
    """Wait for the other processes."""
    if is_distributed():
        dist.barrier()
