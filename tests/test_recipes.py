"""Every shipped recipe is readable, commented and explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stepdistill.errors import UserError
from stepdistill.training.recipe import Recipe, load_recipe, parse_recipe

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_resolve_and_reresolve(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "recipe.yaml"
    again.write_text(recipe.dump())
    assert load_recipe(again).digest() == recipe.digest()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_explain_themselves(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "stepdistill distill" in header or "make demo" in header
    assert "Measured" in header
    settings = [line for line in lines if ":" in line and not line.startswith("#") and line.split(":")[1].strip()]
    assert [line for line in settings if "#" not in line] == []


def test_names_and_overrides() -> None:
    recipe = load_recipe(FOLDER / "emoji_dmd2_demo.yaml", ["train.seed=3", "method.gan.student_weight=0.001"])
    assert recipe.train.seed == 3
    assert recipe.method["gan"]["student_weight"] == 0.001


def test_defaults_are_written_out() -> None:
    document = {"model": {"pretrained_model_name_or_path": "x"}, "method": {"name": "dmd2"}}
    written = yaml.safe_load(parse_recipe(document).dump())
    assert written["method"]["student_every"] == 5
    assert written["train"]["max_grad_norm"] == 10.0
    assert set(written) == {"model", "roles", "method", "data", "train", "validation", "track", "export"}


def test_nested_typos_are_named() -> None:
    document = {"model": {"pretrained_model_name_or_path": "x"}, "method": {"name": "dmd2"}, "roles": {"ranks": 4}}
    with pytest.raises(UserError, match=r"roles\.ranks: unknown key \(did you mean 'rank'\?\)"):
        parse_recipe(document)


def test_schema_is_for_editors() -> None:
    assert "pretrained_model_name_or_path" in str(Recipe.model_json_schema())


def test_a_bare_no_is_a_precision() -> None:
    """YAML reads it as false."""
    assert load_recipe(RECIPES[0], ["train.mixed_precision=no"]).train.mixed_precision == "no"
