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
    """What is trained: its networks, its loss at a step, and the folder that it becomes."""

    networks: nn.ModuleDict

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step and what to log. All randomness is a function of the step."""

    @abstractmethod
    def start_from(self, folder: Path) -> None:
        """Take the weights of an export as the first state."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the networks as diffusers or transformers would."""


def load_weights(network: nn.Module, file: Path) -> None:
    """Read a network's weights from a safetensors file, in the network's own precision."""
    try:
        network.load_state_dict(load_file(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"start_from: {file} does not hold this network's weights: {error}") from error


def edit_json(file: Path, **entries: Any) -> None:
    """Set entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}, indent=2) + "\n")
