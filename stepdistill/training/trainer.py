"""The training loop: turns, accumulation, clipping, optimiser steps, averages, checkpoints. It is independent of the method."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from stepdistill.data.source import TrainingData, data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.rollout import Samples
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.turn import Turn
from stepdistill.errors import RunInterruptedError, UserError
from stepdistill.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from stepdistill.training.cost import CostMeter
from stepdistill.training.device import build_accelerator
from stepdistill.training.ema import EMA
from stepdistill.training.interrupt import InterruptGuard
from stepdistill.training.optim import build_optimizer, rate_factor
from stepdistill.training.parallel import any_process, average_gradients, barrier, share_of
from stepdistill.training.precision import attention_kernels
from stepdistill.training.progress import TrainingProgress
from stepdistill.training.recipe import TrainConfig, ValidationConfig
from stepdistill.training.tracking import Tracker
from stepdistill.training.validation import Scorer, Validator


class Trainer:
    """Train a distiller.

    Args:
        distiller: the method and its networks.
        config: optimisation settings.
        data: encoded prompts (and latents), or plain prompts, which are encoded here.
        validation: validation settings; None: no validation.
        report_to: trackers in addition to metrics.jsonl.
        scorer: measures images at validations.
    """

    def __init__(
        self,
        distiller: Distiller,
        config: TrainConfig,
        data: TrainingData | Sequence[str],
        *,
        validation: ValidationConfig | None = None,
        report_to: Sequence[str] = (),
        scorer: Scorer | None = None,
    ) -> None:
        self.distiller, self.config = distiller, config
        self.run_dir = Path(config.output_dir)
        self.accelerator = build_accelerator(config)
        self.device = self.accelerator.device
        self.data = (data if isinstance(data, TrainingData) else data_from_prompts(distiller.teacher, data)).to(
            self.device
        )
        for network in (distiller.teacher, *distiller.networks().values()):
            network.to(self.device)
            if config.gradient_checkpointing and isinstance(network, Denoiser):
                network.enable_gradient_checkpointing()
        rates = {"student": config.learning_rate, "critic": config.critic_learning_rate or config.learning_rate}
        self.players = distiller.players()
        self.optimizers = {turn: build_optimizer(p, rates[turn], config) for turn, p in self.players.items()}
        self.base_rates = rates
        self.ema = EMA(self.players["student"], config.ema_decay)
        self.validation, self.report_to, self.scorer = validation, list(report_to), scorer
        self.num_skipped = 0
        self.best_score = math.inf
        self.cost = CostMeter([distiller.teacher, *distiller.networks().values()])

    def fit(self) -> None:
        """Train to `max_train_steps`, resuming from the latest checkpoint if there is one.

        Raises:
            RunInterruptedError: a signal was received; a checkpoint was written.
            UserError: the run diverged or its folder is not writable; the message names the fix.
        """
        start = self.resume()
        self.prepare_run_dir()
        self.tracker = Tracker(self.run_dir, self.report_to if self.is_main else [], resume_step=start)
        self.validator = self.build_validator()
        with (
            InterruptGuard() as guard,
            TrainingProgress(self.config.max_train_steps, start, shown=self.is_main) as bar,
        ):
            if start == 0:
                self.validate(0)
            for step in range(start, self.config.max_train_steps):
                with self.cost.counted():
                    self.run_step(step)
                bar.advance()
                self.after_step(step + 1, bar)
                if any_process(guard.requested, self.device):
                    self.save(step + 1)
                    raise RunInterruptedError(f"stopped at step {step + 1}; the same command resumes there")
        self.save(self.config.max_train_steps)
        if self.is_main:
            (self.run_dir / "cost.json").write_text(json.dumps(self.cost.record(), indent=1) + "\n")
        self.tracker.close()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.accelerator.is_main_process

    def prepare_run_dir(self) -> None:
        """Create the run folder, and fail early if it is not writable."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "metrics.jsonl").touch()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.run_dir}: {error.strerror}; set train.output_dir to a folder you may write to"
            ) from error

    def build_validator(self) -> Validator | None:
        """Create the validator on the main process."""
        if self.validation is None or not self.is_main:
            return None
        return Validator(self.distiller, self.data, self.validation, self.run_dir, self.scorer)

    def run_step(self, step: int) -> None:
        """Run one iteration: every turn on this process's share of the samples."""
        config = self.config
        size = config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        share = share_of(size, self.accelerator.process_index, self.accelerator.num_processes)
        parts = [share[i : i + config.train_batch_size] for i in range(0, len(share), config.train_batch_size)]
        batches = [self.data.batch(seed=config.seed, step=step, indices=part, size=size) for part in parts]
        samples: list[Samples | None] = [None] * len(batches)
        for turn in self.distiller.turns(step):
            samples = self.run_turn(turn, batches, samples, step)

    def run_turn(
        self, turn: Turn, batches: Sequence[Batch], samples: Sequence[Samples | None], step: int
    ) -> list[Samples | None]:
        """Accumulate the gradient of all micro-batches and take one clipped optimiser step for one player.

        Returns:
            The student's samples of each micro-batch: those of this turn, or those passed in.
        """
        terms: dict[str, Tensor] = {}
        drawn = list(samples)
        for i, batch in enumerate(batches):
            with attention_kernels(
                self.device,
                self.accelerator.mixed_precision,
                gradient_checkpointing=self.config.gradient_checkpointing,
            ):
                with self.accelerator.autocast():
                    if turn == "student":
                        losses = self.distiller.student_step(batch)
                    else:
                        losses = self.distiller.critic_step(batch, samples[i])
                losses.backward(1.0 / len(batches))
            terms, drawn[i] = losses.terms, losses.samples
            self.tracker.add("loss", terms)
            self.tracker.add(turn, losses.logs)
        parameters, optimizer = self.players[turn], self.optimizers[turn]
        average_gradients(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.tracker.add(turn, {"grad_norm": norm})
        size = norm.item()  # the only device read per turn: a non-finite step must not reach the weights
        if not math.isfinite(size):
            self.skip(turn, terms, step)
        else:
            if size > self.config.max_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
            for group in optimizer.param_groups:
                group["lr"] = self.base_rates[turn] * rate_factor(step, self.config)
            optimizer.step()
            if turn == "student":
                self.ema.update()
                self.distiller.after_student_update(step)
        optimizer.zero_grad(set_to_none=True)
        return drawn

    def skip(self, turn: Turn, terms: Mapping[str, Tensor], step: int) -> None:
        """Count a non-finite step, and stop the run after too many."""
        bad = [name for name, term in terms.items() if not math.isfinite(term.item())] or ["gradient"]
        self.num_skipped += 1
        self.tracker.write(step, {"skipped_steps": self.num_skipped})
        if self.num_skipped >= self.config.max_skipped_steps:
            self.save(step)
            raise UserError(
                f"{self.num_skipped} steps were not finite, the last in the {turn}'s {', '.join(bad)}; a checkpoint was "
                "written. Lower train.learning_rate or method.guidance_scale, or use train.mixed_precision=no"
            )

    def after_step(self, done: int, bar: TrainingProgress) -> None:
        """Log, validate and save when due."""
        config = self.config
        if done % config.log_every == 0 or done == config.max_train_steps:
            means = self.tracker.means()
            if self.is_main:
                rate = self.base_rates["student"] * rate_factor(done - 1, config)
                self.tracker.write(done, {**means, "learning_rate": rate, "skipped_steps": self.num_skipped})
                bar.show(means)
        if self.validation and (done % self.validation.every == 0 or done == config.max_train_steps):
            self.validate(done)
        if done % config.checkpointing_steps == 0 and done != config.max_train_steps:
            self.save(done)

    def validate(self, step: int) -> None:
        """Validate the averaged student on the main process."""
        if self.validator is not None:
            with self.student_average(), self.accelerator.autocast():
                values = self.validator.run(step)
            self.tracker.write(step, values)
            self.keep_best(step, values.get("validation/frechet_distance"))
        barrier()

    def keep_best(self, step: int, score: float | None) -> None:
        """Save the averaged student to `best/` if its Frechet distance is the lowest so far."""
        if score is None or score >= self.best_score or step == 0:
            return
        self.best_score = score
        with self.student_average():
            # The tensors are the parameters themselves: outside of the block they are no longer the average.
            tensors = {name: each.role_state_dict() for name, each in self.distiller.students().items()}
            save_checkpoint(self.run_dir / "best", step, tensors, {"frechet_distance": score}, keep=1)

    def student_average(self) -> AbstractContextManager[None]:
        """Set the student to its moving average within the block."""
        return self.ema.swapped_in()

    def save(self, step: int) -> None:
        """Write a checkpoint from the main process."""
        if self.is_main:
            optimizers = {f"optimizer_{turn}": optimizer_tensors(opt) for turn, opt in self.optimizers.items()}
            state = {"num_skipped": self.num_skipped, "best_score": self.best_score, "cost": self.cost.state()}
            tensors = {**self.distiller.state(), **optimizers, "ema": self.ema.state_dict()}
            save_checkpoint(self.run_dir, step, tensors, state, keep=self.config.checkpoints_total_limit)
        barrier()

    def resume(self) -> int:
        """Load the checkpoint chosen by the recipe and return its step; 0 if there is none."""
        choice = self.config.resume_from_checkpoint
        folder = latest_checkpoint(self.run_dir) if choice == "latest" else Path(choice) if choice else None
        if folder is None:
            return 0
        tensors, state = load_checkpoint(folder)
        try:
            self.distiller.load_state(tensors)
            for turn, optimizer in self.optimizers.items():
                load_optimizer_tensors(optimizer, tensors[f"optimizer_{turn}"])
            self.ema.load_state_dict(tensors["ema"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{folder} does not fit this recipe ({str(error).splitlines()[0]}); "
                "choose another train.output_dir or set train.resume_from_checkpoint=null"
            ) from error
        self.num_skipped, self.best_score = state["num_skipped"], float(state["best_score"])
        self.cost.load_state(state["cost"])
        return int(state["step"])
