"""More than one process: the only file that knows.

Every process holds the whole backbone and trains on its share of each step's samples. Gradients of the player at turn are averaged in
one flat bucket after the backward pass. Wrapping the networks in DistributedDataParallel instead would arm its hooks in forwards that
must not synchronise (rollouts, frozen judges) and does not see the second stage of the backward; a LoRA's gradient is small, so
nothing is lost by sending it at the end.
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
    """Replace every gradient by its mean over the processes; missing ones count as zero."""
    if not is_distributed():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def share_of(size: int, rank: int, world: int) -> range:
    """The sample numbers of a step that belong to one process.

    >>> [list(share_of(4, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3]]
    """
    per_process = size // world
    return range(rank * per_process, (rank + 1) * per_process)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process."""
    if not is_distributed():
        return flag
    tensor = torch.tensor([float(flag)], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def barrier() -> None:
    """Wait for the other processes."""
    if is_distributed():
        dist.barrier()
