"""Probes: linear readouts of the residual stream that tell harm while it is asked or answered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
