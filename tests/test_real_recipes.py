"""The recipes for real models: each runs on the tiny pipeline of its family, and its memory is what its header says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from stepdistill.cli import main as cli
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import sample
from stepdistill.errors import UserError
from stepdistill.export.contract import read_contract
from stepdistill.export.use import load_export
from stepdistill.testing import tiny_pipeline
from stepdistill.training.checkpoint import latest_checkpoint, load_checkpoint
from stepdistill.training.plan import memory_estimate
from stepdistill.training.recipe import Recipe, load_recipe
from stepdistill.training.run import build_distiller, build_trainer, distill, restore

FOLDER = Path(__file__).parent.parent / "recipes"
DOCS = Path(__file__).parent.parent / "docs/recipes.md"
FAMILIES: dict[str, tuple[Any, str]] = {
    "sd15": ("sd", "PNDMScheduler"),
    "sdxl": ("sdxl", "EulerDiscreteScheduler"),
    "sd35m": ("sd3", "FlowMatchEulerDiscreteScheduler"),
}
"""Start of a recipe's name -> tiny family, and the scheduler that the real model comes with."""
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem.split("_")[0] in FAMILIES)
NUM_STEPS = 2

# What the configurations of the real networks say, as far as it differs from diffusers' defaults.
NETWORKS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sd35m": {
        "sample_size": 128,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm",
    },
}
BILLIONS = {"sd15": 0.860, "sdxl": 2.567, "sd35m": 2.243}
"""Parameters of the published networks."""


