"""What a finished run is measured on: its student at the steps the recipe names, on one pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.evaluator import Evaluator
from stepdistill.evaluation.embedded.measurements import Results
from stepdistill.evaluation.embedded.runner import RunOptions
from stepdistill.evaluation.generation import generate
from stepdistill.evaluation.protocols import EMOJI
from stepdistill.training import scoring
from stepdistill.training.recipe import load_recipe
from stepdistill.training.run import build_distiller
from stepdistill.training.scoring import student_generations


@pytest.mark.parametrize(
    ("recipe", "steps", "expected"),
    [
        ("emoji_lcm_4step", "[]", [4]),
        ("emoji_lcm_4step", "[1,2,4]", [1, 2, 4]),
        ("emoji_dmd2_4step_full", "[1,4]", [1, 4]),
        ("emoji_phased_dmd_4step", "[2,4]", [2, 4]),
    ],
)
def test_a_student_is_drawn_at_each_number_of_steps(recipe: str, steps: str, expected: list[int]) -> None:
    resolved = load_recipe(f"recipes/{recipe}.yaml", [f"validation.evaluated_steps={steps}"])
    distiller: Any = build_distiller(resolved)
    generations = student_generations(distiller, distiller.student, resolved)
    assert [each.steps for each in generations] == expected
    assert len({id(each.source) for each in generations}) == 1
    times = [
        len(each.scheduler.timesteps) for each in generations if generate(each, ["fox"], [0]).isfinite().all()
    ]
    assert times == expected


def test_a_grid_that_cannot_be_is_refused() -> None:
    resolved = load_recipe("recipes/emoji_lcm_4step.yaml", ["validation.evaluated_steps=[3]"])
    distiller: Any = build_distiller(resolved)
    with pytest.raises(UserError, match=r"no grid of 3 steps"):
        student_generations(distiller, distiller.student, resolved)


@pytest.mark.parametrize("steps", ["[0]", "[9]", "four"])
def test_only_one_to_eight_steps_are_measured(steps: str) -> None:
    with pytest.raises(UserError, match="evaluated_steps"):
        load_recipe("recipes/emoji_lcm_4step.yaml", [f"validation.evaluated_steps={steps}"])


@pytest.mark.parametrize("asked", [True, False])
def test_coverage_is_measured_where_the_recipe_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool
) -> None:
    seen: list[RunOptions] = []

    def measured(rows: object, *, evaluator: Evaluator, options: RunOptions) -> Results:
        seen.append(options)
        assert evaluator.protocol.seed == 5
        return Results({}, [], {}, [])

    monkeypatch.setattr(scoring, "evaluate", measured)
    monkeypatch.setattr(scoring, "teacher_comparison", lambda *_, **__: [])
    monkeypatch.setattr(scoring, "write_results", lambda *_: None)
    flag = str(asked).lower()
    overrides = [f"validation.with_coverage={flag}", "validation.num_evaluated=16"]
    resolved = load_recipe("recipes/emoji_lcm_4step.yaml", overrides)
    scoring.evaluate_run(build_distiller(resolved), resolved, tmp_path, protocol=replace(EMOJI, seed=5))
    assert [options.with_coverage for options in seen] == [asked]
