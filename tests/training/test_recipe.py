"""Recipes are read strictly, and written out whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from stepdistill.errors import UserError
from stepdistill.training.recipe import Recipe, TrainConfig, apply_override, did_you_mean, load_recipe, parse_recipe


def document(**sections: Any) -> dict[str, Any]:
    model = {"pretrained_model_name_or_path": "m"}
    return {"model": model, "method": {"name": "dmd2", "num_steps": 2}} | sections


def test_a_bare_no_of_yaml_is_a_precision() -> None:
    assert parse_recipe(document(train=yaml.safe_load("mixed_precision: no"))).train.mixed_precision == "no"
    with pytest.raises(UserError, match=r"train\.mixed_precision"):
        parse_recipe(document(train=yaml.safe_load("mixed_precision: yes")))


def test_the_dump_has_every_default_and_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = parse_recipe(document())
    dumped = yaml.safe_load(recipe.dump())
    assert dumped["method"]["guidance_scale"] == recipe.distiller_config.guidance_scale
    assert dumped["train"]["adam_beta2"] == 0.999
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.distiller_config == recipe.distiller_config
    assert again.digest() == recipe.digest()
    assert load_recipe(tmp_path / "recipe.yaml", ["train.seed=1"]).digest() != recipe.digest()


def test_values_of_overrides_are_read_as_yaml() -> None:
    found: dict[str, Any] = {}
    for override in ("a.b=1e-3", "a.c=[1, 2]", "a.d=null", "a.e=true", "a.f="):
        apply_override(found, override)
    assert found == {"a": {"b": "1e-3", "c": [1, 2], "d": None, "e": True, "f": None}}
    with pytest.raises(UserError, match="'b' holds a value and has no keys below it"):
        apply_override({"a": {"b": 1}}, "a.b.c=2")
    with pytest.raises(UserError, match=r"write key\.sub=value"):
        apply_override({}, "=2")


def test_a_recipe_cannot_be_changed() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"learning_rat": 1}}, r"train\.learning_rat: unknown key \(did you mean 'learning_rate'\?\); known keys: learning_rate, "),
        ({"data": {"pairs": {"nums": 1}}}, r"data\.pairs\.nums: unknown key \(did you mean 'num'\?\); known keys: num, steps"),
        ({"trian": {}}, r"trian: unknown key \(did you mean 'train'\?\); known keys: model, roles, method"),
        ({"train": {"seed": "x"}}, r"train\.seed: .*, not 'x'"),
        ({"method": {"name": "phased_dmd"}, "roles": {"mode": "full"}}, r"roles\.mode=full: the 2 experts of phased_dmd"),
        ({"method": {"name": "dmd2", "num_step": 2}}, r"method\.num_step: unknown key \(did you mean 'num_steps'\?\)"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_the_way_out(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(document(**section))


def test_the_nearest_name_is_the_one_of_the_same_length() -> None:
    """Both "dmd" and "dmd2" share three letters with "dmd3"."""
    assert did_you_mean("dmd3", ["dmd", "dmd2"]) == did_you_mean("dmd3", ["dmd2", "dmd"])
    assert "'dmd2'" in did_you_mean("dmd3", ["dmd", "dmd2"])
    assert "'output_dir'" in did_you_mean("output_dirs", ["output", "output_dir", "outputs"])
    assert did_you_mean("zzz", ["dmd"]) == ""


def test_one_expert_may_be_a_full_copy() -> None:
    recipe: Recipe = parse_recipe(document(roles={"mode": "full"}))
    assert recipe.distiller_config.num_experts == 1


def test_a_run_folder_of_the_first_version_still_loads() -> None:
    """Its resolved recipe records defaults of options that are gone; another value of theirs is refused by name."""
    recorded = {
        "name": "dmd2",
        "num_steps": 2,
        "normaliser": "mean_abs",
        "guidance_rescale": 0.0,
        "gan": {"student_weight": 0.0, "loss": "non_saturating", "layers": None},
    }
    document = {"model": {"pretrained_model_name_or_path": "assets/emoji-sd"}, "method": recorded}
    assert parse_recipe(document).distiller_config.num_steps == 2
    document["method"] = {**recorded, "guidance_rescale": 0.5}
    with pytest.raises(UserError, match=r"method\.guidance_rescale: unknown key"):
        parse_recipe(document)
