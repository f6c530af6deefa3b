"""From raw text to token ids: clean it, find it by name, cut it into tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
