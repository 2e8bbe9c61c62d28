"""The interface of all networks: (x_t, t, cond) in, estimates of x0 and eps out.

To plug in your own network, subclass `Denoiser`, set `schedule` and `prediction`, and write `forward_network`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from stepdistill.denoisers.features import capture, tap
from stepdistill.denoisers.roles import (
    Roles,
    adapter_tensors,
    add_adapter,
    is_shared,
    load_tensors,
    remove_adapters,
    switch_adapter,
    upcast,
)
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.guidance import Guidance, guide, rescaled
from stepdistill.diffusion.prediction import Prediction, to_x0_eps
from stepdistill.diffusion.sampler import SamplerKind, StudentSampler
from stepdistill.diffusion.schedules.base import NoiseSchedule, at_least_float32
from stepdistill.errors import UserError
from stepdistill.typing import Images, Latents, Times

_SAME_TIME = 1e-6  # grid times are multiples of 1e-3 or coarser; float32 rounding is 6e-8


class Denoiser(nn.Module):
    """A network with its noise schedule, prediction type and role (teacher, student, fake score).

    Attributes:
        schedule: alpha and sigma as functions of t in [0, 1].
        prediction: output of `forward_network`: "x0", "eps", "v" or "flow".
        feature_layers: submodules of `network` that `features` taps by default.
        lora_targets: layers that LoRA adapts by default; if empty, every role is a full copy.
        adapter: name of this role's adapter; None runs the plain network.
        is_trainable: False for a teacher.
        successor: (time, role) of the role that takes over at this time and below; see `at`.
        embedded_guidance: default input of a guidance embedding, for conditionings without a "guidance_scale";
            None if the network has no guidance embedding.
    """

    network: nn.Module
    schedule: NoiseSchedule
    prediction: Prediction
    feature_layers: tuple[str, ...] = ()
    lora_targets: tuple[str, ...] = ()
    adapter: str | None = None
    is_trainable: bool = False
    successor: tuple[float, Denoiser] | None = None
    embedded_guidance: float | None = None

    def at(self, t: float) -> Denoiser:
        """Return the role to call at time t: this one, or its successor at that time."""
        if self.successor is None or t > self.successor[0] + _SAME_TIME:
            return self
        return self.successor[1].at(t)

    def forward(self, x_t: Latents, t: Times, cond: Conditioning, guidance: Guidance | None = None) -> Denoised:
        """Estimate x0 and eps; a guided call runs cond and uncond as one batch."""
        self.activate()
        cond = cond.expand(len(x_t))
        if guidance is None or guidance.is_off:
            x0, eps = self.estimates(self.forward_network(x_t, t, cond), x_t, t)
            return Denoised(x0, eps, t)
        both = Conditioning.cat([cond, guidance.uncond.expand(len(x_t))])
        outputs = self.forward_network(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        with_cond, without = at_least_float32(outputs).chunk(2)
        output = guide(with_cond, without, guidance.scale_at(at_least_float32(t)))
        x0, eps = self.estimates(output, x_t, t)
        if guidance.rescale > 0:
            plain, _ = self.estimates(with_cond, x_t, t)
            x0, eps = self.estimates(rescaled(x0, plain, guidance.rescale), x_t, t, "x0")
        return Denoised(x0, eps, t)

    def estimates(
        self, output: Latents, x_t: Latents, t: Times, prediction: Prediction | None = None
    ) -> tuple[Latents, Latents]:
        """Convert an output at x_t to (x0, eps); `prediction` defaults to the network's own."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return to_x0_eps(prediction or self.prediction, output, x_t, alpha, sigma)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """Return the raw network output, of type `self.prediction`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_network")

    def features(
        self, x_t: Latents, t: Times, cond: Conditioning, layers: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Return activations of `layers`, (B, N, C) image tokens or (B, C, H, W) maps; later layers are not run."""
        self.activate()
        cond, names = cond.expand(len(x_t)), self.layers_to_tap(layers)
        return tap(self.network, names, lambda: self.forward_network(x_t, t, cond), self.select)

    def capture_features(self, layers: Sequence[str] | None = None) -> AbstractContextManager[list[Tensor]]:
        """Context manager that collects `features` during one call of the network; filled on exit."""
        return capture(self.network, self.layers_to_tap(layers), self.select)

    def layers_to_tap(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        """Return the given layers, or the family's default."""
        names = tuple(self.feature_layers if layers is None else layers)
        if not names:
            raise ValueError(f"{type(self).__name__} sets no feature_layers; pass layers=[...]")
        return names

    def select(self, output: Any) -> Tensor:
        """Return the image part of a tapped module's output."""
        return output if isinstance(output, Tensor) else output[0]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts."""
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    def uncond(self, n: int) -> Conditioning:
        """Encode n empty prompts."""
        raise NotImplementedError(f"{type(self).__name__} must define uncond")

    def encoders(self) -> dict[str, nn.Module]:
        """Return the text and image encoders by name; caches of embeddings are keyed by their weights."""
        return {}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Return the shape of one latent, by default at the training resolution."""
        raise NotImplementedError(f"{type(self).__name__} must define latent_shape")

    def encode_images(self, images: Images, generator: torch.Generator | None = None) -> Latents:
        """Encode images to scaled latents; a pixel-space network uses images in [-1, 1]."""
        return images * 2 - 1

    def decode(self, latents: Latents) -> Images:
        """Decode latents to images in [0, 1]."""
        return (latents / 2 + 0.5).clamp(0, 1)

    def role(self, name: str, roles: Roles) -> Denoiser:
        """Return a trainable denoiser initialised from this one.

        mode="shared" adds a LoRA adapter to the same network object. mode="full", or a denoiser without
        `lora_targets`, deep-copies the network and upcasts half precision to float32.
        """
        on_one_network = roles.mode == "shared" and bool(roles.target_modules or self.lora_targets)
        referenced = [*self._referenced_parts(), *([self.network] if on_one_network else [])]
        twin = copy.deepcopy(self, {id(part): part for part in referenced})
        twin.is_trainable = True
        if on_one_network:
            twin.adapter = add_adapter(self.network, name, roles, self.lora_targets)
        else:
            if "network" in self._modules and is_shared(self.network):
                remove_adapters(twin.network)  # the copy includes the adapters of other roles
            upcast(twin)
            twin.requires_grad_(True)
        return twin

    def embed_guidance(self, scale: float) -> None:
        """Condition the network on the guidance scale, with default `scale`.

        A missing guidance embedding is added with zero weights, so that the output does not change.

        Raises:
            UserError: pipelines of this family have no guidance embedding, or a LoRA would have to hold it.
        """
        raise UserError(
            f"networks of {type(self).__name__} have no guidance embedding; set method.embed_guidance=false"
        )

    def activate(self) -> None:
        """Activate this role's adapter.

        `forward` and `features` call it. Call it before a backward pass that recomputes activations (gradient
        checkpointing) if another role has run in between.
        """
        if "network" in self._modules:
            switch_adapter(self.network, self.adapter)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters to optimise; none for a teacher."""
        if not self.is_trainable:
            return []
        return list(
            self.parameters() if self.adapter is None else adapter_tensors(self.network, self.adapter).values()
        )

    def role_state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's tensors under peft's names, or the full copy's; empty for a teacher."""
        return {name: tensor.detach().contiguous() for name, tensor in self._role_tensors().items()}

    def load_role_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the output of `role_state_dict`; all names and shapes must match."""
        load_tensors(self._role_tensors(), tensors)

    def enable_gradient_checkpointing(self) -> None:
        """Enable gradient checkpointing of the network, which shared roles have in common."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient checkpointing")

    def few_step_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """Return the stock pipeline's few-step grid as descending t; here evenly spaced."""
        return tuple(1 - i / num_steps for i in range(num_steps))

    def nearest_time(self, t: float) -> float:
        """Round to a time at which a stock few-step scheduler can call the network; here any time."""
        return t

    def pipeline(self, sampler: StudentSampler) -> Any:
        """Return a stock diffusers pipeline with this role's weights and the few-step scheduler."""
        raise NotImplementedError(f"{type(self).__name__} is not a diffusers family; sample with rollout.sample")

    def _referenced_parts(self) -> list[object]:
        """Objects that a role shares with its teacher instead of copying."""
        return [self.schedule]

    def _role_tensors(self) -> Mapping[str, Tensor]:
        if not self.is_trainable:
            return {}
        return self.state_dict() if self.adapter is None else adapter_tensors(self.network, self.adapter)
