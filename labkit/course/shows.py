"""What each chapter shows: a sentence, with the figures of the chapter's committed run in it.

    "… falls to {loss|.2f} nats" + metrics of the run ──> "… falls to 1.27 nats"

`{name|format}` stands for what the chapter gave to `report`, `{-name|format}` for its negative.
The map of chapters in the README and on the first page of the web book is made of these
sentences: a chapter that is run again brings its figures there by itself (`course.stamp`).
"""

import re
from collections.abc import Mapping, Sequence

from labkit.course.chapter import Chapter, metrics_of

#: By the chapter's number. Each compares: what is cheaper, or without it, stands beside.
SENTENCES = {
    "00": "Fine-tuning all 134.5 million parameters of a real language model takes the loss of "
    "unseen verses from {verses_before|.2f} to {verses_after|.2f} nats a token; a byte of news "
    "costs it {news_before|.2f} bits before and {news_after|.2f} after.",
    "01": "On prose that none has read, 5-gram counts need {web_bible_5-gram|.2f} bits a byte, a "
    "small Transformer {web_bible_Transformer|.2f}; mixed they need {-mixture_Transformer|.2f} "
    "less than the counts. On stories, of which {storyworld_floor|.2f} is the least possible, "
    "counts need {storyworld_5-gram|.2f}, the Transformer {storyworld_Transformer|.2f}.",
    "02": "A Chinese story costs {token_premium_of_chinese|.1f} times the tokens of the same "
    "story in English; of the vocabularies tried, {best_vocabulary|,} pieces gave the best model.",
    "03": "Copying from the context: two layers of attention reach a loss of {loss: 1/√K|.3f}, "
    "one layer {loss: one layer|.2f}, one that is trained longer {loss: one layer, longer|.2f}, "
    "and layers whose weights are all equal {loss: all weights equal|.2f}.",
    "04": "A GPT of forty lines, trained for a minute, needs {bits: GPT|.2f} bits a byte on text "
    "that it has not read, counted pairs {bits: counted pairs|.2f}, counted 5-grams {bits: "
    "counted 5-grams|.2f}, the two half and half {bits: GPT and 5-grams|.2f}.",
    "05": "Averaging the means of uneven micro-batches puts the gradient "
    "{mean_of_means_gradient_error|.0%} off; in chunks, a large vocabulary's loss takes "
    "{chunk_memory_ratio|.1f} times less memory.",
    "06": "After as many updates, each at a rate of its own, Muon ends at {muon|.2f} nats, AdamW "
    "at {adamw|.2f}, SGD at {sgd|.2f}; AdamW with Muon's time at {adamw_equal_time|.2f}.",
    "07": "At one small budget, vectors of contrastive pretraining tell {topic contrastive|.0%} of "
    "the topics, causal ones {topic causal|.0%}, counted words {topic counting words|.0%}, or "
    "factored {topic LSA|.0%}; to fill a gap causal needs {fill causal|.2f} bits a byte, masked "
    "{fill masked|.2f}, 5-grams {fill 5-gram, left side|.2f}.",
    "08": "A decoder pretrained in minutes needs {bits_per_byte this decoder|.2f} bits a byte, "
    "5-gram counts {bits_per_byte 5-gram|.2f}; killed and resumed, all {resumed_tensors_equal} "
    "tensors come out equal to the bit.",
    "09": "Experts for each domain, weighted by how well they predicted the text so far, need "
    "{mean: scratch experts, posterior|.2f} bits a byte over all domains, one generalist with the "
    "training of all of them {mean: generalist, 4 units|.2f}.",
    "10": "Were two neighbouring words exchanged? An encoder with all parameters trained is right "
    "on {test, all parameters, live|.0%}, frozen with a head on {test, frozen, best layer|.0%}, "
    "counted words on {test, words counted|.0%}, trigrams that search on {test, trigram that "
    "searches|.0%}.",
    "11": "At equal updates full fine-tuning reaches {test, full|.0%} and LoRA {test, LoRA|.0%}; "
    "trained longer, {longer, full, 2e-04|.0%} and {longer, LoRA, 1e-03|.0%} (validation).",
    "12": "Seeing one word to either side, a softmax finds {long names, softmax|.0%} of the "
    "longest names in code, with rules {long names, softmax + rules|.0%}, and a CRF {long names, "
    "CRF|.0%}.",
    "13": "With a path that copies, a small encoder-decoder puts verses of 1611 into today's "
    "English at BLEU {recorded, copying|.0f}, without it at {recorded, plain|.0f} (recorded runs).",
    "14": "An instruction-tuned LLM goes from {llm before|.0%} to {llm after|.0%} exact answers "
    "to 24 questions about code, in wordings that were not taught to {llm after, new wording|.0%}.",
    "15": "Told five examples, a model names the topic of {order, worst|.0%} to {order, best|.0%} "
    "of news, depending on which they are and in what order; told none, of {order, no "
    "example|.0%}.",
    "16": "Tasks learned one after the other, untold which one is asked: plain training ends at "
    "{told False, plain|.0%}, replay at {told False, replay|.0%}, all at once at {told False, all "
    "at once|.0%}, statistics that add up at {told False, discriminant|.0%}.",
    "17": "The memory of an update is predicted to within {largest_prediction_error|.1%}; fp16 "
    "loses {underflow_share_unscaled|.0%} of a gradient's numbers to zero, with loss scaling "
    "{underflow_share_2_16|.2%}.",
    "18": "However a model is cut over four processes, its gradients are those of one (ZeRO 3: to "
    "{ZeRO 3: gradients|.0e}); ZeRO 3 keeps {ZeRO 3, weights|.0%} of the weights on each and "
    "sends {ZeRO 3, sent|.2f} times the model, data parallel {ZeRO 0, sent|.2f} times.",
    "19": "In groups of 32, 4 bits a weight lose {lost, 4, 32|.3f} bits a byte, 2 bits {lost, 2, "
    "32|.2f}; with one scale for a whole matrix, {lost, 4, tensor|.3f} and {lost, 2, tensor|.2f}.",
    "20": "Guessing ahead writes text that repeats itself {speed, repeats itself, lookup|.1f} "
    "times as fast and news {speed, news, lookup|.1f} times, from exactly the same distribution.",
    "21": "Of thirty training runs with a planted bug, their curves beside six healthy ones give "
    "away {recorded, curve}, what an update does to the weights {recorded, updates}, learning one "
    "batch by heart {recorded, by heart}.",
    "22": "On held-out sheets of a folder (the King James Version, which SmolLM2 has probably "
    "met), 5-gram counts need {bits, counting, 5-gram|.2f} bits a byte, SmolLM2 as it came {bits, "
    "smollm2 as it came|.2f}, and trained on the folder {bits, smollm2, trained|.2f}.",
    "23": "With a checker for its only teacher a small model solves {recorded, group|.0%} of "
    "unseen puzzles at the first try instead of {the start, pass@1|.0%}; learning its own right "
    "answers brings {recorded, own right answers|.0%}, more supervision {recorded, more "
    "supervision|.0%} (three recorded seeds).",
    "24": "At one budget all filters together save a small model {network gain, all|.2f} bits a "
    "byte, the true labels of the planted junk {network gain, the labels|.2f}, and as many "
    "documents dropped at random {network gain, random|z.2f}.",
}

