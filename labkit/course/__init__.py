"""The course as one program: edit, run and stamp chapters, tie outputs to code, report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
