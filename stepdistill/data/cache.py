"""Embeddings and latents are computed once and kept under a name made of what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cached(
    folder: str | Path | None, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors stored under `key`, computed and stored first where they are missing or unreadable.

    Args:
        folder: the cache; None computes every time.
        key: everything the result depends on, JSON-able.
        compute: makes the tensors.
    """
    if folder is None:
        return dict(compute())
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = Path(folder).expanduser() / f"{digest}.safetensors"
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError:
            file.unlink()
    tensors = {name: value.detach().cpu().contiguous() for name, value in compute().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, draft)
    os.replace(draft, file)
    return tensors
