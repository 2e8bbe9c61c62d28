"""The embedded teachers' training: it resumes bit by bit, and what it exports is what stock libraries load."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from stepdistill.assets import asset_path
from stepdistill.errors import UserError
from stepdistill.pretraining.autoencoder import standardised
from stepdistill.pretraining.optim import FlattenedMuon, build_optimizers
from stepdistill.pretraining.recipe import Budget, load_pretrain_recipe
from stepdistill.pretraining.run import pretrain
from stepdistill.pretraining.sd3 import RepeatedLastToken

STAGES = ("autoencoder", "clip", "sd", "sd3")
SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"autoencoder": {"block_out_channels": [8, 8, 8, 16]}},
    "clip": {
        "joint": {"projection_dim": 16},
        "vision": {"patch_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
    },
    "sd": {"unet": {"block_out_channels": [32, 32], "cross_attention_dim": 32, "attention_head_dim": 1}},
    "sd3": {
        "transformer": {
            "num_layers": 2,
            "num_attention_heads": 1,
            "attention_head_dim": 32,
            "joint_attention_dim": 64,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
        },
        "text_2": {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "projection_dim": 16},
    },
}


def small_recipe(stage: str, folder: Path) -> Path:
    """The shipped recipe with small networks, in a folder of its own."""
    document = yaml.safe_load(asset_path(f"pretrain/emoji_{stage}.yaml", "recipes").read_text())
    for part, entries in SMALL[stage].items():
        document["network"][part] |= entries
    if stage == "clip":
        document["network"]["vision"]["num_attention_heads"] = document["network"]["text"]["num_attention_heads"] = 1
    document["train"] |= {"max_train_steps": 3, "batch_size": 4, "warmup_steps": 1, "log_every": 1}
    document["train"] |= {"mixed_precision": "no", "checkpointing_steps": 2, "compile": False}
    document["output_dir"] = str(folder / stage)
    if stage in ("sd", "sd3"):
        document |= {"autoencoder": str(folder / "autoencoder/export"), "clip": str(folder / "clip/export")}
        document["scenes"]["count"] = 24
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages, trained for three steps, one on the other."""
    folder = tmp_path_factory.mktemp("pretrain")
    for stage in STAGES:
        pretrain(small_recipe(stage, folder))
    return folder


