"""Recorded hours: written by a run of its own, read beside the live one, tied to the sizes."""

import json
import time
from pathlib import Path

import pytest
import torch
from test_course import write_chapter

from labkit import course
from labkit.course import read_recorded, stale_recordings, write_recorded
from labkit.course.chapter import Chapter
from labkit.course.recorded import KEEP, Recorded
from labkit.course.running import record
from labkit.errors import LabError
from labkit.notebook import lab

SIZES = (
    "size = lab.sizes(smoke=dict(n=1, m=2), cpu=dict(n=3, m=2), gpu=dict(n=9, m=2), hour={hour})"
)
START = "from labkit.notebook import *\nlab = start(profile, seed, chapter='04')"
LIVE = "rows = [{'step': i, 'loss': 1 / (i + 1)} for i in range(size.n)]\nlive = len(rows)"
BESIDE = """
import labkit.course.recorded as kept
from pathlib import Path
kept.recorded_folder = lambda: Path({folder!r})
hour = lab.recorded("toy", rows)
report({{"live": live, "recorded": len(hour.rows)}})
"""


@pytest.fixture
def chapter(tmp_path):
    """A chapter with an hour's size, and the folder of its records."""
    folder = tmp_path / "data" / "recorded"
    cells = [START, SIZES.format(hour="dict(n=7)"), LIVE, BESIDE.format(folder=str(folder))]
    write_chapter(tmp_path / "notebooks", "04_toy", *cells)
    return Chapter(tmp_path / "notebooks" / "04_toy.ipynb"), folder


def resize(chapter, old, new):
    text = chapter.path.read_text()
    assert old in text
    chapter.path.write_text(text.replace(old, new))


def test_an_hour_is_recorded_once_and_shown_beside_the_live_run(chapter, tmp_path):
    toy, folder = chapter
    assert record(str(toy.path), folder) == [folder / "04_toy.jsonl"]
    kept = read_recorded("04", "toy", folder)
    assert len(kept.rows) == 7
    assert kept.rows[1] == {"step": 1, "loss": 0.5}
    assert kept.header["sizes"] == {"n": 7, "m": 2}
    assert kept.header["command"] == "labkit run 04 --profile hour"
    assert "repeat it with: labkit run 04 --profile hour" in kept.label
    assert kept.header["date"] in kept.label
    assert "wall_seconds" not in kept.header
    assert 0 <= kept.header["cpu_seconds_per_thread"] < 60
    assert "minutes of CPU time" in kept.label
    shown = course.execute(toy.path, tmp_path / "out.ipynb", "cpu")
    assert shown["metrics"] == {"live": 3, "recorded": 7}
    before = sorted(tmp_path.rglob("*"))
    results = course.run([], "hour", tmp_path / "run", folder=toy.path.parent, progress=False)
    assert results["04_toy"]["metrics"] == {"live": 7, "recorded": 7}
    new = {path for path in set(tmp_path.rglob("*")) - set(before) if path.suffix == ".jsonl"}
    assert new == set(), "only `record` keeps anything"


def test_a_label_says_on_how_many_threads_the_time_was_spent():
    header = {
        "date": "2026-11-27",
        "device": "cpu (x86_64)",
        "precision": "bf16",
        "command": "labkit run 04 --profile hour",
        "cpu_seconds_per_thread": 130,
    }
    two, one = (Recorded({**header, "threads": n}, []).label for n in (2, 1))
    assert "2 threads, bf16), 2 minutes of CPU time on each; repeat" in two
    assert "1 thread, bf16), 2 minutes of CPU time; repeat" in one


def test_the_time_of_a_record_holds_when_the_run_had_to_wait(monkeypatch):
    """A stopped or niced process loses time on the clock on the wall, and none of its own."""
    monkeypatch.delenv(KEEP, raising=False)
    here = lab.start("hour", chapter="04")
    now = time.perf_counter() + 3600
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert lab.seconds_since_start() >= 3600
    assert here.recorded("toy", [{"loss": 1.0}]).header["cpu_seconds_per_thread"] < 60
    began = time.process_time()
    monkeypatch.setattr(time, "process_time", lambda: began + 120 * torch.get_num_threads())
    after = here.recorded("toy", [{"loss": 1.0}])
    assert 120 <= after.header["cpu_seconds_per_thread"] < 180
    assert ", 2 minutes of CPU time" in after.label
    gpu = Recorded({**after.header, "wall_seconds": 300}, after.rows)
    assert ", 5 minutes; repeat" in gpu.label


