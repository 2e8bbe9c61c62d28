"""stepdistill: distil a diffusers pipeline to 1-8 steps, export what stock diffusers loads, and measure it.

The public names are listed in `__init__.pyi` and imported on first use, so that importing the package is quick.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
