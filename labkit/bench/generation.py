"""New tokens per second with a cache of keys and values: labkit and `transformers`' `generate`.

The best that transformers does is a static cache and one compiled program for a step of it.
Greedy, the same weights and prompts, in fp32 and in the machine's 16-bit format; in fp32 all write
the same tokens.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from labkit import runtime
from labkit.bench.pretraining import Sizes, decoder
from labkit.errors import LabError
from labkit.generation.sampling import generate
from labkit.models import huggingface
from labkit.models.transformer import Transformer

PROMPT = 32


def contestants(
    sizes: Sizes, new_tokens: int, half: str, compiled: bool, prompts: tuple[int, ...] = (1, 8)
) -> dict[str, Callable[[], list[float]]]:
    """Name -> a function that writes `new_tokens` after each prompt; [seconds a token].

    Args:
        sizes: the model.
        new_tokens: written after each prompt.
        half: the 16-bit format of this machine, or fp32.
        compiled: also both under torch.compile (needs a C++ compiler).
        prompts: how many at a time.

    Raises:
        LabError: two contestants write different tokens in fp32.
    """
    ours = decoder(sizes).eval()
    theirs = huggingface.to_huggingface(ours).eval()
    theirs.generation_config.eos_token_id = None
    entries = {}
    for precision in dict.fromkeys(("fp32", half)):
        dtype = runtime.DTYPES[precision]
        models = copy.deepcopy(ours).to(dtype), copy.deepcopy(theirs).to(dtype)
        for count in prompts:
            ids = np.random.default_rng(0).integers(sizes.config.vocab_size, size=(count, PROMPT))
            writers = _writers(*models, torch.from_numpy(ids), compiled)
            # Compiles, too; a static cache for each length.
            found = {name: write(new_tokens) for name, write in writers.items()}
            for name, tokens in found.items():
                if precision == "fp32" and tokens != found["transformers"]:
                    raise LabError(f"{count} prompts: {name} writes other tokens than transformers")
            for name, write in writers.items():
                entries[f"{name}, {precision}, {count} at a time"] = _timed(
                    write, new_tokens, count
                )
    return entries


def _writers(
    ours: Transformer, theirs: Any, prompts: torch.Tensor, compiled: bool
) -> dict[str, Callable[[int], list[list[int]]]]:
    from transformers import CompileConfig

    def labkit(new: int) -> list[list[int]]:
        return generate(ours, prompts, new, temperature=0)

    def labkit_compiled(new: int) -> list[list[int]]:
        return generate(ours, prompts, new, temperature=0, compile=True)

    @torch.inference_mode()
    def transformers(new: int, **settings: Any) -> list[list[int]]:
        out = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
        return out[:, PROMPT:].tolist()

    def transformers_compiled(new: int) -> list[list[int]]:
        compiling: Any = CompileConfig(fullgraph=False, mode="default")
        compiling._compile_all_devices = True  # else transformers compiles on GPUs alone
        return transformers(new, cache_implementation="static", compile_config=compiling)

    writers = {"labkit": labkit, "transformers": transformers}
    if compiled:
        writers |= {
            "labkit compiled": labkit_compiled,
            "transformers static cache compiled": transformers_compiled,
        }
    return writers


def _timed(
    write: Callable[[int], list[list[int]]], new_tokens: int, count: int
) -> Callable[[], list[float]]:
    def run() -> list[float]:
        started = time.perf_counter()
        write(new_tokens)
        return [(time.perf_counter() - started) / (count * new_tokens)]

    return run
