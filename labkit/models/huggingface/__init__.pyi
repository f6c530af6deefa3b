from . import configs as configs
from . import families as families
from . import weights as weights
from .weights import from_huggingface as from_huggingface
from .weights import load_pretrained as load_pretrained
from .weights import save_pretrained as save_pretrained
from .weights import to_huggingface as to_huggingface
