"""What each command of `labkit` takes: one frozen dataclass a command, one docstring a field.

    labkit pretrain --data my.txt --steps 500
        -> tyro -> Pretrain(data=("my.txt",), train=Training(steps=500)) -> settled() -> TrainConfig
    config.json of a run -> from_dict -> the same Pretrain: `--resume` needs nothing but `--out`

A command that trains holds the loop's own `TrainConfig`: each of its settings is a flag, but for
those that the command works out itself (marked Fixed). `labkit --help` is made from this module
alone, so it imports neither torch nor any data library.
"""

import dataclasses
import json
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro.conf import Fixed, Positional, arg

from labkit.errors import LabError
from labkit.models.adapting.settings import Name as Strategy
from labkit.training.config import Precision, TrainConfig

Device = Literal["auto", "cpu", "cuda"]
BenchPart = Literal[
    "pretraining", "finetuning", "generation", "memory", "llm", "overhead", "quality"
]
ExportFormat = Literal["gguf", "onnx", "safetensors"]
ExportType = Literal["fp32", "fp16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
T = TypeVar("T")


@dataclass(frozen=True)
class Clean:
    """Make a folder of your own text fit for training: cleaned, without copies, a part held out.

    Lines that stand in many files go, e-mail addresses and telephone numbers in digits are masked
    (names and street addresses are not found), copies are left out. What went, and why, is in
    tidied.json.
    """

    folder: Positional[Path]
    """A folder with txt, md, html and other text files."""
    out: Path = Path("runs/mine/text")
    """Folder to write, new or empty: train/, test/, tidied.json."""
    repeated: float = 0.2
    """A line goes if it stands in more than this share of the files, above 0; 1: none goes."""
    least_words: int = 30
    """Texts of fewer words are left out, at least 1."""
    similarity: float = 0.5
    """Texts that share so much of their runs of five words are copies, above 0, at most 1."""
    test: float = 0.1
    """Expected share of the documents held out, above 0, below 1."""
    most_seen: float = 0.05
    """A document of which more words than this share stand in training passages is not held out."""
    mask: bool = True
    """Whether e-mail addresses and telephone numbers are masked."""
    seed: int = 0
    """Another seed holds out other documents."""


@dataclass(frozen=True)
class Instruct:
    """Make instructions from a cleaned folder: small letters without marks, written out again.

    Each is a line of a text; those of held-out documents are for the test alone.
    """

    text: Positional[Path] = Path("runs/mine/text")
    """The folder that `labkit clean` wrote."""
    out: Path = Path("runs/mine/instructions")
    """Folder to write, new or empty: train.jsonl, test.jsonl, in the form of chats."""
    most: int = 2000
    """Training instructions at most, at least 2."""
    most_test: int = 200
    """Test instructions at most, at least 1."""
    seed: int = 0
    """Another seed draws other lines."""


@dataclass(frozen=True)
class Card:
    """Write the model card of a project folder from its own files, and say what it lacks.

    The folder holds text/ (labkit clean), tuned/ or pretrained/ (finetune, pretrain),
    evaluation.json (evaluate --against --out) and compressed/ (export --data).
    """

    project: Positional[Path] = Path("runs/mine")
    """The folder; README.md in it is written."""
    licence: str = ""
    """Of the text and the weights, in your words; a card without one is not complete."""


@dataclass(frozen=True)
class Run:
    """Run chapters of the course headlessly and write a report."""

    chapters: Positional[tuple[str, ...]] = ()
    """Chapters by number or name, such as 00 or 03_attention; none means all."""
    profile: Literal["auto", "smoke", "cpu", "hour", "gpu"] = "auto"
    """Sizes: smoke (seconds), cpu (minutes), gpu; auto reads LABKIT_PROFILE, else the machine."""
    out: Path = Path("runs/course")
    """Folder for the executed notebooks, metrics.json and index.html."""
    seed: int = 0
    """The notebooks' seed, 0 to 2^32 - 1."""


@dataclass(frozen=True)
class Training(TrainConfig):
    """The loop's settings, before the command has worked out the rest of them."""

    out: Fixed[Path | None] = None
    resume: Fixed[bool] = False

    def __post_init__(self) -> None:
        """Nothing is checked before `settled`, so that a mistake is one sentence of ours."""

    def settled(self, **worked_out: Any) -> TrainConfig:
        """The settings that `training.train` takes.

        Raises:
            LabError: a value is out of range; the message names it and what is allowed.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)}
        return TrainConfig(**(values | worked_out))


@dataclass(frozen=True)
class PretrainTraining(Training):
    """How to train."""

    learning_rate: Fixed[float] = 1.0
    warmup_steps: Fixed[int] = 0


@dataclass(frozen=True)
class FinetuneTraining(Training):
    """How to train."""

    steps: Fixed[int] = 1
    learning_rate: Fixed[float] = 1.0
    warmup_steps: Fixed[int] = 0
    eval_every: Fixed[int] = 0
    patience: Fixed[int] = 0
    restore_best: Fixed[bool] = False


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a language model on text, from random weights or from a model folder.

    Data are corpora (see `labkit doctor`) or your own files: txt, md, csv, jsonl, or a folder of
    them. On several GPUs or processes: torchrun --nproc-per-node N -m labkit pretrain ...
    """

    data: tuple[str, ...] = ("web_bible",)
    """Corpus names, text files (txt, md, csv, jsonl) or folders; one or more."""
    out: Path = Path("runs/pretrain")
    """Run folder: config.json, metrics.jsonl, data/, checkpoints/, model/."""
    resume: bool = False
    """Continue the run in `out` from its newest good checkpoint, with its saved options."""
    overwrite: bool = False
    """Begin anew: remove the run that is in `out`, and nothing else."""
    init: Annotated[Path | None, arg(aliases=["--from"])] = None
    """smollm2, or a model folder, to continue from; None: random weights."""
    tokenizer: Path | None = None
    """Folder with a tokenizer.json; None: that of `init`, or train one on the data."""
    vocab_size: int = 4096
    """Tokens of a newly trained tokenizer, at least 260."""
    text_column: str = "text"
    """Column of csv and jsonl files that holds the text."""
    size: Literal["tiny", "small", "medium", "base"] = "small"
    """One dial: tiny 2 layers x 128, small 6 x 192, medium 8 x 384, base 12 x 768 (d_model)."""
    architecture: Literal["llama", "gpt2"] = "llama"
    """llama: RMSNorm, SwiGLU, rotary positions; gpt2: LayerNorm, GELU, learned positions."""
    d_model: int | None = None
    """Width, a multiple of num_heads; None: from size."""
    num_layers: int | None = None
    """Blocks, at least 1; None: from size."""
    num_heads: int | None = None
    """Attention heads, a divisor of d_model; None: from size."""
    d_ff: int | None = None
    """Feed-forward width, at least 1; None: 4 d_model (gpt2) or 8/3 d_model (llama)."""
    dropout: float = 0.0
    """Probability in [0, 1)."""
    context_length: int = 256
    """Tokens the model sees at once, at least 1."""
    batch_tokens: int = 8192
    """Tokens per update over all processes, a multiple of context_length."""
    warmup_steps: int | None = None
    """Updates of linear warm-up, 0 or more; None: a twentieth of steps, at most 200."""
    eval_tokens: int = 65536
    """Validation tokens read in each of them, at least 1; the last one reads all."""
    learning_rate: float | None = None
    """Peak rate, above 0; None: 1e-3, or 1e-4 from a model."""
    train: PretrainTraining = PretrainTraining(eval_every=100, save_every=100)


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a pretrained model on your own labelled texts, instructions or stories.

    A csv or jsonl file with the columns text and label trains a classifier (of pairs, with
    --pair-column); prompt and answer train a language model to answer; question, context and answer
    a reader that finds answers in a text; source and target a language model that turns one into
    the other; messages a model that talks; chosen and rejected one that prefers (DPO); text alone
    (or a txt file) continues its pretraining; a conll file with a word and its tag a line trains a
    tagger. All parameters are trained, or those of a --strategy. What is
    not given is chosen from the data and printed.
    """

    data: str = "bbc_news"
    """A labelled corpus (bbc_news) or a csv, tsv, jsonl or txt file."""
    out: Path = Path("runs/finetune")
    """Run folder: config.json, metrics.jsonl, evaluation.json, checkpoints/, best/, model/ (or
    adapter/, after adapters, prompt and prefix)."""
    resume: bool = False
    """Continue the run in `out` from its newest good checkpoint, with its saved options."""
    overwrite: bool = False
    """Begin anew: remove the run that is in `out`, and nothing else."""
    model: Annotated[str | None, arg(aliases=["--from"])] = None
    """minilm, smollm2, a model or run folder; None: minilm for labels and spans, else smollm2."""
    task: Literal[
        "auto", "classification", "instruction", "text", "tagging", "qa", "seq2seq", "chat", "dpo"
    ] = "auto"
    """What to learn; auto: from the columns of the data."""
    head: Literal["softmax", "crf"] = "softmax"
    """Of a tagger: each word's likeliest tag, or a CRF's likeliest row of tags."""
    validation: Path | None = None
    """File for early stopping; None: a tenth of data, chosen by content."""
    test: Path | None = None
    """File for the final score, read once; None: a tenth of data, chosen by content."""
    text_column: str = "text"
    """Column with the text."""
    pair_column: str | None = None
    """Column with a second text: the class is of the pair; None: one text alone."""
    label_column: str = "label"
    """Column with the class."""
    prompt_column: str = "prompt"
    """Column with the question or instruction."""
    answer_column: str = "answer"
    """Column with the answer; for qa a piece of the context, empty where it holds none."""
    question_column: str = "question"
    """Column with the question about a context."""
    context_column: str = "context"
    """Column with the text in which the answer stands."""
    answer_start_column: str = "answer_start"
    """Column with the answer's first character in the context, from 0; it may be missing."""
    source_column: str = "source"
    """Column with what is read, for seq2seq."""
    target_column: str = "target"
    """Column with what is written, for seq2seq."""
    strategy: Strategy = "full"
    """What trains: all (full; layerwise, lower blocks slower), a part (encoder, head, last_k,
    feed_forward, bitfit), or something new (adapters, lora, prompt, prefix)."""
    last: int = 1
    """last_k: blocks from the top that train, at least 1."""
    layer_decay: float = 0.8
    """layerwise: rate of a block / rate of the block above it, in (0, 1]."""
    adapter_width: int = 32
    """adapters: width of each bottleneck, at least 1."""
    rank: int = 8
    """lora: rank of what is added to a matrix, at least 1."""
    alpha: float = 16.0
    """lora: what is added is scaled by alpha / rank; above 0."""
    targets: tuple[str, ...] = ("q", "v")
    """lora: matrices of each block, of q, k, v, qkv, out, gate, up, down."""
    prompt_length: int = 20
    """prompt, prefix: learned positions before the text, at least 1."""
    epochs: float | None = None
    """Passes over the training examples, above 0; None: 3, or more where there are few."""
    batch_size: int | None = None
    """Examples per update over all processes, at least 1; None: 16, from 2000 examples on 32."""
    max_length: int | None = None
    """Longest example in tokens, at least 2; None: what nine of ten texts need, at most 256."""
    pieces: int = 1
    """A text longer than max_length is read in up to this many pieces, not cut; at least 1."""
    learning_rate: float | None = None
    """Peak rate, above 0; None: by the width of a classifier, 1e-4 at 384; else 5e-5; of another
    strategy than full its own."""
    patience: int | None = None
    """Evaluations without a better validation loss before stopping; 0: never; None: by the data."""
    restore_best: bool | None = None
    """End with the best weights of validation; None: unless it has fewer than 50 examples."""
    baselines: bool = True
    """Score what is simpler on the same test examples, too: counted words, frozen vectors."""
    warmup: float = 0.1
    """Share of the updates spent on warm-up, 0 to 1."""
    beta: float = 0.1
    """dpo: how dear it is to leave the model that it begins from; above 0."""
    train: FinetuneTraining = FinetuneTraining(
        schedule="linear",
        min_learning_rate_ratio=0.0,
        weight_decay=0.01,
        betas=(0.9, 0.999),
    )


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a language model, or talk to it."""

    model: Positional[Path] = Path("runs/pretrain")
    """smollm2 (a chat model that comes by pip), a run folder or a model folder."""
    prompt: str = ""
    """Text to continue; empty: begin a new text."""
    chat: bool = False
    """Put the prompt as a question; without a prompt, talk: a line is a turn, until end of file."""
    max_new_tokens: int = 100
    """Tokens to write, at least 1."""
    temperature: float = 0.8
    """0 takes the likeliest token; above 0 samples, more evenly the higher."""
    top_k: int | None = None
    """Sample among the k likeliest tokens, at least 1; None: all."""
    top_p: float | None = None
    """Sample among the likeliest tokens that hold this probability, in (0, 1]; None: all."""
    samples: int = 1
    """Texts to write, 1 to 1000."""
    beams: int = 1
    """Above 1: beam search for the best text, with so many beams, instead of sampling; to 100."""
    length_penalty: float = 1.0
    """Of the search: texts are compared by log-probability / length^A; 0: the likeliest, short."""
    seed: int = 0
    """Of the sampling, 0 to 2^32 - 1."""
    device: Device = "auto"
    """Where to run."""


@dataclass(frozen=True)
class Evaluate:
    """Score a model on data: bits per byte of a language model, accuracy of a classifier.

    Of a tagger entity F1, of a reader of answers exact match and F1, of a model that answers
    sources BLEU and chrF. Of a file with messages the loss of the answers, of one with chosen and
    rejected which is likelier. With --choices: how often the right choice is the likeliest.
    """

    model: Positional[Path] = Path("runs/pretrain")
    """smollm2, a run folder or a model folder."""
    data: tuple[str, ...] = ()
    """Corpora (their test split) or your own files (all of them); one or more."""
    choices: Path | None = None
    """A jsonl file of questions instead: prompt, choices (a list), answer (its index, from 0)."""
    against: Path | None = None
    """Another language model (smollm2, a run or model folder) on the same documents: both in bits
    per byte with intervals, and the gain; each document of the data is read alone."""
    split: Literal["train", "validation", "test"] | None = None
    """Split to read; None: test of a corpus, everything in a file."""
    text_column: str = "text"
    """Column with the text."""
    pair_column: str | None = None
    """Column with the second text, for a classifier of pairs."""
    label_column: str = "label"
    """Column with the class."""
    question_column: str = "question"
    """Column with the question, for a reader of answers."""
    context_column: str = "context"
    """Column with the text in which the answer stands."""
    answer_column: str = "answer"
    """Column with the answer, empty where the context holds none."""
    answer_start_column: str = "answer_start"
    """Column with the answer's first character in the context, from 0; it may be missing."""
    source_column: str = "source"
    """Column with what is read, for a model that was tuned with --task seq2seq."""
    target_column: str = "target"
    """Column with the true answer to it."""
    beams: int = 1
    """Beams with which such a model searches its answers, 1 to 100; 1: the likeliest next token."""
    length_penalty: float = 1.0
    """Of the search: texts are compared by log-probability / length^A."""
    max_new_tokens: int = 200
    """Tokens of such an answer, at least 1."""
    context_length: int | None = None
    """Tokens at once, at least 1; None: as the model was tuned, else what it can read, to 1024."""
    batch_size: int = 16
    """Examples at a time, at least 1."""
    precision: Precision = "fp32"
    """Number format of matrix products."""
    device: Device = "auto"
    """Where to run."""
    out: Path | None = None
    """File for the scores as JSON; None: they are printed alone."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class Classify:
    """Apply a fine-tuned classifier or tagger to new texts."""

    model: Positional[Path] = Path("runs/finetune")
    """A run folder or a model folder that holds a classifier or a tagger."""
    text: tuple[str, ...] = ()
    """Texts to classify; or give data."""
    data: Path | None = None
    """A csv, tsv or jsonl file with a column of texts, or a txt file with a text in each line."""
    out: Path | None = None
    """CSV file to write: text, class, probability (a tagger: words and tags); None: print them."""
    text_column: str = "text"
    """Column with the text."""
    pair_column: str | None = None
    """Column with the second text, for a classifier of pairs."""
    batch_size: int = 32
    """Examples at a time, at least 1."""
    precision: Precision = "fp32"
    """Number format of matrix products."""
    device: Device = "auto"
    """Where to run."""
    json: bool = False
    """Print a line of JSON a text, with the probability of every class, or the entities."""


@dataclass(frozen=True)
class Export:
    """Write a model for other programs: GGUF (llama.cpp), ONNX (onnxruntime), safetensors.

    The tokenizer and the chat template go along, in the GGUF file or beside the others. What was
    written is opened again, and its outputs stand beside those of the model.
    """

    model: Positional[Path] = Path("runs/finetune")
    """A run folder or a model folder, or smollm2."""
    format: ExportFormat = "gguf"
    """gguf: language models of Llama's shape; onnx: decoders, encoders; safetensors: all."""
    dtype: ExportType | None = None
    """Of the weights: gguf all of these, safetensors fp32, fp16, bf16, onnx fp32; None: q8_0 in
    gguf, fp16 in safetensors."""
    out: Path = Path("runs/export")
    """Folder to write, new or empty: model.gguf, model.onnx or model.safetensors."""
    data: str | None = None
    """gguf: held-out text (a file or a folder) on which the file is scored beside the model, in
    bits per byte, into score.json; None: outputs alone are compared."""


@dataclass(frozen=True)
class Serve:
    """Serve a language model over HTTP, on this machine only, behind a token.

    Programs that speak OpenAI's interface (completions, chat completions, streams) talk to it, and
    its page chats with it in a browser. Requests of all clients run in one batch. The token is that
    of the variable LABKIT_TOKEN, or a new one, printed at the start.
    """

    model: Positional[Path] = Path("runs/pretrain")
    """smollm2, a run folder or a model folder."""
    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1: only programs of this machine reach it."""
    port: int = 8000
    """Port, 1 to 65535; 0 takes a free one."""
    slots: int = 16
    """Requests that run together, at least 1; the memory for their texts is reserved."""
    queue: int = 256
    """Requests that may wait for a slot, 0 or more; further ones are refused (status 429)."""
    max_length: int | None = None
    """Tokens of a prompt and its answer (else 400); None: the model's context, at most 1024."""
    max_seconds: float = 120.0
    """From a request to its last token, above 0 (else 504)."""
    max_body: int = 1_000_000
    """Bytes of a request, at least 1 (else 413)."""
    keep: Path | None = None
    """SQLite file for requests that say "store": true, and for feedback on them; None: none."""
    grace: float = 10.0
    """Seconds that running answers have when the service is asked to end, at least 1."""
    device: Device = "auto"
    """Where to run."""


@dataclass(frozen=True)
class Collect:
    """Write what `labkit serve --keep` has kept as files to learn from or to measure on.

    conversations.jsonl: chats that people liked; preferences.jsonl: a liked and a disliked answer
    to the same messages; texts.jsonl: what was to be continued. What would be empty is not written.
    """

    kept: Positional[Path] = Path("kept.sqlite")
    """The SQLite file."""
    out: Path = Path("runs/collected")
    """Folder for the files, new or empty."""


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory beside other programs: pretraining, fine-tuning, generation."""

    json: bool = False
    """Print one JSON object."""
    quick: bool = False
    """Small models and few repeats, to see that it runs; the figures mean little."""
    only: tuple[BenchPart, ...] = ()
    """What to measure; nothing given: all but quality, which trains for half an hour."""


@dataclass(frozen=True)
class Lab:
    """Open the course in JupyterLab, on this machine only, behind its token.

    You work in copies of the chapters; a copy that is there already is never overwritten.
    """

    folder: Positional[Path] = Path("my-notebooks")
    """Folder for your copies of the chapters; made if it is not there."""
    port: int = 8888
    """Port on localhost, 1 to 65535; the next free one is taken if it is in use."""
    browser: bool = True
    """Open a browser window; --no-browser prints the address only."""


@dataclass(frozen=True)
class Progress:
    """Say which exercises are solved in your own copies of the chapters."""

    folder: Positional[Path] = Path("my-notebooks")
    """Folder of the notebooks that you work in; what was saved there counts."""
    csv: Path | None = None
    """File for a spreadsheet: every exercise with its title and its last verdict."""


@dataclass(frozen=True)
class Book:
    """Write the course as a web book: chapters as they were run, the package, a search.

    Nothing is executed, and reading it needs neither a server nor a network: open index.html.
    """

    out: Path = Path("runs/book")
    """Folder to write: new, empty, or an older book, which is replaced."""


@dataclass(frozen=True)
class Doctor:
    """Say what this machine is, what is missing and what to do; or read a run."""

    quick: bool = False
    """Skip the measurements of speed."""
    run: Path | None = None
    """A run folder to read instead, of a finished or running run: what its curves say."""


#: Commands in the order in which `labkit --help` lists them, with their defaults.
COMMANDS: dict[str, Any] = {
    "run": Run(),
    "clean": Clean(Path("my-folder")),
    "instruct": Instruct(),
    "pretrain": Pretrain(),
    "finetune": Finetune(),
    "generate": Generate(),
    "evaluate": Evaluate(),
    "classify": Classify(),
    "export": Export(),
    "card": Card(),
    "serve": Serve(),
    "collect": Collect(),
    "bench": Bench(),
    "lab": Lab(),
    "progress": Progress(),
    "book": Book(),
    "doctor": Doctor(),
}


def check(good: bool, options: Any, name: str, allowed: str) -> None:
    """Raise a LabError that names an impossible option, its value and what is allowed."""
    if not good:
        raise LabError(f"{name} {getattr(options, name)} is out of range: choose {allowed}")


def _flags(kind: type) -> list[str]:
    """The fields of a held `Training` that are flags of its command."""
    hints = get_type_hints(kind, include_extras=True)
    fixed = get_args(Fixed[int])[1]
    return [name for name, hint in hints.items() if fixed not in getattr(hint, "__metadata__", ())]


def to_dict(options: Any) -> dict[str, Any]:
    """Options as JSON holds them: one level, as on the command line."""
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    if (train := values.pop("train", None)) is not None:
        values |= {name: getattr(train, name) for name in _flags(type(train))}
    return json.loads(json.dumps(values, default=str))


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Options of a command from what `to_dict` gave; unknown keys are named.

    Raises:
        LabError: a key is no option of this command.
    """
    hints = get_type_hints(kind)
    training = hints.pop("train", None)
    flags = _flags(training) if training else []
    if unknown := sorted(set(values) - set(hints) - set(flags)):
        known = ", ".join([*hints, *flags])
        raise LabError(f"{unknown[0]!r} is no option of {kind.__name__}: choose among {known}")
    own: dict[str, Any] = {n: _as(n, hints[n], v) for n, v in values.items() if n in hints}
    if training:
        types_of = get_type_hints(training)
        given = {n: _as(n, types_of[n], v) for n, v in values.items() if n not in hints}
        own["train"] = dataclasses.replace(kind().train, **given)  # pyright: ignore
    return kind(**own)


def _as(name: str, hint: Any, value: Any) -> Any:
    """A value of JSON as the type of its field."""
    united = isinstance(hint, types.UnionType) or get_origin(hint) is Union
    kinds = get_args(hint) if united else (hint,)
    if Path in kinds and isinstance(value, str):
        return Path(value)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_is_a(value, kind) for kind in kinds):
        raise LabError(f"{name} is {value!r}, which is none of its values: was config.json edited?")
    return value


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(v, get_args(kind)[0]) for v in value)
    if kind is types.NoneType or value is None:
        return value is None and kind is types.NoneType
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
