"""Memory of shared roles (two adapters on one backbone) against full copies, in one run.

    python benchmarks/role_memory.py

Weights, gradients, optimiser and average of a DMD2 run on UNets from tiny to medium with random weights; a process for each, batch 1
on 32 x 32 latents. Memory is the growth of the resident set from before the teacher is built to after three iterations.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SIZES = {"small": (64, 128), "medium": (160, 320, 640)}


def resident_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def measure(size: str, mode: str) -> dict[str, Any]:
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    from stepdistill.denoisers import Denoiser, Roles
    from stepdistill.denoisers.networks import UNET_LORA_TARGETS
    from stepdistill.diffusion.conditioning import Conditioning
    from stepdistill.diffusion.rng import RandomStream
    from stepdistill.diffusion.schedules.families import schedule_from_scheduler
    from stepdistill.distillers.batch import Batch
    from stepdistill.distillers.distribution.config import DMD2Config
    from stepdistill.distillers.distribution.dmd2 import DMD2
    from stepdistill.testing import turn_losses

    torch.set_num_threads(1)
    channels = SIZES[size]
    before = resident_mib()

    class Network(Denoiser):
        """The bare UNet."""

        prediction = "eps"
        lora_targets = UNET_LORA_TARGETS

        def __init__(self) -> None:
            super().__init__()
            self.network = UNet2DConditionModel(
                sample_size=32, block_out_channels=channels, layers_per_block=2, cross_attention_dim=256,
                down_block_types=("CrossAttnDownBlock2D",) * len(channels),
                up_block_types=("CrossAttnUpBlock2D",) * len(channels),
            ).requires_grad_(False)  # fmt: skip
            self.schedule = schedule_from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))

        def forward_network(self, x_t: Any, t: Any, cond: Conditioning) -> Any:
            return self.network(x_t, t * 999, cond["tokens"], return_dict=False)[0]

    teacher = Network()
    distiller = DMD2(teacher, DMD2Config(num_steps=2, student_every=1), roles=Roles(mode=mode, rank=16))
    optimizers = {turn: torch.optim.AdamW(p, 1e-5) for turn, p in distiller.players().items()}
    cond = Conditioning({"tokens": torch.randn(1, 16, 256)})
    for step in range(3):
        batch = Batch(cond, cond, RandomStream(0, step, (0,)), step, (4, 32, 32))
        for turn, losses in turn_losses(distiller, batch):
            losses.backward()
            optimizers[turn].step()
            optimizers[turn].zero_grad(set_to_none=True)
    parameters = sum(p.numel() for n, p in teacher.named_parameters() if ".lora_" not in n)
    return {"size": size, "mode": mode, "backbone_parameters": parameters, "mib": resident_mib() - before}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    for size in SIZES:
        rows = {}
        for mode in ("shared", "full"):
            done = subprocess.run([sys.executable, __file__, size, mode], capture_output=True, text=True, check=True)
            rows[mode] = json.loads(done.stdout.splitlines()[-1])
        shared, full = rows["shared"]["mib"], rows["full"]["mib"]
        millions = rows["full"]["backbone_parameters"] / 1e6
        print(
            f"{size:8} {millions:7.1f}M parameters   shared {shared:7.0f} MiB   full {full:7.0f} MiB   ratio {shared / full:.2f}"
        )


if __name__ == "__main__":
    main()
