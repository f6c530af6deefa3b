"""What learners hand in: verdicts travel in saved notebooks, and are collected from there."""

import csv
import io
import shutil

import nbformat
import pytest
from commands import here
from nbclient import NotebookClient

from labkit.course import VERDICT_MIME, collect, verdicts_of
from labkit.course.__main__ import main
from labkit.errors import LabError

ANSWERS = """
import torch
from labkit.notebook import check

def right(z, y):
    return torch.logaddexp(torch.zeros_like(z), z) - y * z

def wrong(z, y):
    return torch.log(1 + z.exp()) - y * z

def stub(z):
    ...
"""


def notebook(*cells, outputs=()):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    for cell, output in zip(made.cells, outputs, strict=False):
        cell.outputs = [output]
    return made


def said(data):
    return nbformat.v4.new_output("display_data", data=data)


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    """Two notebooks that were run, one that was not, and a copy that Jupyter keeps."""
    folder = tmp_path_factory.mktemp("handed in")
    ada = notebook(ANSWERS, "check('05.1', wrong)", "check('05.2', stub)", "check('05.1', right)")
    NotebookClient(ada, timeout=120, kernel_name="python3").execute()
    (folder / "ada").mkdir()
    nbformat.write(ada, folder / "ada" / "05.ipynb")
    nbformat.write(notebook(ANSWERS, "check('05.1', right)"), folder / "empty.ipynb")
    (folder / ".ipynb_checkpoints").mkdir()
    nbformat.write(ada, folder / ".ipynb_checkpoints" / "05.ipynb")
    return folder


def test_the_last_verdict_of_each_exercise_is_in_the_saved_notebook(handed_in):
    assert verdicts_of(handed_in / "ada" / "05.ipynb") == {
        "05.1": "passed",
        "05.2": "not attempted",
    }
    assert verdicts_of(handed_in / "empty.ipynb") == {}


def test_a_folder_becomes_a_table_and_csv(handed_in, capsys):
    assert main(["verdicts", str(handed_in)]) == 0
    assert capsys.readouterr().out == (
        f"{handed_in}/ada/05.ipynb  1 of 2 passed: 05.2 not attempted\n"
    )
    assert main(["verdicts", "--csv", str(handed_in)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["exercise"], row["status"]) for row in rows] == [
        ("05.1", "passed"),
        ("05.2", "not attempted"),
    ]
    assert main(["verdicts", str(handed_in / "empty.ipynb")]) == 0
    assert capsys.readouterr().out == "no exercise has been checked yet\n"


def test_a_file_from_outside_brings_nothing_but_verdicts(tmp_path, monkeypatch, capsys):
    strange = [
        said({VERDICT_MIME: {"exercise": "=HYPERLINK(1)", "status": "passed"}}),
        said({VERDICT_MIME: {"exercise": "05.1", "status": "<b>best</b>"}}),
        said({VERDICT_MIME: "passed"}),
        said({VERDICT_MIME: {"exercise": "05.3", "status": "failed"}}),
    ]
    monkeypatch.chdir(tmp_path)
    nbformat.write(notebook(*"abcd", outputs=strange), tmp_path / "=1+1.ipynb")
    assert verdicts_of("=1+1.ipynb") == {"05.3": "failed"}
    assert main(["verdicts", "--csv", "=1+1.ipynb"]) == 0
    assert "\n'=1+1.ipynb,05.3,failed\n" in capsys.readouterr().out


def test_one_bad_file_does_not_hide_the_others(handed_in, tmp_path, capsys):
    shutil.copytree(handed_in / "ada", tmp_path / "ada")
    (tmp_path / "bob.ipynb").write_text('{"cells": 3}')
    assert main(["verdicts", str(tmp_path)]) == 0
    ada, bob = capsys.readouterr().out.splitlines()
    assert ada.endswith("ada/05.ipynb  1 of 2 passed: 05.2 not attempted")
    assert bob.endswith("bob.ipynb  is no readable notebook")
    assert main(["verdicts", "--csv", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("bob.ipynb,,unreadable\n")
    assert main(["verdicts", str(tmp_path / "bob.ipynb")]) == 2


def test_what_cannot_be_collected_is_named(tmp_path):
    with pytest.raises(LabError, match=r"absent\.ipynb does not exist"):
        collect([tmp_path / "absent.ipynb"])
    with pytest.raises(LabError, match="there is no notebook in what was given"):
        collect([tmp_path])
    (tmp_path / "a.ipynb").write_text("{}")
    with pytest.raises(LabError, match=r"a\.ipynb is not a readable notebook"):
        collect([tmp_path])


def test_progress_counts_what_is_solved_in_ones_own_notebooks(handed_in, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert here("progress", mine) == 2
    assert "holds none of the chapters: labkit lab" in capsys.readouterr().err
    shutil.copy(handed_in / "ada" / "05.ipynb", mine / "05_cross_entropy.ipynb")
    assert here("progress", mine, "--csv", tmp_path / "solved.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    ours = next(line for line in lines if line.startswith("05 "))
    assert " 1 of 5   next: 05.2 " in ours
    rows = list(csv.DictReader((tmp_path / "solved.csv").open()))
    assert f"1 of {len(rows)}" in next(line for line in lines if line.startswith("in all"))
    assert {row["exercise"]: row["status"] for row in rows}["05.1"] == "passed"
    assert {row["chapter"] for row in rows} >= {"05 · Cross-entropy", "10 · Full fine-tuning"}
    assert here("progress", tmp_path / "nowhere") == 2
    assert "is no folder: labkit lab" in capsys.readouterr().err
