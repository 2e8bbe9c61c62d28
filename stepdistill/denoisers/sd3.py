"""Stable Diffusion 3 and 3.5: a multimodal transformer (MMDiT) with flow prediction."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from stepdistill.denoisers.networks import NETWORKS
from stepdistill.denoisers.pipeline import NO_ARGUMENTS, PipelineDenoiser, PromptArguments
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


class SD3Denoiser(PipelineDenoiser):
    """The transformer of a `StableDiffusion3Pipeline`; its timestep input is 1000 t."""

    network_name, lora_targets = NETWORKS["StableDiffusion3Pipeline"]
    prediction = "flow"
    architectures = {4096: ("sd3", "stable-diffusion-3/lora")}

    def __init__(self, pipeline: StableDiffusion3Pipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS) -> None:
        super().__init__(pipeline, prompt_arguments)
        # Discriminator features from the middle of the network and from two thirds of its depth.
        depth = len(self.network.transformer_blocks)
        chosen = sorted({depth // 2, 2 * depth // 3})
        self.feature_layers = tuple(f"transformer_blocks.{i}" for i in chosen)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.network(
            hidden_states=x_t.to(self.dtype),
            timestep=self.model_time(t),
            encoder_hidden_states=cond["tokens"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
        )[0]

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """Encode to the joint CLIP and T5 sequence (zeros for a missing T5) and the pooled CLIP embeddings."""
        encoded = self.pipe.encode_prompt(
            prompts or [""],
            prompt_2=None,
            prompt_3=None,
            device=self.text_device,
            do_classifier_free_guidance=prompts is None,
            **self.prompt_arguments,
        )
        tokens, pooled = (encoded[1], encoded[3]) if prompts is None else (encoded[0], encoded[2])
        return Conditioning({"tokens": tokens, "pooled": pooled})

    def select(self, output: Any) -> Tensor:
        """Return the image tokens: a joint block returns (text tokens, image tokens)."""
        return output[1] if isinstance(output, tuple) else output
