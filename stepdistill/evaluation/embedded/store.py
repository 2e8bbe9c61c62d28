"""Measurements that need not be made twice, one file per content address: shipped ones first, then the user's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepdistill.assets import cache_folder, resolve_path
from stepdistill.evaluation.embedded.measurements import Measurements


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
