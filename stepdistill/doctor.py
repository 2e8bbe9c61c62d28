"""What this machine has, and the traps that cost people an afternoon."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

from stepdistill.training.device import has_bf16_units

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors", "bitsandbytes", "xformers", "open_clip_torch",
)  # fmt: skip


def diagnose() -> dict[str, Any]:
    """Versions, devices and warnings as one JSON-able document."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "devices": devices(),
        "cpu": {
            "cores": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "bf16 units": has_bf16_units(torch.device("cpu")),
        },
        "warnings": warnings_found(),
    }


def installed_version(name: str) -> str | None:
    """The version of a distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """The CUDA devices torch sees."""
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append({"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)})
    return found


def warnings_found() -> list[str]:
    """One line for each known trap that this machine is in; each says the way out."""
    warnings = []
    if importlib.util.find_spec("torchvision") is not None and not torchvision_works():
        warnings.append(
            "torchvision is installed beside a torch of another build and breaks transformers and diffusers at import; "
            "pip uninstall torchvision, or install both from the same channel"
        )
    if importlib.util.find_spec("xformers") is not None and not torch.cuda.is_available():
        warnings.append("xformers is installed but there is no CUDA device; its attention will not be used")
    if not torch.cuda.is_available():
        warnings.append(
            "no CUDA device: real models will be slow; the embedded emoji teachers are made for this"
        )
    return warnings


def torchvision_works() -> bool:
    """Whether torchvision can be imported beside this torch."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError):
        return False
    return True
