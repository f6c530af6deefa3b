"""Held-out evaluation: one number, its uncertainty, and the examples behind it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
