"""stepdistill: distil a diffusers pipeline to 1-8 steps."""

__version__ = "0.1.0"
