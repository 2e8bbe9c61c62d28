"""Metrics with the published protocols: distances, diversity, paired similarity, and scorers of images and prompts.

`__init__.pyi` lists the public names; each is imported on first use, because some need transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
