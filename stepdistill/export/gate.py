"""The reload gate: stock diffusers must reproduce the trainer's images from the exported files.

A fresh process runs the code of the model card. Noise is matched by the order of draws: without an explicit
generator a stock pipeline draws its latents and then the noise of each step from torch's global generator, and
`PipelineNoise` does the same here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file

from stepdistill.diffusion.rollout import sample
from stepdistill.diffusion.schedules.families import VPSchedule
from stepdistill.errors import ExportError
from stepdistill.export.card import card_blocks
from stepdistill.export.contract import DIFFUSERS_NAME, SamplerContract, Verification
from stepdistill.typing import Images, Latents

if TYPE_CHECKING:
    from stepdistill.denoisers.pipeline import PipelineDenoiser
    from stepdistill.diffusion.sampler import StudentSampler

# Tolerance = clamp(fraction x effect, lowest, highest), where effect is the student's difference from its teacher.
# float32 on a CPU: two correct implementations agree to about 1e-6 per pixel, whereas a LoRA at half strength
# differs by half the effect. 1e-3 is a quarter of an 8-bit level.
FLOAT32_BOUND = (1 / 20, 5e-5, 1e-3)
# Half precision and TF32 (relative precision 4e-3 and 5e-4): rounding differs at every step, so the mean is bounded.
HALF_BOUND = (1 / 5, 1e-2, 5e-2)


class PipelineNoise:
    """Noise as a stock pipeline draws it: from the device's global generator, in the order of the steps.

    The dtype matters, since half-precision draws are not rounded float32 draws. Latents and step noise have the
    pipeline's dtype, except that flow schedulers step in float32.
    """

    def __init__(self, student: PipelineDenoiser) -> None:
        self.device, self.start_dtype = student.device, student.inference_dtype
        is_vp = isinstance(student.schedule, VPSchedule)
        self.step_dtype = self.start_dtype if is_vp else torch.float32

    def normal(self, purpose: str, shape: Sequence[int]) -> Latents:
        dtype = self.start_dtype if purpose == "start" else self.step_dtype
        return torch.randn(1, *shape, device=self.device, dtype=dtype)


@torch.no_grad()
def trainer_images(
    student: PipelineDenoiser, sampler: StudentSampler, prompts: Sequence[str], size: tuple[int, int] | None = None
) -> Images:
    """Return the student's images by the trainer's rollout, one per prompt; image i uses seed i."""
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
    """Run the code blocks in a fresh process, with `base` and `folder` set to the present paths.

    Raises:
        ExportError: a block failed; the message includes its last line of stderr.
    """
    with tempfile.TemporaryDirectory(prefix="stepdistill-") as scratch:
        paths = {"base": base, "folder": str(folder.resolve())}
        job = {
            "blocks": {name: with_paths(block, paths) for name, block in blocks.items()},
            "prompts": list(prompts),
            "output": str(Path(scratch) / "images.safetensors"),
        }
        job_path = Path(scratch) / "job.json"
        job_path.write_text(json.dumps(job))
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        if device.type != "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, str(Path(__file__).with_name("reload.py")), str(job_path)]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ExportError(f"the code of '{folder}/README.md' fails in a fresh process: {reason}")
        return load_file(job["output"])


def gate_blocks(contract: SamplerContract, card: str) -> dict[str, str]:
    """Return the card's code by format; the kohya file uses the LoRA block with its own file name."""
    found = card_blocks(card)
    blocks = {}
    if set(contract.formats) - {"pipeline"}:
        lora = found.pop(0)
        kohya = lora.replace(DIFFUSERS_NAME, contract.kohya_name)
        blocks = {kind: {"diffusers": lora, "kohya": kohya}[kind] for kind in contract.formats if kind != "pipeline"}
    if "pipeline" in contract.formats:
        blocks["pipeline"] = found.pop(0)
    return blocks


def with_paths(block: str, paths: Mapping[str, str]) -> str:
    """Replace the values of a code block's path variables.

    >>> with_paths('base = "me/model"  # the teacher', {"base": "elsewhere"})
    'base = "elsewhere"  # the teacher'
    """
    for name, value in paths.items():
        literal = json.dumps(value)
        block = re.sub(
            rf'^{name} = "(?:[^"\\]|\\.)*"', lambda _, to=f"{name} = {literal}": to, block, flags=re.MULTILINE
        )
    return block


def compare(
    images: Mapping[str, Images], reference: Images, teacher: Images, *, is_exact: bool
) -> dict[str, Verification]:
    """Compare each block's images with the trainer's.

    Bounds the maximum difference for float32 on a CPU, the mean difference otherwise. The tolerance is a fraction
    of the difference between student and teacher, within limits set by the arithmetic: a student close to its
    teacher must not pass because no weights were loaded.

    Args:
        images: images of the fresh process, by block.
        reference: images of the trainer's student.
        teacher: images of the teacher with the student's sampler and the same noise.
        is_exact: whether both sides do the same float32 arithmetic.
    """
    statistic: Literal["max", "mean"] = "max" if is_exact else "mean"
    part, lowest, highest = FLOAT32_BOUND if is_exact else HALF_BOUND
    effect = (reference - teacher).abs()
    size = (effect.max() if is_exact else effect.mean()).item()
    tolerance = min(max(size * part, lowest), highest)
    checks = {}
    for name, made in images.items():
        difference = torch.full((1,), torch.inf) if made.shape != reference.shape else (made - reference).abs()
        checks[name] = Verification(
            max_difference=difference.max().item(),
            mean_difference=difference.mean().item(),
            tolerance=tolerance,
            statistic=statistic,
            effect=effect.max().item(),
        )
    return checks


def same_arithmetic(student: PipelineDenoiser, stored: torch.dtype) -> bool:
    """Return whether trainer and fresh process both compute in float32 on the CPU."""
    return student.device.type == "cpu" and {student.inference_dtype, stored} == {torch.float32}
