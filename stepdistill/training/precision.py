"""Choice of the attention kernel on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

SHORT = 200
"""Number of queries up to which plain attention has the faster backward pass in bfloat16."""


class PlainAttentionWhereShort(TorchFunctionMode):
    """Use plain attention for short sequences that need a gradient; leave other calls alone.

    PyTorch's fused CPU attention is faster in float32 and without a gradient. In bfloat16 its backward pass takes up to
    eight times as long on the 16 to 64 tokens of a small latent.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            is_differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
            if is_differentiated and query.shape[-2] <= SHORT:
                with sdpa_kernel(SDPBackend.MATH):
                    return func(*args, **kwargs)
        return func(*args, **kwargs)


def attention_kernels(
    device: torch.device, precision: str, *, gradient_checkpointing: bool
) -> AbstractContextManager[object]:
    """Return a context that selects the faster attention kernel of each call; on a CPU in bf16 that is not always the fused one.

    With gradient checkpointing nothing changes: the mode does not reach the recomputation, which must use the same kernels as
    the forward pass.
    """
    if device.type != "cpu" or precision != "bf16" or gradient_checkpointing:
        return nullcontext()
    return PlainAttentionWhereShort()