@pytest.mark.slow
def test_the_exports_load_in_stock_libraries(trained: Path) -> None:
    assert AutoencoderKL.from_pretrained(trained / "autoencoder/export").config.scaling_factor == 1.0
    tokenizer = CLIPTokenizer.from_pretrained(trained / "clip/export")
    assert CLIPModel.from_pretrained(trained / "clip/export").dtype == torch.float32
    assert len(tokenizer("mammal on blue", padding="max_length").input_ids) == 16
    sd = StableDiffusionPipeline.from_pretrained(trained / "sd/export")
    sd3 = StableDiffusion3Pipeline.from_pretrained(trained / "sd3/export", text_encoder_3=None, tokenizer_3=None)
    for pipeline in (sd, sd3):
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline("mammal on blue", height=64, width=64, num_inference_steps=2, output_type="pt").images
        assert images.shape == (1, 3, 64, 64)
        assert images.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "optimizer"), [("autoencoder", None), ("clip", None), ("sd", "adamw"), ("sd", "muon")]
)
def test_a_resumed_run_is_the_uninterrupted_one(
    trained: Path, tmp_path: Path, stage: str, optimizer: str | None
) -> None:
    recipe, whole, resumed = trained / f"{stage}.yaml", trained / stage, tmp_path / "resumed"
    overrides = [] if optimizer is None else [f"train.optimizer={optimizer}"]
    if optimizer is not None:
        whole = tmp_path / "whole"
        pretrain(recipe, [f"output_dir={whole}", *overrides])
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints/step_3")
    (resumed / "checkpoints/latest").write_text("step_2")
    pretrain(recipe, [f"output_dir={resumed}", *overrides])
    for name in ("networks", "optimizer", "ema", *(["muon"] if optimizer == "muon" else [])):
        file = f"checkpoints/step_3/{name}.safetensors"
        ours, theirs = load_file(resumed / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    if optimizer is not None:
        other = {"muon": "adamw", "adamw": "muon"}[optimizer]
        with pytest.raises(UserError, match=r"another train\.optimizer"):
            pretrain(recipe, [f"output_dir={resumed}", f"train.optimizer={other}"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_starts_from_an_export(trained: Path, tmp_path: Path, stage: str) -> None:
    """With a learning rate of nothing, what comes out is what went in."""
    before = trained / stage / "export"
    overrides = [f"start_from={before}", f"output_dir={tmp_path}", "train.learning_rate=1e-12"]
    pretrain(trained / f"{stage}.yaml", [*overrides, "train.max_train_steps=1", "train.weight_decay=0"])
    for file in before.rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "export" / file.relative_to(before)), load_file(file)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=2e-3, rtol=2e-3)


def test_every_weight_has_one_optimiser() -> None:
    networks = nn.ModuleDict(
        {"conv_in": nn.Conv2d(2, 4, 3), "hidden": nn.Conv2d(4, 4, 3), "token_embedding": nn.Embedding(5, 4)}
    )
    optimizers = build_optimizers(networks, Budget(max_train_steps=1, optimizer="muon"))
    muon = optimizers["muon"]
    assert isinstance(muon, FlattenedMuon)
    assert [id(weight) for weight in muon.weights] == [id(networks["hidden"].weight)]
    by_adamw = {id(p) for group in optimizers["optimizer"].param_groups for p in group["params"]}
    assert by_adamw == {id(p) for p in networks.parameters()} - {id(networks["hidden"].weight)}
    assert set(build_optimizers(networks, Budget(max_train_steps=1))) == {"optimizer"}


def test_our_muon_moves_as_pytorchs_but_for_its_precision() -> None:
    ours, theirs = (nn.Parameter(torch.ones(24, 96)) for _ in range(2))
    optimizer = FlattenedMuon([ours], lr=0.1, weight_decay=0.01)
    stock = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ours.grad = torch.randn(24, 96, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        stock.step()
    moved, error = (theirs - 1).norm(), (ours - theirs).norm()
    assert error < 0.02 * moved
    assert optimizer.state_dict()["state"].keys() == stock.state_dict()["state"].keys()


@torch.no_grad()
def test_standardising_the_latents_changes_no_picture() -> None:
    torch.manual_seed(0)
    blocks = 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    images = torch.randn(3, 3, 64, 64)
    posterior = vae.encode(images).latent_dist
    mean, std = posterior.mean.mean((0, 2, 3)), posterior.mean.std((0, 2, 3))
    new = standardised(vae, mean, std)
    theirs = new.encode(images).latent_dist
    assert theirs.mean.mean((0, 2, 3)) == pytest.approx(torch.zeros(4), abs=1e-5)
    assert theirs.mean.std((0, 2, 3)) == pytest.approx(torch.ones(4), abs=1e-5)
    assert theirs.std == pytest.approx(posterior.std / std[:, None, None], rel=1e-4)
    assert new.decode(theirs.mean).sample == pytest.approx(vae.decode(posterior.mean).sample, abs=1e-4)


@torch.no_grad()
def test_one_weighted_token_is_as_good_as_many() -> None:
    torch.manual_seed(0)
    plain = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )
    short = copy.deepcopy(plain)
    processor = RepeatedLastToken()
    processor.log_copies = torch.tensor([math.log(9), 0.0])
    short.set_attn_processor(processor)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([100.0, 700.0]),
        "pooled_projections": torch.randn(2, 8),
    }
    text = torch.randn(2, 5, 12)
    ours = short(encoder_hidden_states=torch.nn.functional.pad(text, (0, 0, 0, 1)), **inputs).sample
    nine = plain(encoder_hidden_states=torch.nn.functional.pad(text, (0, 0, 0, 9)), **inputs).sample
    one = plain(encoder_hidden_states=torch.nn.functional.pad(text, (0, 0, 0, 1)), **inputs).sample
    assert ours[0] == pytest.approx(nine[0], abs=1e-5)
    assert ours[1] == pytest.approx(one[1], abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_the_shipped_recipes_are_read_and_every_line_is_explained(stage: str) -> None:
    path = asset_path(f"pretrain/emoji_{stage}.yaml", "recipes")
    assert load_pretrain_recipe(path).stage == stage
    assert all("#" in line for line in path.read_text().splitlines())


def test_wrong_recipes_are_named() -> None:
    path = asset_path("pretrain/emoji_sd.yaml", "recipes")
    with pytest.raises(UserError, match="learning_rate"):
        load_pretrain_recipe(path, ["train.learning_rat=1"])
    with pytest.raises(UserError, match="emoji_autoencoder"):
        pretrain(path, ["autoencoder=nowhere"])
    with pytest.raises(UserError, match="start_from"):
        pretrain(asset_path("pretrain/emoji_autoencoder.yaml", "recipes"), ["start_from=nowhere"])
    with pytest.raises(UserError, match="nothing_here"):
        load_pretrain_recipe("nothing_here.yaml")
