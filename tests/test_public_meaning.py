"""What the package's public names promise at their edges: early stopping, files, escaping."""

import itertools
import os
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from training import config, ragged_batches, tiny_model, weights

from labkit import course, text
from labkit.batches import Batches, TokenWriter, read_tokens, write_tokens
from labkit.notebook import table
from labkit.objectives import causal_lm
from labkit.optim import AdamW8bit
from labkit.text import files
from labkit.training import checkpoint, train

# --- early stopping ----------------------------------------------------------------------------


def scripted(losses):
    """Learning as always, but the validation losses come from a list."""
    told = iter(losses)

    def objective(model, batch):
        loss_sum, count = causal_lm(model, batch)
        return (loss_sum if model.training else count * next(told)), count

    return objective


def one_example() -> Batches:
    return Batches([ragged_batches().examples[0]], 1)


def stop_at(step: int):
    """As a kill: what happens after the last checkpoint is lost."""

    def on_step(record):
        if record.step == step:
            raise KeyboardInterrupt

    return on_step


EARLY = {"steps": 20, "eval_every": 1, "save_every": 1, "patience": 3, "restore_best": True}


def test_an_equal_validation_loss_is_not_a_better_one():
    settings = config(**EARLY)
    validation = one_example()
    plateau = scripted(itertools.repeat(2.0))
    result = train(tiny_model(), plateau, ragged_batches(), settings, validation=validation)
    assert (result.stopped, result.steps) == ("early", 4)
    assert result.best == {"loss": 2.0, "step": 1}


def test_a_resumed_run_still_counts_the_bad_evaluations_before(tmp_path):
    """Best at 2, bad at 3 and, after the resume, at 4 and 5: that makes three."""
    data, validation, settings = ragged_batches(), one_example(), config(**EARLY, out=tmp_path)
    told = scripted([3.0, 1.0, 2.0, 2.0])
    train(tiny_model(), told, data, settings, validation=validation, on_step=stop_at(4))
    again = config(**EARLY, out=tmp_path, resume=True)
    told = scripted(itertools.repeat(2.0))
    result = train(tiny_model(seed=1), told, data, again, validation=validation)
    assert (result.stopped, result.steps) == ("early", 5)


def test_a_resumed_run_still_knows_the_best_evaluation_before(tmp_path):
    data, validation, settings = ragged_batches(), one_example(), config(**EARLY, out=tmp_path)
    model, told, best = tiny_model(), scripted([3.0, 1.0, 2.0]), {}

    def on_step(record):
        if record.step == 2:
            best.update(weights(model))
        stop_at(3)(record)

    train(model, told, data, settings, validation=validation, on_step=on_step)
    again = config(**EARLY, out=tmp_path, resume=True)
    told, other = scripted(itertools.repeat(1.5)), tiny_model(seed=1)
    result = train(other, told, data, again, validation=validation)
    assert result.best == {"loss": 1.0, "step": 2}
    assert all(torch.equal(p, best[name]) for name, p in weights(other).items())


# --- checkpoints -------------------------------------------------------------------------------


class Disk:
    """Notes what is flushed to the disk and renamed, in order; may fail at a rename."""

    def __init__(self, monkeypatch, fails_at: str | None = None):
        self.flushed: list[int] = []
        self.before: dict[str, set[int]] = {}
        """By new name: the files flushed before they got it."""
        self.watch = lambda target: None
        fsync, replace = os.fsync, os.replace

        def note_flush(descriptor):
            fsync(descriptor)
            self.flushed.append(os.fstat(descriptor).st_ino)

        def note_rename(source, target, **options):
            self.before[Path(target).name] = set(self.flushed)
            self.watch(Path(target))
            if Path(target).name == fails_at:
                raise OSError(f"{target} is out of order")
            replace(source, target, **options)

        monkeypatch.setattr(os, "fsync", note_flush)
        monkeypatch.setattr(os, "replace", note_rename)


def test_every_file_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    train(tiny_model(), causal_lm, ragged_batches(), config(steps=1, out=tmp_path))
    folder = tmp_path / "checkpoints" / "step-00000001"
    files = {file.name: file.stat().st_ino for file in folder.iterdir()}
    assert len(files) == 5
    assert {name for name, i in files.items() if i not in disk.before[folder.name]} == set()


