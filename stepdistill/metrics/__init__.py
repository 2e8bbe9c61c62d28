"""Metrics: statistics, feature extractors, protocols and the report. Names are imported on first use: some need transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepdistill.metrics.accumulators import (
        CMMD,
        CLIPScore,
        FrechetDistance,
        KernelDistance,
        PrecisionRecall,
    )
    from stepdistill.metrics.cmmd_features import CMMDFeatures
    from stepdistill.metrics.dino_features import DinoFeatures
    from stepdistill.metrics.diversity import PromptDiversity, mean_pairwise_cosine, vendi_score
    from stepdistill.metrics.features import FeatureNetwork, PatchFeatures, feature_stats, image_files
    from stepdistill.metrics.generation import Generation
    from stepdistill.metrics.inception_features import InceptionFeatures
    from stepdistill.metrics.kernels import cmmd, gaussian_kernel_distance, kernel_distance_of_subsets
    from stepdistill.metrics.lpips import LPIPS
    from stepdistill.metrics.measurements import Results, Row
    from stepdistill.metrics.neighbours import PRDC, precision_recall_density_coverage
    from stepdistill.metrics.paired import PairedSimilarity, psnr, ssim
    from stepdistill.metrics.pictures import grid
    from stepdistill.metrics.protocols import EMOJI, PROTOCOLS, Protocol
    from stepdistill.metrics.references import ReferenceStats, load_reference_features
    from stepdistill.metrics.report import write_report
    from stepdistill.metrics.runner import RunOptions, evaluate
    from stepdistill.metrics.stats import (
        FeatureStats,
        frechet_distance,
        frechet_distance_of_features,
        kernel_distance,
    )
    from stepdistill.metrics.tables import read_rows, table, write_results
    from stepdistill.metrics.teacher import TeacherComparison, TeacherRun, compare_with_teacher
    from stepdistill.metrics.weights import WeightFile

_MODULES = {
    "CLIPScore": "accumulators",
    "CMMD": "accumulators",
    "CMMDFeatures": "cmmd_features",
    "DinoFeatures": "dino_features",
    "EMOJI": "protocols",
    "FeatureNetwork": "features",
    "FeatureStats": "stats",
    "FrechetDistance": "accumulators",
    "Generation": "generation",
    "InceptionFeatures": "inception_features",
    "KernelDistance": "accumulators",
    "LPIPS": "lpips",
    "PRDC": "neighbours",
    "PROTOCOLS": "protocols",
    "PairedSimilarity": "paired",
    "PatchFeatures": "features",
    "PrecisionRecall": "accumulators",
    "PromptDiversity": "diversity",
    "Protocol": "protocols",
    "ReferenceStats": "references",
    "Results": "measurements",
    "Row": "measurements",
    "RunOptions": "runner",
    "TeacherComparison": "teacher",
    "TeacherRun": "teacher",
    "WeightFile": "weights",
    "cmmd": "kernels",
    "compare_with_teacher": "teacher",
    "evaluate": "runner",
    "feature_stats": "features",
    "frechet_distance": "stats",
    "frechet_distance_of_features": "stats",
    "gaussian_kernel_distance": "kernels",
    "grid": "pictures",
    "image_files": "features",
    "kernel_distance": "stats",
    "kernel_distance_of_subsets": "kernels",
    "load_reference_features": "references",
    "mean_pairwise_cosine": "diversity",
    "precision_recall_density_coverage": "neighbours",
    "psnr": "paired",
    "read_rows": "tables",
    "ssim": "paired",
    "table": "tables",
    "vendi_score": "diversity",
    "write_report": "report",
    "write_results": "tables",
}

__all__ = [
    "CMMD",
    "EMOJI",
    "LPIPS",
    "PRDC",
    "PROTOCOLS",
    "CLIPScore",
    "CMMDFeatures",
    "DinoFeatures",
    "FeatureNetwork",
    "FeatureStats",
    "FrechetDistance",
    "Generation",
    "InceptionFeatures",
    "KernelDistance",
    "PairedSimilarity",
    "PatchFeatures",
    "PrecisionRecall",
    "PromptDiversity",
    "Protocol",
    "ReferenceStats",
    "Results",
    "Row",
    "RunOptions",
    "TeacherComparison",
    "TeacherRun",
    "WeightFile",
    "cmmd",
    "compare_with_teacher",
    "evaluate",
    "feature_stats",
    "frechet_distance",
    "frechet_distance_of_features",
    "gaussian_kernel_distance",
    "grid",
    "image_files",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "load_reference_features",
    "mean_pairwise_cosine",
    "precision_recall_density_coverage",
    "psnr",
    "read_rows",
    "ssim",
    "table",
    "vendi_score",
    "write_report",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
