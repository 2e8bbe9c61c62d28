"""Pictures for captions: one seed per picture, whatever the batch size, from a stock pipeline or any callable."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from stepdistill.data.cache import fingerprint, named_weights
from stepdistill.metrics.preprocess import to_bytes
from stepdistill.typing import Images

Sampler = Callable[[Sequence[str], Sequence[int]], Images]
"""Captions and seeds to images in [0, 1]."""


@dataclass(frozen=True)
class Generation:
    """How one row's pictures are made: a stock diffusers pipeline with its call arguments, or any `Sampler`.

    `arguments` are further call arguments, such as
    `timesteps` or `sigmas`. With `is_cached` the measurements are stored under a hash of the pipeline's weights and of
    everything that enters the call, and are not made twice.
    """

    source: DiffusionPipeline | Sampler
    model: str = "student"
    method: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Any = None
    """A diffusers scheduler; the pipeline's own if None."""
    sampler: str | None = None
    """Name of the sampler as shown; the scheduler's class by default."""
    is_cached: bool = False
    search: dict[str, float] | None = None
    """Frechet distances of the samplers this one was chosen among."""

    @property
    def pipeline(self) -> DiffusionPipeline | None:
        """The pipeline, where the source is one."""
        return self.source if isinstance(self.source, DiffusionPipeline) else None

    @property
    def sampler_name(self) -> str | None:
        """The sampler shown in the row."""
        if self.sampler is not None or self.pipeline is None:
            return self.sampler
        return type(self.scheduler or self.pipeline.scheduler).__name__.removesuffix("Scheduler")

    def call_arguments(self) -> dict[str, Any]:
        """What the pipeline is called with beside prompts and generators."""
        named = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {name: value for name, value in named.items() if value is not None} | dict(self.arguments)

    def cache_key(self, dtype: torch.dtype, protocol_hash: str) -> str:
        """Address of the measurements: weights, scheduler, call and protocol."""
        pipe = self.pipeline
        if pipe is None:
            raise ValueError("only a pipeline's measurements can be cached: a callable has no address")
        weights = weights_of(pipe)
        if any(".lora_" in name for name in weights):
            raise ValueError("the pipeline carries adapters: cache the measurements of a copy without them")
        scheduler = self.scheduler or pipe.scheduler
        call = [
            type(scheduler).__name__,
            dict(scheduler.config),
            self.call_arguments(),
            str(dtype),
            protocol_hash,
        ]
        text = json.dumps(call, sort_keys=True, default=str)
        return hashlib.blake2b(f"{fingerprint(weights.items())}{text}".encode(), digest_size=12).hexdigest()


def weights_of(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline's networks, adapters too, by component and name."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return named_weights(modules)


def prompt_seed(protocol_seed: int, index: int, sample: int = 0) -> int:
    """Seed of one picture: of the protocol, of the caption's number and of the repeat, of nothing else.

    >>> prompt_seed(0, 7) == prompt_seed(0, 7), prompt_seed(0, 7) == prompt_seed(0, 7, sample=1)
    (True, False)
    """
    digest = hashlib.blake2b(f"{protocol_seed}/{index}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generate(
    generation: Generation,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
) -> Images:
    """One batch of pictures (B, 3, H, W) in [0, 1] on the CPU.

    Each picture's generator draws its start and the noise of its steps, also where the stock pipeline keeps it from its scheduler
    (Stable Diffusion 3's does). What is drawn from the global generator all the same is seeded by the first picture.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        return _images(generation, captions, seeds, dtype)


def _images(
    generation: Generation, captions: Sequence[str], seeds: Sequence[int], dtype: torch.dtype
) -> Images:
    pipe = generation.pipeline
    call = cast(Callable[..., Any], generation.source)
    if pipe is None:
        return call(captions, seeds).float().cpu()
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    precision = nullcontext() if dtype == torch.float32 else torch.autocast(pipe.device.type, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad(), precision, _scheduler_of(pipe, generation.scheduler, generators):
        out = call(
            prompt=list(captions), generator=generators, output_type="pt", **generation.call_arguments()
        )
    return out.images.float().cpu()


@contextmanager
def _scheduler_of(
    pipe: DiffusionPipeline, scheduler: Any, generators: list[torch.Generator]
) -> Iterator[None]:
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
            del drawing.step  # the class's own again
        pipe.scheduler = own


@contextmanager
def counted_evaluations(pipe: DiffusionPipeline | None) -> Iterator[list[int]]:
    """Collects the rows of every network call in the block: guided calls, which run two rows per picture, count twice."""
    rows: list[int] = []
    if pipe is None:
        yield rows
        return
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


def latency(
    generation: Generation, caption: str, *, dtype: torch.dtype = torch.float32, repeats: int = 3
) -> float:
    """Median seconds for one picture at batch 1, text encoder and decoder included, after a warm-up call."""
    seconds = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        generate(generation, [caption], [seed], dtype=dtype)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def batches(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(total)`.

    >>> [(s.start, s.stop) for s in batches(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8."""
    return to_bytes(images)
