"""A template for a new family of diffusers pipelines: copy, rename, fill in. Not registered.

1. Copy this file to `denoisers/<family>.py` and answer the five questions below.
2. Add one line to `FAMILIES` in `denoisers/loading.py`: the pipeline's class name, and where your class is.
3. Add a tiny random pipeline of the family to `testing/tiny.py`, and its name to `tests/denoisers/conftest.py`. The tests
   then check shapes, conversions, feature taps, roles, and that four guided steps equal the stock pipeline's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.typing import Latents, Times


class ExampleDenoiser(PipelineDenoiser):
    """The transformer of an `ExamplePipeline`. Say here what the network predicts and how it is told the time."""

    # Which component of the pipeline is the network? Everything else (VAE, text encoders, tokenizers) is only used.
    network_name = "transformer"

    # 1. What does the network predict? "flow" for flow matching; U-Nets read it from their scheduler's config
    #    (`stable_diffusion.py`). The noise schedule itself comes from the pipeline's scheduler.
    prediction = "flow"

    # 2. Which layers does a LoRA change? Names as in `network.named_modules()`, by their endings; names that this
    #    size of the model lacks are left out.
    lora_targets = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")

    # 3. Where do discriminator heads look? Names of submodules, in the middle of the network and behind it.
    feature_layers = ("transformer_blocks.12", "transformer_blocks.16")

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """4. How is the network called?

        `model_time` turns t in [0, 1] into the training index (VP) or into 1000 t (flow). A network that wants t
        itself, packed latents or position ids gets them here, and nowhere else. Inputs go in the network's dtype;
        the output may have any dtype, the conversion to x0 and eps is done in float32 by the caller.
        """
        return self.network(
            hidden_states=x_t.to(self.dtype),
            timestep=self.model_time(t),
            encoder_hidden_states=cond["tokens"].to(self.dtype),
            return_dict=False,
        )[0]

    def encode_rows(self, prompts: list[str] | None, size: tuple[int, int]) -> Conditioning:
        """5. What is the network told? Use the pipeline's own `encode_prompt`, so that the two cannot drift apart.

        `prompts` None asks for one row: what the pipeline feeds for no negative prompt, which is not always the
        empty text (SDXL: zeros). `size` is (height, width) in pixels, for families that are told the image's size.
        Every tensor has the batch first. Masks and ids are tensors too; integers keep their dtype.
        """
        tokens, empty = self.pipe.encode_prompt(
            prompts or [""], device=self.text_device, do_classifier_free_guidance=prompts is None
        )
        return Conditioning({"tokens": empty if prompts is None else tokens})

    def select(self, output: Any) -> Tensor:
        """The image tokens in a tapped block's output; only needed where that is not the first (or only) tensor."""
        return output[1] if isinstance(output, tuple) else output
