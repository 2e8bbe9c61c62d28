"""Device and precision of a process."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, KwargsHandler

from stepdistill.errors import UserError
from stepdistill.training.recipe import TrainConfig

BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""CPU capabilities with native bf16 arithmetic, on x86 and ARM. Without one, bf16 is emulated about fifty times slower."""


def training_device(config: TrainConfig) -> torch.device:
    """Return the device this process trains on.

    Raises:
        UserError: the requested device is not available.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"train.device={config.device}, but torch sees no CUDA device; use train.device=cpu or auto")
    return PartialState(cpu=is_on_cpu(config)).device or torch.device("cpu")


def is_on_cpu(config: TrainConfig) -> bool:
    """Whether to train on the CPU: by request, or for lack of a GPU."""
    return config.device == "cpu" or not torch.cuda.is_available()


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device has native bf16 arithmetic. GPUs are assumed to; a CPU is queried."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(unit)) for unit in BF16_UNITS)


def chosen_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto` to `no` or `bf16` for a device; return other values unchanged.

    >>> chosen_precision("auto", torch.device("cuda"))
    'bf16'
    >>> chosen_precision("no", torch.device("cuda"))
    'no'
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_units(device) else "no"


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Create the accelerator: device, processes and precision.

    Raises:
        UserError: the requested device is not available.
    """
    precision = chosen_precision(config.mixed_precision, training_device(config))
    # No cache: a weight cast under no_grad would be reused, without a graph, by the forward pass that needs its gradient.
    handlers: list[KwargsHandler] = [AutocastKwargs(cache_enabled=False)]
    # accelerate keeps the first precision of a process for good; a process may train twice, at two precisions.
    AcceleratorState._reset_state()
    return Accelerator(cpu=is_on_cpu(config), mixed_precision=precision, kwargs_handlers=handlers)
