"""The derivative of a network along a direction of (x, t): exact, exact in x alone, or by differences. No graph is kept."""

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
    function: Field,
    x: Latents,
    t: Times,
    dx: Latents,
    dt: Times,
    *,
    how: Differentiation = "jvp",
    step: float = 5e-4,
) -> Latents:
    """d/dh function(x + h dx, t + h dt) at h = 0, with dt >= 0, computed without autocast.

    "semi" spares forward-mode the time embedding, whose frequencies of up to 1 per training index are ill-conditioned in half
    precision; "finite" needs no forward-mode at all. `step` is the h of the differences; t stays within [0, 1].

    >>> x, t = torch.tensor([[3.0]]), torch.tensor([0.5])
    >>> directional_derivative(lambda x, t: x**2 * t[:, None], x, t, torch.ones(1, 1), torch.ones(1))
    tensor([[12.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        if how in ("finite", "backward"):
            return _difference(function, x, t, dx, dt, step, ahead=step if how == "finite" else 0.0)
        # Fused attention kernels have no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH), _ContiguousNorms():
            if how == "jvp":
                return jvp(function, (x, t), (dx, dt))[1]
            in_x = jvp(lambda y: function(y, t), (x,), (dx,))[1]
        return in_x + _difference(function, x, t, torch.zeros_like(dx), dt, step, ahead=step)


class _ContiguousNorms(TorchFunctionMode):
    """Hands group norms contiguous inputs: their forward-mode derivative (torch 2.13) takes no others."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _difference(
    function: Field, x: Latents, t: Times, dx: Latents, dt: Times, behind: float, *, ahead: float
) -> Latents:
    """From so far behind to so far ahead, or less far where t would leave [0, 1]; at t = 0, ahead in any case."""
    slope = dt.clamp(min=torch.finfo(dt.dtype).tiny)
    before, room = (t / slope).clamp(max=behind), (1 - t) / slope
    after = torch.where(before > 0, room.clamp(max=ahead), room.clamp(max=behind))
    later = function(x + per_sample(after, x) * dx, t + after * dt)
    earlier = function(x - per_sample(before, x) * dx, t - before * dt)
    return (later - earlier) / per_sample(after + before, x)
