"""Where the weights of feature networks come from: a local path first, the network second, one clear message where neither has them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.store import cache_folder

VARIABLE = "STEPDISTILL_WEIGHTS"
"""Environment variable that names a folder of weight files and model folders."""

Model = TypeVar("Model")


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
                return self._checked(folder / self.name)
        return self._download()

    def _checked(self, file: Path) -> Path:
        digest = sha256(file)
        if not digest.startswith(self.sha256):
            raise UserError(
                f"{file} is not the published {self.name}: its sha256 starts with {digest[:8]}, not "
                f"{self.sha256[:8]}; delete it, or pass it as an explicit path to use it all the same"
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


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch state dict."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def sha256(file: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
