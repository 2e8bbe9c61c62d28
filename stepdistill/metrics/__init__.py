"""Metrics: statistics, feature extractors, protocols and the report. Names are imported on first use: some need transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepdistill.metrics.accumulators import CLIPScore, FrechetDistance, KernelDistance
    from stepdistill.metrics.generation import Generation
    from stepdistill.metrics.measurements import Results, Row
    from stepdistill.metrics.pictures import grid
    from stepdistill.metrics.protocols import EMOJI, PROTOCOLS, Protocol
    from stepdistill.metrics.report import write_report
    from stepdistill.metrics.runner import RunOptions, evaluate
    from stepdistill.metrics.stats import (
        FeatureStats,
        frechet_distance,
        frechet_distance_of_features,
        kernel_distance,
    )
    from stepdistill.metrics.tables import read_rows, table, write_results

_MODULES = {
    "CLIPScore": "accumulators",
    "EMOJI": "protocols",
    "FeatureStats": "stats",
    "FrechetDistance": "accumulators",
    "Generation": "generation",
    "KernelDistance": "accumulators",
    "PROTOCOLS": "protocols",
    "Protocol": "protocols",
    "Results": "measurements",
    "Row": "measurements",
    "RunOptions": "runner",
    "evaluate": "runner",
    "frechet_distance": "stats",
    "frechet_distance_of_features": "stats",
    "grid": "pictures",
    "kernel_distance": "stats",
    "read_rows": "tables",
    "table": "tables",
    "write_report": "report",
    "write_results": "tables",
}

__all__ = [
    "EMOJI",
    "PROTOCOLS",
    "CLIPScore",
    "FeatureStats",
    "FrechetDistance",
    "Generation",
    "KernelDistance",
    "Protocol",
    "Results",
    "Row",
    "RunOptions",
    "evaluate",
    "frechet_distance",
    "frechet_distance_of_features",
    "grid",
    "kernel_distance",
    "read_rows",
    "table",
    "write_report",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
