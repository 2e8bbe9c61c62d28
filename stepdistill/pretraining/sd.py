"""The embedded Stable Diffusion: a small U-Net with eps prediction, trained jointly with its text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from stepdistill.assets import resolve_path
from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError
from stepdistill.pretraining.autoencoder import step_generator
from stepdistill.pretraining.pool import Pool, load_pool
from stepdistill.pretraining.recipe import PretrainRecipe
from stepdistill.pretraining.stage import Stage, edit_json, load_weights


def parts_of(recipe: PretrainRecipe) -> tuple[Path, Path]:
    """Return the folders of the autoencoder and the CLIP model.

    Raises:
        UserError: the recipe does not set them, or they do not exist yet.
    """
    for name, folder in (("autoencoder", recipe.autoencoder), ("clip", recipe.clip)):
        if folder is None or not (resolve_path(folder) / "config.json").exists():
            raise UserError(f"{name}: no model in {folder}; run recipes/pretrain/emoji_{name}.yaml first")
    assert recipe.autoencoder is not None
    assert recipe.clip is not None
    return resolve_path(recipe.autoencoder), resolve_path(recipe.clip)


def tokenizer_of(recipe: PretrainRecipe, clip_folder: Path) -> CLIPTokenizer:
    """Load the tokenizer of `start_from`, else of the CLIP model: weights depend on its token ids."""
    folder = clip_folder if recipe.start_from is None else resolve_path(recipe.start_from) / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder)


def text_tower(clip_folder: Path) -> CLIPTextModel:
    """Return the text tower of a CLIP model as a separate network, float32."""
    clip: Any = CLIPModel.from_pretrained(clip_folder, torch_dtype=torch.float32)
    tower = CLIPTextModel(clip.config.text_config)
    own = {name.removeprefix("text_model."): name for name in tower.state_dict()}
    weights = clip.text_model.state_dict()
    tower.load_state_dict({own[name]: value for name, value in weights.items() if name in own})
    return tower


class StableDiffusionStage(Stage):
    """Denoising loss of eps at uniform timesteps with the weight of v-prediction, and caption dropout.

    In the plain eps error, errors of x0 are weighted by the SNR, so background and layout, which are decided at high
    noise, hardly count. ||v - v'||^2 = (1 + 1/SNR) ||eps - eps'||^2 = ||eps - eps'||^2 / alphas_cumprod gives them
    more weight; `max_weight` bounds it.
    """

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.vae_folder, clip_folder = parts_of(recipe)
        self.tokenizer = tokenizer_of(recipe, clip_folder)
        self.pool = self.load_pool()
        self.unet = UNet2DConditionModel(**recipe.network["unet"])
        self.text_encoder = text_tower(clip_folder)
        self.scheduler: Any = DDPMScheduler(**recipe.network["scheduler"])
        self.networks = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder})
        self.dropout = recipe.options.get("caption_dropout", 0.1)
        self.weights = (1 / self.scheduler.alphas_cumprod).clamp(max=recipe.options.get("max_weight", 1.0))

    def load_pool(self) -> Pool:
        """Load latents and tokens of the training scenes."""
        return load_pool(
            EmojiWorld(), self.vae_folder, self.tokenizer, self.recipe.scenes, self.recipe.output_dir.parent
        )

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        size, generator = self.recipe.train.batch_size, step_generator(self.recipe.train.seed, step)
        latents, tokens = self.pool.batch(size, self.dropout, generator)
        noise = torch.randn(latents.shape, generator=generator)
        # Stratified timesteps: still uniform, with less gradient variance.
        strata = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        timesteps = (strata * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        context = self.text_encoder(tokens).last_hidden_state
        output = self.unet(noisy, timesteps, encoder_hidden_states=context).sample.float()
        error = F.mse_loss(output, noise, reduction="none").mean((1, 2, 3))
        return (self.weights[timesteps] * error).mean(), {"plain": error.mean()}

    def start_from(self, folder: Path) -> None:
        load_weights(self.unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
        load_weights(self.text_encoder, folder / "text_encoder" / "model.safetensors")

    def export(self, folder: Path) -> None:
        """Save a stock StableDiffusionPipeline with DDIM as its scheduler."""
        vae = AutoencoderKL.from_pretrained(self.vae_folder, torch_dtype=torch.float16)
        config = {**self.scheduler.config, "timestep_spacing": "trailing", "set_alpha_to_one": False}
        scheduler: Any = DDIMScheduler.from_config(config)
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.text_encoder.half(),
            tokenizer=self.tokenizer,
            unet=self.unet.half(),
            scheduler=scheduler,
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
        # float16 on disk, but float32 when loaded without a dtype, like diffusers' own networks.
        edit_json(folder / "text_encoder" / "config.json", dtype="float32")
        self.networks.float()
