"""One file per family of diffusers pipelines, and the function that finds the right one.

The public names are listed in `__init__.pyi` and imported on first use, so that `denoisers.config` needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
