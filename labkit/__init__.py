"""LLM Lab's training code: every piece of a language model, in teaching order.

    import labkit
    labkit.models.scaled_dot_product_attention(q, k, v)
    labkit.training.train(model, labkit.objectives.causal_lm, batches, config)

Submodules load when first named, so `import labkit` costs next to nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

#: The project's public address: Colab badges, install cells and the README are stamped from it
#: (`python -m labkit.course stamp`), and a test asserts that none of them disagrees.
REPOSITORY = "https://github.com/llm-lab/llm-lab"

#: The rooms, in the order in which data flows: one imports only rooms before it (test_structure).
ROOMS = (
    "errors",
    "runtime",
    "text",
    "batches",
    "models",
    "objectives",
    "optim",
    "accounting",
    "evaluation",
    "training",
    "generation",
    "course",
    "notebook",
    "bench",
    "commands",
)


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"module 'labkit' has no attribute {name!r}; its rooms are {ROOMS}")


def __dir__() -> list[str]:
    return [*ROOMS, "REPOSITORY", "__version__"]
