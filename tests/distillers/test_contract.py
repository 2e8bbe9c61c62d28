"""What every method owes the trainer, on a toy and on every family of pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.distillers.base import Batch, Distiller
from stepdistill.testing import MixtureTeacher, MLPDenoiser, tiny_pipeline

CASES: dict[str, dict[str, Any]] = {
    "dmd2": {"num_steps": 2, "student_every": 1, "gan": {"student_weight": 1e-2}},
    "lcm": {"num_steps": 2, "target": "ema"},
    "sana_sprint": {"num_steps": 2, "tangent_warmup_steps": 0, "gan": {"width": 8}},
    "scm": {"num_steps": 2, "guidance_range": [2.0, 6.0], "tangent_warmup_steps": 0},
    "tbcm": {"num_steps": 2, "route_points": 3, "tangent_warmup_steps": 0},
}
"""A small configuration of each method, with its options on."""

BACKBONES = ["toy", "sd", "sdxl", "sd3"]


def backbone_of(name: str) -> Denoiser:
    """A frozen teacher: an untrained MLP on two dimensions, or a tiny pipeline's network."""
    if name != "toy":
        return sd.load_teacher(tiny_pipeline(name))
    oracle = MixtureTeacher([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.3])
    teacher = MLPDenoiser((2,), oracle.schedule, prompts=oracle.prompts, cond_dim=2)
    teacher.is_trainable = False
    return teacher.requires_grad_(False)


def distiller_of(method: str, backbone: str) -> Distiller:
    kind = sd.METHODS[method]
    return kind(backbone_of(backbone), kind.Config(**CASES[method]), roles=sd.Roles(rank=2))


def batch_of(distiller: Distiller, step: int = 0, seed: int = 0) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox 0", "two cats 1"])
    batch = data.batch(seed=seed, step=step, indices=range(2), size=2)
    batch.latents = torch.randn(2, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents_cond = batch.cond
    return batch


def run_turns(distiller: Distiller, step: int = 0) -> dict[str, float]:
    """All turns of a step with their backward passes; which player got gradients is checked on the way."""
    batch, found = batch_of(distiller, step), {}
    players = distiller.players()
    for turn in distiller.turns(step):
        losses = distiller.student_step(batch) if turn == "student" else distiller.critic_step(batch)
        losses.backward()
        found |= {f"{turn}/{name}": term.item() for name, term in losses.terms.items()}
        reached = {
            name for name, ps in players.items() if any(p.grad is not None and p.grad.any() for p in ps)
        }
        assert reached == {turn}, f"gradients of the {turn}'s turn reached {reached}"
        for parameters in players.values():
            for parameter in parameters:
                parameter.grad = None
    return found


def moved(distiller: Distiller, seed: int = 3) -> Distiller:
    """All trained tensors off their start, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameters in distiller.players().values():
            for parameter in parameters:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return distiller


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(sd.METHODS)
    assert list(CASES) == sorted(CASES)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", CASES)
def test_contract(method: str, backbone: str) -> None:
    distiller = moved(distiller_of(method, backbone))
    frozen = {name: p for name, p in distiller.teacher.named_parameters() if ".lora_" not in name}
    before = {name: p.detach().clone() for name, p in frozen.items()}
    first = run_turns(distiller)
    assert first
    assert all(abs(value) < float("inf") for value in first.values()), first
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in frozen.items())
    assert run_turns(moved(distiller_of(method, backbone))) == first

    distiller.after_student_update(0)
    twin = distiller_of(method, backbone)
    twin.load_state(distiller.state())
    for name, tensors in twin.state().items():
        assert tensors
        for key, tensor in tensors.items():
            assert torch.equal(tensor, distiller.state()[name][key]), f"{name}.{key}"
    assert run_turns(twin, step=1) == run_turns(distiller, step=1)


@pytest.mark.parametrize("method", CASES)
def test_a_method_names_its_paper_and_describes_itself(method: str) -> None:
    kind = sd.METHODS[method]
    assert kind.paper.startswith("https://arxiv.org/abs/")
    assert kind.__doc__
    assert all(field.description for field in kind.Config.model_fields.values())
