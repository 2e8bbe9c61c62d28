"""Which weights come back from a run folder: the last average, or the best student as it was kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import stepdistill as sd
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.testing import tiny_pipeline
from stepdistill.training.checkpoint import save_checkpoint
from stepdistill.training.recipe import Recipe, parse_recipe
from stepdistill.training.run import load_student_of

RECIPE: Recipe = parse_recipe(
    {
        "model": {"pretrained_model_name_or_path": "tiny"},
        "roles": {"rank": 2},
        "method": {"name": "dmd2", "num_steps": 1},
    }
)


@pytest.fixture(scope="module")
def distiller() -> Distiller:
    return sd.DMD2(sd.load_teacher(tiny_pipeline("sd")), RECIPE.distiller_config, roles=RECIPE.roles)


@pytest.fixture(scope="module")
def run_dir(distiller: Distiller, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last student is all 1, its average all 2, and the best one all 3."""
    folder = tmp_path_factory.mktemp("run")
    parameters = distiller.players()["student"]
    average = {str(number): torch.full_like(p, 2.0) for number, p in enumerate(parameters)}

    def student(value: float) -> dict[str, Tensor]:
        return {name: torch.full_like(tensor, value) for name, tensor in distiller.student.role_state_dict().items()}

    ema = {**average, "num_updates": torch.tensor(5)}
    save_checkpoint(folder, 9, {"student": student(1.0), "ema": ema}, {})
    save_checkpoint(folder / "best", 4, {"student": student(3.0)}, {})
    return folder


@pytest.mark.parametrize(("which", "value"), [("last", 2.0), ("best", 3.0)])
def test_the_averaged_student_comes_back(distiller: Distiller, run_dir: Path, which: str, value: float) -> None:
    load_student_of(run_dir, distiller, RECIPE, which=which)  # type: ignore[arg-type]
    assert {tensor.unique().item() for tensor in distiller.student.role_state_dict().values()} == {value}


def test_a_folder_without_a_best_student_says_so(distiller: Distiller, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no best checkpoint; run `stepdistill distill"):
        load_student_of(tmp_path, distiller, RECIPE, which="best")


def test_a_student_of_other_networks_is_refused(run_dir: Path) -> None:
    other = sd.DMD2(sd.load_teacher(tiny_pipeline("sd")), RECIPE.distiller_config, roles=sd.Roles(rank=3))
    with pytest.raises(UserError, match="does not fit the recipe"):
        load_student_of(run_dir, other, RECIPE)
