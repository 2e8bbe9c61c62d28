"""Students of several experts: one LoRA file per expert, and the expert of each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stepdistill.errors import UserError
from stepdistill.export.lora import lora_layers, save_diffusers_lora

if TYPE_CHECKING:
    from stepdistill.denoisers.base import Denoiser
    from stepdistill.diffusion.sampler import StudentSampler
    from stepdistill.distillers.base import Distiller


def expert_names(distiller: Distiller) -> dict[str, Denoiser]:
    """Return the student's networks as `phase_1`, `phase_2`, ..., from noise to data."""
    return {f"phase_{i}": network for i, network in enumerate(distiller.students().values(), start=1)}


def step_adapters(experts: Mapping[str, Denoiser], sampler: StudentSampler) -> list[str]:
    """Return the name of each step's expert; empty for a student of one network.

    Raises:
        UserError: the experts are full copies, which a stock pipeline cannot switch between.
    """
    if len(experts) == 1:
        return []
    if any(expert.adapter is None for expert in experts.values()):
        raise UserError("full-copy experts cannot be exported to a stock pipeline; train with roles.mode=shared")
    names = {id(expert): name for name, expert in experts.items()}
    first = next(iter(experts.values()))
    return [names[id(first.at(t))] for t in sampler.times]


def save_experts(
    experts: Mapping[str, Denoiser], component: str, folder: Path, header: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Write `<name>.safetensors` for each expert."""
    for name, expert in experts.items():
        layers = lora_layers(expert.network, str(expert.adapter), dtype)
        save_diffusers_lora(layers, component, folder / f"{name}.safetensors", header)
