"""Tiny pipelines of every family; network outputs are random but sizeable, so that equality means something."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from stepdistill.denoisers import load_teacher
from stepdistill.testing.tiny import tiny_pipeline


@dataclass(frozen=True)
class Family:
    """What is known of a family's tiny network: shape of a tapped feature, last layer, some adapted layers."""

    feature: tuple[int, ...]
    last_layer: str
    adapted: frozenset[str]


# 8 x 8 latents; the U-Nets downsample once, SD3 patches by 2. The text has another length in both.
UNET = Family((16, 4, 4), "conv_out", frozenset({"conv1", "to_q"}))
FAMILIES = {
    "sd": UNET,
    "sd-v": UNET,
    "sdxl": UNET,
    "sd3": Family((16, 16), "proj_out", frozenset({"to_add_out", "add_q_proj", "to_v"})),
}


def perturbed(role):
    """Move a role's parameters off their start, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in role.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return role


def state_of(teacher):
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(3, *teacher.latent_shape(), generator=generator)
    return x_t, torch.tensor([0.3, 0.75, 1.0]), teacher.encode(["a cat", "dog on blue", "red sun"])


@pytest.fixture(scope="session", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def family(name):
    return FAMILIES[name]


@pytest.fixture
def teacher(name):
    """A fresh teacher, for tests that add roles or change its pipeline."""
    return load_teacher(tiny_pipeline(name))


@pytest.fixture(scope="session")
def frozen(name):
    """A teacher shared by all tests that do not modify it."""
    return load_teacher(tiny_pipeline(name))


@pytest.fixture
def state(teacher):
    """(x_t, t, cond) of three samples."""
    return state_of(teacher)


@pytest.fixture
def frozen_state(frozen):
    """(x_t, t, cond) of three samples, for the shared teacher."""
    return state_of(frozen)


@pytest.fixture(scope="session")
def trained():
    """Move a role's parameters off their start, as training would."""
    return perturbed
