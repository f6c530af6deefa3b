"""A trained model made smaller: fewer bits a weight, fewer weights, files in llama.cpp's blocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
