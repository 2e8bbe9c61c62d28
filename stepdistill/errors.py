"""Exceptions that the command line turns into one line and an exit code."""

from __future__ import annotations


class UserError(ValueError):
    """Invalid input. The message is one line that names the problem and the fix; the CLI exits with code 2."""


class ExportError(RuntimeError):
    """The exported files do not reproduce the trainer's images when reloaded; the CLI exits with code 1."""


class BoundBrokenError(Exception):
    """A measured number breaks the bound of `--assert`; the CLI exits with code 1."""


class RunInterruptedError(Exception):
    """A signal stopped the run after a checkpoint was written; the CLI exits with code 130."""
