"""Prompts of the closed-form teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.errors import UserError


@dataclass(frozen=True, eq=False)
class MeanPrompts:
    """A prompt selects a mean: one of `named`, the unconditional one for "", otherwise the conditional one."""

    mean: Tensor
    uncond_mean: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning {"mean": (B, *shape)}."""
        means = [self.named.get(prompt, self.mean if prompt else self.uncond_mean) for prompt in prompts]
        return Conditioning({"mean": torch.stack(means)})


@dataclass(frozen=True, eq=False)
class ComponentPrompts:
    """A prompt lists mixture components by number ("0 2"); a prompt without numbers selects all."""

    weights: Tensor

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning {"weights": (B, K)}; rows sum to one."""
        return Conditioning({"weights": torch.stack([self._weights(prompt) for prompt in prompts])})

    def _weights(self, prompt: str) -> Tensor:
        chosen = [int(word) for word in prompt.split() if word.isdigit()]
        if not chosen:
            return self.weights
        if max(chosen) >= len(self.weights):
            raise UserError(f"prompt {prompt!r} is out of range; use components 0..{len(self.weights) - 1}")
        kept = torch.zeros_like(self.weights)
        kept[chosen] = self.weights[chosen]
        return kept / kept.sum()


Prompts = MeanPrompts | ComponentPrompts
