"""`labkit card`: the card of a project folder, from the files that the other commands left there.

    text/tidied.json ─────────┐
    pretrained/config.json ───┤
    tuned/evaluation.json ────┼──> README.md ──> what the rubric still finds (`course.rubric`)
    evaluation.json ──────────┤
    compressed/score.json ────┘

No figure is typed: what a file does not hold, the card does not say.
"""

import json
from pathlib import Path
from typing import Any

from labkit.commands.card import write_card
from labkit.commands.options import Card
from labkit.commands.shell import say
from labkit.course.rubric import NO_LICENCE, lacking, model_of
from labkit.errors import LabError

#: What a score must hold for a row of the card.
ROW = {"bits_per_byte", "low", "high", "documents"}


def card(options: Card) -> list[str]:
    """Write README.md of a project; print what the rubric finds.

    Returns:
        The rubric's sentences.

    Raises:
        LabError: the folder holds no model, or no evaluation to write of.
    """
    project = options.project
    folder = model_of(project)
    if folder is None:
        raise LabError(f"{project} holds no tuned/model and no pretrained/model: train first")
    evaluation = _read(project / "evaluation.json")
    scores = evaluation.get("scores")
    if not isinstance(scores, dict) or not scores or not all(map(_complete, scores.values())):
        raise LabError(
            f"{project / 'evaluation.json'} holds no scores against another model: write it with "
            f"labkit evaluate {folder.parent} --data {project / 'text' / 'test'} --against smollm2 "
            f"--out {project / 'evaluation.json'}"
        )
    tidied = _read(project / "text" / "tidied.json")
    begun = _read(project / "pretrained" / "config.json").get("options", {})
    write_card(
        project,
        "text-generation",
        str(begun.get("init") or next(iter(scores.values()))["against"]["model"]),
        _facts(project, tidied, begun),
        _rows(project, scores),
        "documents that were held out of training",
        name=project.resolve().name,
        model=folder,
        sections={
            "Private data": _private(tidied),
            "Licence": options.licence or f"{NO_LICENCE}: of the text, and of the weights.",
        },
    )
    found = lacking(project)
    say(f"{project / 'README.md'}: the card of {folder}")
    say("\n".join(f"lacking: {it}" for it in found) or "nothing is lacking")
    return found


def _facts(project: Path, tidied: dict[str, Any], begun: dict[str, Any]) -> dict[str, str]:
    facts = {}
    if train := tidied.get("train"):
        facts["training text"] = (
            f"{train['documents']} documents, {train['bytes']:,} bytes; of {tidied['files']} files "
            f"{len(tidied['left_out'])} were left out"
        )
    if begun:
        facts["continued pretraining"] = (
            f"{begun.get('steps')} updates of {begun.get('batch_tokens')} tokens, all parameters"
        )
    tuned = _read(project / "tuned" / "evaluation.json")
    if "loss" in tuned.get("test", {}):
        facts["instructions"] = (
            f"{tuned.get('steps')} updates; loss of held-out answers {tuned['test']['loss']:.4f} "
            "nats a token"
        )
    return facts


def _rows(project: Path, scores: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for source, score in scores.items():
        other = score["against"]
        rows += [_row(Path(source).name, "this model", score)]
        rows += [_row(Path(source).name, str(other["model"]), other)]
    compressed = _read(project / "compressed" / "score.json")
    if compressed.keys() >= ROW:
        rows.append(_row("test", "compressed/model.gguf", compressed))
    return rows


def _complete(score: Any) -> bool:
    """Whether a row of the card can be made of a score, and one of what it was held against."""
    both = (score, score.get("against")) if isinstance(score, dict) else ()
    return bool(both) and all(isinstance(it, dict) and it.keys() >= ROW for it in both)


def _row(text: str, who: str, score: dict[str, Any]) -> dict[str, str]:
    return {
        "text": text,
        "model": who,
        "bits per byte": f"{score['bits_per_byte']:.4f}",
        "95 % interval": f"{score['low']:.4f} to {score['high']:.4f}",
        "documents": f"{score['documents']:,}",
    }


def _private(tidied: dict[str, Any]) -> str:
    masked = tidied.get("masked", {})
    called = {"mail": "e-mail addresses", "phone": "telephone numbers"}
    counts = " and ".join(f"{n} {called.get(kind, kind)}" for kind, n in masked.items())
    return (
        f"Before training, {counts or 'none'} were masked in the text. They were found by their "
        "form: names, street addresses and whatever is spelled out in words may still be there."
    )


def _read(file: Path) -> dict[str, Any]:
    """A file's JSON object; {} where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
