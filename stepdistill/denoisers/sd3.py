"""Stable Diffusion 3 and 3.5: a multimodal transformer that predicts the flow."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from stepdistill.denoisers.pipeline import NO_ARGUMENTS, PipelineDenoiser, PromptArguments
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


class SD3Denoiser(PipelineDenoiser):
    """The transformer of a `StableDiffusion3Pipeline`; t is fed as 1000 t."""

    network_name = "transformer"
    prediction = "flow"
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS
    ) -> None:
        super().__init__(pipeline, prompt_arguments)
        depth = len(self.network.transformer_blocks)
        chosen = sorted({depth // 2, 2 * depth // 3})
        self.feature_layers = tuple(f"transformer_blocks.{i}" for i in chosen)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """The transformer's output."""
        return self.network(
            hidden_states=x_t.to(self.dtype),
            timestep=self.model_time(t),
            encoder_hidden_states=cond["tokens"].to(self.dtype),
            pooled_projections=cond["pooled"].to(self.dtype),
            return_dict=False,
        )[0]

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """Tokens of CLIP and T5 in one sequence (zeros for an absent T5), and CLIP's pooled embeddings."""
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
        """The image tokens: a joint block returns (text tokens, image tokens)."""
        return output[1] if isinstance(output, tuple) else output
