"""Memory estimate of a recipe from shapes alone: no weights are read or downloaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepdistill.assets import resolve_path
from stepdistill.denoisers.config import Roles
from stepdistill.denoisers.networks import NETWORKS
from stepdistill.errors import UserError
from stepdistill.training.recipe import Recipe

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def memory_estimate(recipe: Recipe) -> dict[str, Any]:
    """Estimate parameters and GiB of each part, for one process.

    Activations are not included: they depend on resolution, batch size and gradient checkpointing.

    Raises:
        UserError: the model cannot be read.
    """
    shapes = network_shapes(recipe.model.pretrained_model_name_or_path)
    base = shapes.num_parameters
    trained = shapes.lora_parameters(recipe.roles) if recipe.roles.mode == "shared" else base
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
    """Return the bytes of each part.

    Args:
        recipe: the run.
        base: parameters of the teacher's network.
        trained: parameters of one trained role: an adapter or a copy.
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


@dataclass(frozen=True)
class NetworkShapes:
    """The shapes of a network's weights, and the layers that a LoRA adapts by default."""

    weights: dict[str, tuple[int, ...]]
    lora_targets: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        return sum(math.prod(shape) for shape in self.weights.values())

    def lora_parameters(self, roles: Roles) -> int:
        """Parameters of one adapter: rank (in + out) per linear layer, rank (in k^2 + out) per k x k convolution.

        Raises:
            UserError: no layer has a target's name.
        """
        targets = tuple(roles.target_modules or self.lora_targets)
        layers = {name.removesuffix(".weight"): shape for name, shape in self.weights.items() if len(shape) > 1}
        shapes = [
            shape
            for name, shape in layers.items()
            if any(name == target or name.endswith(f".{target}") for target in targets)
        ]
        if not shapes:
            raise UserError(
                f"roles.target_modules matches no layer of the network: {', '.join(targets)}; "
                "omit it to adapt the family's default layers"
            )
        return sum(roles.rank * (math.prod(shape[1:]) + shape[0]) for shape in shapes)


def network_shapes(name: str) -> NetworkShapes:
    """Read the shapes of a pipeline's network: from the headers of its weight files, else from its configuration.

    The headers need no torch. The configuration is built into a network without weights by diffusers.

    Raises:
        UserError: the pipeline cannot be read.
    """
    folder = resolve_path(name)
    index = folder / "model_index.json"
    if index.is_file():
        pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        if pipeline in NETWORKS:
            component, targets = NETWORKS[pipeline]
            files = sorted((folder / component).glob("*.safetensors"))
            if files:
                return NetworkShapes(weight_shapes(files), targets)
    return shapes_from_configuration(name)


def weight_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes by name from the headers of safetensors files: 8 bytes of length, then JSON."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def shapes_from_configuration(name: str) -> NetworkShapes:
    """Build the network of a pipeline on the meta device; only configurations are downloaded."""
    import diffusers
    import torch

    from stepdistill.denoisers.loading import family_of

    try:
        index: Any = diffusers.DiffusionPipeline.load_config(str(resolve_path(name)))
        family: Any = family_of(str(index["_class_name"]))
        network_class = getattr(diffusers, index[family.network_name][1])
        config = network_class.load_config(str(resolve_path(name)), subfolder=family.network_name)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the configuration of '{name}': {str(error).splitlines()[0]}; give a pipeline folder or a hub id"
        ) from error
    with torch.device("meta"):
        network = network_class.from_config(config)
    return NetworkShapes({n: tuple(p.shape) for n, p in network.named_parameters()}, family.lora_targets)
