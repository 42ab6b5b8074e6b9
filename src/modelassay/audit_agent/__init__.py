"""An agent that audits: a model behind an endpoint investigates with the audit's tools."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
