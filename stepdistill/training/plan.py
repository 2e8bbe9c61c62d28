"""What a recipe will take, found from configurations alone: no weights are read and none are downloaded."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from stepdistill.assets import resolve_path
from stepdistill.denoisers.loading import family_of
from stepdistill.denoisers.roles import add_adapter
from stepdistill.errors import UserError
from stepdistill.training.recipe import Recipe

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def memory_estimate(recipe: Recipe) -> dict[str, Any]:
    """Parameters and GiB of each part, for one process.

    Activations are not in it: they depend on the resolution, the batch and gradient checkpointing.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    network, family = network_on_meta(recipe.model.pretrained_model_name_or_path)
    base = sum(p.numel() for p in network.parameters())
    trained = lora_size(network, recipe, family) if recipe.roles.mode == "shared" else base
    parts = sizes_in_bytes(recipe, base=base, trained=trained)
    return {
        "model": recipe.model.pretrained_model_name_or_path,
        "roles": recipe.roles.mode,
        "parameters": {"backbone": base, "trained_per_player": trained * recipe.distiller_config.num_experts},
        "gib": {name: round(size / 2**30, 3) for name, size in parts.items()},
        "total_gib": round(sum(parts.values()) / 2**30, 3),
        "not_included": "activations, text encoders, autoencoder, discriminator heads",
    }


def sizes_in_bytes(recipe: Recipe, *, base: int, trained: int) -> dict[str, int]:
    """Bytes of each part.

    Args:
        recipe: what is held, and how.
        base: parameters of the teacher's network.
        trained: parameters of one trained role: an adapter, or a copy.
    """
    config = recipe.distiller_config
    optimizer = 2 if recipe.train.use_8bit_adam else 8
    player = trained * (4 + 4 + optimizer)
    average = trained * 4
    return {
        "backbone (frozen)": base * BYTES[recipe.model.dtype],
        "student: weights, gradient, Adam": player * config.num_experts,
        "fake score: weights, gradient, Adam": player * config.num_fake_scores,
        "target: an average of the student": average * config.num_targets,
        "average of the student": average * config.num_experts if recipe.train.ema_decay else 0,
    }


def network_on_meta(name: str) -> tuple[nn.Module, Any]:
    """The denoising network of a pipeline without weights, and its family's denoiser class."""
    import diffusers

    source = str(resolve_path(name))
    try:
        index: Any = diffusers.DiffusionPipeline.load_config(source)
        family = family_of(str(index["_class_name"]))
        class_name = index[family.network_name][1]
        network_class = getattr(diffusers, class_name)
        config = network_class.load_config(source, subfolder=family.network_name)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the configuration of '{name}' cannot be read: {str(error).splitlines()[0]}; give a pipeline folder or a hub id"
        ) from error
    with torch.device("meta"):
        return network_class.from_config(config), family


def lora_size(network: nn.Module, recipe: Recipe, family: Any) -> int:
    """Parameters of one adapter."""
    adapted = copy.deepcopy(network)
    with torch.device("meta"):
        adapter = add_adapter(adapted, "student", recipe.roles, family.lora_targets)
    return sum(p.numel() for n, p in adapted.named_parameters() if f".{adapter}." in n)
