"""Which attention kernel is used while gradients are needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the plain attention: the backward of the fused kernel is slower there at the lengths that a CPU can train."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
