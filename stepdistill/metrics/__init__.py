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
    from stepdistill.metrics.benchmark import BenchmarkOptions, Drawn, run_benchmark
    from stepdistill.metrics.cmmd_features import CMMDFeatures
    from stepdistill.metrics.comparison import comparison_table
    from stepdistill.metrics.comparison_page import write_comparison
    from stepdistill.metrics.dino_features import DinoFeatures
    from stepdistill.metrics.diversity import PromptDiversity, mean_pairwise_cosine, vendi_score
    from stepdistill.metrics.document import RunResults
    from stepdistill.metrics.dpg_bench import DPGScores, read_dpg_prompts, read_dpg_results, write_dpg_folder
    from stepdistill.metrics.external import CommandScorer
    from stepdistill.metrics.features import FeatureNetwork, PatchFeatures, feature_stats, image_files
    from stepdistill.metrics.galleries import ScoredRun
    from stepdistill.metrics.generation import Generation
    from stepdistill.metrics.geneval import (
        GenEvalScores,
        read_geneval_prompts,
        read_geneval_results,
        write_geneval_folder,
    )
    from stepdistill.metrics.inception_features import InceptionFeatures
    from stepdistill.metrics.kernels import cmmd, gaussian_kernel_distance, kernel_distance_of_subsets
    from stepdistill.metrics.lpips import LPIPS
    from stepdistill.metrics.measurements import Results, Row
    from stepdistill.metrics.named_scorers import SCORERS, load_scorer
    from stepdistill.metrics.neighbours import PRDC, precision_recall_density_coverage
    from stepdistill.metrics.paired import PairedSimilarity, psnr, ssim
    from stepdistill.metrics.pictures import grid
    from stepdistill.metrics.prompt_scorers import PromptScorer
    from stepdistill.metrics.prompt_scores import (
        AestheticScore,
        HPSv2,
        ImageReward,
        PickScore,
        PromptScore,
        ScoreSummary,
        hps_benchmark,
        read_scores,
        write_scores,
    )
    from stepdistill.metrics.prompt_sets import PromptSet, load_prompt_set
    from stepdistill.metrics.protocols import EMOJI, PROTOCOLS, Benchmark, Protocol
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
    "AestheticScore": "prompt_scores",
    "Benchmark": "protocols",
    "BenchmarkOptions": "benchmark",
    "CLIPScore": "accumulators",
    "CMMD": "accumulators",
    "CMMDFeatures": "cmmd_features",
    "CommandScorer": "external",
    "DPGScores": "dpg_bench",
    "DinoFeatures": "dino_features",
    "Drawn": "benchmark",
    "EMOJI": "protocols",
    "FeatureNetwork": "features",
    "FeatureStats": "stats",
    "FrechetDistance": "accumulators",
    "GenEvalScores": "geneval",
    "Generation": "generation",
    "HPSv2": "prompt_scores",
    "ImageReward": "prompt_scores",
    "InceptionFeatures": "inception_features",
    "KernelDistance": "accumulators",
    "LPIPS": "lpips",
    "PRDC": "neighbours",
    "PROTOCOLS": "protocols",
    "PairedSimilarity": "paired",
    "PatchFeatures": "features",
    "PickScore": "prompt_scores",
    "PrecisionRecall": "accumulators",
    "PromptDiversity": "diversity",
    "PromptScore": "prompt_scores",
    "PromptScorer": "prompt_scorers",
    "PromptSet": "prompt_sets",
    "Protocol": "protocols",
    "ReferenceStats": "references",
    "Results": "measurements",
    "Row": "measurements",
    "RunOptions": "runner",
    "RunResults": "document",
    "SCORERS": "named_scorers",
    "ScoreSummary": "prompt_scores",
    "ScoredRun": "galleries",
    "TeacherComparison": "teacher",
    "TeacherRun": "teacher",
    "WeightFile": "weights",
    "cmmd": "kernels",
    "compare_with_teacher": "teacher",
    "comparison_table": "comparison",
    "evaluate": "runner",
    "feature_stats": "features",
    "frechet_distance": "stats",
    "frechet_distance_of_features": "stats",
    "gaussian_kernel_distance": "kernels",
    "grid": "pictures",
    "hps_benchmark": "prompt_scores",
    "image_files": "features",
    "kernel_distance": "stats",
    "kernel_distance_of_subsets": "kernels",
    "load_prompt_set": "prompt_sets",
    "load_reference_features": "references",
    "load_scorer": "named_scorers",
    "mean_pairwise_cosine": "diversity",
    "precision_recall_density_coverage": "neighbours",
    "psnr": "paired",
    "read_dpg_prompts": "dpg_bench",
    "read_dpg_results": "dpg_bench",
    "read_geneval_prompts": "geneval",
    "read_geneval_results": "geneval",
    "read_rows": "tables",
    "read_scores": "prompt_scores",
    "run_benchmark": "benchmark",
    "ssim": "paired",
    "table": "tables",
    "vendi_score": "diversity",
    "write_comparison": "comparison_page",
    "write_dpg_folder": "dpg_bench",
    "write_geneval_folder": "geneval",
    "write_report": "report",
    "write_results": "tables",
    "write_scores": "prompt_scores",
}

__all__ = [
    "CMMD",
    "EMOJI",
    "LPIPS",
    "PRDC",
    "PROTOCOLS",
    "SCORERS",
    "AestheticScore",
    "Benchmark",
    "BenchmarkOptions",
    "CLIPScore",
    "CMMDFeatures",
    "CommandScorer",
    "DPGScores",
    "DinoFeatures",
    "Drawn",
    "FeatureNetwork",
    "FeatureStats",
    "FrechetDistance",
    "GenEvalScores",
    "Generation",
    "HPSv2",
    "ImageReward",
    "InceptionFeatures",
    "KernelDistance",
    "PairedSimilarity",
    "PatchFeatures",
    "PickScore",
    "PrecisionRecall",
    "PromptDiversity",
    "PromptScore",
    "PromptScorer",
    "PromptSet",
    "Protocol",
    "ReferenceStats",
    "Results",
    "Row",
    "RunOptions",
    "RunResults",
    "ScoreSummary",
    "ScoredRun",
    "TeacherComparison",
    "TeacherRun",
    "WeightFile",
    "cmmd",
    "compare_with_teacher",
    "comparison_table",
    "evaluate",
    "feature_stats",
    "frechet_distance",
    "frechet_distance_of_features",
    "gaussian_kernel_distance",
    "grid",
    "hps_benchmark",
    "image_files",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "load_prompt_set",
    "load_reference_features",
    "load_scorer",
    "mean_pairwise_cosine",
    "precision_recall_density_coverage",
    "psnr",
    "read_dpg_prompts",
    "read_dpg_results",
    "read_geneval_prompts",
    "read_geneval_results",
    "read_rows",
    "read_scores",
    "run_benchmark",
    "ssim",
    "table",
    "vendi_score",
    "write_comparison",
    "write_dpg_folder",
    "write_geneval_folder",
    "write_report",
    "write_results",
    "write_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
