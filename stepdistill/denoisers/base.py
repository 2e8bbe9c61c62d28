"""The contract of every network: (x_t, t, cond) in, the estimates of x0 and eps out.

To plug in your own network: subclass `Denoiser`, set `schedule` and `prediction`, write `forward_network`.
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

_SAME_TIME = 1e-6


class Denoiser(nn.Module):
    """A network with its noise schedule, its parameterisation and its role.

    Attributes:
        schedule: alpha and sigma as functions of t in [0, 1].
        prediction: what `forward_network` returns: "x0", "eps", "v" or "flow".
        feature_layers: names of the submodules of `network` that `features` taps by default.
        lora_targets: names of the layers that an adapter changes by default; empty: every role is a full copy.
        adapter: the adapter this role runs under; None: the plain network.
        is_trainable: False for a teacher.
        successor: the time from which on, descending, another role takes over, and that role; see `at`.
        embedded_guidance: the guidance scale that a network with an input for it is told where the conditioning names
            none ("guidance_scale", one per row); None: the network is told no scale.
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
        """The role to call at time t: this one, or its successor where that has taken over."""
        if self.successor is None or t > self.successor[0] + _SAME_TIME:
            return self
        return self.successor[1].at(t)

    def forward(
        self, x_t: Latents, t: Times, cond: Conditioning, guidance: Guidance | None = None
    ) -> Denoised:
        """The estimates of x0 and eps; a guided call runs cond and uncond as one batch."""
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
        """(x0, eps) of an output at x_t, in the network's own prediction unless another is named."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return to_x0_eps(prediction or self.prediction, output, x_t, alpha, sigma)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """The network's raw output, in `self.prediction`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_network")

    def features(
        self, x_t: Latents, t: Times, cond: Conditioning, layers: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Activations of `layers`: (B, N, C) image tokens or (B, C, H, W) maps; what follows them is not run."""
        self.activate()
        cond, names = cond.expand(len(x_t)), self.layers_to_tap(layers)
        return tap(self.network, names, lambda: self.forward_network(x_t, t, cond), self.select)

    def capture_features(self, layers: Sequence[str] | None = None) -> AbstractContextManager[list[Tensor]]:
        """What `features` gives, taken from the one call of this network within the block; filled when the block ends."""
        return capture(self.network, self.layers_to_tap(layers), self.select)

    def layers_to_tap(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        """These layers, or those that the family names."""
        names = tuple(self.feature_layers if layers is None else layers)
        if not names:
            raise ValueError(f"{type(self).__name__} names no feature_layers; pass layers=[...]")
        return names

    def select(self, output: Any) -> Tensor:
        """The image part of a tapped module's output."""
        return output if isinstance(output, Tensor) else output[0]

    @torch.no_grad()
    def feature_channels(self, layers: Sequence[str] | None = None) -> list[int]:
        """Channels of each tapped activation, found by one small forward pass."""
        like = next(self.parameters())
        x_t = torch.zeros(1, *self.latent_shape(), device=like.device)
        taps = self.features(x_t, torch.ones(1, device=like.device), self.uncond(1), layers)
        return [tokens.shape[-1] if tokens.ndim == 3 else tokens.shape[1] for tokens in taps]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of these prompts."""
        raise NotImplementedError(f"{type(self).__name__} does not read prompts")

    def uncond(self, n: int) -> Conditioning:
        """The conditioning of n empty prompts."""
        raise NotImplementedError(f"{type(self).__name__} has no unconditional input")

    def encoders(self) -> dict[str, nn.Module]:
        """What embeds prompts and images, by name: embeddings that are kept are found by its weights. A toy has none."""
        return {}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Shape of one latent; the default size is the one the network was trained at."""
        raise NotImplementedError(f"{type(self).__name__} does not say the shape of its state")

    def encode_images(self, images: Images, generator: torch.Generator | None = None) -> Latents:
        """Latents of images, scaled as the network wants them; without a latent space: the images in [-1, 1]."""
        return images * 2 - 1

    def decode(self, latents: Latents) -> Images:
        """Images in [0, 1]."""
        return (latents / 2 + 0.5).clamp(0, 1)

    def role(self, name: str, roles: Roles) -> Denoiser:
        """A trainable denoiser that starts as this one.

        shared: a LoRA adapter on the same network object. full (and denoisers without `lora_targets`): a deep
        copy of the network, in float32 where the teacher is in half precision.
        """
        on_one_network = roles.mode == "shared" and bool(roles.target_modules or self.lora_targets)
        kept = [*self._kept_parts(), *([self.network] if on_one_network else [])]
        twin = copy.deepcopy(self, {id(part): part for part in kept})
        twin.is_trainable = True
        if on_one_network:
            twin.adapter = add_adapter(self.network, name, roles, self.lora_targets)
        else:
            if "network" in self._modules and is_shared(self.network):
                remove_adapters(twin.network)  # those of other roles were copied along
            upcast(twin)
            twin.requires_grad_(True)
        return twin

    def embed_guidance(self, scale: float) -> None:
        """Let the network be told a guidance scale, `scale` where the conditioning names none.

        An input that the network lacks is added with zero weights, so its output does not move.

        Raises:
            UserError: stock pipelines of this family have no such input, or a LoRA would have to carry it.
        """
        raise UserError(
            f"the networks of {type(self).__name__} take no guidance scale; set method.embed_guidance=false"
        )

    def activate(self) -> None:
        """Make the network run under this role's adapter.

        `forward` and `features` do it themselves. Call it before a backward pass that recomputes activations
        (gradient checkpointing) when another role has run in between.
        """
        if "network" in self._modules:
            switch_adapter(self.network, self.adapter)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that this role's optimiser owns; none for a teacher."""
        if not self.is_trainable:
            return []
        return list(
            self.parameters()
            if self.adapter is None
            else adapter_tensors(self.network, self.adapter).values()
        )

    def role_state_dict(self) -> dict[str, Tensor]:
        """The tensors that make this role: its adapter under peft's names, or the whole copy; nothing for a teacher."""
        return {name: tensor.detach().contiguous() for name, tensor in self._role_tensors().items()}

    def load_role_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `role_state_dict` gave; every name and shape must agree."""
        load_tensors(self._role_tensors(), tensors)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass; in shared mode this holds for every role of the network."""
        raise NotImplementedError(f"{type(self).__name__} has no gradient checkpointing")

    def few_step_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """The grid that the stock pipeline will run, as t, descending; here: evenly spaced."""
        return tuple(1 - i / num_steps for i in range(num_steps))

    def nearest_time(self, t: float) -> float:
        """The nearest time at which a stock few-step scheduler can call the network; here: any."""
        return t

    def pipeline(self, sampler: StudentSampler) -> Any:
        """A stock diffusers pipeline with this role's weights and the few-step scheduler set."""
        raise NotImplementedError(
            f"{type(self).__name__} is not a diffusers family; sample with rollout.sample"
        )

    def _kept_parts(self) -> list[object]:
        """Objects that a role refers to instead of copying them."""
        return [self.schedule]

    def _role_tensors(self) -> Mapping[str, Tensor]:
        if not self.is_trainable:
            return {}
        return self.state_dict() if self.adapter is None else adapter_tensors(self.network, self.adapter)
