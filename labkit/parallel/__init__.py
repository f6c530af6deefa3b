"""Many processes train one model, by hand: who holds what, and what they send each other."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
