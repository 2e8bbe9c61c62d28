"""The shipped teachers are ordinary pipelines that follow a caption."""

from __future__ import annotations

import pytest
import torch

import stepdistill as sd
from stepdistill.assets import resolve_path
from stepdistill.data.captions import BACKGROUNDS
from stepdistill.denoisers.pipeline import PipelineDenoiser

TEACHERS = {"emoji-sd": {}, "emoji-sd3": {"max_sequence_length": 1}}
COLOURS = ("blue", "green", "yellow", "red")


@pytest.mark.parametrize("name", TEACHERS)
def test_a_shipped_teacher_draws_the_background_that_the_caption_names(name: str) -> None:
    teacher = sd.load_teacher(str(resolve_path(f"assets/{name}")))
    assert isinstance(teacher, PipelineDenoiser)
    pipe = teacher.pipe
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        [f"woman on {colour}" for colour in COLOURS],
        num_inference_steps=6,
        guidance_scale=2.0,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(COLOURS))],
        output_type="pt",
        **TEACHERS[name],
    ).images
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(-1)
    named = torch.tensor(list(BACKGROUNDS.values())) / 255
    nearest = torch.cdist(corners, named).argmin(1)
    assert [list(BACKGROUNDS)[i] for i in nearest] == list(COLOURS)
