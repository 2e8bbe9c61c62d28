"""Run the code blocks of a model card in a process of its own, and save the images they make.

This file is started by its path and imports nothing of stepdistill: what it loads is what anyone loads with
stock diffusers.

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
    """Execute each block of the job and draw every prompt with the pipeline it leaves behind."""
    job = json.loads(Path(job_path).read_text())
    images: dict[str, torch.Tensor] = {}
    for name, block in job["blocks"].items():
        scope: dict[str, Any] = {}
        exec(compile(block, f"<code block of the model card: {name}>", "exec"), scope)
        images[name] = torch.stack([draw(scope, prompt, seed) for seed, prompt in enumerate(job["prompts"])])
        rounded = torch.from_numpy(np.array(scope["image"])).permute(2, 0, 1) / 255
        if (rounded - images[name][0]).abs().max() > 1 / 255:
            raise RuntimeError(f"the block's own image is not the one of prompt 0 and seed 0 ({name})")
        scope.clear()
        gc.collect()
    save_file(images, job["output"])


def draw(scope: dict[str, Any], prompt: str, seed: int) -> torch.Tensor:
    """One image in [0, 1] from the block's own pipeline and settings, before it is rounded to 8 bits."""
    torch.manual_seed(seed)
    return scope["pipe"](prompt, **scope["settings"], output_type="pt").images[0].float().cpu().contiguous()


if __name__ == "__main__":
    main(sys.argv[1])
