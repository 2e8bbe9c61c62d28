"""Stable Diffusion 1.x and 2.x: a U-Net with eps or v prediction on a VP schedule."""

from __future__ import annotations

import math

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from stepdistill.denoisers.networks import NETWORKS
from stepdistill.denoisers.pipeline import NO_ARGUMENTS, PipelineDenoiser, PromptArguments
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.prediction import Prediction
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
GUIDANCE_DIM = 256  # as in LCM's released networks


def guidance_embedding(scale: Tensor, size: int) -> Tensor:
    """Return sinusoids of 1000 (scale - 1), (B,) -> (B, size), as stock pipelines pass in `timestep_cond`.

    LCM (https://arxiv.org/abs/2310.04378) embeds w = scale - 1 like a timestep.

    >>> guidance_embedding(torch.ones(1), 4)
    tensor([[0., 0., 1., 1.]])
    """
    half = size // 2
    exponents = torch.arange(half, dtype=torch.float32, device=scale.device) / (half - 1)
    angles = 1000.0 * (scale.float()[:, None] - 1) * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class StableDiffusionDenoiser(PipelineDenoiser):
    """The U-Net of a `StableDiffusionPipeline`; its timestep input is the (float) training index."""

    network_name, lora_targets = NETWORKS["StableDiffusionPipeline"]
    feature_layers = ("mid_block",)
    architectures = {768: ("sd_v1", "stable-diffusion-v1/lora"), 1024: ("sd_v2", "stable-diffusion-v2-512/lora")}

    def __init__(self, pipeline: StableDiffusionPipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS) -> None:
        super().__init__(pipeline, prompt_arguments)
        kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise UserError(f"unknown scheduler prediction_type '{kind}'; use one of {', '.join(PREDICTIONS)}")
        self.prediction = PREDICTIONS[kind]

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.network(
            x_t.to(self.dtype),
            self.model_time(t),
            cond["tokens"].to(self.dtype),
            timestep_cond=self.guidance_input(cond),
            added_cond_kwargs=self.added_conditions(cond),
            return_dict=False,
        )[0]

    def added_conditions(self, cond: Conditioning) -> dict[str, Tensor] | None:
        """Return the U-Net's further inputs; none here."""
        return None

    def guidance_input(self, cond: Conditioning) -> Tensor | None:
        """Return the guidance embedding that the stock pipeline would pass; None without one."""
        if self.embedded_guidance is None:
            return None
        default = torch.full((len(cond),), self.embedded_guidance, device=self.device)
        scale = cond.tensors.get("guidance_scale", default)
        return guidance_embedding(scale, self.network.config.time_cond_proj_dim).to(self.dtype)

    def embed_guidance(self, scale: float) -> None:
        """Add the zero-initialised `cond_proj` of LCM (https://arxiv.org/abs/2310.04378) if it is missing."""
        if self.network.config.time_cond_proj_dim is None:
            if self.adapter is not None or not self.is_trainable:
                raise UserError(
                    "this U-Net has no guidance embedding and a LoRA cannot hold one; "
                    "set roles.mode=full or method.embed_guidance=false"
                )
            first = self.network.time_embedding.linear_1
            projection = nn.Linear(GUIDANCE_DIM, first.in_features, bias=False)
            nn.init.zeros_(projection.weight)
            self.network.time_embedding.cond_proj = projection.to(first.weight)
            self.network.register_to_config(time_cond_proj_dim=GUIDANCE_DIM)
        self.embedded_guidance = scale

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        tokens, empty = self.pipe.encode_prompt(
            prompts or [""], self.text_device, 1, prompts is None, **self.prompt_arguments
        )
        return Conditioning({"tokens": empty if prompts is None else tokens})
