"""Load a causal language model safely and find its decoder layers.

Names are imported on first use: `ModelRef` and the organisms' names need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
