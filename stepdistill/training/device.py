"""Where a process trains, and at which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, KwargsHandler

from stepdistill.errors import UserError
from stepdistill.training.recipe import TrainConfig


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


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Device, processes and precision.

    Raises:
        UserError: a device is asked for that is not there.
    """
    training_device(config)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "no" if is_on_cpu(config) else "bf16"
    # Without the cache: a weight cast under no_grad would be reused, without its graph, in the forward that needs the gradient.
    handlers: list[KwargsHandler] = [AutocastKwargs(cache_enabled=False)]
    # One process may train twice, at two precisions: accelerate keeps the first one for good, unless told otherwise.
    AcceleratorState._reset_state()
    return Accelerator(cpu=is_on_cpu(config), mixed_precision=precision, kwargs_handlers=handlers)
