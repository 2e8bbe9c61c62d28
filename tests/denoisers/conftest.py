"""Tiny pipelines of every family; network outputs are random but sizeable, so that equality means something."""

from __future__ import annotations

import pytest
import torch

from stepdistill.denoisers import load_teacher
from stepdistill.testing.tiny import tiny_pipeline

FAMILIES = ("sd", "sd-v", "sdxl", "sd3")


@pytest.fixture(params=FAMILIES)
def teacher(request):
    """A fresh teacher per test: roles leave adapters on the network."""
    return load_teacher(tiny_pipeline(request.param))


@pytest.fixture
def state(teacher):
    """(x_t, t, cond) of three samples."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(3, *teacher.latent_shape(), generator=generator)
    return x_t, torch.tensor([0.3, 0.75, 1.0]), teacher.encode(["a cat", "dog on blue", "red sun"])


@pytest.fixture
def trained():
    """Move a role's parameters off their start, as training would."""

    def move(role):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in role.trainable_parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return role

    return move