def test_the_records_are_on_the_disk_before_the_checkpoint_that_follows_them(tmp_path, monkeypatch):
    """Or a power loss leaves a checkpoint whose updates nobody recorded."""
    disk = Disk(monkeypatch)
    train(tiny_model(), causal_lm, ragged_batches(), config(steps=2, save_every=1, out=tmp_path))
    records = (tmp_path / "metrics.jsonl").stat().st_ino
    assert records in disk.before["step-00000001"]


def test_the_new_name_of_a_checkpoint_is_on_the_disk_too(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    train(tiny_model(), causal_lm, ragged_batches(), config(steps=1, out=tmp_path))
    folder = tmp_path / "checkpoints"
    assert folder.stat().st_ino in disk.flushed
    assert folder.stat().st_ino not in disk.before["step-00000001"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    settings = config(steps=4, save_every=2, keep=1, out=tmp_path)
    Disk(monkeypatch, fails_at="step-00000004")
    with pytest.raises(OSError, match="out of order"):
        train(tiny_model(), causal_lm, ragged_batches(), settings)
    assert checkpoint.newest(tmp_path / "checkpoints").step == 2


def test_the_best_weights_so_far_are_kept_until_the_better_ones_are_in_place(tmp_path, monkeypatch):
    disk, held = Disk(monkeypatch), []

    def whole_ones(target: Path) -> None:
        if target.name == "best":
            others = [p for p in tmp_path.iterdir() if (p / "manifest.json").exists()]
            held.append(sorted(checkpoint.load(p).step for p in others))

    disk.watch = whole_ones
    settings = config(steps=3, eval_every=1, out=tmp_path)
    told = scripted([3.0, 2.0, 1.0])
    train(tiny_model(), told, ragged_batches(), settings, validation=one_example())
    assert held == [[1], [1, 2], [2, 3]]


# --- optimizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300_000, 600_001])
def test_eight_bit_adamw_moves_every_entry_of_a_large_tensor(count):
    """Equal gradients are stored without rounding, so every entry takes AdamW's very path."""
    paths = []
    for kind in (AdamW8bit, torch.optim.AdamW):
        p = torch.nn.Parameter(torch.ones(count))
        group = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        optimizer = kind([{"params": [p]}], **group)
        for gradient in (1.0, 1.0, 0.0):
            p.grad = torch.full((count,), gradient)
            optimizer.step()
        paths.append(p.detach())
    torch.testing.assert_close(*paths, rtol=1e-5, atol=1e-6)


# --- duplicates --------------------------------------------------------------------------------


def sharing(shared: int, own: int, name: str) -> list[str]:
    """Two texts with `shared` words in common and `own` words each."""
    common = [f"{name}{i}" for i in range(shared)]
    return [" ".join([*common, *(f"{name}{side}{i}" for i in range(own))]) for side in "xy"]


def found_as_duplicates(a: str, b: str, **options) -> bool:
    return len(text.near_duplicates([a, b], **options)) == 1


def found_as_leak(a: str, b: str, **options) -> bool:
    return len(text.leakage([a], [b], **options)) == 1


both = pytest.mark.parametrize("found", [found_as_duplicates, found_as_leak])


@both
@pytest.mark.parametrize(
    ("shared", "own", "threshold"), [(20, 10, 0.5), (24, 8, 0.6), (28, 6, 0.7), (18, 1, 0.9)]
)
def test_a_similarity_of_exactly_the_threshold_is_a_duplicate(found, shared, own, threshold):
    a, b = sharing(shared, own, "w")
    assert shared / (shared + 2 * own) == threshold
    assert found(a, b, threshold=threshold, shingle_words=1)


@both
@pytest.mark.parametrize(("shared", "own", "threshold"), [(20, 11, 0.5), (24, 9, 0.6)])
def test_a_similarity_just_below_the_threshold_is_none(found, shared, own, threshold):
    a, b = sharing(shared, own, "w")
    assert threshold - 0.05 < shared / (shared + 2 * own) < threshold
    assert not found(a, b, threshold=threshold, shingle_words=1)
    assert found(a, b, threshold=threshold - 0.05, shingle_words=1)


@both
def test_without_a_threshold_half_of_the_runs_of_five_words_is_a_duplicate(found):
    """24 words hold 20 runs of five; of 10 or 11 words after them, each ends one more."""
    assert found(*sharing(24, 10, "w"))
    assert not found(*sharing(24, 11, "w"))


# --- files of text -----------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["é", "€", "𝄞"], ids=["of two", "of three", "of four"])
@pytest.mark.parametrize("inside", [1, 2, 3])
def test_a_letter_across_the_border_of_two_pieces_stays_whole(letter, inside, tmp_path):
    content = "a" * (files.PIECE - inside) + letter * 4 + " end"
    path = tmp_path / "long.txt"
    path.write_text(content, encoding="utf-8")
    assert files.read(path) == content


def test_what_is_not_utf8_is_found_in_any_piece(tmp_path):
    path = tmp_path / "late.txt"
    path.write_bytes(b"a" * 2 * files.PIECE + "café".encode("cp1252"))
    assert files.read(path).endswith("acafé")


def test_a_letter_that_the_end_of_the_file_cuts_is_not_utf8(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes(b"caf\xc3")
    assert files.read(path) == "cafÃ"


# --- batches -----------------------------------------------------------------------------------


def test_batches_of_like_length_come_in_no_order_of_length():
    lengths = np.random.default_rng(0).permutation(128)
    examples = [{"input_ids": torch.zeros(1)}] * 128
    data = Batches(examples, 8, lengths=lengths)
    sizes = [min(lengths[i] for i in data.indices(step)) for step in range(32)]
    first, second = sizes[:16], sizes[16:]
    assert sorted(first) == sorted(second) == list(range(0, 128, 8))
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)
    assert first != second


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4), (131_072, 4)])
def test_token_files_hold_the_largest_id_of_their_vocabulary(vocab_size, width, tmp_path):
    largest = vocab_size - 1
    tokens = write_tokens(tmp_path / "t.bin", [[0, largest]], vocab_size, end_of_text_id=largest)
    assert tokens.tolist() == [0, largest, largest]
    assert (tmp_path / "t.bin").stat().st_size == 3 * width


