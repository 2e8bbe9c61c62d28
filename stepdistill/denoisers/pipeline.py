"""What all families of stock diffusers pipelines share: VAE, latent shapes, time conversion, the pipeline out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.few_step import FewStep, flow_few_step, flow_shift, vp_few_step
from stepdistill.denoisers.roles import adapted_copy, merged_copy, switch_adapter
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.sampler import SamplerKind, StudentSampler
from stepdistill.diffusion.schedules.families import VPSchedule, schedule_from_scheduler
from stepdistill.diffusion.times import few_step_indices, shift_time
from stepdistill.errors import UserError
from stepdistill.typing import Images, Latents, Times

PromptArguments = Mapping[str, Any]
NO_ARGUMENTS: PromptArguments = MappingProxyType({})
PIXELS_AT_ONCE = 2**20
"""What the autoencoder works on at a time: one image of 1024 px, or many small ones. In float32 that takes some GiB."""


class PipelineDenoiser(Denoiser):
    """The denoising network of a diffusers pipeline; the rest of the pipeline is referred to, never registered.

    Args:
        pipeline: the pipeline.
        prompt_arguments: arguments of the pipeline's call that shape the prompt's embedding, such as `clip_skip`, or
            `max_sequence_length` of an SD3 pipeline; they hold for teacher and student alike.

    Raises:
        UserError: the pipeline takes no such argument.

    A family sets `network_name`, `feature_layers`, `lora_targets`, and writes `forward_network` and `encode_rows`.
    """

    network_name: ClassVar[str]

    def __init__(self, pipeline: DiffusionPipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS) -> None:
        super().__init__()
        self.pipe = pipeline
        self.prompt_arguments = dict(prompt_arguments)
        known = inspect.signature(self.pipe.encode_prompt).parameters
        if unknown := sorted(set(self.prompt_arguments) - set(known)):
            raise UserError(
                f"model.prompt_arguments: {type(pipeline).__name__} takes no '{unknown[0]}'; it takes {', '.join(known)}"
            )
        self.network: Any = getattr(pipeline, self.network_name)
        self.schedule = schedule_from_scheduler(pipeline.scheduler)
        self.inference_dtype = self.dtype
        self._uncond_row: Conditioning | None = None
        self._vae: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in, whatever its adapters are kept in."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def text_device(self) -> torch.device:
        """Where the text encoders are; they may stay on the CPU while the network is on a GPU."""
        parts = self.pipe.components.items()
        return next(
            part.device for name, part in parts if name.startswith("text_encoder") and part is not None
        )

    def place_encoders(self, *, text: torch.device, images: torch.device) -> None:
        """Put the text encoders and the autoencoder on these devices, in place, for all roles.

        They need not be where the network is: after the prompts are embedded, text encoders only take memory there.
        """
        for name, part in self.encoders().items():
            part.to(text if name.startswith("text_encoder") else images)
        self._vae = None

    def encoders(self) -> dict[str, torch.nn.Module]:
        """Text encoders, autoencoder and whatever else the pipeline has beside the network, by component."""
        components = self.pipe.components.items()
        return {
            name: part
            for name, part in components
            if isinstance(part, torch.nn.Module) and name != self.network_name
        }

    # Prompts

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], height: int | None = None, width: int | None = None
    ) -> Conditioning:
        """What the stock pipeline feeds its network for these prompts (at this image size, where that matters)."""
        return self.encode_rows(list(prompts), self.image_size(height, width)).to(self.device)

    @torch.no_grad()
    def uncond(self, n: int) -> Conditioning:
        """What the stock pipeline feeds its network for an empty negative prompt, n times."""
        if self._uncond_row is None:
            self._uncond_row = self.encode_rows(None, self.image_size())
        return self._uncond_row.to(self.device).expand(n)

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """The conditioning of the prompts, or one row for no negative prompt (None)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_rows")

    # Images

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, by default those the network was trained at."""
        sample = self.network.config.sample_size
        rows, columns = (sample, sample) if isinstance(sample, int) else sample
        factor = self.pipe.vae_scale_factor
        return height or rows * factor, width or columns * factor

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """(C, H, W) of one latent."""
        rows, columns = self.image_size(height, width)
        factor = self.pipe.vae_scale_factor
        if rows % factor or columns % factor:
            raise ValueError(f"height and width must be multiples of {factor}, got {rows} x {columns}")
        return self.network.config.in_channels, rows // factor, columns // factor

    def encode_images(self, images: Images, generator: torch.Generator | None = None) -> Latents:
        """Scaled latents of images: the posterior's mode, or a sample of it when a generator is given."""
        vae, (mean, scale), parts = self.vae, self._latent_affine(), []
        for part in images.split(images_at_once(*images.shape[-2:])):
            with torch.autocast(vae.device.type, enabled=False):
                posterior = vae.encode(part.to(vae.device, torch.float32) * 2 - 1).latent_dist
            parts.append(posterior.mode() if generator is None else posterior.sample(generator))
        return ((torch.cat(parts) - mean) * scale).to(self.device)

    def decode(self, latents: Latents) -> Images:
        """Images in [0, 1] of scaled latents; gradients flow."""
        vae, (mean, scale), factor = self.vae, self._latent_affine(), self.pipe.vae_scale_factor
        raw = latents.to(vae.device, torch.float32) / scale + mean
        rows, columns = latents.shape[-2:]
        with torch.autocast(vae.device.type, enabled=False):
            parts = [
                vae.decode(part, return_dict=False)[0]
                for part in raw.split(images_at_once(rows * factor, columns * factor))
            ]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    @property
    def vae(self) -> Any:
        """The autoencoder in float32: the pipeline's own, or a copy where that one is in half precision."""
        if self.pipe.vae.dtype == torch.float32:
            return self.pipe.vae
        if self._vae is None or self._vae.device != self.pipe.vae.device:
            self._vae = copy.deepcopy(self.pipe.vae).float()
        return self._vae

    def _latent_affine(self) -> tuple[Tensor | float, Tensor | float]:
        """(mean, scale) with network latents = (VAE latents - mean) * scale."""
        config = self.pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        per_channel = torch.tensor([mean, std], device=self.vae.device).reshape(2, 1, -1, 1, 1)
        return per_channel[0], config.scaling_factor / per_channel[1]

    # Time

    def model_time(self, t: Times) -> Times:
        """What the network is fed for t: the float training index (VP), or 1000 t (flow)."""
        if not isinstance(self.schedule, VPSchedule):
            return t.float() * self.pipe.scheduler.config.num_train_timesteps
        index = self.schedule.index(t.float())
        # t = i/(T-1) in float32 gives i to 1e-4: feed the integer that the network was trained on.
        snap = torch.where((index - index.round()).abs() < 1e-3, index.round() - index, 0.0)
        return index + snap.detach()

    def few_step_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """The grid that the stock few-step scheduler runs: LCM's or DDIM trailing's (VP), the shifted one (flow)."""
        config = self.pipe.scheduler.config
        if isinstance(self.schedule, VPSchedule):
            last = config.num_train_timesteps - 1
            return tuple(i / last for i in few_step_indices(config.num_train_timesteps, num_steps, kind))
        even = torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
        return tuple(shift_time(even, flow_shift(config)).tolist())

    def nearest_time(self, t: float) -> float:
        """The nearest training index (VP), or any time (flow)."""
        if not isinstance(self.schedule, VPSchedule):
            return t
        last = self.pipe.scheduler.config.num_train_timesteps - 1
        return round(t * last) / last

    # The way out

    def few_step(self, sampler: StudentSampler) -> FewStep:
        """The stock scheduler and the call arguments that reproduce this sampler."""
        if isinstance(self.schedule, VPSchedule):
            return vp_few_step(self.pipe.scheduler, sampler)
        return flow_few_step(self.pipe.scheduler, sampler)

    def call_arguments(self, sampler: StudentSampler) -> dict[str, Any]:
        """What a call of the stock pipeline needs beside the prompt, as plain JSON values."""
        scale = 1.0 if self.embedded_guidance is None else self.embedded_guidance
        return {**self.few_step(sampler).arguments, "guidance_scale": scale, **self.prompt_arguments}

    def pipeline(self, sampler: StudentSampler) -> DiffusionPipeline:
        """A stock pipeline with a merged copy of this role's network and the few-step scheduler.

        The network is an independent copy in the dtype the pipeline came in; text encoders and VAE are the
        teacher's objects. Call it with `call_arguments(sampler)`.

        A role that hands over to others is copied with its adapters, and each call runs under the one of its time.

        Raises:
            UserError: the role hands over to a full copy, which is another network.
        """
        is_alone = self.successor is None
        network = merged_copy(self.network, self.adapter) if is_alone else self._switching_copy()
        if self.dtype != self.inference_dtype:
            network.to(self.inference_dtype)
        network.requires_grad_(False).eval()
        pipe = copy.copy(self.pipe)
        pipe.register_modules(**{self.network_name: network, "scheduler": self.few_step(sampler).scheduler})
        return pipe

    def _switching_copy(self) -> Any:
        if self.adapter is None:
            raise UserError(
                "experts that are full copies cannot share a stock pipeline; train with roles.mode=shared"
            )

        def switch(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            fed = kwargs["timestep"] if "timestep" in kwargs else args[1]
            switch_adapter(network, self.at(self._time(float(fed.flatten()[0]))).adapter)

        network = adapted_copy(self.network)
        network.register_forward_pre_hook(switch, with_kwargs=True)
        return network

    def _time(self, model_time: float) -> float:
        """The t that `model_time` feeds as this number."""
        count = self.pipe.scheduler.config.num_train_timesteps
        return model_time / (count - 1 if isinstance(self.schedule, VPSchedule) else count)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass; in shared mode this holds for every role of the network."""
        self.network.enable_gradient_checkpointing()

    def _kept_parts(self) -> list[object]:
        return [
            self.schedule,
            self.pipe,
            *(part for part in (self._vae, self._uncond_row) if part is not None),
        ]


def images_at_once(height: int, width: int) -> int:
    """How many images of this size the autoencoder takes at a time.

    >>> images_at_once(64, 64), images_at_once(1024, 1024), images_at_once(2048, 2048)
    (256, 1, 1)
    """
    return max(PIXELS_AT_ONCE // (height * width), 1)
