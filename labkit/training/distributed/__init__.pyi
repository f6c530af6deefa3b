from . import data as data
from .data import Step as Step
from .data import first as first
from .data import gradient_sync as gradient_sync
from .data import parallelise as parallelise
from .data import whole as whole
