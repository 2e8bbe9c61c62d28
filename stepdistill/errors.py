"""The exception for invalid user input."""

from __future__ import annotations


class UserError(ValueError):
    """Invalid input. The message is one line that names the problem and the fix; the CLI exits with code 2."""
