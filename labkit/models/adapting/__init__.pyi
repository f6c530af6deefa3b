from . import mean_block as mean_block
from . import merging as merging
from . import strategies as strategies
from .mean_block import add_mean_block as add_mean_block
