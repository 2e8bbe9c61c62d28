"""A method's target network: a frozen moving average of the student."""

from __future__ import annotations

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.config import Roles


def create_target(student: Denoiser, roles: Roles) -> Denoiser:
    """Return a frozen role with the student's present weights: its own adapter, or a copy."""
    target = student.role("target", roles)
    target.load_role_state_dict(student.role_state_dict())
    for parameter in target.trainable_parameters():
        parameter.requires_grad_(False)
    return target


@torch.no_grad()
def update_target(target: Denoiser, student: Denoiser, decay: float) -> None:
    """target <- decay target + (1 - decay) student, in one call for all tensors."""
    averages: list[Tensor] = list(target.trainable_parameters())
    present: list[Tensor] = list(student.trainable_parameters())
    torch._foreach_lerp_(averages, present, 1.0 - decay)
