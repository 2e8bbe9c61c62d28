"""Saving full pipelines: the student's, and a teacher that exists only in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stepdistill.denoisers.roles import remove_adapters

if TYPE_CHECKING:
    from stepdistill.denoisers.pipeline import PipelineDenoiser


def save_pipeline(pipeline: Any, folder: Path, dtype: torch.dtype) -> None:
    """Save a pipeline with all weights in `dtype`, casting copies where they differ."""
    twin = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(p.dtype != dtype for p in part.parameters()):
            twin.register_modules(**{name: copy.deepcopy(part).to(dtype)})
    with quiet_saving():
        twin.save_pretrained(folder)


def save_teacher(student: PipelineDenoiser, folder: Path) -> str:
    """Save the teacher's pipeline, without adapters, and return the folder."""
    teacher = copy.copy(student.pipe)
    network = copy.deepcopy(student.pipe.components[student.network_name])
    remove_adapters(network)
    teacher.register_modules(**{student.network_name: network})
    with quiet_saving():
        teacher.save_pretrained(folder)
    return str(folder)


def absent_parts(pipeline: Any) -> list[str]:
    """Return non-optional components that are None; `from_pretrained` needs an explicit None for each."""
    optional = set(pipeline._optional_components)
    return sorted(name for name, part in pipeline.components.items() if part is None and name not in optional)


@contextmanager
def quiet_saving() -> Iterator[None]:
    """Silence progress bars and warnings of diffusers and transformers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()
