"""Is a model of one's own ready to be shown? What a project folder lacks, a sentence a point.

    runs/mine/text/         train/, test/, tidied.json           labkit clean
             /pretrained/   model/                               labkit pretrain
             /tuned/        model/ (or none: then pretrained/)   labkit finetune
             /evaluation.json                                    labkit evaluate --against --out
             /compressed/   model.gguf, score.json               labkit export --data
             /README.md                                          labkit card

    lacking(folder) ──> [] or sentences

Nothing here judges whether the model is good: it asks that a reader can see how good it is.

Source: the points of Mitchell et al. 2019, arXiv:1810.03993, and of Brown et al. 2020,
arXiv:2005.14165, appendix C.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.text import gguf
from labkit.text.cleaning import leakage
from labkit.text.contamination import contained_passages
from labkit.text.files import documents
from labkit.text.tidying import mask_private, read_tidied

#: Of a test document's words, so many may stand in passages of training.
MOST_SEEN = 0.05
#: What a card must say, and where the card says it.
CARD = {
    "what the model begins from": "- begins from: ",
    "how much text it was trained on": "- training text: ",
    "the scores": "## Scores",
    "what was done about private data": "## Private data",
    "the limits": "## Limits",
    "the licence": "## Licence",
}
#: A card that names no licence says this.
NO_LICENCE = "not named yet"


def model_of(project: Path) -> Path | None:
    """The model/ of the last step that trained: tuned/, else pretrained/."""
    found = [project / step / "model" for step in ("tuned", "pretrained")]
    return next((it for it in found if (it / "config.json").is_file()), None)


def lacking(project: str | Path) -> list[str]:
    """A sentence for each point that a project folder fails; none: it can be shown.

    Args:
        project: the folder that holds text/, tuned/, evaluation.json and the others.
    """
    project = Path(project)
    if not project.is_dir():
        return [f"{project} is no folder: give the one that holds text/ and evaluation.json."]
    return [
        *_text(project), *_model(project), *_evaluation(project), *_compressed(project),
        *_card(project),
    ]  # fmt: skip


def _text(project: Path) -> Iterator[str]:
    try:
        train, test, _ = read_tidied(project / "text")
    except LabError as error:
        yield f"{error}."
        return
    seen = contained_passages(train.values(), list(test.values()))
    for name, it in zip(test, seen, strict=True):
        if it.share > MOST_SEEN:
            yield (
                f"text/test/{name} is no test: {it.share:.0%} of its words stand in training text, "
                f"such as “{' '.join(it.passage.split()[:8])} ...”."
            )
    for copy in leakage(list(train.values()), list(test.values())):
        yield (
            f"text/test/{list(test)[copy.dropped]} is nearly text/train/{list(train)[copy.kept]}: "
            "keep one of the two."
        )
    private = [name for name, text in {**train, **test}.items() if mask_private(text)[1]]
    if private:
        yield (
            f"{private[0]} of text/ holds what looks like an e-mail address or a telephone number "
            f"({len(private)} such files): mask it, or take it out."
        )


def _model(project: Path) -> Iterator[str]:
    if model_of(project) is None:
        yield "There is no tuned/model/ and no pretrained/model/: train with --out inside."


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _evaluation(project: Path) -> Iterator[str]:
    found = _read(project / "evaluation.json")
    scores = found.get("scores") if isinstance(found, dict) else None
    if not isinstance(scores, dict) or not scores:
        yield (
            "There is no evaluation.json with scores: write it with labkit evaluate MODEL --data "
            "text/test --against BASE --out evaluation.json."
        )
        return
    held = _held_out(project)
    for source, score in scores.items():
        yield from _figures(f"evaluation.json, {source}", score, held)
        other = score.get("against") if isinstance(score, dict) else None
        if not isinstance(other, dict):
            yield (
                f"evaluation.json, {source}: nothing stands beside the model's score; compare it "
                "with the model it began from (--against)."
            )
            continue
        yield from _figures(f"evaluation.json, {source}, {other.get('model')}", other, held)
        if not _is_interval(other, "gain", "gain_low", "gain_high"):
            yield f"evaluation.json, {source}: the gain over the base has no interval."


def _held_out(project: Path) -> int | None:
    """Bytes of the held-out text."""
    try:
        return sum(len(text.encode()) for text in documents(project / "text" / "test"))
    except LabError:
        return None


def _figures(where: str, score: Any, held: int | None) -> Iterator[str]:
    if not isinstance(score, dict) or not isinstance(score.get("bits_per_byte"), float):
        yield f"{where}: there are no bits per byte."
        return
    if not _is_interval(score, "bits_per_byte", "low", "high"):
        yield (
            f"{where}: {score['bits_per_byte']:.4f} bits per byte have no interval that holds them;"
            " resample documents."
        )
    if score.get("documents", 0) < 2:
        yield f"{where}: {score.get('documents', 0)} documents give no interval; hold out more."
    elif held is not None and abs(score.get("bytes", 0) - held) > 0.01 * held:
        yield (
            f"{where}: scored on {score.get('bytes', 0):,} bytes, and text/test holds {held:,}: "
            "score all of the held-out text, and nothing else."
        )


def _is_interval(score: dict[str, Any], middle: str, low: str, high: str) -> bool:
    values = [score.get(name) for name in (low, middle, high)]
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return False
    a, b, c = (float(v) for v in values if v is not None)
    return a <= b <= c and a < c


def _compressed(project: Path) -> Iterator[str]:
    file = project / "compressed" / "model.gguf"
    if not file.is_file():
        yield "There is no compressed/model.gguf: write it with labkit export."
        return
    if said := cannot_write(file):
        yield f"compressed/model.gguf {said}."
    score = _read(project / "compressed" / "score.json")
    if not isinstance(score, dict):
        yield (
            "compressed/score.json is missing: export with --data text/test, so that a reader sees "
            "what compression costs."
        )
        return
    yield from _figures("compressed/score.json", score, _held_out(project))


def cannot_write(file: Path) -> str:
    """Open a GGUF file and let it write a few tokens; "" if it does, else what went wrong."""
    from labkit.generation.loaded import load

    with tempfile.TemporaryDirectory() as folder:
        try:
            gguf.convert(file, Path(folder))
            said = load(folder, device="cpu").generate("The", max_new_tokens=4, temperature=0)
        except Exception as error:  # whatever a damaged file does, it is one point that fails
            return f"cannot be opened ({' '.join(str(error).split())[:120]})"
    return "" if said[0] else "writes nothing"


def _card(project: Path) -> Iterator[str]:
    file = project / "README.md"
    if not file.is_file():
        yield "There is no README.md: write the card with labkit card."
        return
    card = file.read_text(encoding="utf-8")
    for what, mark in CARD.items():
        if mark not in card:
            yield f"README.md does not say {what} ({mark.strip()})."
    if NO_LICENCE in card:
        yield "README.md names no licence: look up those of the text and of the weights."
    found = _read(project / "evaluation.json")
    scores = found.get("scores", {}) if isinstance(found, dict) else {}
    for source, score in scores.items():
        bits = score.get("bits_per_byte") if isinstance(score, dict) else None
        if isinstance(bits, float) and f"{bits:.4f}" not in card:
            yield (
                f"README.md does not give the {bits:.4f} bits per byte of {source} that "
                "evaluation.json has: write the card again."
            )
