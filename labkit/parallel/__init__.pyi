from . import collectives as collectives
from . import processes as processes
from .collectives import Traffic as Traffic
from .collectives import counted as counted
from .processes import Ranks as Ranks
