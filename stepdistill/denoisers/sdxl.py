"""Stable Diffusion XL: a U-Net with pooled text and size conditioning."""

from __future__ import annotations

import torch
from torch import Tensor

from stepdistill.denoisers.stable_diffusion import StableDiffusionDenoiser
from stepdistill.diffusion.conditioning import Conditioning


class SDXLDenoiser(StableDiffusionDenoiser):
    """The U-Net of a `StableDiffusionXLPipeline`.

    `time_ids` hold (original height, width, crop top, left, target height, width). As in the stock pipeline's
    call, both sizes are the image size and the crop is (0, 0), for cond and uncond alike.
    """

    architectures = {2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora")}

    def added_conditions(self, cond: Conditioning) -> dict[str, Tensor]:
        return {"text_embeds": cond["pooled"].to(self.dtype), "time_ids": cond["time_ids"].to(self.dtype)}

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """Encode to the tokens of both text encoders, the pooled embedding and the image size.

        An empty negative prompt is all zeros if the pipeline sets `force_zeros_for_empty_prompt`.
        """
        encoded = self.pipe.encode_prompt(
            prompts or [""],
            device=self.text_device,
            do_classifier_free_guidance=prompts is None,
            **self.prompt_arguments,
        )
        tokens, pooled = (encoded[1], encoded[3]) if prompts is None else (encoded[0], encoded[2])
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=tokens.device)
        return Conditioning({"tokens": tokens, "pooled": pooled, "time_ids": time_ids.repeat(len(tokens), 1)})
