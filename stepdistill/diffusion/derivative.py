"""Directional derivatives of a network in (x, t): by forward-mode AD, by finite differences, or by both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import group_norm
from torch.overrides import TorchFunctionMode

from stepdistill.diffusion.choices import Differentiation
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.typing import Latents, Times

Field = Callable[[Latents, Times], Latents]


@torch.no_grad()
def directional_derivative(
    function: Field, x: Latents, t: Times, dx: Latents, dt: Times, *, how: Differentiation = "jvp", step: float = 5e-4
) -> Latents:
    """Return d/dh function(x + h dx, t + h dt) at h = 0, without autocast and without a graph.

    Args:
        dt: must be non-negative.
        how: "semi" keeps the time embedding out of forward-mode AD: its frequencies of up to 1 per training
            index are ill-conditioned in half precision. "finite" needs no forward-mode AD at all.
        step: h of the finite differences, by default half a training index of 1000. Rounding errs by eps / h
            and truncation by h^2; float32 alone would favour h = eps^(1/3) = 5e-3, but the time embedding
            turns by up to 1000 h rad over a step. t stays within [0, 1].

    >>> x, t = torch.tensor([[3.0]]), torch.tensor([0.5])
    >>> directional_derivative(lambda x, t: x**2 * t[:, None], x, t, torch.ones(1, 1), torch.ones(1))
    tensor([[12.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        if how in ("finite", "backward"):
            return _difference(function, x, t, dx, dt, step, ahead=step if how == "finite" else 0.0)
        # Math SDPA: the fused attention kernels have no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH), _ContiguousNorms():
            if how == "jvp":
                return jvp(function, (x, t), (dx, dt))[1]
            in_x = jvp(lambda y: function(y, t), (x,), (dx,))[1]
        return in_x + _difference(function, x, t, torch.zeros_like(dx), dt, step, ahead=step)


class _ContiguousNorms(TorchFunctionMode):
    """Make the inputs of group norms contiguous: their forward-mode derivative requires it (torch 2.13)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _difference(
    function: Field, x: Latents, t: Times, dx: Latents, dt: Times, behind: float, *, ahead: float
) -> Latents:
    """Difference quotient over [-behind, ahead], shortened where t would leave [0, 1]; at t = 0 always forward."""
    # tiny: at dt = 0 the quotients are huge (or 0 at t = 0), and the clamps keep the full step.
    slope = dt.clamp(min=torch.finfo(dt.dtype).tiny)
    before, room = (t / slope).clamp(max=behind), (1 - t) / slope
    after = torch.where(before > 0, room.clamp(max=ahead), room.clamp(max=behind))
    later = function(x + per_sample(after, x) * dx, t + after * dt)
    earlier = function(x - per_sample(before, x) * dx, t - before * dt)
    return (later - earlier) / per_sample(after + before, x)
