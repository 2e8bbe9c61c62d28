"""Where the loss of a consistency method on a grid is taken, and what each time is worth there."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import stepdistill as sd
from stepdistill.conditioning import Conditioning
from stepdistill.denoisers.base import Denoiser
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.testing import BulkStream, GaussianTeacher
from stepdistill.typing import Latents, Times

SIZE = 512
Space = Literal["latent", "output"]


class FreeOutput(Denoiser):
    """A network whose output is a variable of its own for each row of the batch, whatever x_t and t."""

    def __init__(self, teacher: GaussianTeacher, rows: int) -> None:
        super().__init__()
        self.schedule, self.prediction, self.is_trainable = teacher.schedule, "eps", True
        self.output = torch.nn.Parameter(torch.zeros(rows, *teacher.latent_shape()))

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.output[: len(x_t)]


def lcm(teacher: GaussianTeacher, space: Space, segments: int) -> Distiller:
    config = sd.LCM.Config(loss_space=space, huber_c=0.0, num_steps=4, segments=(segments,))
    return sd.LCM(teacher, config, student=FreeOutput(teacher, SIZE))


def tbcm(teacher: GaussianTeacher, space: Space) -> Distiller:
    config = sd.TBCM.Config(form="discrete", loss_space=space, huber_c=0.0, route_points=8)
    return sd.TBCM(teacher, config, student=FreeOutput(teacher, 8 * SIZE))


@pytest.mark.parametrize(
    "distiller_of",
    [lambda *a: lcm(*a, segments=1), lambda *a: lcm(*a, segments=4), tbcm],
    ids=["lcm", "pcm", "tbcm"],
)
def test_in_the_space_of_the_output_every_time_pulls_alike(distiller_of) -> None:
    teacher = GaussianTeacher(1.0, 0.5)
    cond, uncond = teacher.encode(["x"]).expand(SIZE), teacher.uncond(1).expand(SIZE)
    stream = BulkStream(0, 0, tuple(range(SIZE)))
    batch = Batch(cond, uncond, stream, 0, teacher.latent_shape(), teacher.sample(SIZE), cond)
    spread = {}
    for space in ("latent", "output"):
        distiller = distiller_of(teacher, space)
        distiller.student_step(batch).total.backward()
        (pull,) = (parameter.grad.abs() for parameter in distiller.student.parameters())
        spread[space] = (pull.max() / pull.min()).item()
    assert spread["output"] == pytest.approx(1.0, rel=1e-3)
    assert spread["latent"] > 10
