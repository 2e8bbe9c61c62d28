"""Measurements that need not be made twice, one file per content address: shipped ones first, then the user's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stepdistill.assets import resolve_path
from stepdistill.metrics.measurements import Measurements


def user_cache() -> Path:
    """`$STEPDISTILL_CACHE`, else `stepdistill` under `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("STEPDISTILL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "stepdistill"


def cache_folder(name: str) -> Path | None:
    """A folder of the user's cache, made if need be; None where nothing can be written."""
    folder = user_cache() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@dataclass(frozen=True)
class MeasurementStore:
    """Folders that are only read, then one that new files go to (None: nowhere)."""

    shipped: tuple[Path, ...] = ()
    own: Path | None = None

    @classmethod
    def default(cls) -> MeasurementStore:
        """What ships in `assets/emoji/measured`, then the user's cache."""
        own = cache_folder("measured")
        return cls((resolve_path("assets/emoji/measured"),), own)

    def find(self, key: str, at_least: int) -> Measurements | None:
        """The first `at_least` rows stored under the key, where some file holds that many."""
        for folder in (*self.shipped, *filter(None, [self.own])):
            path = folder / f"{key}.safetensors"
            if path.exists():
                found = Measurements.load(path)
                if len(found) >= at_least:
                    return found.first(at_least)
        return None

    def add(self, key: str, measured: Measurements) -> None:
        """Store under the key, where there is a folder for it."""
        if self.own is not None:
            measured.save(self.own / f"{key}.safetensors")