def test_a_run_on_a_gpu_is_recorded_under_its_own_sizes(chapter, tmp_path, monkeypatch):
    toy, folder = chapter
    resize(toy, ", rows)", ", rows, 'gpu')")
    record(str(toy.path), folder, profile="gpu")
    with pytest.raises(LabError, match="records nothing under 'hour'"):
        record(str(toy.path), folder)
    kept = read_recorded("04", "toy", folder)
    assert (len(kept.rows), kept.header["sizes"]) == (9, {"n": 9, "m": 2})
    assert "repeat it with: labkit run 04 --profile gpu" in kept.label
    assert stale_recordings(toy, folder) == []
    resize(toy, "n=9", "n=10")
    (said,) = stale_recordings(toy, folder)
    assert "record 04 --profile gpu" in said


def test_a_record_of_other_sizes_is_stale(chapter):
    toy, folder = chapter
    header = {"chapter": "04", "name": "toy", "sizes": {"n": 7, "m": 2}}
    write_recorded(folder, header, [{"loss": 1.0}])
    assert stale_recordings(toy, folder) == []
    resize(toy, "n=3", "n=4")  # of `cpu`: the hour does not have it
    assert stale_recordings(toy, folder) == []
    resize(toy, "n=7", "n=8")
    (said,) = stale_recordings(toy, folder)
    assert "recorded with n = 7, 04_toy.ipynb now says 8: run" in said
    assert "`python -m labkit.course record 04 --profile hour`" in said
    resize(toy, "cpu=dict(n=4, m=2)", "cpu=dict(n=4, m=5)")
    assert [("m = 2" in s, "m" in s) for s in stale_recordings(toy, folder)] == [
        (True, True),
        (False, True),
    ]


def test_sizes_that_are_computed_cannot_be_compared(chapter):
    toy, folder = chapter
    write_recorded(folder, {"chapter": "04", "name": "toy", "sizes": {}}, [{"loss": 1.0}])
    resize(toy, "dict(n=7)", "dict(n=3 * 60)")
    with pytest.raises(LabError, match=r"04_toy\.ipynb computes a size"):
        stale_recordings(toy, folder)


def test_a_missing_or_damaged_record_says_how_to_make_it(tmp_path):
    command = "python -m labkit.course record 04"
    with pytest.raises(LabError, match=f"does not exist: record it with `{command}`"):
        read_recorded("04", "toy", tmp_path)
    for text in ("", "{", '{"a": 1}\n', '[1]\n{"b": 2}\n'):
        (tmp_path / "04_toy.jsonl").write_text(text)
        with pytest.raises(LabError, match=f"damaged .*: record it again with `{command}`"):
            read_recorded("04", "toy", tmp_path)


@pytest.mark.parametrize("rows", [[], [{"loss": float("nan")}], [{"loss": object()}]])
def test_only_rows_of_finite_numbers_and_strings_are_recorded(rows, tmp_path):
    with pytest.raises(LabError, match="recorded run 'toy'"):
        write_recorded(tmp_path / "new", {"chapter": "04", "name": "toy"}, rows)
    assert not (tmp_path / "new").exists()


def test_a_chapter_that_records_nothing_is_named(tmp_path):
    write_chapter(tmp_path, "04_toy", START, "report({'a': 1})")
    with pytest.raises(LabError, match=r"04_toy\.ipynb records nothing"):
        record(str(tmp_path / "04_toy.ipynb"), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_every_committed_record_belongs_to_a_chapter_and_its_sizes():
    for path in course.recorded_folder().glob("*"):
        number = path.name[:2]
        assert number in {it.number for it in course.chapters()}, path
        header = read_recorded(number, path.stem.split("_", 1)[1]).header
        assert set(header) >= {"command", "sizes", "date", "device"}
        assert ("cpu_seconds_per_thread" in header) != ("wall_seconds" in header), path
    for it in course.chapters():
        assert stale_recordings(it) == []


def test_the_hour_takes_the_sizes_of_cpu_where_it_names_none():
    three = {"smoke": {"n": 1, "m": 1}, "cpu": {"n": 2, "m": 2}, "gpu": {"n": 3, "m": 3}}
    assert vars(course.sizes("hour", **three, hour={"n": 60})) == {"n": 60, "m": 2}
    assert vars(course.sizes("hour", **three)) == {"n": 2, "m": 2}
    with pytest.raises(LabError, match=r"profile 'smoke' lacks \['k'\]"):
        course.sizes("cpu", **three, hour={"k": 1})


def test_json_lines_are_what_other_programs_read(tmp_path):
    rows = [{"loss": 1.5, "text": "a\nb"}]
    path = write_recorded(tmp_path, {"chapter": "04", "name": "x"}, rows)
    assert [json.loads(line) for line in Path(path).read_text().splitlines()][1:] == rows
