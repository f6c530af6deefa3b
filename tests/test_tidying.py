"""A folder of one's own text: what was planted in it is found, and what was not stays."""

import dataclasses
import hashlib
import json

import pytest
from commands import here

from labkit.commands import options
from labkit.errors import LabError
from labkit.text import (
    CountedForm,
    Tidied,
    example_folder,
    form_f1,
    hold_out,
    mask_private,
    spoken,
    tidy,
    without_repeated_lines,
    write_tidied,
    written_lines,
)
from labkit.text.planted import ENCODINGS, FRAME
from labkit.text.tidying import Settings, read_folder


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dirty") / "mine"
    return folder, example_folder(folder, seed=1, chapters=40)


@pytest.fixture(scope="module")
def tidied(dirty):
    return tidy(dirty[0])


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_example_folder_is_the_same_for_the_same_seed(dirty, tmp_path):
    folder, planted = dirty
    assert example_folder(tmp_path / "again", seed=1, chapters=40) == planted
    assert contents(tmp_path / "again") == contents(folder)
    example_folder(tmp_path / "other", seed=2, chapters=40)
    assert contents(tmp_path / "other") != contents(folder)
    everything = {*planted.texts, *planted.copies, *planted.empty}
    assert everything == contents(folder).keys()
    assert set(planted.encoded.values()) == set(ENCODINGS)


def test_what_was_planted_is_found_and_nothing_else_goes(dirty, tidied):
    _, planted = dirty
    kept = {**tidied.train, **tidied.test}
    assert set(tidied.left_out) >= {*planted.copies, *planted.empty}
    natural = {name for pair in planted.natural for name in pair}
    assert set(tidied.left_out) - {*planted.copies, *planted.empty} <= natural
    assert set(kept) | set(tidied.left_out) == {*planted.texts, *planted.copies, *planted.empty}
    assert len(tidied.lines) == len(FRAME)
    assert not any(word in text for text in kept.values() for word in ("reading circle", "shelf"))


def test_other_encodings_come_out_as_the_text_that_they_held(dirty, tmp_path):
    folder, planted = dirty
    texts, _ = read_folder(folder)
    for name, encoding in planted.encoded.items():
        assert "’" in texts[name], encoding
        assert not any(mark in texts[name] for mark in ("â", "\ufffd", "<p>", "\r", "color"))


def test_private_data_are_found_by_their_form_alone(dirty, tidied):
    """Recall 1 on what is written with digits and an @, 0 on what is spelled out; no look-alike."""
    _, planted = dirty
    by_form = {"@": True, "0": True}
    for name, written in planted.private.items():
        for kind, said in written:
            findable = any(mark in said for mark in by_form)
            found = said in tidied.masked.get(name, {}).get(kind, [])
            assert found == findable, said
    found = [(n, k, s) for n, of in tidied.masked.items() for k in of for s in of[k]]
    meant = [(n, k, s) for n, written in planted.private.items() for k, s in written]
    assert set(found) <= set(meant)
    text = "".join(tidied.train.values()) + "".join(tidied.test.values())
    assert "[e-mail]" in text
    assert "@" not in text
    assert any(like in text for of in planted.lookalikes.values() for like in of)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Call 020 7946 0123 now.", "Call [phone] now."),
        ("call +1 (212) 555-0123.", "call [phone]."),
        ("b.c+d@x-y.example.com, please", "[e-mail], please"),
        ("born 1932-05-17, verse 12:34-56, 1,234,567 and 3.14159265", None),
        ("in 1990 2000 and 2010 people", None),
        ("user@localhost and @handle", None),
    ],
)
def test_forms_of_addresses_and_numbers(text, masked):
    if text.startswith("in 1990"):  # three years in a row have the form of a number: a known miss
        assert mask_private(text)[0] != text
    else:
        assert mask_private(text)[0] == (masked or text)


def test_lines_are_counted_with_their_digits_aside():
    pages = {f"{i}": f"page {i}\nthe text number {chr(97 + i)}\nthe end" for i in range(6)}
    kept, gone = without_repeated_lines(pages, 0.5)
    assert gone == {"page #": 6, "the end": 6}
    assert kept["3"] == "the text number d"
    assert without_repeated_lines(pages, 1.0) == (pages, {})
    two = {name: pages[name] for name in ("0", "1")}
    assert without_repeated_lines(two, 0.1) == (two, {})  # in two files only: that may be chance


def test_what_stands_in_training_is_not_held_out():
    words = [f"w{i}" for i in range(400)]
    texts = {f"{i}": " ".join(words[10 * i : 10 * i + 30]) for i in range(30)}
    alone = {f"x{i}": " ".join(f"y{i}z{k}" for k in range(30)) for i in range(30)}
    train, test, seen = hold_out({**texts, **alone}, 0.3)
    assert {*train, *test} == {*texts, *alone}
    assert test
    assert seen
    assert set(seen) <= set(texts)  # neighbours share 20 of their 30 words
    assert not any(name in texts for name in test if any(n in train for n in texts))
    naive = hold_out({**texts, **alone}, 0.3, most_seen=1.0)[1]
    assert any(name in texts for name in naive)