def test_a_token_writer_holds_the_first_id_that_two_bytes_cannot(tmp_path):
    with TokenWriter(tmp_path / "t.bin", 65_537, end_of_text_id=0) as file:
        file.append([65_535, 65_536])
    assert read_tokens(tmp_path / "t.bin").tolist() == [65_535, 65_536, 0]


# --- HTML --------------------------------------------------------------------------------------

EVIL = '<img src=x onerror="alert(1)"> & <script>alert(2)</script>'


class Page(HTMLParser):
    """The tags and the words of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"name": "a", "value": 1}], {"note": EVIL}),
        ([{"name": EVIL, "value": 1}], {}),
        ([{EVIL: "a", "value": 1}], {}),
        ({EVIL: {"value": 1}}, {}),
        ([{"name": Path(EVIL), "value": 1}], {}),
    ],
    ids=["note", "cell", "head", "name", "object"],
)
def test_a_table_shows_what_looks_like_html_as_text(rows, options):
    page = Page(table(rows, **options)._repr_html_())
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "b", "p", "small"}
    assert EVIL in page.words


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The words on the report of two chapters, as papermill might leave them."""
    folder = tmp_path_factory.mktemp("report")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    for name in ("01_fails", "02_reports"):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# T {EVIL}")])
        nbformat.write(notebook, notebooks / f"{name}.ipynb")

    def execute_notebook(source, written, **_):
        if "fails" in source:
            raise RuntimeError(f"error {EVIL}")
        payload = {"metrics": {f"metric {EVIL}": 1}, "peak_rss_mb": 1}
        data = {course.METRICS_MIME: payload, "text/plain": "reported"}
        output = nbformat.v4.new_output("display_data", data=data)
        notebook = nbformat.read(source, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell("report()", outputs=[output]))
        nbformat.write(notebook, written)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("papermill.execute_notebook", execute_notebook)
        with pytest.raises(course.ChapterFailed):
            course.run(profile="smoke", out=folder / "out", folder=notebooks, progress=False)
    return Page((folder / "out" / "index.html").read_text()).words


@pytest.mark.parametrize("part", ["error", "T", "metric"])
def test_the_report_shows_what_looks_like_html_as_text(part, report):
    assert f"{part} {EVIL}" in report
