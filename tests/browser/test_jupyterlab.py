"""A real Chromium on a real JupyterLab: chapters run, sliders move pictures, curves grow.

Screenshots of each stage stay in test-artefacts/.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from labkit import course

pytestmark = [pytest.mark.browser, pytest.mark.slow]

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e .[test]"
)
pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install -e .[lab]")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: Every cell in the page at once (no virtual scrolling), no questions, no news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

MINUTES = 60_000
MINUTE_S = 60

LIVE = """
import torch
from collections import namedtuple
import labkit
from labkit.batches import Batches
from labkit.notebook import LiveCurve
from labkit.training import TrainConfig, train

Output = namedtuple("Output", "logits")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 5)
        )

    def forward(self, features):
        return Output(self.body(features))

torch.manual_seed(0)
truth = torch.randn(256, 5)
points = torch.randn(4096, 256)
examples = [{"features": x, "labels": y} for x, y in zip(points, (points @ truth).argmax(1))]
""", """
with LiveCurve("A small net", references={"guessing": 1.609}) as curve:
    result = train(
        Net(), labkit.objectives.classification, Batches(examples, 256),
        TrainConfig(steps=2500, learning_rate=1e-3, warmup_steps=20, precision="fp32"),
        on_step=curve,
    )
print(f"drawings {curve.drawings}, overhead {curve.overhead:.4f}")
"""  # fmt: skip

#: A sheet, and a broad line in the palette's blue in its middle.
DARK = (
    "from labkit.notebook import start\nlab = start('smoke', 0, '00')",
    """
from labkit.notebook import plots
fig, ax = plots.figure()
ax.plot([0, 1], [0.5, 0.5], color=plots.BLUE, linewidth=60)
ax.set_axis_off()
fig
""",
)


# --- fixtures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder that JupyterLab opens: a chapter without outputs, and a small live notebook."""
    folder = tmp_path_factory.mktemp("lab")
    for chapter in course.chapters():
        if chapter.number in ("03", "05"):
            notebook = nbformat.read(chapter.path, as_version=4)
            notebook.metadata.pop("widgets", None)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            nbformat.write(notebook, folder / chapter.path.name)
    for name, cells in (("live", LIVE), ("dark", DARK)):
        made = nbformat.v4.new_notebook()
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        made.cells = [nbformat.v4.new_code_cell(text.strip()) for text in cells]
        nbformat.write(made, folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def server(workplace, tmp_path_factory):
    """JupyterLab with its own settings and its own token: (address, token)."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "LABKIT_PROFILE": "smoke",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"),
        *("--ip=127.0.0.1", f"--ServerApp.root_dir={workplace}"),
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    log = (home / "log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        info = wait_for_server(home, process)
        yield info["url"], info["token"]
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5)
    except OSError:  # refused, or too slow: not up yet
        return False
    return True


def wait_for_server(home: Path, process: subprocess.Popen) -> dict:
    end = time.monotonic() + 2 * MINUTE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        for path in (home / "runtime").glob("jpserver-*.json"):
            info = json.loads(path.read_text())
            if answers(f"{info['url']}api?token={info['token']}"):
                return info
        time.sleep(0.3)
    raise AssertionError("JupyterLab did not start:\n" + (home / "log").read_text()[-3000:])


@pytest.fixture
def page(chromium_path, tmp_path, artefacts):
    """One page of a Chromium with an empty profile."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium_path,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 1000},
        )
        opened = context.pages[0] if context.pages else context.new_page()
        opened.set_default_timeout(2 * MINUTES)
        yield opened
        opened.screenshot(path=artefacts / "browser-last.png")
        context.close()


# --- what a learner does -----------------------------------------------------------------------


def open_notebook(page, server, name):
    address, token = server
    page.goto(f"{address}lab/tree/{name}?token={token}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached")


PROMPTS = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea .jp-InputPrompt')]
    .map(prompt => prompt.textContent.trim())"""


def run_all(page):
    """Run > Run All Cells, again if the menu came before the notebook had the focus."""
    for _ in range(5):
        page.locator(".jp-NotebookPanel .jp-CodeCell .jp-InputPrompt").first.click()
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        for _ in range(20):
            if any(prompt.strip("[]: ") for prompt in page.evaluate(PROMPTS)):
                return
            page.wait_for_timeout(500)
    raise AssertionError("Run All Cells did not start a cell")


def finished(page, minutes=8):
    """Wait until every code cell has a number; return the error outputs' texts."""
    end = time.monotonic() + minutes * MINUTE_S
    while time.monotonic() < end:
        prompts = page.evaluate(PROMPTS)
        if prompts and all(prompt.strip("[]:").isdigit() for prompt in prompts):
            break
        if page.locator('[data-mime-type="application/vnd.jupyter.error"]').count():
            break
        page.wait_for_timeout(500)
    return page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()


