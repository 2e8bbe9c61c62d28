"""Validation during training: picture grids, x0 triptychs, drift and diversity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stepdistill.data.source import TrainingData, encode_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import one_step, sample
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.diffusion.solver import teacher_trajectory
from stepdistill.distillers.base import Distiller
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.training.recipe import ValidationConfig
from stepdistill.typing import Images, Latents

NUM_PROMPTS, NUM_SEEDS = 8, 4
TRIPTYCH_TIME = 0.6
SAMPLE_BATCH = 64

Scorer = Callable[[Images, Sequence[str]], Mapping[str, float]]
"""Images and their prompts to numbers by name; keep-best uses `frechet_distance`."""


class Validator:
    """Draws the same prompts from the same noise every time, so that pictures of different steps are comparable.

    Args:
        distiller: the method; its fake score, if it has one, is shown in the triptych.
        data: prompts of the scored images.
        config: what to draw.
        run_dir: grids are written to `samples/`.
        scorer: scores `config.num_scored` images at each validation.
    """

    def __init__(
        self,
        distiller: Distiller,
        data: TrainingData,
        config: ValidationConfig,
        run_dir: Path,
        scorer: Scorer | None = None,
    ) -> None:
        self.distiller, self.data, self.config = distiller, data, config
        self.folder, self.scorer = run_dir / "samples", scorer
        self.prompts = list(config.prompts or data.prompts[:NUM_PROMPTS])
        self.cond = encode_prompts(distiller.teacher, self.prompts).to(data.device)
        self._teacher: tuple[Latents, Latents] | None = None
        self._endpoint: Latents | None = None

    @torch.no_grad()
    def run(self, step: int) -> dict[str, float]:
        """Draw the grids of a step and return its numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        full, few = self.teacher_latents()
        student = self.student_latents(self.cond, "grid")
        teacher = self.distiller.teacher
        num_steps = len(self.distiller.sampler().times)
        few_steps = steps_in_words(num_steps)
        rows = {
            f"teacher, {steps_in_words(self.config.teacher_steps)}": teacher.decode(full),
            f"teacher, {few_steps}": teacher.decode(few),
            f"student, {few_steps}": teacher.decode(student),
        }
        grid(rows, self.prompts).save(self.folder / f"step_{step:06d}.png")
        self.draw_triptych(step, student)
        health = {
            "health/latent_mean_student": student.mean(),
            "health/latent_mean_teacher": full.mean(),
            "health/latent_std_student": student.std(),
            "health/latent_std_teacher": full.std(),
            "health/diversity_student": self.diversity(),
        }
        if self.distiller.is_flow_map:
            health["health/endpoint_error"] = self.endpoint_error()
        values = {name: float(value) for name, value in health.items()}
        return values | self.scores()

    def teacher_latents(self) -> tuple[Latents, Latents]:
        """The teacher's latents at full steps and at the student's number of steps, computed once."""
        if self._teacher is None:
            num_steps = len(self.distiller.sampler().times)
            scale = self.config.teacher_guidance_scale
            self._teacher = (self._teacher_at(self.config.teacher_steps, scale), self._teacher_at(num_steps, scale))
        return self._teacher

    def endpoint_error(self) -> Tensor:
        """RMS distance of the student's first x0 to the end of the teacher's trajectory from the same noise.

        The teacher uses the guidance scale of the student's training. Unlike the loss of a consistency method, this measure
        has an absolute scale.
        """
        if self._endpoint is None:
            self._endpoint = self._teacher_at(self.config.teacher_steps, self.distiller.config.guidance_scale)
        noise, sampler = self._noise("grid", len(self.cond)), self.distiller.sampler()
        first = one_step(self.distiller.student, noise, self.cond, sampler.times[0])
        return (first - self._endpoint).square().mean().sqrt()

    def _teacher_at(self, num_steps: int, scale: float | None) -> Latents:
        teacher = self.distiller.teacher
        guidance = Guidance(
            self.distiller.config.guidance_scale if scale is None else scale, self.data.uncond.expand(len(self.cond))
        )
        times = teacher.few_step_times(num_steps, "ode")
        return teacher_trajectory(teacher, self._noise("grid", len(self.cond)), self.cond, times, guidance).x0

    def student_latents(self, cond: Conditioning, purpose: str) -> Latents:
        """Student samples for a conditioning, from the same noise at every training step."""
        noise, parts = self._noise(purpose, len(cond)), []
        for rows in torch.arange(len(cond), device=noise.device).split(SAMPLE_BATCH):
            rng = self._stream(purpose, rows.tolist())
            parts.append(sample(self.distiller.student, self.distiller.sampler(), noise[rows], cond[rows], rng))
        return torch.cat(parts)

    def draw_triptych(self, step: int, student: Latents) -> None:
        """Draw the student's samples, and the x0 of teacher and fake score for the same noised samples."""
        distiller, count = self.distiller, len(student)
        t = torch.full((count,), TRIPTYCH_TIME, device=student.device)
        x_t = distiller.teacher.schedule.add_noise(student, self._noise("triptych", count), t)
        estimates: dict[str, Tensor] = {"student sample": student}
        fake_scores = [each for name, each in distiller.networks().items() if name.startswith("fake_score")]
        judges = {
            "teacher's x0": distiller.teacher,
            "fake score's x0": fake_scores[-1] if fake_scores else None,  # of several, that of the last step
        }
        for name, judge in judges.items():
            if isinstance(judge, Denoiser):
                estimates[name] = judge(x_t, t, self.cond).x0
        rows = {name: distiller.teacher.decode(x0) for name, x0 in estimates.items()}
        grid(rows, self.prompts).save(self.folder / f"triptych_{step:06d}.png")

    def diversity(self) -> Tensor:
        """Mean distance between latents of one prompt over seeds, relative to the latents' norm."""
        rows = torch.arange(len(self.cond), device=self.data.device).repeat_interleave(NUM_SEEDS)
        latents = self.student_latents(self.cond[rows], "diversity").flatten(1).float()
        groups = latents.view(len(self.cond), NUM_SEEDS, -1)
        pairs = torch.cdist(groups, groups).sum((1, 2)) / (NUM_SEEDS * (NUM_SEEDS - 1))
        return pairs.mean() / latents.norm(dim=1).mean()

    def scores(self) -> dict[str, float]:
        """The scorer's numbers on student images, prefixed with `validation/`."""
        if self.scorer is None or self.config.num_scored == 0:
            return {}
        count = min(self.config.num_scored, len(self.data.prompts))
        latents = self.student_latents(self.data.cond[:count].to(self.data.device), "scored")
        images = torch.cat([self.distiller.teacher.decode(part) for part in latents.split(SAMPLE_BATCH)])
        scores = self.scorer(images, self.data.prompts[:count])
        return {f"validation/{name}": value for name, value in scores.items()}

    def _stream(self, purpose: str, indices: Sequence[int]) -> RandomStream:
        return RandomStream(self.config.seed, 0, tuple(indices), self.data.device).fork(f"validation/{purpose}")

    def _noise(self, purpose: str, count: int) -> Latents:
        return self._stream(purpose, range(count)).normal("noise", self.data.shape)
