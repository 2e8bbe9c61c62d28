"""Where the weights of feature networks come from: a local path first, the network second, one clear message where neither has them."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepdistill.assets import cache_folder
from stepdistill.errors import UserError

VARIABLE = "STEPDISTILL_WEIGHTS"
"""Environment variable that names a folder of weight files and model folders."""

Model = TypeVar("Model")

_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError)
"""What reading a file that holds no tensors raises."""


@dataclass(frozen=True)
class WeightFile:
    """One published file of weights."""

    name: str
    url: str
    sha256: str
    """The checksum, or as many of its first digits as were published with the file."""

    def locate(self, path: str | Path | None = None) -> Path:
        """The file: `path`, else `$STEPDISTILL_WEIGHTS/<name>`, else the user's cache, else downloaded into it.

        A `path` is taken as it is, whatever its checksum; the other places claim to hold the published file and are checked.

        Raises:
            UserError: the file is nowhere, or is another file than the published one.
        """
        if path is not None:
            return existing(path)
        for folder in local_folders():
            if (folder / self.name).is_file():
                return self.checked(folder / self.name)
        return self._download()

    def checked(self, file: Path) -> Path:
        """The file, if it is the published one.

        Raises:
            UserError: it is another one.
        """
        digest = sha256(file)
        if not digest.startswith(self.sha256):
            raise UserError(
                f"{file} is not the published {self.name}: its sha256 starts with {digest[:8]}, not "
                f"{self.sha256[:8]}; delete it, or give its path under another file name to use it all the same"
            )
        return file

    def _download(self) -> Path:
        folder = cache_folder("weights")
        reason = "the cache folder is not writable"
        if folder is not None:
            try:
                torch.hub.download_url_to_file(
                    self.url, str(folder / self.name), hash_prefix=self.sha256, progress=False
                )
                return folder / self.name
            except (URLError, OSError, RuntimeError) as error:
                reason = str(error)
        raise UserError(
            f"no {self.name} here and none from the network ({reason}): download {self.url} and give its path, "
            f"or put it into the folder that ${VARIABLE} names"
        )


def local_folders() -> list[Path]:
    """Folders that are searched for weights before the network."""
    named = os.environ.get(VARIABLE)
    cache = cache_folder("weights")
    return [Path(folder).expanduser() for folder in (named, cache) if folder]


def existing(path: str | Path) -> Path:
    """The path, where something is there."""
    given = Path(path).expanduser()
    if not given.exists():
        raise UserError(f"no weights at {given}: give a path that exists, or none to search for them")
    return given


def pretrained(loader: type[Model], hub_id: str, path: str | Path | None = None, **arguments: Any) -> Model:
    """A transformers model or tokenizer: from `path`, else `$STEPDISTILL_WEIGHTS/<last part of the id>`, else the hub.

    Raises:
        UserError: neither has it.
    """
    name = hub_id.split("/")[-1]
    if path is not None:
        source = str(existing(path))
    else:
        folders = [folder / name for folder in local_folders() if (folder / name).is_dir()]
        source = str(folders[0]) if folders else hub_id
    load: Any = loader
    try:
        return load.from_pretrained(source, **arguments)
    except OSError as error:  # transformers' type for both a missing file and a missing network
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"no weights of {hub_id} from {source} ({reason}): give a folder that save_pretrained wrote, or put it "
            f"as {name} into the folder that ${VARIABLE} names"
        ) from error


def weights_file(local: str | Path | None, *, repo: str, filename: str, sha256: str | None = None) -> Path:
    """One file of a hub repository: `local`, else `$STEPDISTILL_WEIGHTS`, else a cache, else fetched from the hub.

    Args:
        local: the file, or a folder that holds `filename`. Where it is given nothing else is looked at, and a file under
            another name than `filename` is taken as it is.
        repo: hub id `owner/name`. In `$STEPDISTILL_WEIGHTS` the file is `name/filename` or `filename`.
        filename: the file's path in the repository.
        sha256: checksum of the published file; None where none is known.

    Raises:
        UserError: the file is nowhere, or another one than was published.
    """
    file = _given(local, filename) if local is not None else _searched(repo, filename)
    if sha256 is not None and file.name == Path(filename).name:
        WeightFile(filename, f"https://huggingface.co/{repo}", sha256).checked(file)
    return file


def _given(local: str | Path, filename: str) -> Path:
    path = existing(local)
    candidates = [path / filename, path / Path(filename).name] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"no {filename} in {path}: give the file, or the folder that holds it")


def _searched(repo: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = repo.rpartition("/")[2]
    for folder in local_folders():
        for candidate in (folder / name / filename, folder / filename):
            if candidate.is_file():
                return candidate
    try:
        try:
            return Path(hf_hub_download(repo, filename, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(repo, filename))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(
            f"no {filename} of {repo} here and none from the hub ({reason}): give its path, or put it into the folder "
            f"that ${VARIABLE} names"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch file, which is read without running code.

    Of a training checkpoint its `state_dict`; a leading `module.` is taken off the names.

    Raises:
        UserError: the file cannot be read, or holds no tensors by name.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"{file} cannot be read as weights: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {
        str(name).removeprefix("module."): value for name, value in entries if isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"{file} holds no tensors by name; give a state dict")
    return tensors


def sha256(file: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
