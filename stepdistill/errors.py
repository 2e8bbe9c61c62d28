"""Exceptions that the command line turns into one line and an exit code, and hints at the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input. The message is one line that names the problem and the fix; the CLI exits with code 2."""


class ExportError(RuntimeError):
    """The exported files do not reproduce the trainer's images when reloaded; the CLI exits with code 1."""


class BoundBrokenError(Exception):
    """A measured number breaks the bound of `--assert`; the CLI exits with code 1."""


class RunInterruptedError(Exception):
    """A signal stopped the run after a checkpoint was written; the CLI exits with code 130."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the nearest known word, or an empty string.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " (did you mean 'learning_rate'?)"
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    best = max(near, key=lambda name: _closeness(word, name), default=None)
    return f" (did you mean '{best}'?)" if best else ""


def _closeness(word: str, name: str) -> tuple[float, int]:
    """Shared part of the longer word; ties go to the name of equal length ("dmd3" is "dmd2", not "dmd")."""
    shared = sum(block.size for block in difflib.SequenceMatcher(None, word, name).get_matching_blocks())
    return shared / max(len(word), len(name)), -abs(len(word) - len(name))
