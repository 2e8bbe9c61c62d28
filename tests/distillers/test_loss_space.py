"""Whose errors the loss of a consistency method weighs, and what each time is worth there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import stepdistill as sd
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.trigflow import field_gain
from stepdistill.distillers.base import Batch, Distiller, PerTime
from stepdistill.testing import BulkStream, GaussianTeacher, MLPDenoiser
from stepdistill.typing import Latents, Times

SIZE = 512
ROUTE = 8
TEACHER = GaussianTeacher(1.0, 0.5)
FIRST_TIME = 0.9


class FreeOutput(Denoiser):
    """A network whose output is a variable of its own for each row of the batch, whatever x_t and t."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.schedule, self.prediction, self.is_trainable = TEACHER.schedule, "eps", True
        self.output = torch.nn.Parameter(torch.zeros(rows, *TEACHER.latent_shape()))

    def forward_network(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        return self.output[: len(x_t)]


def lcm(segments: int, **options) -> Distiller:
    config = sd.LCM.Config(huber_c=0.0, num_steps=4, segments=(segments,), **options)
    return sd.LCM(TEACHER, config, student=FreeOutput(SIZE))


def scm(**options) -> Distiller:
    config = sd.SCM.Config(tangent="finite", learn_variance=False, **options)
    return sd.SCM(TEACHER, config, student=FreeOutput(SIZE))


def tbcm(form: str, **options) -> Distiller:
    config = sd.TBCM.Config(
        form=form, tangent="finite", learn_variance=False, huber_c=0.0, route_points=ROUTE, **options
    )
    rows = ROUTE - 1 if form == "continuous" else ROUTE
    return sd.TBCM(TEACHER, config, student=FreeOutput(rows * SIZE))


def pull(distiller: Distiller) -> tuple[torch.Tensor, dict]:
    """The size of the loss's gradient in each row's output, and the logs."""
    cond, uncond = TEACHER.encode(["x"]).expand(SIZE), TEACHER.uncond(1).expand(SIZE)
    stream = BulkStream(0, 0, tuple(range(SIZE)))
    latents = 1 + 0.5 * torch.randn(SIZE, 1, generator=torch.Generator().manual_seed(0))
    losses = distiller.student_step(Batch(cond, uncond, stream, 0, (1,), latents, cond))
    losses.backward()
    (output,) = distiller.student.parameters()
    assert output.grad is not None
    return output.grad.abs().flatten(), losses.logs


@pytest.mark.parametrize(
    "distiller_of",
    [lambda **o: lcm(1, **o), lambda **o: lcm(4, **o), lambda **o: tbcm("discrete", **o)],
    ids=["lcm", "pcm", "tbcm"],
)
def test_the_times_of_a_grid_pull_at_the_output_alike(distiller_of: Callable[..., Distiller]) -> None:
    pulls = {space: pull(distiller_of(loss_space=space))[0] for space in ("latent", "output")}
    spread = {space: (values.max() / values.min()).item() for space, values in pulls.items()}
    assert spread["output"] == pytest.approx(1.0, rel=1e-3)
    assert spread["latent"] > 10


@pytest.mark.parametrize("distiller_of", [scm, lambda **o: tbcm("continuous", **o)], ids=["scm", "tbcm"])
def test_a_tangent_pulls_at_the_output_without_the_fields_gain(distiller_of: Callable[..., Distiller]) -> None:
    latent, logs = pull(distiller_of(loss_space="latent"))
    output, _ = pull(distiller_of(loss_space="output"))
    tangent = logs["tangent"]
    assert isinstance(tangent, PerTime)
    gain = field_gain("eps", TEACHER.schedule, tangent.t)
    assert torch.allclose(latent, output * gain, rtol=1e-4)
    assert gain.max() / gain.min() > 5


def test_the_adversary_pulls_without_the_fields_gain_too() -> None:
    options = {"tangent": "finite", "learn_variance": False, "first_time": FIRST_TIME, "max_time_prob": 1.0}
    teacher = MLPDenoiser((1,), TEACHER.schedule, prompts=TEACHER.prompts, width=16)  # it has features
    pulls = {}
    for space in ("latent", "output"):
        torch.manual_seed(0)  # the heads
        config = sd.SANASprint.Config(loss_space=space, **options)
        distiller = sd.SANASprint(teacher, config, student=FreeOutput(2 * SIZE))
        pulls[space], _ = pull(distiller)
    latent, output = (pulls[space][SIZE:] for space in ("latent", "output"))
    gain = field_gain("eps", TEACHER.schedule, torch.tensor(FIRST_TIME)).item()
    assert latent.max() > 0
    assert torch.allclose(latent, output * gain, rtol=1e-4, atol=1e-12)
    assert gain > 5
