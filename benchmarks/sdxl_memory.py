"""Peak memory and seconds per iteration of DMD2 with LoRA on the SDXL UNet, 1024 px, on one GPU.

    python benchmarks/sdxl_memory.py                          # batch 1 and 4, with and without gradient checkpointing
    python benchmarks/sdxl_memory.py --output benchmarks/results/sdxl_memory.md
    python benchmarks/sdxl_memory.py --tiny                   # a tiny UNet on the CPU: shows that the script runs

The UNet is built from SDXL's configuration with random weights in bfloat16 (2.57B parameters), the adapters of student and fake score
are rank 64 in float32, the latents 4 x 128 x 128, the prompts' embeddings random. An iteration is one critic turn, every fifth one
also a student turn, guidance 4, 4 steps, no GAN: what the product's trainer does, optimisers included. Text encoders and
autoencoder are not on the GPU.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from stepdistill.data.source import TrainingData
from stepdistill.denoisers import Roles
from stepdistill.denoisers.sdxl import SDXLDenoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.distillers.distribution.config import DMD2Config
from stepdistill.distillers.distribution.dmd2 import DMD2
from stepdistill.training.recipe import TrainConfig
from stepdistill.training.tracking import Tracker
from stepdistill.training.trainer import Trainer

UNET: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = UNET | {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 4),
}
TOKENS, TOKEN_WIDTH, POOLED_WIDTH, ROWS = 77, 2048, 1280, 8
STUDENT_EVERY = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--iterations", type=int, default=10, help="timed ones, after as many as warm up")
    parser.add_argument("--rank", type=int, default=64, help="of both adapters")
    parser.add_argument("--tiny", action="store_true", help="a tiny UNet on the CPU")
    parser.add_argument("--output", type=Path, help="also write the table here")
    return parser.parse_args()


def build_teacher(config: dict[str, Any], device: torch.device) -> SDXLDenoiser:
    """The UNet alone, in a pipeline without encoders."""
    with torch.device(device):
        unet = UNet2DConditionModel(**config)
    absent: Any = None
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    )
    pipeline = StableDiffusionXLPipeline(
        vae=absent, text_encoder=absent, text_encoder_2=absent, tokenizer=absent, tokenizer_2=absent,
        unet=unet.to(torch.bfloat16).requires_grad_(False), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
    return SDXLDenoiser(pipeline)


def random_data(teacher: SDXLDenoiser) -> TrainingData:
    """Random embeddings of the shapes that SDXL's two text encoders give."""
    side = float(teacher.latent_shape()[-1] * 8)
    cond = Conditioning(
        {
            "tokens": torch.randn(ROWS, TOKENS, TOKEN_WIDTH),
            "pooled": torch.randn(ROWS, POOLED_WIDTH),
            "time_ids": torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(ROWS, -1),
        }
    )
    prompts = tuple(f"prompt {row}" for row in range(ROWS))
    return TrainingData(prompts, cond, cond[torch.tensor([0])], tuple(teacher.latent_shape()))


def build_trainer(options: argparse.Namespace, batch_size: int, checkpointing: bool, folder: str) -> Trainer:
    device = torch.device("cpu" if options.tiny else "cuda")
    teacher = build_teacher(TINY if options.tiny else UNET, device)
    method = DMD2Config(num_steps=4, guidance_scale=4.0, student_every=STUDENT_EVERY)
    train = TrainConfig(
        train_batch_size=batch_size, gradient_checkpointing=checkpointing, ema_decay=0.0, device=device.type,
        mixed_precision="bf16", output_dir=folder,
    )  # fmt: skip
    trainer = Trainer(DMD2(teacher, method, roles=Roles(rank=options.rank)), train, random_data(teacher))
    trainer.tracker = Tracker(Path(folder), [])
    return trainer


def measure(options: argparse.Namespace, batch_size: int, checkpointing: bool) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(options, batch_size, checkpointing, folder)
        for step in range(options.iterations):
            trainer.run_step(step)
        synchronise()
        start = time.perf_counter()
        for step in range(options.iterations):
            trainer.run_step(step)
        synchronise()
        seconds = (time.perf_counter() - start) / options.iterations
    peak = "-" if options.tiny else f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"| {batch_size} | {'on' if checkpointing else 'off'} | {peak} | {seconds:.2f} |"


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows(options: argparse.Namespace) -> list[str]:
    """All rows; a setting that does not fit the device says so."""
    table = []
    for batch_size in options.batch_sizes:
        for checkpointing in (False, True):
            try:
                table.append(measure(options, batch_size, checkpointing))
            except torch.OutOfMemoryError:
                table.append(f"| {batch_size} | {'on' if checkpointing else 'off'} | does not fit | |")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            print(table[-1], flush=True)
    return table


def main() -> None:
    options = arguments()
    if not options.tiny and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA device; run it on a GPU, or add --tiny for a trial on the CPU", file=sys.stderr
        )
        sys.exit(2)
    device = "CPU, tiny UNet" if options.tiny else torch.cuda.get_device_name()
    head = [
        f"# DMD2 with LoRA on the SDXL UNet, 1024 px, {device}, torch {torch.__version__}\n",
        "| batch | gradient checkpointing | peak memory | s / iteration |",
        "|---|---|---|---|",
    ]
    print("\n".join(head))
    table = rows(options)
    if options.output:
        options.output.write_text("\n".join([*head, *table]) + "\n")


if __name__ == "__main__":
    main()
