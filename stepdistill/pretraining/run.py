"""Train the embedded models: one resumable loop for autoencoder, CLIP and both text-to-image networks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepdistill.assets import resolve_path
from stepdistill.errors import UserError
from stepdistill.pretraining.autoencoder import AutoencoderStage
from stepdistill.pretraining.clip import ClipStage
from stepdistill.pretraining.optim import build_optimizers
from stepdistill.pretraining.recipe import Budget, PretrainRecipe, load_pretrain_recipe
from stepdistill.pretraining.sd import StableDiffusionStage
from stepdistill.pretraining.sd3 import StableDiffusion3Stage
from stepdistill.pretraining.stage import Stage
from stepdistill.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from stepdistill.training.device import chosen_precision
from stepdistill.training.ema import EMA
from stepdistill.training.optim import decay_factor

logger = logging.getLogger(__name__)

STAGES = {"autoencoder": AutoencoderStage, "clip": ClipStage, "sd": StableDiffusionStage, "sd3": StableDiffusion3Stage}


class Pretrainer:
    """Training loop of a stage: optimisers, EMA, checkpoints and metrics.

    Args:
        stage: networks and loss.
        budget: optimisation settings.
        run_dir: folder of checkpoints and metrics.
    """

    def __init__(self, stage: Stage, budget: Budget, run_dir: Path) -> None:
        self.stage, self.budget, self.run_dir = stage, budget, run_dir
        self.parameters = [p for p in stage.networks.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(stage.networks, budget)
        self.ema = EMA(self.parameters, budget.ema_decay)
        self.is_half = chosen_precision(budget.mixed_precision, torch.device("cpu")) == "bf16"
        self.step = 0
        self.seconds = 0.0

    def resume(self) -> None:
        """Load the latest checkpoint, if there is one."""
        folder = latest_checkpoint(self.run_dir)
        if folder is None:
            return
        tensors, state = load_checkpoint(folder)
        if tensors.keys() != {"networks", "ema", *self.optimizers}:
            raise UserError(f"'{folder}' was trained with another train.optimizer; change it back or set output_dir")
        self.stage.networks.load_state_dict(tensors["networks"])
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, tensors[name])
        self.ema.load_state_dict(tensors["ema"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        logger.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Save a checkpoint."""
        tensors = {
            "networks": dict(self.stage.networks.state_dict()),
            "ema": self.ema.state_dict(),
            **{name: optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()},
        }
        save_checkpoint(self.run_dir, self.step, tensors, {"seconds": self.seconds}, keep=2)

    def fit(self) -> None:
        """Train for the whole budget, then export the averaged weights."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        started = time.monotonic() - self.seconds
        while self.step < self.budget.max_train_steps:
            # On a CPU math attention is twice as fast as the fused kernel's backward for short sequences.
            with sdpa_kernel(SDPBackend.MATH):
                logs = self.update()
            self.seconds = time.monotonic() - started
            if self.step % self.budget.log_every == 0:
                self.write_metrics(logs)
            if self.step % self.budget.checkpointing_steps == 0 or self.step == self.budget.max_train_steps:
                self.save()
        with self.ema.swapped_in():
            self.stage.export(self.run_dir / "export")

    def update(self) -> dict[str, Tensor]:
        """Take an optimiser step."""
        budget = self.budget
        factor = decay_factor(self.step, "cosine", budget.warmup_steps, budget.max_train_steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = budget.learning_rate * factor
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_half):
            loss, logs = self.stage.loss(self.step)
        self.stage.networks.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.budget.max_grad_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.ema.update()
        self.step += 1
        return {"loss": loss, "grad_norm": norm, **logs}

    def write_metrics(self, logs: dict[str, Tensor]) -> None:
        """Append a line to metrics.jsonl."""
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {name: round(float(value.detach()), 5) for name, value in logs.items()}
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        logger.info("%s", row)


def build_stage(recipe: PretrainRecipe) -> Stage:
    """Build the stage of a recipe, initialised from `start_from` if set."""
    torch.manual_seed(recipe.train.seed)
    stage = STAGES[recipe.stage](recipe)
    if recipe.start_from is not None:
        folder = resolve_path(recipe.start_from)
        if not folder.is_dir():
            raise UserError(f"start_from: there is no folder {folder}; pass an export of the same stage")
        stage.start_from(folder)
    return stage


def pretrain(recipe_path: str | Path, overrides: Sequence[str] = ()) -> None:
    """Train an embedded model into `<output_dir>/export`; rerunning resumes."""
    recipe = load_pretrain_recipe(recipe_path, overrides)
    trainer = Pretrainer(build_stage(recipe), recipe.train, recipe.output_dir)
    trainer.resume()
    trainer.fit()
