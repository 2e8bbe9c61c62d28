"""Distillers: one small file per method, grouped by family."""

from __future__ import annotations

from stepdistill.distillers.base import Distiller
from stepdistill.distillers.distribution.dmd2 import DMD2

METHODS: dict[str, type[Distiller]] = {"dmd2": DMD2}
"""Recipe name of each method."""
