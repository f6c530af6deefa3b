"""LLM Lab's training code: every piece of a language model, room by room.

    import labkit
    labkit.load("runs/mine").generate("Once upon a time")
    labkit.load_classifier("runs/finetune").classify("Shares fell.")
    labkit.load_reader("runs/finetune").answer("What fell?", "Shares fell.")
    labkit.models.scaled_dot_product_attention(q, k, v)
    labkit.training.train(model, labkit.objectives.causal_lm, batches, config)

Rooms load when first named, so `import labkit` costs next to nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

#: The project's name on a package index. Nothing here tells anybody to install it from there.
DISTRIBUTION = "llm-lab-course"

#: The project's public address on GitHub, or "" while it has none. Colab badges, install cells and
#: the README are stamped from it: `python -m labkit.course stamp --repository URL` (or `origin`).
REPOSITORY = ""

#: The rooms, in the order in which data flows: one imports only rooms before it (test_structure).
ROOMS = (
    "errors",
    "runtime",
    "atomic",
    "text",
    "batches",
    "models",
    "objectives",
    "optim",
    "parallel",
    "accounting",
    "evaluation",
    "training",
    "generation",
    "serving",
    "course",
    "notebook",
    "bench",
    "commands",
)


def __getattr__(name: str) -> Any:
    if name == "load":
        from labkit.generation.loaded import load

        return load
    if name == "load_classifier":
        from labkit.generation.classifier import load_classifier

        return load_classifier
    if name == "load_tagger":
        from labkit.generation.tagger import load_tagger

        return load_tagger
    if name == "load_reader":
        from labkit.generation.reader import load_reader

        return load_reader
    if name in ROOMS:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"module 'labkit' has no attribute {name!r}; its rooms are {ROOMS}")


def __dir__() -> list[str]:
    return [
        *ROOMS,
        "load",
        "load_classifier",
        "load_tagger",
        "load_reader",
        "DISTRIBUTION",
        "REPOSITORY",
        "__version__",
    ]
