"""A full-parameter update of a real LLM, SmolLM2 of 134.5 M, on 8 x 128 tokens of news.

plain transformers loop:  AutoModelForCausalLM, autocast, fused AdamW, clipping: a dozen lines
labkit:                   the same weights, rate and batches through its model and its loop

python -m labkit.bench.llm CONTESTANT         prints peak and seconds (see `alone`)
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from labkit import runtime
from labkit.batches import Batches, Windows
from labkit.bench.alone import print_figures
from labkit.bench.rivals import labkit_moments
from labkit.models.huggingface.folders import open_lm, quiet_libraries
from labkit.objectives import tasks as objectives
from labkit.text import corpora
from labkit.text.tokenizers import Tokenizer

STEPS, BATCH, LENGTH = 4, 8, 128
#: To see that it runs.
SMALLER = (2, 2, 16)


def _tokens(folder: Any, count: int) -> np.ndarray:
    tokenizer = Tokenizer.from_pretrained(folder)
    news = corpora.load("bbc_news")["train"]["text"][:60]
    ids = [i for text in tokenizer.encode_batch(news) for i in (*text, tokenizer.end_of_text_id)]
    return np.resize(np.array(ids), count)


def _labkit(checkpointing: bool = False, **settings: Any) -> Callable:
    def run(half: str, steps: int, batch: int, length: int) -> list[float]:
        folder = corpora.smollm2_folder()
        model: Any = open_lm(folder)
        model.gradient_checkpointing = checkpointing
        windows = Windows(_tokens(folder, steps * batch * length + 1), length)
        data = Batches(windows, batch, shuffle=False)
        return labkit_moments(model, objectives.causal_lm, data, steps, precision=half, **settings)

    return run


def _plain(checkpointing: bool = False) -> Callable:
    def run(half: str, steps: int, batch: int, length: int) -> list[float]:
        from transformers import AutoModelForCausalLM

        folder, device = corpora.smollm2_folder(), runtime.pick_device()
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        model.to(device).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        tokens = _tokens(folder, steps * batch * length)
        ids_SBT = torch.from_numpy(tokens).view(steps, batch, length).to(device)
        moments = [time.perf_counter()]
        for ids_BT in ids_SBT:
            with runtime.autocast(device, half):
                loss = model(input_ids=ids_BT, labels=ids_BT).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            moments.append(time.perf_counter())
        return moments

    return run


CONTESTANTS: dict[str, Callable[[str, int, int, int], list[float]]] = {
    "plain transformers loop": _plain(),
    "plain loop, gradient checkpointing": _plain(checkpointing=True),
    "labkit": _labkit(),
    "labkit, micro-batches of 2": _labkit(micro_batch_size=2),
    "labkit, step in backward": _labkit(step_in_backward=True, grad_clip=0.0),
    "labkit, step in backward, gradient checkpointing": _labkit(
        checkpointing=True, step_in_backward=True, grad_clip=0.0
    ),
}


def _main(name: str, smaller: bool) -> None:
    quiet_libraries()
    half = runtime.pick_precision(runtime.pick_device())
    print_figures(CONTESTANTS[name](half, *(SMALLER if smaller else (STEPS, BATCH, LENGTH))))


if __name__ == "__main__":
    _main(sys.argv[1], "--smaller" in sys.argv[2:])
