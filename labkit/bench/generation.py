"""New tokens per second with a cache of keys and values: labkit and `transformers`' `generate`.

Greedy, fp32, the same weights and prompts; both must write the same tokens.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from labkit import interop
from labkit.bench.pretraining import Sizes, decoder
from labkit.errors import LabError
from labkit.generate import generate

PROMPT = 32


def contestants(
    sizes: Sizes, new_tokens: int, batch_sizes: tuple[int, ...] = (1, 8)
) -> dict[str, Callable[[], list[float]]]:
    """Name -> a function that writes `new_tokens` after each of B prompts; [seconds a token].

    Raises:
        LabError: the two write different tokens.
    """
    ours = decoder(sizes).eval()
    theirs = interop.to_huggingface(ours).eval()
    theirs.generation_config.eos_token_id = None
    entries = {}
    for batch in batch_sizes:
        ids = np.random.default_rng(0).integers(sizes.config.vocab_size, size=(batch, PROMPT))
        prompts = torch.from_numpy(ids)

        def labkit(prompts: torch.Tensor = prompts, new: int = new_tokens) -> list[list[int]]:
            return generate(ours, prompts, new, temperature=0)

        @torch.inference_mode()
        def transformers(prompts: torch.Tensor = prompts, new: int = new_tokens) -> list[list[int]]:
            out = theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
            return out[:, PROMPT:].tolist()

        if labkit(new=8) != transformers(new=8):
            raise LabError(f"batch {batch}: labkit and transformers write different tokens")
        entries[f"labkit generate, batch {batch}"] = _timed(labkit, batch * new_tokens)
        entries[f"transformers generate, batch {batch}"] = _timed(transformers, batch * new_tokens)
    return entries


def _timed(write: Callable[[], list[list[int]]], tokens: int) -> Callable[[], list[float]]:
    def run() -> list[float]:
        started = time.perf_counter()
        write()
        return [(time.perf_counter() - started) / tokens]

    return run
