"""The list of methods is read from source: it has to say what the classes say, and what an iteration really costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.distillers import METHODS
from stepdistill.distillers.batch import Pairs
from stepdistill.distillers.catalogue import method_table
from stepdistill.distillers.registry import ENTRIES, options_of
from stepdistill.testing import turn_losses
from stepdistill.training.cost import CostMeter


class TwoLayers(sd.Denoiser):
    """A network of two layers on four tokens, quick enough for hundreds of iterations."""

    schedule, prediction, feature_layers = sd.FlowSchedule(), "flow", ("0",)

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def forward_network(self, x_t: torch.Tensor, t: torch.Tensor, cond: sd.Conditioning) -> torch.Tensor:
        return self.network(x_t)

    def encode(self, prompts: Sequence[str]) -> sd.Conditioning:
        return self.uncond(len(prompts))

    def uncond(self, n: int) -> sd.Conditioning:
        return sd.Conditioning({"tokens": torch.zeros(n, 1)})

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return (4, 2)


ROWS = {row["name"]: row for row in method_table()}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_list_says_what_the_class_says(name: str) -> None:
    method, row = METHODS[name], ROWS[name]
    assert row["class"] == method.__name__
    assert (row["paper"], row["status"], row["passes"]) == (method.paper, method.status, method.passes)
    assert row["requires"] == method.requires.names()
    assert row["family"] == method.__module__.split(".")[-2]
    assert row["steps"] == method.Config().num_steps
    assert options_of(name) is method.Config
    assert row["summary"] == (method.__doc__ or "").split("\n")[0].rstrip(".")


@pytest.mark.parametrize("name", ENTRIES)
def test_an_iteration_costs_what_the_list_says(name: str) -> None:
    """Measured over many iterations, as the exit step of a rollout is random."""
    method, rows = METHODS[name], 2
    teacher = TwoLayers()
    options: dict[str, Any] = {"regression": "pseudo_huber"} if name == "dmd" else {}
    reward = (lambda images, prompts: images.flatten(1).mean(1)) if name == "pso" else None
    distiller = method(teacher, method.Config(**options), reward=reward)
    meter = CostMeter([teacher, *distiller.networks().values()])
    data = data_from_prompts(teacher, ["a", "b"])
    is_drawn = "exit_step" in dir(distiller) and distiller.config.num_steps > 1
    iterations = 300 if is_drawn else 1
    for step in range(iterations):
        batch = data.batch(seed=0, step=step, indices=range(rows), size=rows)
        batch.latents, batch.latents_cond = batch.noise("real"), batch.cond
        batch.pairs = Pairs(batch.noise("pairs"), batch.noise("images"), batch.cond)
        with meter.counted():
            assert list(turn_losses(distiller, batch))
    assert meter.num_passes / rows / iterations == pytest.approx(method.passes, rel=0.03)


def test_the_list_needs_no_torch() -> None:
    code = (
        "import sys; from stepdistill.distillers import catalogue;"
        "catalogue.ENTRIES = {k: v for k, v in catalogue.ENTRIES.items() if '.config.' in v.options};"
        "catalogue.method_table();"
        "print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