def test_impossible_settings_and_folders_are_named(tmp_path):
    with pytest.raises(LabError, match="repeated 0 is out of range: choose above 0"):
        Settings(repeated=0)
    with pytest.raises(LabError, match="is no folder"):
        tidy(tmp_path / "none")
    with pytest.raises(LabError, match="chapters 3 is out of range: choose 12 to 1000"):
        example_folder(tmp_path / "few", chapters=3)
    (tmp_path / "a.txt").write_text("too few words")
    with pytest.raises(LabError, match="nothing to train on"):
        tidy(tmp_path)


def test_clean_writes_the_parts_and_says_why_files_went(dirty, tmp_path, capfd):
    folder, planted = dirty
    out = tmp_path / "text"
    assert here("clean", folder, "--out", out) == 0
    said = capfd.readouterr().out
    facts = json.loads((out / "tidied.json").read_text())
    assert facts["files"] == len(planted.texts) + len(planted.copies) + len(planted.empty)
    assert facts["left_out"]["empty.txt"] == "empty"
    assert f"{facts['train']['documents']} documents" in said
    assert len(list((out / "train").iterdir())) == facts["train"]["documents"]
    assert "@" not in (out / "tidied.json").read_text()
    assert here("clean", folder, "--out", out) == 2
    assert "is not empty" in capfd.readouterr().err
    assert here("clean", folder, "--out", folder / "inside") == 2
    assert "lies inside" in capfd.readouterr().err
    assert here("clean", folder, "--out", tmp_path / "new", "--test", 0) == 2
    assert "test 0.0 is out of range: choose above 0, below 1" in capfd.readouterr().err


# --- written out -------------------------------------------------------------------------------


def test_no_document_is_lost_to_another_of_its_name(tmp_path):
    """`a/b.txt` and `a_b.md` want one flat name, and `a_b_2.txt` has the next one already."""
    folder, out = tmp_path / "mine", tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    names = ["a/b.txt", "a_b.md", "a_b_2.txt", "A_B_2.md", *(f"{i}.txt" for i in range(16))]
    letters = "abcdefghijklmnopqrstuvwxyz"
    for own, name in zip(letters, names, strict=False):  # digits would count as equal
        (folder / name).write_text(" ".join(own + one + two for one in "xy" for two in letters))
    for seed in range(4):  # of the part that each is drawn for
        part = out / str(seed)
        assert here("clean", folder, "--out", part, "--test", 0.3, "--seed", seed) == 0
        written = [path.read_text().split()[0] for path in part.glob("t*/*.txt")]
        assert sorted(written) == [f"{own}xa" for own in letters[: len(names)]]


def test_the_command_has_the_settings_and_defaults_of_the_function():
    ours = {it.name: it.default for it in dataclasses.fields(Settings)}
    theirs = {it.name: it.default for it in dataclasses.fields(options.Clean)}
    assert ours == {name: theirs[name] for name in ours}
    assert theirs.keys() - ours.keys() == {"folder", "out"}


def test_counted_forms_learn_a_books_habits():
    rule = CountedForm(["And the LORD said, Go up. And the people wept: and the LORD saw."])
    assert rule("and the lord said go up") == "And the LORD said, Go up."
    assert rule("unknown words") == "Unknown words."
    with pytest.raises(LabError, match="0 words"):
        CountedForm(["..."])


def test_lines_of_the_test_stand_in_no_training_line():
    shared = "And the LORD spake unto Moses, saying,"
    train, test = [f"{shared}\nA line that is for training alone."], [f"{shared}\n{'x ' * 20}"]
    assert len(written_lines(train)) == 2
    assert written_lines(test, without=train) == [("x " * 20).strip()]
    assert written_lines(["short\n" + "long " * 60]) == []


def test_instruct_tests_on_no_line_that_training_has(tmp_path, capfd):
    """Both documents hold the second line; the test may ask for the other ones alone."""
    shared = "And he said unto them, Go forth, all of you."
    train = {"a.txt": f"Then Samuel answered, Speak; for thy servant heareth.\n{shared}"}
    test = {"b.txt": f"{shared}\nThe LORD is my shepherd; I shall not want anything."}
    write_tidied(Tidied(train, test, {}), tmp_path / "text")
    assert here("instruct", tmp_path / "text", "--out", tmp_path / "made") == 0
    assert "2 instructions to train, 1 to test" in capfd.readouterr().out
    asked = (tmp_path / "made" / "test.jsonl").read_text()
    assert "shepherd" in asked
    assert "Go forth" not in asked


def test_f1_counts_words_as_they_are_written():
    line = "Harden not your hearts, as in the provocation, in the day of temptation:"
    assert form_f1(line, line) == 1
    assert form_f1(spoken(line), line) < 0.8
    assert form_f1("", line) == 0
