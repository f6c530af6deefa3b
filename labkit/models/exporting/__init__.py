"""A model folder as other programs read it: GGUF, ONNX, safetensors in another number format."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
