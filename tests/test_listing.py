"""What a chapter shows of the package: found by name, rendered as text."""

import doctest
import math
from pathlib import Path

import pytest

from labkit import batches
from labkit.batches import mixing
from labkit.course import listing
from labkit.errors import LabError
from labkit.evaluation import TaskMatrix
from labkit.training import loop as train


@pytest.mark.parametrize(
    "thing",
    [
        train.train,
        mixing.Mixture,
        mixing.Mixture.place,
        batches,
        batches.Pad,
        TaskMatrix.backward.fget,
    ],
)
def test_a_name_leads_back_to_its_thing(thing):
    assert listing.find(listing.name_of(thing)) is thing


def test_things_of_others_and_of_a_notebook_have_no_name():
    def mine():
        return 1

    assert listing.name_of(mine) is None
    assert listing.name_of(math.sqrt) is None
    assert listing.name_of(pytest) is None


def test_the_place_is_the_file_without_a_line_number():
    shown = listing.rendered(mixing.Mixture.place)
    place, code = shown["text/plain"].split("\n", 1)
    assert place == "# labkit/batches/mixing.py"
    assert shown["text/markdown"].startswith("<small>labkit/batches/mixing.py</small>\n")
    assert code.splitlines()[0] in Path(mixing.__file__).read_text()
    assert f"```python\n{code}\n```" in shown["text/markdown"]


def test_a_name_that_is_gone_is_an_error():
    with pytest.raises(LabError, match=r"mixing.Mixtures does not exist: correct the"):
        listing.find("labkit.batches.mixing.Mixtures")
    with pytest.raises(LabError, match=r"nolab\.x does not exist"):
        listing.find("nolab.x")


def test_examples_in_docstrings():
    assert doctest.testmod(listing).failed == 0