_FIGURE = re.compile(r"\{(?P<sign>-?)(?P<name>[^{}|]+)(?:\|(?P<form>[^{}|]+))?\}")


def shows(chapter: Chapter) -> str:
    """The chapter's sentence with its figures; empty where `unsaid` complains."""
    sentence, metrics = SENTENCES.get(chapter.number, ""), _metrics(chapter)
    return "" if _missing(sentence, metrics) else fill(sentence, metrics)


def unsaid(found: Sequence[Chapter]) -> list[str]:
    """The chapters that cannot say what they show, a sentence each."""
    said = []
    for chapter in found:
        sentence, metrics = SENTENCES.get(chapter.number), _metrics(chapter)
        if sentence is None:
            said.append(f"{chapter.name} has no sentence: write it in labkit/course/shows.py")
        elif not metrics:
            said.append(f"{chapter.name} has reported no figures: execute it")
        else:
            said += [
                f"{chapter.name} does not report {name!r}, which its sentence in "
                f"labkit/course/shows.py names: take one of {', '.join(metrics)}"
                for name in _missing(sentence, metrics)
            ]
    return said


def fill(sentence: str, metrics: Mapping[str, float]) -> str:
    """The sentence with its figures.

    >>> fill("From {a, b|.0%} to {-c|.2f}.", {"a, b": 0.25, "c": -1.2})
    'From 25 % to 1.20.'
    """

    def figure(found: re.Match[str]) -> str:
        value = metrics[found["name"]]
        shown = format(-value if found["sign"] else value, found["form"] or "")
        return re.sub(r"%$", " %", shown)

    return _FIGURE.sub(figure, sentence)


def _missing(sentence: str, metrics: Mapping[str, float]) -> list[str]:
    return [it["name"] for it in _FIGURE.finditer(sentence) if it["name"] not in metrics]


def _metrics(chapter: Chapter) -> dict[str, float]:
    return (metrics_of(chapter.path) or {}).get("metrics", {})
