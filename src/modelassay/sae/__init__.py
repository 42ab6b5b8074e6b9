"""SAEs: sparse autoencoders that take a layer's output apart into features."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
