"""Cost of distances, relative to the network that computes their features.

    OMP_NUM_THREADS=1 python benchmarks/metrics_cost.py [--images 2000] [--batch 50]

Prints CPU seconds of the Frechet distance at 2,048 dimensions by each method, and of the statistics of Inception features next to the
network itself, on 299 px images with random weights. Both are timed alternately, batch by batch, so a drift of the machine's speed
favours neither.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from stepdistill.metrics import FrechetDistance, InceptionFeatures, frechet_distance
from stepdistill.metrics.distances import Method
from stepdistill.metrics.networks.inception import InceptionV3
from stepdistill.testing.networks import fill_at_random

T = TypeVar("T")
METHODS: tuple[Method, ...] = ("cholesky", "eigh", "svd")


def cpu_seconds(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def covariance(d: int, generator: torch.Generator) -> torch.Tensor:
    """A positive definite matrix with a power-law spectrum, like that of Inception features."""
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.7
    mix = torch.randn(d, 3 * d, generator=generator, dtype=torch.float64) * spectrum[:, None]
    return mix @ mix.T / (3 * d)


def frechet_costs(d: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    moments = (torch.zeros(d), covariance(d, generator), torch.ones(d), covariance(d, generator))
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    values: dict[str, float] = {}
    for _ in range(repeats):
        for method in METHODS:
            seconds, values[method] = cpu_seconds(lambda m=method: frechet_distance(*moments, method=m))
            times[method].append(seconds)
    print(f"Frechet distance, d={d}, CPU seconds (best of {repeats}):")
    for method in METHODS:
        error = abs(values[method] / values["svd"] - 1)
        ratio = min(times[method]) / min(times["cholesky"])
        print(f"  {method:9} {min(times[method]):6.2f}   x{ratio:.2f}   off svd by {error:.1e}")


def statistics_cost(num_images: int, batch_size: int) -> None:
    network = InceptionV3()
    fill_at_random(network)
    extractor = InceptionFeatures(network, "clean")
    metric = FrechetDistance(num_features=extractor.num_features)
    generator = torch.Generator().manual_seed(0)
    seconds = {"network": 0.0, "resize and scale": 0.0, "statistics": 0.0}
    with torch.no_grad():
        for start in range(0, num_images, batch_size):
            shape = (min(batch_size, num_images - start), 3, 299, 299)
            images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            spent, pixels = cpu_seconds(lambda i=images: extractor.variant(i, network.side))
            seconds["resize and scale"] += spent
            spent, features = cpu_seconds(lambda p=pixels: network(p))
            seconds["network"] += spent
            real = bool(start // batch_size % 2)
            seconds["statistics"] += cpu_seconds(lambda f=features, r=real: metric.update(f, real=r))[0]
    print(f"{num_images} images of 299 px in batches of {batch_size}, CPU seconds:")
    for name, spent in seconds.items():
        share = 100 * spent / seconds["network"]
        print(
            f"  {name:17} {spent:8.2f}   {1000 * spent / num_images:7.2f} ms per image   {share:6.2f} % of the network"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    frechet_costs(options.dimensions, options.repeats)
    statistics_cost(options.images, options.batch)


if __name__ == "__main__":
    main()
