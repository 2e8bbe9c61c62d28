"""Diagnose the environment: versions, devices and known installation problems."""

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
    """Return versions, devices and warnings as a JSON-serialisable document."""
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
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """Return the CUDA devices."""
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append({"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)})
    return found


def warnings_found() -> list[str]:
    """Return a line for each known problem of this environment, with its fix."""
    warnings = []
    if importlib.util.find_spec("torchvision") is not None and not torchvision_works():
        warnings.append(
            "torchvision does not match this torch build and breaks the import of transformers and diffusers; pip "
            "uninstall torchvision, or install both from the same index"
        )
    if importlib.util.find_spec("xformers") is not None and not torch.cuda.is_available():
        warnings.append("xformers is installed but there is no CUDA device; its attention will not be used")
    if not torch.cuda.is_available():
        warnings.append("no CUDA device: real models will be slow; use the embedded emoji teachers")
    return warnings


def torchvision_works() -> bool:
    """Return whether torchvision can be imported with this torch."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError):
        return False
    return True
