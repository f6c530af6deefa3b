from . import collectives as collectives
from . import data_parallel as data_parallel
from . import processes as processes
from .collectives import Traffic as Traffic
from .collectives import counted as counted
from .data_parallel import DataParallel as DataParallel
from .processes import Ranks as Ranks
