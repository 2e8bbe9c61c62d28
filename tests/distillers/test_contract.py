"""What holds for every method on every family: finite losses, the right gradients, repeatable, restorable."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.distillers import METHODS
from stepdistill.distillers.base import Batch, Distiller, Pairs
from stepdistill.testing import MLPDenoiser, tiny_pipeline, turn_losses
from stepdistill.testing.prompts import ComponentPrompts

# Options under which the contract is checked; {"num_steps": 2} for methods that are not named.
CASES: dict[str, dict[str, Any]] = {
    "dmd": {"regression": "pseudo_huber"},
    "dmd2": {"num_steps": 2, "gan": {"student_weight": 1e-2}},
    "lcm": {"num_steps": 2, "target": "ema"},
    "phased_dmd": {"num_steps": 2},
    "pso": {"num_steps": 2, "reward": "brightness", "clip_range": None},
    "sana_sprint": {"num_steps": 2, "tangent_warmup_steps": 0, "gan": {"width": 8}},
    "scm": {"num_steps": 2, "guidance_range": [2.0, 6.0], "tangent_warmup_steps": 0},
    "swiftbrush": {"guidance_scale_max": 6.0, "reward": "brightness", "clip_threshold": 2.0},
    "tbcm": {"num_steps": 2, "route_points": 3, "tangent_warmup_steps": 0},
}
MODELS = ["toy", "sd", "sdxl", "sd3"]
FEW_LAYERS = sd.Roles(rank=2, target_modules=["to_q", "to_v"])
"""For what holds whichever layers are adapted: an adapter on all of them takes ten times as long to build."""


def brightness(images: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
    """A reward that anything can be given."""
    assert len(images) == len(prompts)
    return images.flatten(1).mean(1)


def build_teacher(model: str) -> Denoiser:
    if model != "toy":
        return sd.load_teacher(tiny_pipeline(model))
    prompts = ComponentPrompts(torch.full((2,), 0.5))
    toy = MLPDenoiser((3, 4, 4), sd.FlowSchedule(), prompts=prompts, cond_dim=2)
    toy.is_trainable = False
    return toy.requires_grad_(False)


def build(method: str, model: str, *, roles: sd.Roles = FEW_LAYERS, **options: Any) -> Distiller:
    case = CASES.get(method, {"num_steps": 2})
    kind, config = METHODS[method], METHODS[method].Config(**case, **options)
    extras: dict[str, Any] = {"reward": brightness} if "reward" in case else {}
    roles = sd.Roles(rank=2) if model == "toy" else roles  # a toy is copied whole
    return kind(build_teacher(model), config, roles=roles, **extras)


def batch_of(distiller: Distiller, size: int = 2) -> Batch:
    """A batch with everything a method may want."""
    batch = data_from_prompts(distiller.teacher, ["a red fox", "two cats"]).batch(
        seed=0, step=0, indices=range(size), size=size
    )
    real, noise, x0 = torch.randn(3, size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents, batch.latents_cond = real, batch.cond
    batch.pairs = Pairs(noise, x0, batch.cond)
    return batch


def perturb(distiller: Distiller) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameters in distiller.players().values():
        for parameter in parameters:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_turns_are_finite_and_reach_their_player_only(method: str, model: str) -> None:
    distiller = build(method, model, roles=sd.Roles(rank=2))
    perturb(distiller)
    players, batch = distiller.players(), batch_of(distiller)
    for turn, losses in turn_losses(distiller, batch):
        losses.backward()
        assert all(term.isfinite() for term in losses.terms.values())
        for name, parameters in players.items():
            sizes = [p.grad.abs().max() for p in parameters if p.grad is not None]
            assert (max(sizes, default=0.0) > 0) == (name == turn), name
            assert all(size.isfinite() for size in sizes)
            for parameter in parameters:
                parameter.grad = None
    owned = {id(p) for parameters in players.values() for p in parameters}
    assert all(p.grad is None for p in distiller.teacher.parameters() if id(p) not in owned)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_losses(method: str) -> None:
    runs = []
    for _ in range(2):
        distiller = build(method, "sd")
        batch = batch_of(distiller)
        runs.append([value.item() for _, losses in turn_losses(distiller, batch) for value in losses.terms.values()])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["toy", "sd3"])
def test_state_is_restored(method: str, model: str) -> None:
    trained, fresh = build(method, model), build(method, model)
    perturb(trained)
    state = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in trained.state().items()}
    fresh.load_state(state)
    assert set(state) == set(trained.networks())
    totals = [[losses.total.item() for _, losses in turn_losses(each, batch_of(each))] for each in (trained, fresh)]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_neither_run_nor_trained_before_its_first_time(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller, latest = build(method, "sd", first_time=0.8), [0.0]
    original = Denoiser.forward

    def forward(self: Denoiser, x_t: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(self is student for student in distiller.students().values()):
            latest.append(t.max().item())
        return original(self, x_t, t, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "forward", forward)
    batch = batch_of(distiller)
    assert list(turn_losses(distiller, batch))
    assert distiller.sampler().times[0] == pytest.approx(0.8, abs=1e-3)
    assert 0 < max(latest) <= 0.8 + 1e-3
