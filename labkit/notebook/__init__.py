"""What a notebook shows: the few names that a chapter imports.

    from labkit.notebook import LiveCurve, check, explore, plots, report, show, start, table

    lab = start(profile, seed, chapter="03")   device, precision, versions, seed; returns the Lab
    show(labkit.models.causal_mask)         live source, never a copy
    plots.heatmap(weights_TS)                  one palette for the whole course
    Drawing(18, 6, "what it says")             boxes, arrows, shards: drawings that explain
    train(..., on_step=LiveCurve())            a curve that moves, at most 5 % of the time
    explore(draw, temperature=(0.1, 5.0))      sliders to a picture; static where nothing runs
    Service(folder, "--slots", 8)              `labkit serve`, as long as the notebook lives
    gradcheck.three_ways(...)                  by hand, autograd, central differences
    check("03.2", my_function)                 answers in words
    report({"accuracy": 0.97})                 the chapter's numbers, for people and for the course

Only this package imports matplotlib, ipywidgets and IPython; the core never imports it.
"""

from labkit.notebook import gradcheck, plots
from labkit.notebook.drawings import Drawing
from labkit.notebook.exercises import check
from labkit.notebook.lab import Lab, start
from labkit.notebook.live import LiveCurve, progress, together
from labkit.notebook.reporting import report
from labkit.notebook.service import Service
from labkit.notebook.source import show
from labkit.notebook.tables import table
from labkit.notebook.widgets import chat, explore, explore_text

__all__ = [
    "Drawing",
    "Lab",
    "LiveCurve",
    "Service",
    "chat",
    "check",
    "explore",
    "explore_text",
    "gradcheck",
    "plots",
    "progress",
    "report",
    "show",
    "start",
    "table",
    "together",
]
