"""Where the weights of metrics come from: a local path first, `$STEPDISTILL_WEIGHTS`, the hub's cache, then the network."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.store import cache_folder

ROOT_VARIABLE = "STEPDISTILL_WEIGHTS"
"""Environment variable: a folder of weights that were fetched ahead, as `FILENAME` or `REPO/FILENAME`."""

_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError)
"""What reading a file that is no tensors raises."""


def weights_file(local: str | Path | None, *, repo: str, filename: str, sha256: str | None = None) -> Path:
    """The path of one file of weights.

    Args:
        local: the file, or a folder that holds `filename`; where it is given nothing else is looked at.
        repo: hub id `owner/name`, or the address of a folder (`https://...`) that holds the file.
        filename: the file's path in it.
        sha256: what the file has to hash to; None where no checksum is known.

    Raises:
        UserError: the file is in none of the places, or is another one; the message says where to put it.
    """
    path = _given(local, filename) if local is not None else _found(repo, filename)
    if sha256 is not None and file_sha256(path) != sha256.lower():
        raise UserError(
            f"{path} is not the expected {filename}: its SHA-256 is not {sha256}; fetch it again from {repo}"
        )
    return path


def model_folder(local: str | Path | None, *, repo: str, filenames: Sequence[str]) -> Path:
    """A folder that holds all of `filenames`, for `from_pretrained`: the given one, or the hub's copy of these files."""
    files = [_found(repo, name) if local is None else _given(local, name) for name in filenames]
    return files[0].parent


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch file, which is read without running code.

    A training checkpoint gives its `state_dict`; a leading `module.` is taken off the names.

    Raises:
        UserError: the file cannot be read, or holds no tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as weights: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no tensors by name; give a state dict")
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _given(local: str | Path, filename: str) -> Path:
    """The file that a user's path means."""
    path = Path(local).expanduser()
    candidates = [path / filename, path / Path(filename).name] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"there is no {filename} at '{local}'; give the path of the file or of the folder that holds it"
    )


def _found(repo: str, filename: str) -> Path:
    """The file from `$STEPDISTILL_WEIGHTS`, a cache, or the network, in this order."""
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        name = repo.rstrip("/").rpartition("/")[2]
        for candidate in (Path(root) / name / filename, Path(root) / filename):
            if candidate.is_file():
                return candidate
    try:
        return _download(repo, filename) if "://" in repo else _hub_file(repo, filename)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no weights {filename} of {repo} here, and they cannot be fetched ({reason}); give their path, or put them "
            f"into the folder that ${ROOT_VARIABLE} names"
        ) from error


def _hub_file(repo: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(hf_hub_download(repo, filename))


def _download(address: str, filename: str) -> Path:
    """A file of a plain web address, kept in the user's cache."""
    folder = cache_folder("weights")
    if folder is None:
        raise OSError("the user's cache cannot be written")
    kept = folder / hashlib.sha256(address.encode()).hexdigest()[:12] / Path(filename).name
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        torch.hub.download_url_to_file(f"{address.rstrip('/')}/{filename}", str(kept), progress=False)
    return kept
