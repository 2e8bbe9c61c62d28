"""Recipes of the embedded teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from stepdistill.assets import resolve_path
from stepdistill.errors import UserError
from stepdistill.training.recipe import Section, apply_override, first_problem, no_in_words

StageName = Literal["autoencoder", "clip", "sd", "sd3"]


class Scenes(Section):
    """The pool of training scenes."""

    seed: int = Field(default=1, ge=0, lt=1000)
    count: int = Field(default=40_000, ge=1)


class Budget(Section):
    """Optimisation: linear warm-up, cosine decay to zero, and an EMA of the weights, which is exported.

    Attributes:
        optimizer: `muon` uses Muon for hidden matrices and AdamW for the rest, at the same learning rate.
    """

    max_train_steps: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    mixed_precision: Annotated[Literal["auto", "no", "bf16"], BeforeValidator(no_in_words)] = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = Field(default=20, ge=1)
    checkpointing_steps: int = Field(default=500, ge=1)


class PretrainRecipe(Section):
    """A pretraining stage.

    Attributes:
        network: constructor arguments by part (`autoencoder`, `unet`, `transformer`, `vision`, `text`, ...).
        autoencoder: folder of a trained AutoencoderKL (stages sd and sd3).
        clip: folder of a trained CLIPModel whose text tower initialises the text encoder (stages sd and sd3).
        start_from: folder of an export of the same stage, used as initialisation.
        options: hyperparameters of the stage's loss.
    """

    stage: StageName
    output_dir: Path
    scenes: Scenes = Scenes()
    network: dict[str, dict[str, Any]]
    autoencoder: Path | None = None
    clip: Path | None = None
    start_from: Path | None = None
    options: dict[str, float] = {}
    train: Budget


def load_pretrain_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read a recipe file and apply `key.sub=value` overrides.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is invalid.
    """
    try:
        document = yaml.safe_load(resolve_path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"the recipe {path} is not a mapping of keys to values")
    for override in overrides:
        apply_override(document, override)
    try:
        return PretrainRecipe.model_validate(document)
    except ValidationError as error:
        raise UserError(first_problem(error, PretrainRecipe)) from error
