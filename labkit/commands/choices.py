"""`labkit evaluate MODEL --choices FILE`: how often the right choice is the likeliest.

questions of a file ──> ln p of each choice ──> accuracy by normalisation, with intervals
                    └─> what takes no model: one index, the longest choice, the shortest
"""

import json
from typing import Any

import numpy as np

from labkit import runtime
from labkit.commands.options import Evaluate, check
from labkit.commands.shell import say, table
from labkit.errors import LabError
from labkit.evaluation.choices import (
    NORMALISATIONS,
    choice_accuracy,
    lazy_choices,
    score_choices,
)
from labkit.generation.loaded import load
from labkit.models.encoder_decoder import EncoderDecoder
from labkit.models.huggingface.folders import is_classifier, is_reader, quiet_libraries
from labkit.models.tagger import is_tagger
from labkit.text.prompting import read_choices
from labkit.training.run_folder import model_folder

#: How a normalisation is named in the table.
COMPARED = {
    "none": "log-probability",
    "token": "log-probability / tokens",
    "byte": "log-probability / bytes",
    "unconditional": "log-probability - unconditional",
}


def evaluate(options: Evaluate) -> dict[str, Any]:
    """Score a language model on a file of questions; print a table or JSON.

    Raises:
        LabError: the model, the file or an option cannot be used.
    """
    assert options.choices is not None
    check(not options.data, options, "data", "none beside --choices: one of the two")
    check(options.batch_size >= 1, options, "batch_size", "at least 1")
    questions = read_choices(options.choices)
    folder = model_folder(options.model)
    quiet_libraries()
    if is_tagger(folder) or is_classifier(folder) or is_reader(folder):
        raise LabError(f"{folder} holds no language model: --choices needs one, such as smollm2")
    opened = load(folder, device=options.device)
    if isinstance(opened.model, EncoderDecoder):
        raise LabError(f"{folder} holds an encoder-decoder: --choices needs a decoder")
    device = next(opened.model.parameters()).device
    precision = runtime.pick_precision(device, options.precision)
    found = score_choices(
        opened.model,
        opened.tokenizer,
        questions,
        batch_size=options.batch_size,
        precision=precision,
    )
    chosen = {COMPARED[how]: found.chosen(how) for how in NORMALISATIONS} | lazy_choices(questions)
    accuracy = {name: choice_accuracy(questions, it)._asdict() for name, it in chosen.items()}
    chance = float(np.mean([1 / len(one.choices) for one in questions]))
    scores = {"questions": len(questions), "chance": chance, "accuracy": accuracy}
    if options.json:
        say(json.dumps({"model": str(options.model), "choices": str(options.choices), **scores}))
        return scores
    say(
        table(
            [
                {
                    "chosen by": name,
                    "accuracy": f"{it['estimate']:.4f}",
                    "95 % interval": f"{it['low']:.4f} to {it['high']:.4f}",
                }
                for name, it in accuracy.items()
            ]
        )
    )
    say(f"{len(questions):,} questions; choosing at random: {chance:.4f}")
    return scores
