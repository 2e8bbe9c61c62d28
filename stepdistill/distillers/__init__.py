"""Distillers: one small file per method, grouped by family."""

from __future__ import annotations

from typing import Any

from stepdistill.distillers.base import Distiller
from stepdistill.distillers.consistency.lcm import LCM
from stepdistill.distillers.consistency.sana_sprint import SANASprint
from stepdistill.distillers.consistency.scm import SCM
from stepdistill.distillers.consistency.tbcm import TBCM
from stepdistill.distillers.distribution.dmd2 import DMD2

METHODS: dict[str, type[Distiller]] = {
    "dmd2": DMD2,
    "lcm": LCM,
    "sana_sprint": SANASprint,
    "scm": SCM,
    "tbcm": TBCM,
}
"""Recipe name of each method."""


def method_table() -> list[dict[str, Any]]:
    """What `stepdistill methods` shows: one row per method."""
    return [
        {
            "name": name,
            "class": method.__name__,
            "paper": method.paper,
            "family": method.__module__.split(".")[-2],
            "requires": method.requires.names(),
            "status": method.status,
        }
        for name, method in METHODS.items()
    ]
