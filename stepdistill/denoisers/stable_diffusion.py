"""Stable Diffusion 1.x and 2.x: a U-Net that predicts eps or v on a VP schedule."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline

from stepdistill.conditioning import Conditioning
from stepdistill.denoisers.pipeline import NO_ARGUMENTS, PipelineDenoiser, PromptArguments
from stepdistill.errors import UserError
from stepdistill.prediction import Prediction
from stepdistill.typing import Latents, Times

# The layers of LCM-LoRA and of DMD2's LoRA, so that ranks and scales compare.
UNET_LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class StableDiffusionDenoiser(PipelineDenoiser):
    """The U-Net of a `StableDiffusionPipeline`; t is fed as the (float) training index."""

    network_name = "unet"
    feature_layers = ("mid_block",)
    lora_targets = UNET_LORA_TARGETS

    def __init__(
        self, pipeline: StableDiffusionPipeline, prompt_arguments: PromptArguments = NO_ARGUMENTS
    ) -> None:
        super().__init__(pipeline, prompt_arguments)
        kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise UserError(
                f"scheduler prediction_type '{kind}' is unknown; use one of {', '.join(PREDICTIONS)}"
            )
        self.prediction = PREDICTIONS[kind]

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """The U-Net's output."""
        tokens = cond["tokens"].to(self.dtype)
        return self.network(x_t.to(self.dtype), self.model_time(t), tokens, return_dict=False)[0]

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """CLIP's last hidden states."""
        tokens, empty = self.pipe.encode_prompt(
            prompts or [""], self.text_device, 1, prompts is None, **self.prompt_arguments
        )
        return Conditioning({"tokens": empty if prompts is None else tokens})
