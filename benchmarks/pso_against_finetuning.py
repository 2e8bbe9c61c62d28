"""What a few-step student becomes when it is tuned by PSO, and when it is fine-tuned in the ordinary way.

    python benchmarks/pso_against_finetuning.py --base runs/base/export --first-time 0.8 --out runs/pso

Starts three times from the same student, a pipeline folder: PSO with a reward, PSO on real scenes, and the denoising loss on the
same real scenes. All get the same number of iterations and are run in the same steps. Prints rewards of evaluation captions,
which none of them was trained on, Frechet distance, prompt accuracy and sharpness; writes a grid of pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import stepdistill as sd
from stepdistill.critics.config import RewardConfig
from stepdistill.data.source import prepare_data
from stepdistill.diffusion.prediction import conditional_target
from stepdistill.diffusion.rollout import sample
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.preference.config import PSOConfig
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.evaluation.prompt_sets import load_prompt_set
from stepdistill.evaluation.protocols import protocol_named
from stepdistill.losses.score import denoising_error
from stepdistill.training.evaluation import PictureScorer

REWARD = "emoji_clip"
BATCH = 64
NUM_SHOWN = 12


class FineTuning(sd.PSO):
    """The student's own network, fitted to real scenes by the denoising loss at uniform times."""

    requires = Requirements(latents=True)

    def student_step(self, batch: sd.Batch) -> sd.Losses:
        """The mean squared error of the network's prediction."""
        rng = self.begin("student", batch)
        x0, cond = batch.real()
        t, eps = rng.uniform("t"), rng.normal("eps", batch.shape)
        schedule, prediction = self.student.schedule, self.student.prediction
        out = self.student(schedule.add_noise(x0, eps, t), t, cond)
        target = conditional_target(schedule, x0, eps, None, t, prediction)
        return sd.Losses({"denoising": denoising_error(schedule, prediction, out, target).mean()})


def methods(args: argparse.Namespace) -> dict[str, tuple[type[sd.PSO], PSOConfig]]:
    """What is compared, by name."""
    shared: dict[str, Any] = {"num_steps": args.steps, "first_time": args.first_time}
    reward = RewardConfig(name=REWARD)
    online = PSOConfig(**shared, mode="online", reward=reward, beta=args.beta, shared_start=args.shared_start)
    offline = PSOConfig(**shared, mode="offline", beta=args.offline_beta, negative_weight=args.negative_weight)
    return {
        "PSO, reward": (sd.PSO, online),
        "PSO, real scenes": (sd.PSO, offline),
        "fine-tuning, real scenes": (FineTuning, offline),
    }


def train(name: str, kind: type[sd.PSO], config: PSOConfig, args: argparse.Namespace) -> sd.PSO:
    """Tune a fresh adapter on the base student; the averaged adapter is left in place."""
    reward = sd.load_reward(REWARD) if config.mode == "online" else None
    distiller = kind(sd.load_teacher(args.base), config, roles=sd.Roles(rank=16), reward=reward)
    data = prepare_data(
        distiller.teacher,
        model=args.base,
        prompts="emoji",
        images="emoji",
        num_prompts=4096,
        num_images=args.images,
        cache_dir=str(args.out / "cache"),
    )
    folder = args.out / name.replace(", ", "_").replace(" ", "_")
    training = sd.TrainConfig(
        learning_rate=args.learning_rate,
        lr_scheduler="linear",
        lr_warmup_steps=10,
        train_batch_size=args.batch_size,
        max_train_steps=args.iterations,
        ema_decay=0.95,
        mixed_precision="auto",
        output_dir=str(folder),
    )
    trainer = sd.Trainer(distiller, training, data)
    trainer.fit()
    with trainer.student_average():
        averaged = distiller.student.role_state_dict()
        kept = {key: value.clone() for key, value in averaged.items()}
    distiller.student.load_role_state_dict(kept)
    return distiller


@torch.no_grad()
def draw(distiller: sd.PSO, network: sd.Denoiser, captions: Sequence[str]) -> torch.Tensor:
    """Pictures of captions in the base's own few steps, the same noises for every network."""
    teacher, parts = distiller.teacher, []
    for start in range(0, len(captions), BATCH):
        some = list(captions[start : start + BATCH])
        rng = sd.RandomStream(0, 0, tuple(range(start, start + len(some)))).fork("evaluation")
        noise = rng.normal("noise", teacher.latent_shape())
        latents = sample(network, distiller.sampler(), noise, teacher.encode(some), rng)
        parts.append(teacher.decode(latents))
    return torch.cat(parts)


def measure(images: torch.Tensor, scorer: PictureScorer, captions: Sequence[str]) -> dict[str, float]:
    """The columns of the table."""
    scores = scorer(images, captions)
    return {
        "reward": scores["clip_score"] / 100,
        "Frechet distance": scores["frechet_distance"],
        "prompt accuracy": scores["prompt_accuracy"],
        "sharpness": sharpness(images),
    }


def sharpness(images: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels: a blur lowers it."""
    across, down = images.diff(dim=-1).abs().mean(), images.diff(dim=-2).abs().mean()
    return float(across + down) / 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="pipeline folder of a few-step student")
    parser.add_argument("--steps", type=int, default=2, help="network calls it is run with")
    parser.add_argument("--first-time", type=float, default=1.0, help="where its grid begins")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--images", type=int, default=4096, help="real scenes")
    parser.add_argument("--captions", type=int, default=1000, help="pictures of each row")
    parser.add_argument("--beta", type=float, default=50.0, help="of PSO with a reward")
    parser.add_argument("--offline-beta", type=float, default=5.0, help="of PSO on real scenes")
    parser.add_argument("--negative-weight", type=float, default=0.1, help="of the loser on real scenes")
    parser.add_argument("--shared-start", action="store_true", help="both trajectories from one noise")
    parser.add_argument("--only", nargs="*", help="names of rows, instead of all")
    parser.add_argument("--out", type=Path, default=Path("runs/pso"))
    return parser.parse_args()


def main() -> None:
    """Train, measure, print."""
    args = arguments()
    protocol = replace(protocol_named("emoji"), num_prompts=args.captions)
    scorer, captions = PictureScorer(protocol), load_prompt_set(protocol).prompts
    rows: dict[str, dict[str, float]] = {}
    pictures: dict[str, torch.Tensor] = {}
    for name, (kind, config) in methods(args).items():
        if args.only and name not in args.only:
            continue
        distiller = train(name, kind, config, args)
        if not rows:
            pictures["the student itself"] = draw(distiller, distiller.teacher, captions)
        pictures[name] = draw(distiller, distiller.student, captions)
        for row, images in pictures.items():
            rows.setdefault(row, measure(images, scorer, captions))
    titles = list(next(iter(rows.values())))
    print("| | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{values[title]:.4g}" for title in titles) + " |")
    shown = {name: images[:NUM_SHOWN] for name, images in pictures.items()}
    grid(shown, captions[:NUM_SHOWN]).save(args.out / "grid.png")


if __name__ == "__main__":
    main()
