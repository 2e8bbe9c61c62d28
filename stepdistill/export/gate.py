"""The reload gate: stock diffusers must draw the trainer's own images from what was written.

The code that process runs is the code of the model card. Noise is matched by the order of draws: a stock
pipeline without an explicit generator draws its latents, then the noise of each step, from torch's global
generator; so does `PipelineNoise` here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file

from stepdistill.diffusion.rollout import sample
from stepdistill.diffusion.schedules.families import VPSchedule
from stepdistill.export.card import card_blocks
from stepdistill.export.contract import DIFFUSERS_NAME, SamplerContract, Verification
from stepdistill.typing import Images, Latents

if TYPE_CHECKING:
    from stepdistill.denoisers.pipeline import PipelineDenoiser
    from stepdistill.diffusion.sampler import StudentSampler

# (part of the student's difference to its teacher, at least, at most)
FLOAT32_BOUND = (1 / 20, 5e-5, 1e-3)
HALF_BOUND = (1 / 5, 1e-2, 5e-2)


class ExportError(RuntimeError):
    """What was written does not give the trainer's images when it is loaded again."""


class PipelineNoise:
    """Noise as a stock pipeline draws it: from the global generator of the device, in the order of the steps.

    The dtype of a draw matters: half-precision draws are other numbers than rounded float32 ones. Latents
    have that of the pipeline, and so has the noise of a step, except that flow schedulers step in float32.
    """

    def __init__(self, student: PipelineDenoiser) -> None:
        self.device, self.start_dtype = student.device, student.inference_dtype
        is_vp = isinstance(student.schedule, VPSchedule)
        self.step_dtype = self.start_dtype if is_vp else torch.float32

    def normal(self, purpose: str, shape: Sequence[int]) -> Latents:
        """The next draw, (1, *shape)."""
        dtype = self.start_dtype if purpose == "start" else self.step_dtype
        return torch.randn(1, *shape, device=self.device, dtype=dtype)


@torch.no_grad()
def trainer_images(
    student: PipelineDenoiser,
    sampler: StudentSampler,
    prompts: Sequence[str],
    size: tuple[int, int] | None = None,
) -> Images:
    """The student's images by the trainer's rollout, one per prompt; the i-th is drawn with seed i."""
    height, width = size or (None, None)
    devices = [student.device] if student.device.type == "cuda" else []
    noise = PipelineNoise(student)
    images = []
    with torch.random.fork_rng(devices=devices):
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            start = noise.normal("start", student.latent_shape(height, width))
            x0 = sample(student, sampler, start, student.encode([prompt], height, width), noise)
            images.append(student.decode(x0).float().cpu())
    return torch.cat(images)


def fresh_images(
    blocks: Mapping[str, str], prompts: Sequence[str], folder: Path, base: str, device: torch.device
) -> dict[str, Images]:
    """Execute the blocks in a fresh process with `base` and `folder` set to where things are now.

    Raises:
        ExportError: a block raised; the message has its last line.
    """
    with tempfile.TemporaryDirectory(prefix="stepdistill-") as scratch:
        places = {"base": base, "folder": str(folder.resolve())}
        job = {
            "blocks": {name: with_places(block, places) for name, block in blocks.items()},
            "prompts": list(prompts),
            "output": str(Path(scratch) / "images.safetensors"),
        }
        job_path = Path(scratch) / "job.json"
        job_path.write_text(json.dumps(job))
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        if device.type != "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, str(Path(__file__).with_name("reload.py")), str(job_path)]
        done = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ExportError(f"the code block of '{folder}/README.md' fails in a fresh process: {reason}")
        return load_file(job["output"])


def gate_blocks(contract: SamplerContract, card: str) -> dict[str, str]:
    """The card's code by format; the kohya file is loaded by the LoRA block under its own name."""
    found = card_blocks(card)
    blocks = {}
    if set(contract.formats) - {"pipeline"}:
        lora = found.pop(0)
        kohya = lora.replace(DIFFUSERS_NAME, contract.kohya_name)
        blocks = {
            kind: {"diffusers": lora, "kohya": kohya}[kind] for kind in contract.formats if kind != "pipeline"
        }
    if "pipeline" in contract.formats:
        blocks["pipeline"] = found.pop(0)
    return blocks


def with_places(block: str, places: Mapping[str, str]) -> str:
    """The code block with the values of its path variables replaced.

    >>> with_places('base = "me/model"  # the teacher', {"base": "elsewhere"})
    'base = "elsewhere"  # the teacher'
    """
    for name, value in places.items():
        literal = json.dumps(value)
        block = re.sub(
            rf'^{name} = "(?:[^"\\]|\\.)*"', lambda _, to=f"{name} = {literal}": to, block, flags=re.MULTILINE
        )
    return block


def compare(
    images: Mapping[str, Images], reference: Images, teacher: Images, is_exact: bool
) -> dict[str, Verification]:
    """The differences of each block's images to the trainer's.

    In float32 on a CPU every pixel counts. Half precision and TF32 round each step differently in and out of
    the pipeline, so there the mean has to be small. A student that hardly differs from its teacher must not
    pass because nothing was loaded: the bound is a part of that difference, within what the arithmetic
    allows.

    Args:
        images: of the fresh process, by block.
        reference: of the trainer's student.
        teacher: of the teacher with the student's sampler, same noise.
        is_exact: whether both do the same float32 arithmetic.
    """
    statistic: Literal["max", "mean"] = "max" if is_exact else "mean"
    part, lowest, highest = FLOAT32_BOUND if is_exact else HALF_BOUND
    effect = (reference - teacher).abs()
    size = (effect.max() if is_exact else effect.mean()).item()
    tolerance = min(max(size * part, lowest), highest)
    checks = {}
    for name, made in images.items():
        difference = (
            torch.full((1,), torch.inf) if made.shape != reference.shape else (made - reference).abs()
        )
        checks[name] = Verification(
            max_difference=difference.max().item(),
            mean_difference=difference.mean().item(),
            tolerance=tolerance,
            statistic=statistic,
            effect=effect.max().item(),
        )
    return checks


@contextmanager
def text_encoders_on(pipeline: Any, device: torch.device) -> Iterator[None]:
    """Within the block the text encoders are on `device`; they may have left it after embedding."""
    encoders = [
        m for name, m in pipeline.components.items() if name.startswith("text_encoder") and m is not None
    ]
    homes = [next(encoder.parameters()).device for encoder in encoders]
    for encoder in encoders:
        encoder.to(device)
    try:
        yield
    finally:
        for encoder, home in zip(encoders, homes, strict=True):
            encoder.to(home)


def same_arithmetic(student: PipelineDenoiser, stored: torch.dtype) -> bool:
    """Whether trainer and fresh process do the same float32 arithmetic."""
    return student.device.type == "cpu" and {student.inference_dtype, stored} == {torch.float32}
