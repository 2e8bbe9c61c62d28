"""Lets a CUDA build of torchvision be imported beside a CPU build of torch. For the parity environment alone.

torchvision's compiled operators need the CUDA libraries; without them it still registers shape rules for `nms` and `qnms`,
which no longer exist, and its import fails, and with it that of every package that uses it
(https://github.com/pytorch/vision/issues/8985). This module, named by a `.pth` file, waits for the first import of torchvision
and declares the two operators when their library cannot be loaded. The operators themselves stay unusable.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept_alive: list[Any] = []


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; does its work on the way, once."""

    def __init__(self) -> None:
        self.is_done = False

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        del path, target
        if fullname == "torchvision" and not self.is_done:
            self.is_done = True
            spec = importlib.machinery.PathFinder.find_spec(fullname)
            if spec is not None and spec.origin is not None:
                declare_operators(Path(spec.origin).parent)


def declare_operators(folder: Path) -> None:
    """Load torchvision's compiled operators; declare the two that it asks for when that fails."""
    import torch

    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        _kept_alive.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
