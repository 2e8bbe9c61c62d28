"""Locate published weights: an explicit path, else local folders, else the network."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepdistill.assets import cache_folder
from stepdistill.errors import UserError

VARIABLE = "STEPDISTILL_WEIGHTS"
"""Environment variable that names a folder of weight files and model folders."""

Location = str | Path | None
"""A path of weights; None searches `$STEPDISTILL_WEIGHTS`, the caches and the network."""

Model = TypeVar("Model")

# What reading a file without tensors raises.
_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError)


@dataclass(frozen=True)
class WeightFile:
    """One published file of weights, at a URL or in a repository of the Hugging Face hub."""

    name: str
    """File name; in a repository, the path within it."""
    sha256: str
    """The checksum, or as many leading digits as were published."""
    url: str = ""
    repo: str = ""
    """Hub id `owner/name`."""

    def locate(self, path: Location = None) -> Path:
        """Find the file: `path`, else `$STEPDISTILL_WEIGHTS`, else the user's cache, else download it into a cache.

        In `$STEPDISTILL_WEIGHTS` a hub file is `<name of the repository>/<name>` or `<name>`. A file with the published
        name must have the published checksum; `path` may also be a file with another name, which is not checked.

        Args:
            path: the file, or the folder that holds it. Nothing else is searched.

        Raises:
            UserError: the file is missing, or not the published one.
        """
        if path is not None:
            file = self._in(existing(path))
        else:
            file = self._local() or (self._from_hub() if self.repo else self._from_url())
        if self.is_published(file) and not self.matches(file):
            raise UserError(
                f"{file} is not the published {self.name}: its sha256 does not start with {self.sha256[:8]}; delete it, "
                "or rename it and give its path to use it anyway"
            )
        return file

    def is_published(self, file: Path) -> bool:
        """Whether a file carries the published name, and so claims to be the published file."""
        return file.name == Path(self.name).name

    def label(self, model: str, file: Path) -> str:
        """Name weights in results: `model@checksum` for the published file, else `file@checksum`."""
        if self.is_published(file):
            return f"{model}@{self.sha256[:8]}"
        return f"{file.name}@{sha256(file)[:8]}"

    def matches(self, file: Path) -> bool:
        """Whether a file has the published checksum."""
        return sha256(file).startswith(self.sha256)

    def _in(self, path: Path) -> Path:
        candidates = [path / self.name, path / Path(self.name).name] if path.is_dir() else [path]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise UserError(f"no {self.name} in {path}: give the file, or the folder that holds it")

    def _local(self) -> Path | None:
        for folder in local_folders():
            for candidate in (folder / self.repo.rpartition("/")[2] / self.name, folder / self.name):
                if candidate.is_file():
                    return candidate
        return None

    def _from_url(self) -> Path:
        folder = cache_folder("weights")
        if folder is None:
            raise self._not_found("the cache folder is not writable")
        target = folder / self.name
        try:
            torch.hub.download_url_to_file(self.url, str(target), hash_prefix=self.sha256, progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            raise self._not_found(error) from error
        return target

    def _from_hub(self) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            try:
                return Path(hf_hub_download(self.repo, self.name, local_files_only=True))
            except LocalEntryNotFoundError:
                return Path(hf_hub_download(self.repo, self.name))
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error

    def _not_found(self, error: Exception | str) -> UserError:
        source = f"{self.name} of {self.repo} from the hub" if self.repo else self.url
        return UserError(
            f"no local {self.name}, and no download ({first_line(error)}): download {source} and give its path, or put "
            f"it into the folder that ${VARIABLE} names"
        )


def local_folders() -> list[Path]:
    """Folders searched for weights before the network."""
    return [Path(each).expanduser() for each in (os.environ.get(VARIABLE), cache_folder("weights")) if each]


def existing(path: str | Path) -> Path:
    """Return the path if it exists.

    Raises:
        UserError: it does not.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise UserError(f"no weights at {given}: give an existing path, or none to search for them")
    return given


def pretrained(loader: type[Model], hub_id: str, path: Location = None, **arguments: Any) -> Model:
    """Load a transformers model or tokenizer from `path`, else `$STEPDISTILL_WEIGHTS/<last part of the id>`, else the hub.

    Raises:
        UserError: it is in none of them.
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
    except OSError as error:  # transformers raises it for a missing file and for a missing network
        raise UserError(
            f"no weights of {hub_id} from {source} ({first_line(error)}): give a folder written by save_pretrained, or "
            f"put it as {name} into the folder that ${VARIABLE} names"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or PyTorch file, without running code from it.

    Takes the `state_dict` of a training checkpoint, and strips a leading `module.` from names.

    Raises:
        UserError: the file cannot be read, or holds no named tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, OSError) as error:
        raise UserError(f"{file} cannot be read as weights: {first_line(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(name).removeprefix("module."): value for name, value in entries if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{file} holds no named tensors; give a state dict")
    return tensors


def first_line(error: Exception | str) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