#: The pixels of a picture, as a data address.
PIXELS = """image => {
    const canvas = document.createElement('canvas');
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""

#: How far to the right the training curve reaches (its solid blue), in pixels.
REACH = """image => {
    const canvas = document.createElement('canvas');
    const [w, h] = [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, w, h).data;
    let reach = 0;
    for (let x = 0; x < 0.8 * w; x++)
        for (let y = 0; y < h; y++) {
            const i = 4 * (y * w + x);
            if (data[i] < 40 && data[i + 1] < 140 && data[i + 1] > 80 && data[i + 2] > 140)
                reach = x;
        }
    return reach;
}"""


def changed(picture, before, seconds=6):
    """Wait until the picture is another one; False if it stays for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if picture.evaluate(PIXELS) != before:
            return True
        time.sleep(0.1)
    return False


#: Remember the smallest height that the picture ever had on the screen.
WATCH_HEIGHT = """image => {
    window.smallest = image.clientHeight;
    const watch = () => {
        if (image.isConnected) window.smallest = Math.min(window.smallest, image.clientHeight);
        requestAnimationFrame(watch);
    };
    watch();
}"""


# --- tests -------------------------------------------------------------------------------------


def test_jupyterlab_asks_for_its_token(server):
    address, token = server
    assert address.startswith(("http://127.0.0.1", "http://localhost"))
    assert len(token) >= 32
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}api/contents", timeout=20)


def test_a_chapter_runs_and_its_slider_moves_the_picture(page, server, workplace, artefacts):
    name = min(path.name for path in workplace.glob("0*.ipynb"))
    open_notebook(page, server, name)
    page.screenshot(path=artefacts / "browser-1-opened.png")
    run_all(page)
    assert finished(page) == []

    output = page.locator(".jp-OutputArea-output:has(.widget-hslider):has(.widget-image)").first
    output.scroll_into_view_if_needed()
    picture = output.locator("img.widget-image, .widget-image img").first
    handle = output.locator(".widget-hslider .noUi-handle").first
    before = picture.evaluate(PIXELS)
    page.screenshot(path=artefacts / "browser-2-before-the-drag.png")

    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    seen = [before]
    for step in range(1, 9):
        page.mouse.move(x + 12 * step, y)
        if changed(picture, seen[-1]):
            seen.append(picture.evaluate(PIXELS))
    page.screenshot(path=artefacts / "browser-3-during-the-drag.png")
    assert len(set(seen)) >= 3, "the picture does not follow the mouse during the drag"
    page.mouse.up()


def test_a_live_curve_grows_without_flicker_and_stays(page, server, artefacts):
    open_notebook(page, server, "live.ipynb")
    run_all(page)
    picture = page.locator("img.widget-image, .widget-image img").first
    picture.wait_for(timeout=3 * MINUTES)
    picture.evaluate(WATCH_HEIGHT)
    reaches = []
    end = time.monotonic() + 4 * MINUTE_S
    while time.monotonic() < end and picture.count():
        try:
            reach = picture.evaluate(REACH, timeout=2000)
        except sync_api.Error:
            break  # the live picture has given way to the static one
        if not reaches or reach != reaches[-1]:
            reaches.append(reach)
            page.screenshot(path=artefacts / f"browser-live-{min(len(reaches), 4)}.png")
        page.wait_for_timeout(150)
    assert finished(page) == []
    assert page.evaluate("window.smallest") > 100, "the picture collapsed while it was updated"
    assert len(reaches) >= 4, f"the curve was drawn only {len(reaches)} times"
    assert reaches == sorted(reaches), "the curve did not grow from left to right"

    final = page.locator(".jp-RenderedImage img").first
    final.scroll_into_view_if_needed()
    page.screenshot(path=artefacts / "browser-live-final.png")
    assert final.evaluate(REACH) >= reaches[-1]
    words = page.locator(".jp-OutputArea-output", has_text="overhead").last.inner_text()
    assert float(words.split("overhead")[1]) <= 0.05


def test_in_the_dark_theme_a_figure_is_dark_and_blue_stays_blue(page, server, artefacts):
    open_notebook(page, server, "dark.ipynb")
    run_all(page)
    assert finished(page) == []
    picture = page.locator(".jp-RenderedImage img").first
    picture.wait_for()

    def seen(name):
        """Mean colour of the sheet's corner and of the line in its middle, 0 to 1."""
        picture.screenshot(path=artefacts / f"browser-{name}.png")
        pixels = np.asarray(Image.open(artefacts / f"browser-{name}.png").convert("RGB")) / 255
        middle = pixels.shape[0] // 2
        sheet, line = pixels[4:12, 4:12], pixels[middle - 3 : middle + 3, 300:320]
        return sheet.mean(axis=(0, 1)), line.mean(axis=(0, 1))

    sheet, line = seen("light")
    assert sheet.min() > 0.95
    assert line.argmax() == 2
    page.locator(".lm-MenuBar-itemLabel", has_text="Settings").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
    page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_timeout(1000)
    sheet, line = seen("dark")
    assert sheet.max() < 0.2
    assert line.argmax() == 2, "a plain inversion would make blue orange"
    assert line.mean() > sheet.mean() + 0.2
