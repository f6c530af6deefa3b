"""`show`: the source of the package, as it is now, in the notebook.

A chapter never copies code from the package. It shows the live source, so the two cannot drift.
The output is Markdown with a fenced block: JupyterLab, Colab, GitHub and nbconvert colour it
themselves, each in its own theme.
"""

from typing import Any

from IPython.display import display

from labkit.course import listing


def show(*objects: Any, docstring: bool = True) -> None:
    """Display the source of functions, classes, methods or modules with their file.

    Args:
        objects: what to show, in order.
        docstring: False leaves docstrings out, for when the code is the point.

    Raises:
        LabError: something without Python source.
    """
    for thing in objects:
        bundle = listing.rendered(thing, docstring)
        name = listing.name_of(thing)
        origin = {"labkit": {"shows": name, "docstring": docstring}} if name else {}
        display(bundle, raw=True, metadata=origin)
