"""Where a process trains, and at which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, KwargsHandler

from stepdistill.errors import UserError
from stepdistill.training.recipe import TrainConfig

BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""What processors call their bf16 arithmetic, on x86 and on ARM; without it bf16 is emulated, some fifty times slower."""


def training_device(config: TrainConfig) -> torch.device:
    """Where this process trains.

    Raises:
        UserError: a device is asked for that is not there.
    """
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"train.device={config.device}, but torch sees no CUDA device; use train.device=cpu or auto"
        )
    return PartialState(cpu=is_on_cpu(config)).device or torch.device("cpu")


def is_on_cpu(config: TrainConfig) -> bool:
    """Whether the recipe asks for the CPU, or there is nothing else."""
    return config.device == "cpu" or not torch.cuda.is_available()


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself: every GPU is taken to, a processor is asked."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(unit)) for unit in BF16_UNITS)


def chosen_precision(precision: str, device: torch.device) -> str:
    """`no` or `bf16`: what `auto` stands for on a device; anything else is taken as it is.

    >>> chosen_precision("auto", torch.device("cuda"))
    'bf16'
    >>> chosen_precision("no", torch.device("cuda"))
    'no'
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_units(device) else "no"


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Device, processes and precision.

    Raises:
        UserError: a device is asked for that is not there.
    """
    precision = chosen_precision(config.mixed_precision, training_device(config))
    # Without the cache: a weight cast under no_grad would be reused, without its graph, in the forward that needs the gradient.
    handlers: list[KwargsHandler] = [AutocastKwargs(cache_enabled=False)]
    # One process may train twice, at two precisions: accelerate keeps the first one for good, unless told otherwise.
    AcceleratorState._reset_state()
    return Accelerator(cpu=is_on_cpu(config), mixed_precision=precision, kwargs_handlers=handlers)
