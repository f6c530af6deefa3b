from . import gguf_file as gguf_file
from . import onnx_graph as onnx_graph
from . import weights_copy as weights_copy
from .gguf_file import block_bound as block_bound
from .gguf_file import write_gguf as write_gguf
from .onnx_graph import write_onnx as write_onnx
from .weights_copy import copy_beside as copy_beside
from .weights_copy import copy_in as copy_in
