"""A model as a service over HTTP, on this machine: one batch for all who ask."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
