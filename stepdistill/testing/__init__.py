"""Closed-form teachers, toy students and tiny pipelines for tests, notebooks and new methods."""

from stepdistill.testing.learning import BulkStream, train_toy, turn_losses
from stepdistill.testing.oracles import GaussianTeacher, MixtureTeacher
from stepdistill.testing.tiny import tiny_pipeline
from stepdistill.testing.toys import AffineDenoiser, GaussianDenoiser, MLPDenoiser, fit

__all__ = [
    "AffineDenoiser",
    "BulkStream",
    "GaussianDenoiser",
    "GaussianTeacher",
    "MLPDenoiser",
    "MixtureTeacher",
    "fit",
    "tiny_pipeline",
    "train_toy",
    "turn_losses",
]
