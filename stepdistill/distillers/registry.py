"""The registry: one line per method, with the places of its class and its options. Nothing is imported before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from stepdistill.distillers.config import DistillerConfig

if TYPE_CHECKING:
    from stepdistill.distillers.base import Distiller


class Entry(NamedTuple):
    """Where a method is: `family.module.Class`, below `stepdistill.distillers`.

    `options` may name the method's own module. A module without torch lets `stepdistill plan` answer at once.
    """

    method: str
    options: str


ENTRIES = {
    "dmd": Entry("distribution.dmd.DMD", "distribution.config.DMDConfig"),
    "dmd2": Entry("distribution.dmd2.DMD2", "distribution.config.DMD2Config"),
    "lcm": Entry("consistency.lcm.LCM", "consistency.config.LCMConfig"),
    "phased_dmd": Entry("distribution.phased_dmd.PhasedDMD", "distribution.config.PhasedDMDConfig"),
    "pso": Entry("preference.pso.PSO", "preference.config.PSOConfig"),
    "sana_sprint": Entry("consistency.sana_sprint.SANASprint", "consistency.config.SANASprintConfig"),
    "scm": Entry("consistency.scm.SCM", "consistency.config.SCMConfig"),
    "swiftbrush": Entry("distribution.swiftbrush.SwiftBrush", "distribution.config.SwiftBrushConfig"),
    "tbcm": Entry("consistency.tbcm.TBCM", "consistency.config.TBCMConfig"),
}


def imported(place: str) -> Any:
    """Import `family.module.Class`."""
    module, _, name = place.rpartition(".")
    return getattr(import_module(f"stepdistill.distillers.{module}"), name)


def options_of(method: str) -> type[DistillerConfig]:
    """The options of a method, by its recipe name."""
    return imported(ENTRIES[method].options)


class Methods(Mapping[str, "type[Distiller]"]):
    """Recipe names and the classes of the methods."""

    def __getitem__(self, name: str) -> type[Distiller]:
        return imported(ENTRIES[name].method)

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


METHODS: Mapping[str, type[Distiller]] = Methods()
