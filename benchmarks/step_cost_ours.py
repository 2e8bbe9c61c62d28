"""Our side of `step_cost.py`: the trainer's own loop on a bare SD3 transformer."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from step_cost_network import BATCH, CONFIG, CRITIC_TURNS, GUIDANCE, HEAD_BLOCK, SHAPE, TOKENS
from torch import Tensor

from stepdistill.critics.config import GANConfig
from stepdistill.data.source import TrainingData
from stepdistill.denoisers import Roles
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.sd3 import SD3Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.distillers.distribution.config import DMD2Config
from stepdistill.distillers.distribution.dmd2 import DMD2
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.tracking import Tracker
from stepdistill.training.trainer import Trainer
from stepdistill.typing import Latents, Times


class Network(Denoiser):
    """The bare transformer: no pipeline around it."""

    prediction = "flow"
    lora_targets = SD3Denoiser.lora_targets

    def __init__(self) -> None:
        super().__init__()
        self.network = SD3Transformer2DModel(**CONFIG).requires_grad_(False)
        self.schedule = FlowSchedule()
        self.feature_layers = (f"transformer_blocks.{HEAD_BLOCK}",)

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.network(x_t, cond["tokens"], cond["pooled"], timestep=t * 1000, return_dict=False)[0]

    def select(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return SHAPE

    def uncond(self, n: int) -> Conditioning:
        return Conditioning({"tokens": torch.zeros(n, TOKENS, 256), "pooled": torch.zeros(n, 256)})


def training_data(teacher: Network, rows: int = 8) -> TrainingData:
    """Random prompts and latents."""
    cond = Conditioning({"tokens": torch.randn(rows, TOKENS, 256), "pooled": torch.randn(rows, 256)})
    prompts = tuple(f"prompt {row}" for row in range(rows))
    return TrainingData(prompts, cond, teacher.uncond(1), SHAPE, torch.randn(rows, *SHAPE), cond)


def build(options: argparse.Namespace) -> Callable[[], None]:
    """One cycle of the trainer."""
    teacher = Network()
    method = DMD2Config(
        num_steps=options.num_steps, guidance_scale=GUIDANCE, student_every=CRITIC_TURNS, rollout="ode",
        gan=GANConfig(
            student_weight=0.03 if options.gan else 0.0, features=options.features, train_backbone=False, width=options.head_width,
        ),
    )  # fmt: skip
    folder = tempfile.mkdtemp()
    train = TrainConfig(
        train_batch_size=BATCH, adam_weight_decay=0.01, ema_decay=0.0, device="cpu", output_dir=folder,
        mixed_precision="bf16" if options.dtype == "bf16" else "no",
    )  # fmt: skip
    trainer = Trainer(
        DMD2(teacher, method, roles=Roles(mode=options.roles, rank=options.rank)), train, training_data(teacher)
    )
    trainer.tracker = Tracker(Path(folder), [])
    steps = iter(range(10**9))

    def cycle() -> None:
        for _ in range(CRITIC_TURNS):
            trainer.run_step(next(steps))
        trainer.tracker.means()

    return cycle
