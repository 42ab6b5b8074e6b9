"""Is this the model it claims to be? Comparison of a model with a baseline, a measured model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
