"""The one exception type that means: the input is wrong, and here is how to fix it."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input. The message is one line that names the fault and the fix; the command line exits with 2."""
