"""Base class of the diffusers families: prompts, VAE, time conversion, few-step pipeline."""

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
VAE_BATCH_PIXELS = 1024 * 1024  # one image of 1024 px, some GiB of float32 activations


class PipelineDenoiser(Denoiser):
    """The denoising network of a diffusers pipeline; the pipeline's other components are not registered.

    A family sets `network_name`, `feature_layers` and `lora_targets`, and defines `forward_network` and
    `encode_rows`.

    Args:
        pipeline: the pipeline.
        prompt_arguments: arguments of the pipeline call that affect the prompt embedding, such as `clip_skip` or
            `max_sequence_length`; used for teacher and student alike.

    Raises:
        UserError: the pipeline has no such argument.
    """

    network_name: ClassVar[str]
    architectures: ClassVar[Mapping[int, tuple[str, str]]] = {}
    """Width of the text embedding -> (kohya's base model version, architecture of the modelspec header)."""

    def __init__(self, pipeline: DiffusionPipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS) -> None:
        super().__init__()
        self.pipe = pipeline
        self.prompt_arguments = dict(prompt_arguments)
        known = inspect.signature(self.pipe.encode_prompt).parameters
        if unknown := sorted(set(self.prompt_arguments) - set(known)):
            raise UserError(
                f"model.prompt_arguments: {type(pipeline).__name__} has no '{unknown[0]}'; use one of {', '.join(known)}"
            )
        self.network: Any = getattr(pipeline, self.network_name)
        self.schedule = schedule_from_scheduler(pipeline.scheduler)
        self.inference_dtype = self.dtype
        self._uncond_row: Conditioning | None = None
        self._vae: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base weights; adapters are float32."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def text_device(self) -> torch.device:
        """Device of the text encoders, which may stay on the CPU while the network is on a GPU."""
        parts = self.pipe.components.items()
        return next(part.device for name, part in parts if name.startswith("text_encoder") and part is not None)

    def place_encoders(self, *, text: torch.device, images: torch.device) -> None:
        """Move text encoders and autoencoder to these devices, in place, for all roles.

        Once the prompts are encoded, text encoders only waste memory on the network's device.
        """
        for name, part in self.encoders().items():
            part.to(text if name.startswith("text_encoder") else images)
        self._vae = None

    def encoders(self) -> dict[str, torch.nn.Module]:
        """Return the pipeline's modules other than the network, by component name."""
        components = self.pipe.components.items()
        return {
            name: part for name, part in components if isinstance(part, torch.nn.Module) and name != self.network_name
        }

    # Prompts

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], height: int | None = None, width: int | None = None) -> Conditioning:
        """Encode prompts as the stock pipeline does; the image size matters only for size conditioning."""
        return self.encode_rows(list(prompts), self.image_size(height, width)).to(self.device)

    @torch.no_grad()
    def uncond(self, n: int) -> Conditioning:
        """Encode the empty negative prompt as the stock pipeline does, n times."""
        if self._uncond_row is None:
            self._uncond_row = self.encode_rows(None, self.image_size())
        return self._uncond_row.to(self.device).expand(n)

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """Encode prompts, or the absent negative prompt (None) as a single row."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_rows")

    # Images

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Return height and width in pixels, by default the training resolution."""
        sample = self.network.config.sample_size
        rows, columns = (sample, sample) if isinstance(sample, int) else sample
        factor = self.pipe.vae_scale_factor
        return height or rows * factor, width or columns * factor

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Return (C, H, W) of one latent."""
        rows, columns = self.image_size(height, width)
        factor = self.pipe.vae_scale_factor
        if rows % factor or columns % factor:
            raise ValueError(f"height and width must be multiples of {factor}, got {rows} x {columns}")
        return self.network.config.in_channels, rows // factor, columns // factor

    def encode_images(self, images: Images, generator: torch.Generator | None = None) -> Latents:
        """Encode images to scaled latents: the posterior's mode, or a sample if a generator is given."""
        vae, (mean, scale), parts = self.vae, self._latent_affine(), []
        for part in images.split(vae_batch_size(*images.shape[-2:])):
            with torch.autocast(vae.device.type, enabled=False):
                posterior = vae.encode(part.to(vae.device, torch.float32) * 2 - 1).latent_dist
            parts.append(posterior.mode() if generator is None else posterior.sample(generator))
        return ((torch.cat(parts) - mean) * scale).to(self.device)

    def decode(self, latents: Latents) -> Images:
        """Decode scaled latents to images in [0, 1]; differentiable."""
        vae, (mean, scale), factor = self.vae, self._latent_affine(), self.pipe.vae_scale_factor
        raw = latents.to(vae.device, torch.float32) / scale + mean
        rows, columns = latents.shape[-2:]
        with torch.autocast(vae.device.type, enabled=False):
            parts = [
                vae.decode(part, return_dict=False)[0]
                for part in raw.split(vae_batch_size(rows * factor, columns * factor))
            ]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    @property
    def vae(self) -> Any:
        """The autoencoder in float32: the pipeline's own, or a copy if that is in half precision."""
        if self.pipe.vae.dtype == torch.float32:
            return self.pipe.vae
        if self._vae is None or self._vae.device != self.pipe.vae.device:
            self._vae = copy.deepcopy(self.pipe.vae).float()
        return self._vae

    def _latent_affine(self) -> tuple[Tensor | float, Tensor | float]:
        """Return (mean, scale) of network latents = (VAE latents - mean) * scale."""
        config = self.pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        per_channel = torch.tensor([mean, std], device=self.vae.device).reshape(2, 1, -1, 1, 1)
        return per_channel[0], config.scaling_factor / per_channel[1]

    # Time

    def model_time(self, t: Times) -> Times:
        """Return the network's timestep input: the float training index (VP) or 1000 t (flow)."""
        if not isinstance(self.schedule, VPSchedule):
            return t.float() * self.pipe.scheduler.config.num_train_timesteps
        index = self.schedule.index(t.float())
        # t = i / (T - 1) in float32 recovers i to within 1e-4: snap to the integer the network was trained on.
        snap = torch.where((index - index.round()).abs() < 1e-3, index.round() - index, 0.0)
        return index + snap.detach()

    def few_step_times(self, num_steps: int, kind: SamplerKind) -> tuple[float, ...]:
        """Return the stock scheduler's grid: LCM or trailing DDIM (VP), evenly spaced and shifted (flow)."""
        config = self.pipe.scheduler.config
        if isinstance(self.schedule, VPSchedule):
            last = config.num_train_timesteps - 1
            return tuple(i / last for i in few_step_indices(config.num_train_timesteps, num_steps, kind))
        even = torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
        return tuple(shift_time(even, flow_shift(config)).tolist())

    def nearest_time(self, t: float) -> float:
        if not isinstance(self.schedule, VPSchedule):
            return t
        last = self.pipe.scheduler.config.num_train_timesteps - 1
        return round(t * last) / last

    # Export

    def few_step(self, sampler: StudentSampler) -> FewStep:
        """Return the stock scheduler and call arguments that reproduce this sampler."""
        if isinstance(self.schedule, VPSchedule):
            return vp_few_step(self.pipe.scheduler, sampler)
        return flow_few_step(self.pipe.scheduler, sampler)

    def call_arguments(self, sampler: StudentSampler) -> dict[str, Any]:
        """Return the arguments of the stock pipeline call other than the prompt, as JSON values."""
        scale = 1.0 if self.embedded_guidance is None else self.embedded_guidance
        return {**self.few_step(sampler).arguments, "guidance_scale": scale, **self.prompt_arguments}

    def pipeline(self, sampler: StudentSampler) -> DiffusionPipeline:
        """Return a stock pipeline with a merged copy of this role's network and the few-step scheduler.

        The copy has the dtype of the original pipeline; text encoders and VAE are shared with the teacher. Call
        the pipeline with `call_arguments(sampler)`. A role with a successor is copied with its adapters, and
        each call activates the adapter of its timestep.

        Raises:
            UserError: this role or its successor is a full copy, hence a different network.
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
            raise UserError("full-copy experts cannot share a stock pipeline; train with roles.mode=shared")

        def switch(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
            switch_adapter(network, self.at(self._time(float(timestep.flatten()[0]))).adapter)

        network = adapted_copy(self.network)
        network.register_forward_pre_hook(switch, with_kwargs=True)
        return network

    def _time(self, model_time: float) -> float:
        """Invert `model_time`."""
        count = self.pipe.scheduler.config.num_train_timesteps
        return model_time / (count - 1 if isinstance(self.schedule, VPSchedule) else count)

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    @property
    def architecture(self) -> tuple[str, str]:
        """The entry of `architectures` of this network; empty strings for an unpublished one."""
        config = self.network.config
        width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
        return self.architectures.get(width, ("", "")) if isinstance(width, int) else ("", "")

    def _referenced_parts(self) -> list[object]:
        return [self.schedule, self.pipe, *(part for part in (self._vae, self._uncond_row) if part is not None)]


def vae_batch_size(height: int, width: int) -> int:
    """Return how many images of this size the autoencoder processes per batch.

    >>> vae_batch_size(64, 64), vae_batch_size(1024, 1024), vae_batch_size(2048, 2048)
    (256, 1, 1)
    """
    return max(VAE_BATCH_PIXELS // (height * width), 1)
