"""The embedded Stable Diffusion 3: a small MMDiT with flow matching, trained jointly with two CLIP text encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from stepdistill.data.emoji import EmojiWorld
from stepdistill.pretraining.autoencoder import step_generator
from stepdistill.pretraining.pool import load_pool
from stepdistill.pretraining.recipe import PretrainRecipe
from stepdistill.pretraining.sd import parts_of, tokenizer_of
from stepdistill.pretraining.stage import Stage, edit_json, load_weights

T5_TOKENS = 256  # zero tokens that the stock pipeline appends without T5: the default `max_sequence_length`


class RepeatedLastToken(nn.Module):
    """Joint attention in which the last text token stands for exp(log_copies) identical ones, per sample.

    Identical tokens without positional encoding stay identical in all blocks. As keys, n of them equal one whose
    logit is raised by log n: n exp(l) = exp(l + log n). Hence this is exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_copies: Tensor | None = None

    def forward(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        part: Any = attn
        image, text = hidden_states, encoder_hidden_states

        def heads(tokens: Tensor, norm: Any) -> Tensor:
            split = tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)

        pairs = (
            (heads(part.to_q(image), part.norm_q), heads(part.add_q_proj(text), part.norm_added_q)),
            (heads(part.to_k(image), part.norm_k), heads(part.add_k_proj(text), part.norm_added_k)),
            (heads(part.to_v(image), None), heads(part.add_v_proj(text), None)),
        )
        query, key, value = (torch.cat(pair, dim=2) for pair in pairs)
        mask = torch.zeros(len(key), 1, 1, key.shape[2], dtype=query.dtype)
        if self.log_copies is not None:
            mask[..., -1] = self.log_copies[:, None, None].to(query.dtype)
        joined = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        ours, theirs = joined.split([image.shape[1], text.shape[1]], dim=1)
        return part.to_out[0](ours), theirs if attn.context_pre_only else part.to_add_out(theirs)


def projected_tower(clip_folder: Path) -> CLIPTextModelWithProjection:
    """Return the text tower and projection of a CLIP model as a separate network, float32."""
    clip: Any = CLIPModel.from_pretrained(clip_folder, torch_dtype=torch.float32)
    config = clip.config.text_config
    config.projection_dim = clip.config.projection_dim
    tower = CLIPTextModelWithProjection(config)
    weights = {f"text_model.{name}": value for name, value in clip.text_model.state_dict().items()}
    tower.load_state_dict({**weights, "text_projection.weight": clip.text_projection.weight.detach()}, strict=False)
    return tower


class StableDiffusion3Stage(Stage):
    """Flow matching loss at logit-normal times (https://arxiv.org/abs/2403.03206, section 3.1), with caption dropout."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.vae_folder, clip_folder = parts_of(recipe)
        self.tokenizer = tokenizer_of(recipe, clip_folder)
        cache = recipe.output_dir.parent
        self.pool = load_pool(EmojiWorld(), self.vae_folder, self.tokenizer, recipe.scenes, cache)
        self.transformer: Any = SD3Transformer2DModel(**recipe.network["transformer"])
        self.processor = RepeatedLastToken()
        self.transformer.set_attn_processor(self.processor)
        if recipe.train.compile:
            self.transformer.compile()
        first = projected_tower(clip_folder)
        shared = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
        like_first = {name: getattr(first.config, name) for name in shared}
        second = CLIPTextModelWithProjection(CLIPTextConfig(**like_first, **recipe.network["text_2"]))
        self.networks = nn.ModuleDict(
            {"transformer": self.transformer, "text_encoder": first, "text_encoder_2": second}
        )
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(**recipe.network["scheduler"])
        self.dropout = recipe.options.get("caption_dropout", 0.1)
        self.full_t5 = recipe.options.get("full_t5_probability", 0.5)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return text tokens and pooled embeddings like the stock pipeline, with one zero token for the missing T5."""
        encoders = (self.networks["text_encoder"], self.networks["text_encoder_2"])
        outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
        joined = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return F.pad(joined, (0, 0, 0, 1)), pooled

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        size, generator = self.recipe.train.batch_size, step_generator(self.recipe.train.seed, step)
        latents, tokens = self.pool.batch(size, self.dropout, generator)
        noise = torch.randn(latents.shape, generator=generator)
        time = torch.randn(size, generator=generator).sigmoid()
        sigma = time[:, None, None, None]
        context, pooled = self.encode(tokens)
        full = torch.rand(size, generator=generator) < self.full_t5
        self.processor.log_copies = full.float() * math.log(T5_TOKENS)
        # x_t = (1 - t) x0 + t eps; the target is the velocity eps - x0.
        output = self.transformer(
            hidden_states=(1 - sigma) * latents + sigma * noise,
            timestep=time * self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=context,
            pooled_projections=pooled,
        ).sample.float()
        return F.mse_loss(output, noise - latents), {}

    def start_from(self, folder: Path) -> None:
        load_weights(self.transformer, folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("text_encoder", "text_encoder_2"):
            load_weights(self.networks[name], folder / name / "model.safetensors")

    def export(self, folder: Path) -> None:
        self.transformer.set_attn_processor(JointAttnProcessor2_0())
        pipeline = StableDiffusion3Pipeline(
            transformer=self.transformer.half(),
            scheduler=self.scheduler,
            vae=AutoencoderKL.from_pretrained(self.vae_folder, torch_dtype=torch.float16),
            text_encoder=self.networks["text_encoder"].half(),  # type: ignore[arg-type]
            tokenizer=self.tokenizer,
            text_encoder_2=self.networks["text_encoder_2"].half(),  # type: ignore[arg-type]
            tokenizer_2=self.tokenizer,
            text_encoder_3=None,  # type: ignore[arg-type]
            tokenizer_3=None,  # type: ignore[arg-type]
        )
        pipeline.save_pretrained(folder)
        for name in ("text_encoder", "text_encoder_2"):
            edit_json(folder / name / "config.json", dtype="float32")
        absent = [None, None]
        edit_json(folder / "model_index.json", text_encoder_3=absent, tokenizer_3=absent)
        self.networks.float()
        self.transformer.set_attn_processor(self.processor)
