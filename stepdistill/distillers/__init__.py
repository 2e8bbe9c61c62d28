"""Distillers: one small file per method, grouped by family."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from stepdistill.distillers.base import Distiller
from stepdistill.distillers.consistency.lcm import LCM
from stepdistill.distillers.consistency.sana_sprint import SANASprint
from stepdistill.distillers.consistency.scm import SCM
from stepdistill.distillers.consistency.tbcm import TBCM
from stepdistill.distillers.distribution.dmd import DMD
from stepdistill.distillers.distribution.dmd2 import DMD2
from stepdistill.distillers.distribution.phased_dmd import PhasedDMD
from stepdistill.distillers.distribution.swiftbrush import SwiftBrush
from stepdistill.distillers.preference.pso import PSO
from stepdistill.distillers.size import lines_of_code

METHODS: dict[str, type[Distiller]] = {
    "dmd": DMD,
    "dmd2": DMD2,
    "lcm": LCM,
    "phased_dmd": PhasedDMD,
    "pso": PSO,
    "sana_sprint": SANASprint,
    "scm": SCM,
    "swiftbrush": SwiftBrush,
    "tbcm": TBCM,
}
"""Recipe name of each method."""


def method_table() -> list[dict[str, Any]]:
    """What `stepdistill methods` shows: one row per method, with the lines of code of its file."""
    return [
        {
            "name": name,
            "class": method.__name__,
            "paper": method.paper,
            "family": method.__module__.split(".")[-2],
            "requires": method.requires.names(),
            "status": method.status,
            "lines": lines_of_code(inspect.getsource(sys.modules[method.__module__])),
        }
        for name, method in METHODS.items()
    ]
