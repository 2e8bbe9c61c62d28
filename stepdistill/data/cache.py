"""Content-addressed cache of tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def cached(
    folder: str | Path | None, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors cached under `key`; compute and store them if missing or unreadable.

    Args:
        folder: cache folder; None disables caching.
        key: everything that the result depends on, JSON-serialisable.
        compute: computes the tensors.
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


def named_weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return all weights of the modules, adapters included, as `module.name`."""
    return {f"{name}.{key}": tensor for name, part in modules.items() for key, tensor in part.state_dict().items()}


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash named tensors with their dtypes and shapes, for cache keys.

    >>> fingerprint([("w", torch.zeros(2))]) == fingerprint([("w", torch.zeros(2))])
    True
    >>> fingerprint([("w", torch.zeros(2))]) == fingerprint([("w", torch.zeros(1, 2))])
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
