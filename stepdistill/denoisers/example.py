"""Template for a new family of diffusers pipelines. Not registered.

1. Copy this file to `denoisers/<family>.py` and answer the five questions below.
2. Add a line to `FAMILIES` in `denoisers/loading.py`: the pipeline's class name and the import path of your class.
3. Add a tiny random pipeline of the family to `testing/tiny.py` and a row to `FAMILIES` in
   `tests/denoisers/conftest.py`. The tests then check shapes, conversions, feature taps, roles, and that four
   guided steps equal the stock pipeline's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


class ExampleDenoiser(PipelineDenoiser):
    """The transformer of an `ExamplePipeline`. State its prediction type and its timestep input here."""

    # Which component of the pipeline is the denoising network?
    network_name = "transformer"

    # 1. What does the network predict? "flow" for flow matching; U-Nets read it from their scheduler's config
    #    (`stable_diffusion.py`). The noise schedule comes from the pipeline's scheduler.
    prediction = "flow"

    # 2. Which layers does LoRA adapt? Suffixes of names in `network.named_modules()`; names that a smaller model
    #    lacks are ignored.
    lora_targets = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")

    # 3. Which activations do discriminator heads read? Submodules in the middle of the network and after it.
    feature_layers = ("transformer_blocks.12", "transformer_blocks.16")

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """4. How is the network called?

        `model_time` maps t in [0, 1] to the training index (VP) or to 1000 t (flow). Do all else that the network
        needs here and nowhere else: t itself, packed latents, position ids. Pass inputs in the network's dtype;
        the output may have any dtype, since the caller converts it to x0 and eps in float32.
        """
        return self.network(
            hidden_states=x_t.to(self.dtype),
            timestep=self.model_time(t),
            encoder_hidden_states=cond["tokens"].to(self.dtype),
            return_dict=False,
        )[0]

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """5. What conditions the network? Call the pipeline's own `encode_prompt` to stay equal to it.

        With `prompts=None`, return a single row: the pipeline's input for an absent negative prompt, which is not
        always the empty text (SDXL: zeros). `size` is (height, width) in pixels, for families with size
        conditioning. All tensors are batch first, masks and ids included; integers keep their dtype.
        """
        tokens, empty = self.pipe.encode_prompt(
            prompts or [""], device=self.text_device, do_classifier_free_guidance=prompts is None
        )
        return Conditioning({"tokens": empty if prompts is None else tokens})

    def select(self, output: Any) -> Tensor:
        """Return the image tokens of a tapped block's output, if those are not its first (or only) tensor."""
        return output[1] if isinstance(output, tuple) else output
