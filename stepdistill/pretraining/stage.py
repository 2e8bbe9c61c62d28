"""A stage of pretraining: its networks, its loss and its export."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from stepdistill.errors import UserError


class Stage(ABC):
    """A pretraining stage."""

    networks: nn.ModuleDict

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a step and its logs; randomness must depend on the step alone."""

    @abstractmethod
    def start_from(self, folder: Path) -> None:
        """Initialise from an export of the same stage."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save the networks in the format of diffusers or transformers."""


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a safetensors file into a network, in the network's dtype."""
    try:
        network.load_state_dict(load_file(file))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"start_from: {file} does not fit this network ({error}); use an export of the same stage"
        ) from error


def edit_json(file: Path, **entries: Any) -> None:
    """Set entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}, indent=2) + "\n")
