"""The memory estimate counts what the methods hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import stepdistill as sd
from stepdistill.denoisers.base import Denoiser
from stepdistill.distillers import METHODS
from stepdistill.distillers.base import Distiller
from stepdistill.testing import tiny_pipeline
from stepdistill.training.plan import memory_estimate, sizes_in_bytes
from stepdistill.training.recipe import Recipe, parse_recipe

OPTIONS: list[dict[str, Any]] = [
    {"name": "dmd", "regression": "pseudo_huber"},
    {"name": "dmd2", "num_steps": 2},
    {"name": "lcm", "num_steps": 2},
    {"name": "lcm", "num_steps": 2, "target": "ema"},
    {"name": "phased_dmd", "num_steps": 4, "num_phases": 2},
    {"name": "pso", "mode": "offline"},
]
CASES = [*OPTIONS, *({"name": name} for name in METHODS if name not in {case["name"] for case in OPTIONS})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "tiny-sd"
    tiny_pipeline("sd").save_pretrained(path)
    return path


def recipe_of(method: dict[str, Any], model: str = "x", mode: str = "shared") -> Recipe:
    return parse_recipe(
        {"model": {"pretrained_model_name_or_path": model}, "roles": {"rank": 2, "mode": mode}, "method": method}
    )


def bytes_held(distiller: Distiller) -> dict[str, int]:
    """Bytes of the networks of a distiller after a step of Adam: 4 each for weight and gradient, 8 for Adam's moments."""
    students = list(distiller.students().values())
    others = [each for each in distiller.networks().values() if isinstance(each, Denoiser)]
    owned = {id(p) for parameters in distiller.players().values() for p in parameters}

    def size(networks: list[Denoiser], *, is_trained: bool) -> int:
        tensors = [p for network in networks for p in network.trainable_parameters()]
        return sum(p.numel() for p in tensors if (id(p) in owned) is is_trained)

    beside = [each for each in others if not any(each is student for student in students)]
    return {
        "student: weights, gradient, Adam": 16 * size(students, is_trained=True),
        "fake score: weights, gradient, Adam": 16 * size(beside, is_trained=True),
        "target: an average of the student": 4 * size(beside, is_trained=False),
        "average of the student": 4 * size(students, is_trained=True),
    }


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        pytest.param(method, mode, id="-".join(map(str, [*method.values(), mode])))
        for method in CASES
        for mode in ("shared", "full")
        if (method["name"], mode) != ("phased_dmd", "full")  # which is refused
    ],
)
def test_every_network_of_a_method_is_counted(method: dict[str, Any], mode: str) -> None:
    recipe = recipe_of(method, mode=mode)
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    base = sum(p.numel() for p in teacher.network.parameters())
    distiller = recipe.distiller_class(teacher, recipe.distiller_config, roles=recipe.roles)
    trained = sum(p.numel() for p in distiller.student.trainable_parameters())
    estimate = sizes_in_bytes(recipe, base=base, trained=trained)
    assert estimate.pop("backbone (frozen)") == 4 * base
    assert estimate == bytes_held(distiller)


def test_sizes_are_read_from_the_configuration(folder: Path) -> None:
    estimate = memory_estimate(recipe_of({"name": "lcm", "target": "ema"}, str(folder)))
    teacher = sd.load_teacher(folder)
    base = sum(p.numel() for p in teacher.network.parameters())
    student = teacher.role("student", sd.Roles(rank=2))
    adapter = sum(p.numel() for p in student.trainable_parameters())
    assert estimate["parameters"] == {"backbone": base, "trained_per_player": adapter}
    total = 4 * base + (16 + 4 + 4) * adapter
    assert estimate["total_gib"] == round(total / 2**30, 3)


def test_eight_bit_adam_and_half_precision_are_counted() -> None:
    recipe = recipe_of({"name": "dmd2"})
    lean = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"use_8bit_adam": True, "ema_decay": 0.0}),
            "model": recipe.model.model_copy(update={"dtype": "bf16"}),
        }
    )
    assert list(sizes_in_bytes(lean, base=100, trained=10).values()) == [200, 100, 100, 0, 0]
