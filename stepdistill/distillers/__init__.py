"""Distillers: one small file per method, grouped by family.

`METHODS` maps recipe names to classes and imports a class on first use. `catalogue` reads the list without importing torch.
"""

from stepdistill.distillers.registry import METHODS

__all__ = ["METHODS"]
