"""LLM Lab's training code: every piece of a language model, in teaching order.

    import labkit
    labkit.attention.scaled_dot_product_attention(q, k, v)
    labkit.train.train(model, labkit.objectives.causal_lm, batches, config)

Submodules load when first named, so `import labkit` costs next to nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

#: The project's public address: Colab badges, install cells and the README are stamped from it
#: (`python -m labkit.course stamp`), and a test asserts that none of them disagrees.
REPOSITORY = "https://github.com/llm-lab/llm-lab"

#: Teaching order: a module imports only modules that stand before it (tests/test_structure.py).
MODULES = (
    "errors",
    "runtime",
    "precision",
    "text",
    "files",
    "storyworld",
    "corpora",
    "bpe",
    "wordpiece",
    "tokenizers",
    "batches",
    "mixing",
    "ngrams",
    "baselines",
    "positions",
    "cache",
    "attention",
    "architecture",
    "layers",
    "transformer",
    "encoder_decoder",
    "families",
    "shapes",
    "interop",
    "merging",
    "losses",
    "updates",
    "muon",
    "eight_bit",
    "optim",
    "accounting",
    "capacity",
    "checkpoint",
    "objectives",
    "evaluate",
    "experts",
    "runs",
    "train",
    "probes",
    "strategies",
    "decoding",
    "generate",
    "listing",
    "course",
    "notebook",
    "bench",
    "commands",
)


def __getattr__(name: str) -> ModuleType:
    if name in MODULES:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"module 'labkit' has no attribute {name!r}; its modules are {MODULES}")


def __dir__() -> list[str]:
    return [*MODULES, "REPOSITORY", "__version__"]
