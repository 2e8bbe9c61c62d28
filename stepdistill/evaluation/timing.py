"""The cost of a picture: network evaluations, latency with and without text encoder and decoder, throughput, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from stepdistill.evaluation.document import CostRecord
from stepdistill.evaluation.generation import Generation, counted_evaluations, generate
from stepdistill.evaluation.sources import device_name


@dataclass(frozen=True)
class CostRules:
    """How costs are measured; written beside the numbers.

    Attributes:
        warmup: untimed calls.
        repeats: timed calls at batch 1, reduced by the median; 0 counts network evaluations only.
        throughput_batch: batch size for the throughput; 0 skips it.
        throughput_repeats: timed calls for the throughput, reduced by the median.
    """

    warmup: int = 3
    repeats: int = 20
    throughput_batch: int = 10
    throughput_repeats: int = 3


RUN_COST = CostRules(warmup=1, repeats=3, throughput_batch=4, throughput_repeats=1)
"""Rules for the rows of a run."""


class Stopwatch:
    """Measures seconds on a device: CUDA events on a GPU, which do not synchronise; the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Record a point in time."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""
        if self.device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Timed:
    """Seconds of one call and of its parts."""

    total: float
    encode: float
    decode: float


def measure_cost(generation: Generation, prompt: str, rules: CostRules) -> CostRecord:
    """Measure the cost of one picture.

    Latency is from prompt to pixels at batch 1. `latency_network_s` subtracts the time of `encode_prompt` and of the decoder in
    the same calls, as in papers that quote the network alone.
    """
    pipe = generation.pipeline
    device = torch.device(pipe.device)
    with counted_evaluations(pipe) as rows:
        generate(generation, [prompt], [0])
    record = CostRecord(nfe=float(sum(rows)), device=device_name(device), rules=asdict(rules))
    if rules.repeats == 0:
        return record
    for seed in range(rules.warmup - 1):  # The counted call was the first.
        generate(generation, [prompt], [seed + 1])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed = [timed_call(generation, [prompt], [seed]) for seed in range(rules.repeats)]
    peak = peak_memory_mib(device)
    return record.model_copy(
        update={
            "latency_s": median(each.total for each in timed),
            "encode_s": median(each.encode for each in timed),
            "decode_s": median(each.decode for each in timed),
            "latency_network_s": median(each.total - each.encode - each.decode for each in timed),
            "images_per_s": throughput(generation, prompt, rules),
            "peak_memory_mib": peak,
        }
    )


def throughput(generation: Generation, prompt: str, rules: CostRules) -> float | None:
    """Pictures per second at the rules' batch size."""
    count = rules.throughput_batch
    if count == 0:
        return None
    prompts, seeds = [prompt] * count, list(range(count))
    generate(generation, prompts, seeds)
    return count / median(timed_call(generation, prompts, seeds).total for _ in range(rules.throughput_repeats))


def timed_call(generation: Generation, prompts: list[str], seeds: list[int]) -> Timed:
    """Time one call of the pipeline, and its encoder and decoder within it."""
    pipe: Any = generation.pipeline
    watch = Stopwatch(torch.device(pipe.device))
    spans: dict[str, list[tuple[Any, Any]]] = {"encode": [], "decode": []}
    decoder = pipe.vae if "vae" in pipe.components else None
    with (
        _timed_method(pipe, "encode_prompt", watch, spans["encode"]),
        _timed_method(decoder, "decode", watch, spans["decode"]),
    ):
        start = watch.mark()
        generate(generation, prompts, seeds)
        total = watch.between(start, watch.mark())
    seconds = {name: sum(watch.between(*span) for span in each) for name, each in spans.items()}
    return Timed(total, **seconds)


@contextmanager
def _timed_method(owner: Any, name: str, watch: Stopwatch, spans: list[tuple[Any, Any]]) -> Iterator[None]:
    """Time every call of a method in the block by an instance attribute; a missing method is ignored."""
    method: Callable[..., Any] | None = getattr(owner, name, None)
    if method is None:
        yield
        return

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = watch.mark()
        out = method(*args, **kwargs)
        spans.append((start, watch.mark()))
        return out

    object.__setattr__(owner, name, timed)
    try:
        yield
    finally:
        object.__delattr__(owner, name)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of a GPU since its counter was reset; on a CPU, of the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
