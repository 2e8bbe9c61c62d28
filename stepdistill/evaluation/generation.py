"""Draw pictures with a stock diffusers pipeline: one seed per picture, whatever the batch size."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from stepdistill.data.cache import named_weights
from stepdistill.typing import Images

PIXELS_AT_ONCE = 100 * 64**2


@dataclass(frozen=True)
class Generation:
    """A stock pipeline with the arguments of its call; called with records, it draws their pictures.

    Attributes:
        pipeline: the diffusers pipeline.
        steps: `num_inference_steps`; None leaves it out of the call.
        guidance_scale: the same for `guidance_scale`.
        arguments: further arguments, such as `timesteps` or `sigmas`.
        scheduler: a diffusers scheduler to use; default: the pipeline's own.
        autocast: dtype of the autocast region; float32 is none.
    """

    pipeline: DiffusionPipeline
    steps: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Any = None
    autocast: torch.dtype = torch.float32

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> Images:
        """Images (B, 3, H, W) in [0, 1] of manifest records."""
        return generate(self, [each["prompt"] for each in records], [each["seed"] for each in records])

    def call_arguments(self) -> dict[str, Any]:
        """The arguments of the call, apart from prompts and generators."""
        named = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {name: value for name, value in named.items() if value is not None} | dict(self.arguments)


def weights_of(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline's networks, adapters included, by component and name."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return named_weights(modules)


def prompt_seed(protocol_seed: int, index: int, sample: int = 0) -> int:
    """Seed of one picture, from the protocol's seed, the prompt's number and the sample's number alone.

    >>> prompt_seed(0, 7) == prompt_seed(0, 7), prompt_seed(0, 7) == prompt_seed(0, 7, sample=1)
    (True, False)
    """
    digest = hashlib.blake2b(f"{protocol_seed}/{index}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generate(generation: Generation, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
    """Draw one batch: images (B, 3, H, W) in [0, 1] on the CPU.

    Each picture's generator draws its initial noise and the noise between its steps, also where the stock pipeline passes its
    scheduler no generator (Stable Diffusion 3). The global generator is seeded by the first picture.
    """
    pipe = cast(Any, generation.pipeline)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    is_full = generation.autocast == torch.float32
    precision = nullcontext() if is_full else torch.autocast(pipe.device.type, dtype=generation.autocast)
    pipe.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        with torch.no_grad(), precision, _scheduler_of(pipe, generation.scheduler, generators):
            out = pipe(prompt=list(prompts), generator=generators, output_type="pt", **generation.call_arguments())
    return out.images.float().cpu()


@contextmanager
def _scheduler_of(pipe: Any, scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """Within the block the pipeline runs the scheduler, which draws from the generators."""
    own = pipe.scheduler
    drawing = scheduler or own
    pipe.scheduler = drawing
    if takes_generator := "generator" in inspect.signature(drawing.step).parameters:
        drawing.step = partial(drawing.step, generator=generators)
    try:
        yield
    finally:
        if takes_generator:
            del drawing.step  # restores the method of the class
        pipe.scheduler = own


@contextmanager
def counted_evaluations(pipe: DiffusionPipeline) -> Iterator[list[int]]:
    """Collect the batch size of every network call in the block: guided calls, with two rows per picture, count twice."""
    rows: list[int] = []
    parts = pipe.components
    network = parts.get("unet") or parts["transformer"]

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        first = next(
            value for value in (*args, kwargs.get("sample"), kwargs.get("hidden_states")) if value is not None
        )
        rows.append(len(first))

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def batches(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(total)`.

    >>> [(s.start, s.stop) for s in batches(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def pictures_at_once(height: int, width: int) -> int:
    """Batch size for pictures of this size.

    >>> pictures_at_once(64, 64), pictures_at_once(512, 512), pictures_at_once(1024, 1024)
    (100, 1, 1)
    """
    return max(PIXELS_AT_ONCE // (height * width), 1)