def configuration(model: str, folder: Path) -> Path:
    """A folder with all of a real pipeline that `stepdistill plan` reads: two configurations."""
    pipeline = type(tiny_pipeline(FAMILIES[model][0])).__name__
    name, network = ("transformer", "SD3Transformer2DModel") if model == "sd35m" else ("unet", "UNet2DConditionModel")
    (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, name: ["diffusers", network]}))
    (folder / name / "config.json").write_text(json.dumps({"_class_name": network, **NETWORKS[model]}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for model, (family, scheduler) in FAMILIES.items():
        pipeline = tiny_pipeline(family)
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
        folders[model] = tmp_path_factory.mktemp("models") / f"tiny-{model}"
        pipeline.save_pretrained(folders[model])
    return folders


@pytest.fixture
def overrides(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """By model: its tiny pipeline, the user's files, and what a CPU needs. Nothing else of a recipe changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red fox\ntwo cats\nsnow\n")
    images = tmp_path / "images"
    images.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 24), colour).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"something {colour}")
    common = [
        f"data.prompts={tmp_path / 'prompts.txt'}", "train.device=cpu", "model.dtype=fp32", "train.mixed_precision=no",
        "train.train_batch_size=1", "train.gradient_accumulation_steps=2", f"train.max_train_steps={NUM_STEPS}",
    ]  # fmt: skip
    return {model: [f"model.pretrained_model_name_or_path={folder}", *common] for model, folder in models.items()}


def tiny(path: Path, overrides: dict[str, list[str]]) -> list[str]:
    """The overrides of a recipe, images only where it has some."""
    images = [f"data.images={Path('images').resolve()}"] if load_recipe(path).data.images else []
    return overrides[path.stem.split("_")[0]] + images


def moved(recipe: Recipe, run_dir: Path) -> list[str]:
    """The student's second LoRA factors, which start at zero, that the last checkpoint holds changed."""
    folder = latest_checkpoint(run_dir)
    assert folder is not None
    trained, _ = load_checkpoint(folder)
    fresh = build_distiller(recipe).student.role_state_dict()
    assert trained["student"].keys() == fresh.keys()
    return [name for name, value in trained["student"].items() if not torch.equal(value, fresh[name])]


def logged_losses(run_dir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: value for line in lines for name, value in line.items() if name.startswith("loss/")}


def test_there_are_recipes_for_each_model() -> None:
    assert {path.stem.split("_")[0] for path in RECIPES} == set(FAMILIES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_written_for_24_gb(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model.dtype == "bf16"
    assert recipe.train.mixed_precision == "bf16"
    assert recipe.train.gradient_checkpointing
    assert recipe.data.cache_dir
    assert recipe.train.output_dir == f"runs/{path.stem}"
    assert path.stem.split("_")[1:3] == [recipe.method["name"], f"{recipe.distiller_config.num_steps}step"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_shows_the_memory(
    path: Path, overrides: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.app(["distill", str(path), "--dry-run", *tiny(path, overrides)], standalone_mode=False)
    out = capsys.readouterr().out
    assert f"max_train_steps: {NUM_STEPS}" in out
    assert "total" in out


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_memory_of_the_header_and_of_the_docs_is_what_plan_prints(path: Path, tmp_path: Path) -> None:
    model = path.stem.split("_")[0]
    folder = configuration(model, tmp_path / model)
    estimate = memory_estimate(load_recipe(path, [f"model.pretrained_model_name_or_path={folder}"]))
    assert round(estimate["parameters"]["backbone"] / 1e9, 3) == BILLIONS[model]
    total = f"{estimate['total_gib']:.1f} GiB"
    assert f"Memory: {total} of weights, gradients and Adam (stepdistill plan)" in path.read_text()
    (row,) = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{path.stem}`")]
    assert f"| {total} " in row


@pytest.mark.slow
@pytest.mark.usefixtures("gate_in_this_process")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_exports_on_the_tiny_pipeline(path: Path, overrides: dict[str, list[str]]) -> None:
    recipe = load_recipe(path, tiny(path, overrides))
    run_dir = distill(recipe)
    losses = logged_losses(run_dir)
    assert losses
    assert all(math.isfinite(value) for value in losses.values()), losses
    names = build_distiller(recipe).student.role_state_dict()
    assert len(moved(recipe, run_dir)) >= 0.4 * len(names), "the second factor of nearly every layer moves"
    checks = read_contract(run_dir / "export").verified
    assert set(checks) == set(recipe.export.formats)
    assert all(check.passed for check in checks.values())
    pipe, call = load_export(run_dir)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red fox", **call).images[0]
    assert image.size == (16, 16)
    assert call["num_inference_steps"] == recipe.distiller_config.num_steps


@pytest.mark.slow
@pytest.mark.usefixtures("gate_in_this_process")
def test_pso_starts_from_the_exported_student_of_dmd2(overrides: dict[str, list[str]], tmp_path: Path) -> None:
    """As the header of the PSO recipe says: distil, export as a pipeline, tune that; a LoRA alone is refused with the way out."""
    first, second = (FOLDER / f"sdxl_{method}_4step_lora_24gb.yaml" for method in ("dmd2", "pso"))
    folder = tmp_path / "runs/sdxl_dmd2_4step_lora_24gb/export"
    distill(load_recipe(first, [*tiny(first, overrides), "train.learning_rate=1e-2", "train.lr_warmup_steps=0"]))
    rest = [each for each in tiny(second, overrides) if not each.startswith("model.pretrained")]
    recipe = load_recipe(second, rest)
    with pytest.raises(UserError, match=r"export\.formats=\[pipeline\]"):
        build_distiller(recipe)
    cli.app(["export", str(folder.parent), "export.formats=[pipeline]"], standalone_mode=False)
    student, _ = restore(folder.parent)
    assert restore(folder.parent, overrides=["method.num_steps=2"])[0].sampler().num_steps == 2
    with pytest.raises(UserError, match="does not fit the recipe"):
        restore(folder.parent, overrides=["roles.rank=3"])
    trainer = build_trainer(recipe)
    reference, sampler = trainer.distiller.teacher, trainer.distiller.sampler()
    assert sampler.times == student.sampler().times
    noise, cond = torch.randn(1, *reference.latent_shape()), reference.encode(["a red fox"])
    images = [
        sample(network, sampler, noise, cond, RandomStream(0, 0, (0,), "cpu"))
        for network in (reference, student.student, student.teacher)
    ]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-4)
    assert (images[0] - images[2]).abs().max() > 1e-2
    trainer.fit()
    assert all(math.isfinite(value) for value in logged_losses(Path(recipe.train.output_dir)).values())
