"""Metrics: distances between sets of images, diversity, paired similarity and scorers, with the published protocols.

The public names are listed in `__init__.pyi` and imported on first use: some need transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
