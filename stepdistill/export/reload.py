"""Run the code blocks of a model card in a separate process and save their images.

Started by path; imports nothing of stepdistill, so it loads exactly what stock diffusers loads.

    python reload.py job.json
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file


def main(job_path: str) -> None:
    """Execute each block of the job and sample all prompts with its pipeline."""
    job = json.loads(Path(job_path).read_text())
    images: dict[str, torch.Tensor] = {}
    for name, block in job["blocks"].items():
        scope: dict[str, Any] = {}
        exec(compile(block, f"<code block of the model card: {name}>", "exec"), scope)
        images[name] = torch.stack([draw(scope, prompt, seed) for seed, prompt in enumerate(job["prompts"])])
        rounded = torch.from_numpy(np.array(scope["image"])).permute(2, 0, 1) / 255
        if (rounded - images[name][0]).abs().max() > 1 / 255:  # one 8-bit level
            raise RuntimeError(f"the block's own image differs from that of prompt 0 and seed 0 ({name})")
        scope.clear()
        gc.collect()
    save_file(images, job["output"])


def draw(scope: dict[str, Any], prompt: str, seed: int) -> torch.Tensor:
    """Sample an image in [0, 1] with the block's pipeline and settings, before rounding to 8 bits."""
    torch.manual_seed(seed)
    return scope["pipe"](prompt, **scope["settings"], output_type="pt").images[0].float().cpu().contiguous()


if __name__ == "__main__":
    main(sys.argv[1])
