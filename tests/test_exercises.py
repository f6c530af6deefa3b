"""Every exercise: the stub is not accepted, the solution passes, each wrong answer is named."""

import importlib.util
import linecache
import re
from pathlib import Path

import nbformat
import pytest

from labkit import course
from labkit.notebook.exercises import exercises, judge

SOLUTIONS = Path(__file__).parent / "solutions"
CHAPTERS = course.chapters()


def load(chapter):
    """tests/solutions/chapter_NN.py: SOLUTIONS and WRONG."""
    path = SOLUTIONS / f"chapter_{chapter.number}.py"
    spec = importlib.util.spec_from_file_location(f"solutions_{chapter.number}", path)
    assert spec is not None, f"{path} is missing"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tagged(chapter, tag):
    notebook = nbformat.read(chapter.path, as_version=4)
    return [cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def execute(source, names, title):
    """Run a cell's source as a notebook would, its lines known to tracebacks."""
    file = f"<{title}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)


def names_of(chapter):
    """What the chapter's imports cell defines; `check` does not display here."""
    names = {"__name__": "__main__"}
    (imports,) = tagged(chapter, "imports")
    execute(imports, names, f"{chapter.name} imports")
    return names


def stubs(chapter):
    """(number, source, name of the answer) of each exercise cell."""
    for source in tagged(chapter, "exercise"):
        for number, answer in re.findall(r'^check\("(\d\d\.\d+)", (\w+)\)', source, re.MULTILINE):
            yield number, source, answer


def folded(chapter):
    """number -> source of the folded solution."""
    return {
        number: code
        for source in tagged(chapter, "solution")
        for number, code in re.findall(
            r"<summary>Solution (\d\d\.\d+)</summary>.*?```python\n(.*?)```", source, re.DOTALL
        )
    }


def cases():
    for chapter in CHAPTERS:
        for number, source, answer in stubs(chapter):
            yield pytest.param(chapter, number, source, answer, id=number)


def also_right_cases():
    for chapter in CHAPTERS:
        if (SOLUTIONS / f"chapter_{chapter.number}.py").exists():
            for number, answers in getattr(load(chapter), "ALSO_RIGHT", {}).items():
                for answer in answers:
                    yield pytest.param(chapter, number, answer, id=f"{number}-{answer.__name__}")


def wrong_cases():
    for chapter in CHAPTERS:
        if (SOLUTIONS / f"chapter_{chapter.number}.py").exists():
            for number, answers in load(chapter).WRONG.items():
                for answer, phrase in answers:
                    name = getattr(answer, "__name__", repr(answer))
                    yield pytest.param(chapter, number, answer, phrase, id=f"{number}-{name}")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)
def test_a_chapter_has_at_least_four_exercises_with_everything(chapter):
    numbers = [number for number, _, _ in stubs(chapter)]
    module = load(chapter)
    assert len(numbers) >= 4
    assert len(set(numbers)) == len(numbers)
    assert set(exercises(chapter.number)) == set(numbers), "checkers and exercise cells differ"
    assert set(folded(chapter)) == set(numbers), "an exercise without its folded solution"
    assert set(module.SOLUTIONS) == set(module.WRONG) == set(numbers)
    assert all(len(answers) >= 3 for answers in module.WRONG.values())


@pytest.mark.parametrize(("chapter", "number", "source", "answer"), list(cases()))
def test_the_stub_is_not_attempted(chapter, number, source, answer):
    names = {**names_of(chapter), "check": lambda *_: None}
    execute(source, names, f"stub {number}")
    verdict = judge(exercises(chapter.number)[number], names[answer])
    assert verdict.status == "not attempted", verdict.message


@pytest.mark.parametrize(("chapter", "number", "source", "answer"), list(cases()))
def test_the_reference_solution_passes(chapter, number, source, answer):
    verdict = judge(exercises(chapter.number)[number], load(chapter).SOLUTIONS[number])
    assert verdict.status == "passed", verdict.message


@pytest.mark.parametrize(("chapter", "number", "source", "answer"), list(cases()))
def test_the_folded_solution_passes(chapter, number, source, answer):
    names = names_of(chapter)
    execute(folded(chapter)[number], names, f"solution {number}")
    verdict = judge(exercises(chapter.number)[number], names[answer])
    assert verdict.status == "passed", verdict.message


@pytest.mark.parametrize(("chapter", "number", "answer"), list(also_right_cases()))
def test_another_form_of_the_answer_passes(chapter, number, answer):
    """Such as an array where a list would do."""
    verdict = judge(exercises(chapter.number)[number], answer)
    assert verdict.status == "passed", verdict.message


@pytest.mark.parametrize(("chapter", "number", "answer", "phrase"), list(wrong_cases()))
def test_a_wrong_answer_is_named(chapter, number, answer, phrase):
    verdict = judge(exercises(chapter.number)[number], answer)
    assert verdict.status == "failed"
    assert phrase in verdict.message
