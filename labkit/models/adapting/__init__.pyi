from . import merging as merging
from . import strategies as strategies
