"""What the closed-form teachers understand as a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.errors import UserError


@dataclass(frozen=True, eq=False)
class MeanPrompts:
    """A prompt names a mean: one of `named`, "" the unconditional one, anything else the conditional one."""

    mean: Tensor
    uncond_mean: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning {"mean": (B, *shape)}."""
        means = [self.named.get(prompt, self.mean if prompt else self.uncond_mean) for prompt in prompts]
        return Conditioning({"mean": torch.stack(means)})


@dataclass(frozen=True, eq=False)
class ComponentPrompts:
    """A prompt lists components of a mixture by number ("0 2"); one without a number means all of them."""

    weights: Tensor

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning {"weights": (B, K)}, each row summing to one."""
        return Conditioning({"weights": torch.stack([self._weights(prompt) for prompt in prompts])})

    def _weights(self, prompt: str) -> Tensor:
        chosen = [int(word) for word in prompt.split() if word.isdigit()]
        if not chosen:
            return self.weights
        if max(chosen) >= len(self.weights):
            raise UserError(f"prompt {prompt!r} names a component beyond 0..{len(self.weights) - 1}")
        kept = torch.zeros_like(self.weights)
        kept[chosen] = self.weights[chosen]
        return kept / kept.sum()


Prompts = MeanPrompts | ComponentPrompts
