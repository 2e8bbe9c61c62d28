"""CPU seconds and memory of one DMD2 cycle: 1 student turn and 4 critic turns, optimiser steps included.

    python benchmarks/step_cost.py                          # ours alone
    python benchmarks/step_cost.py --peer path/to/FastGen   # ours and the peer's, in turn, with the ratio

The network is an SD3 transformer with random weights (10.9M parameters, 16 x 32 x 32 latents, 77 text tokens), batch 2, guidance 4,
float32, one thread, full copies in every role and a discriminator head on block 3, as the peer has it. Each side runs in a process
of its own; memory is the peak above the built networks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

CONFIG = {
    "sample_size": 32, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 6, "attention_head_dim": 64,
    "num_attention_heads": 4, "joint_attention_dim": 256, "caption_projection_dim": 256, "pooled_projection_dim": 256,
    "pos_embed_max_size": 64,
}  # fmt: skip
BATCH, TOKENS, CRITIC_TURNS, GUIDANCE = 2, 77, 4, 4.0
HEAD_LAYER = 3


def peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(cycle: Any, cycles: int) -> dict[str, Any]:
    """CPU seconds of each cycle after one warm-up, and the memory above what was built before it."""
    built = peak_mib()
    cycle()
    seconds = []
    for _ in range(cycles):
        start = time.process_time()
        cycle()
        seconds.append(time.process_time() - start)
    return {"cpu_s": seconds, "above_built_mib": peak_mib() - built}


def ours(cycles: int, *, with_gan: bool) -> dict[str, Any]:
    import torch
    from diffusers import SD3Transformer2DModel

    from stepdistill.conditioning import Conditioning
    from stepdistill.critics.gan import GANConfig
    from stepdistill.denoisers import Roles
    from stepdistill.denoisers.base import Denoiser
    from stepdistill.distillers.base import Batch
    from stepdistill.distillers.distribution.dmd2 import DMD2, DMD2Config
    from stepdistill.rng import RandomStream
    from stepdistill.schedule import FlowSchedule
    from stepdistill.training.precision import attention_kernels

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Network(Denoiser):
        """The bare transformer: no pipeline around it."""

        prediction = "flow"

        def __init__(self) -> None:
            super().__init__()
            self.network = SD3Transformer2DModel(**CONFIG).requires_grad_(False)
            self.schedule = FlowSchedule()
            self.feature_layers = (f"transformer_blocks.{HEAD_LAYER}",)

        def forward_network(self, x_t: Any, t: Any, cond: Conditioning) -> Any:
            return self.network(x_t, cond["tokens"], cond["pooled"], timestep=t * 1000, return_dict=False)[0]

        def select(self, output: Any) -> Any:
            return output[1]

        def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
            return 16, 32, 32

        def uncond(self, n: int) -> Conditioning:
            return Conditioning({"tokens": torch.zeros(n, TOKENS, 256), "pooled": torch.zeros(n, 256)})

    teacher = Network()
    gan = GANConfig(student_weight=1e-2 if with_gan else 0.0, features="teacher", width=512)
    config = DMD2Config(num_steps=4, guidance_scale=GUIDANCE, gan=gan, rollout="ode")
    distiller = DMD2(teacher, config, roles=Roles(mode="full"))
    optimizers = {turn: torch.optim.AdamW(p, 1e-5) for turn, p in distiller.players().items()}
    cond = Conditioning({"tokens": torch.randn(BATCH, TOKENS, 256), "pooled": torch.randn(BATCH, 256)})
    step = 0

    def cycle() -> None:
        nonlocal step
        for number in range(CRITIC_TURNS):
            batch = Batch(
                cond, teacher.uncond(BATCH), RandomStream(0, step, tuple(range(BATCH))), step, (16, 32, 32),
                latents=torch.randn(BATCH, 16, 32, 32), latents_cond=cond,
            )  # fmt: skip
            for turn in ("student", "critic") if number == 0 else ("critic",):
                with attention_kernels(torch.device("cpu")):
                    losses = distiller.student_step(batch) if turn == "student" else distiller.critic_step(batch)
                    losses.backward()
                optimizers[turn].step()
                optimizers[turn].zero_grad(set_to_none=True)
            step += 1

    return measure(cycle, cycles)
