"""The model card of a run, README.md of its model/: what it is, from what, how good, how to use it.

Every figure is one that the run measured; what it does not know, such as a licence, it says.

Source: Mitchell et al. 2019, arXiv:1810.03993 (model cards for model reporting).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit import DISTRIBUTION, __version__
from labkit.atomic import write_text

USES = {
    "text-classification": """from transformers import pipeline
classify = pipeline("text-classification", {folder!r})
classify("...", truncation=True)""",
    "text-classification of pairs": """from transformers import pipeline
classify = pipeline("text-classification", {folder!r})
classify({{"text": "...", "text_pair": "..."}}, truncation=True)""",
    "token-classification": """from transformers import pipeline
tag = pipeline("token-classification", {folder!r}, aggregation_strategy="first")
tag("...")""",
    "token-classification with a CRF": """import labkit
tag = labkit.load_tagger({folder!r})  # transformers reads the words' own scores, without the CRF
print(tag("..."))""",
    "question-answering": """from labkit import load_reader
read = load_reader({folder!r})
read.answer("...", "...")""",
    "text2text-generation": """import labkit
write = labkit.load({folder!r})
write.answer(["..."], beams=4)""",
    "text-generation": """from transformers import pipeline
write = pipeline("text-generation", {folder!r})
write("...", max_new_tokens=50)""",
}


def write_card(
    folder: Path,
    use: str,
    origin: str,
    facts: Mapping[str, str],
    scores: Sequence[Mapping[str, str]],
    examples: str,
    *,
    name: str = "",
    model: Path | None = None,
    sections: Mapping[str, str] | None = None,
) -> None:
    """Write README.md into a model folder, in the form that model hubs read.

    Args:
        folder: of the model; nothing is written where there is none.
        use: one of `USES`: transformers' name of the task, perhaps with a word on its input.
        origin: from which weights the training began.
        facts: lines of how it was made.
        scores: rows of one table, of the same keys.
        examples: on what the scores were taken.
        name: of the card; "": that of the run.
        model: the folder that is opened in the example; None: this one.
        sections: further ones, heading -> text.
    """
    if not folder.is_dir():
        return
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {use.split()[0]}",
        "---",
        "",
        f"# {_plain(name or folder.resolve().parent.name)}",
        "",
        f"All figures are of the run that made this model, with {DISTRIBUTION} {__version__}.",
        "",
        f"- begins from: {_plain(origin)}",
        *(f"- {_plain(name)}: {_plain(value)}" for name, value in facts.items()),
        "",
        f"## Scores on {examples}",
        "",
        "| " + " | ".join(scores[0]) + " |",
        "|" + "---|" * len(scores[0]),
        *("| " + " | ".join(_plain(value) for value in row.values()) + " |" for row in scores),
        "",
        "## Use",
        "",
        "```python",
        USES[use].format(folder=str(model or folder)),
        "```",
        "",
        "## Limits",
        "",
        "The scores hold for texts like the examples above; on others the model was not tested. It",
        "may repeat what is wrong, private or unfair in its training texts. The licence is that of",
        "the weights it began from and of those texts; whoever publishes it names it here.",
        "",
        *(
            line
            for heading, text in (sections or {}).items()
            for line in (f"## {_plain(heading)}", "", _plain(text), "")
        ),
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _plain(value: str) -> str:
    """Text of the user's data as one line that no markdown of its own survives."""
    flat = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|$" else c for c in flat)
