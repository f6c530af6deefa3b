"""A real Chromium on the web book, opened from its folder: offline, light and dark, 400 px wide."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
from filelock import FileLock

from labkit import course
from labkit.commands.options import COMMANDS

pytestmark = [pytest.mark.browser, pytest.mark.slow]

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e .[test]"
)
pytest.importorskip("myst_nb", reason="needs Sphinx: pip install -r requirements-book.txt")

CHAPTERS = course.chapters()

#: Of each formula that stands alone: how far it begins to the left of where one can scroll.
CUT = """() => [...document.querySelectorAll("article div.math")].map(
  (it) => it.getBoundingClientRect().left - it.firstElementChild.getBoundingClientRect().left)"""

#: Letters and what lies behind them: the least ratio of luminances among what is seen of a page.
CONTRAST = """() => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (it) => {
    const layers = [];
    for (let at = it; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage.includes("gradient")) {
        layers.push(channels(style.backgroundImage.match(/rgba?\\([^)]*\\)/)[0]));
        break;
      }
      const [r, g, b, a = 1] = channels(style.backgroundColor);
      layers.push([r, g, b, a]);
      if (a === 1) break;
    }
    let below = [255, 255, 255];
    for (const [r, g, b, a = 1] of layers.reverse()) {
      below = [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
    }
    return below;
  };
  const found = [];
  const walker = document.createTreeWalker(
    document.querySelector("article"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const it = node.parentElement;
    if (!node.textContent.trim() || !it.checkVisibility({ visibilityProperty: true })) continue;
    if (it.closest("a.headerlink, style, script, .highlight")) continue;
    if (it.style.color && !it.style.background) continue; // colours that an output chose
    const pair = [light(channels(getComputedStyle(it).color)), light(behind(it))];
    const [low, high] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
    found.push([(high + 0.05) / (low + 0.05), it.outerHTML.slice(0, 160)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
}"""


@pytest.fixture(scope="module")
def book(request):
    """The folder of the book, built by the command once a run; it stays in test-artefacts/book."""
    folder = request.config.rootpath / "test-artefacts" / "book"
    folder.parent.mkdir(exist_ok=True)
    built, run = folder.with_suffix(".run"), os.environ.get("PYTEST_XDIST_TESTRUNUID", "alone")
    with FileLock(folder.with_suffix(".lock")):  # workers share it
        if run == "alone" or not built.exists() or built.read_text() != run:
            command = [sys.executable, "-m", "labkit", "book", "--out", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert f"the book is in {folder / 'index.html'}" in done.stdout
            assert done.stderr == "", "Sphinx warned"
            built.write_text(run)
    return folder


@pytest.fixture
def page(chromium):
    """A page that notes each request to another place than the book's folder, and each error."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.abroad, page.complaints = [], []

    def note(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            page.abroad.append(request.url)

    page.on("request", note)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    page.close()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)
def test_a_chapter_reads_offline_in_light_and_dark_and_on_a_phone(chapter, book, page, artefacts):
    notebook = course.read_notebook(chapter.path)
    page.goto((book / f"{chapter.name}.html").as_uri())

    formulas = page.evaluate(
        "[...document.querySelectorAll('article math')]"
        ".map((it) => [it.getBoundingClientRect().width, it.textContent, !!it.closest('details')])"
    )
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert len(formulas) >= text.replace(r"\$", "").count("$") // 5
    assert all(width > 0 for width, _, folded in formulas if not folded)
    assert not [said for _, said, _ in formulas if re.search(r"\\[a-zA-Z]", said)]
    article = page.evaluate(
        "(() => { const it = document.querySelector('article').cloneNode(true);"
        " it.querySelectorAll('pre, code, math, .cell_output').forEach((x) => x.remove());"
        " return it.textContent })()"
    )
    assert not re.findall(r"\\(?:frac|sum|sqrt|text|mathbb)\b|\$\$", article)

    pictures = page.evaluate(
        "[...document.querySelectorAll('article img')]"
        ".map((it) => [it.naturalWidth, it.alt, it.getAttribute('src')])"
    )
    drawn = sum(
        "image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", [])
    )
    assert len(pictures) == drawn
    assert all(width > 0 and alt for width, alt, _ in pictures)
    for _, _, place in pictures:
        bytes_of = (book / place).read_bytes()
        assert hashlib.sha256(bytes_of).hexdigest().startswith(place.split("/")[-1].split(".")[0])

    folded = [cell for cell in notebook.cells if "hide-input" in cell.metadata.get("tags", [])]
    hidden = page.locator("article .cell details.hide")
    assert hidden.count() == len(folded)
    assert page.locator("article details[open]").count() == 0, "folded until someone opens them"
    if folded:
        hidden.first.locator("summary").click()
        sync_api.expect(hidden.first.locator("pre").first).to_be_visible()
        hidden.first.locator("summary").click()
    solutions = page.locator("article details:not(.hide):not(.cell_output *)")
    assert solutions.count() == text.count("<details>")
    if solutions.count():
        solutions.last.locator("summary").click()
        assert solutions.last.inner_text().count("\n") > 1

    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        weakest = page.evaluate(CONTRAST)
        assert weakest[0][0] >= 3, (theme, weakest)
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (theme, width)
            assert max(page.evaluate(CUT), default=0) < 2, (width, "a formula is cut")
            if chapter.number == "03":
                page.wait_for_timeout(500)  # the sidebar is moving
                page.screenshot(path=artefacts / f"book-{theme}-{width}.png")

    assert page.abroad == []
    assert page.complaints == []


def test_the_pages_stand_in_the_order_of_the_course(book, page):
    page.goto((book / "index.html").as_uri())
    links = page.locator("article dl a.reference.internal").evaluate_all(
        "all => all.map((it) => it.getAttribute('href'))"
    )
    chapters = [link.removesuffix(".html") for link in links if re.match(r"\d\d_", link)]
    assert chapters == [chapter.name for chapter in CHAPTERS]
    assert page.abroad == []


@pytest.mark.parametrize(
    ("word", "place"),
    [("perplexity", r"0\d_\w+\.html"), ("scaled_dot_product_attention", r"package/models\.html")],
)
def test_a_search_finds_a_term_of_a_chapter_and_a_name_of_the_package(word, place, book, page):
    page.goto((book / "search.html").as_uri() + f"?q={word}")
    found = page.locator("#search-results ul.search a")
    sync_api.expect(found.first).to_be_visible(timeout=30_000)
    links = found.evaluate_all("all => all.map((it) => it.href)")
    assert any(re.search(place, link) for link in links), links
    page.goto((book / "search.html").as_uri() + "?q=zyzzyvaquux")
    sync_api.expect(page.locator("#search-results")).to_contain_text("did not match")
    assert page.locator("#search-results ul.search a").count() == 0
    assert page.abroad == []
    assert page.complaints == []


def test_a_search_shows_the_words_around_what_it_found_without_a_server(book, page):
    """Of a page that is found by its text: the text, in words where words say it, and no LaTeX."""
    page.goto((book / "search.html").as_uri() + "?q=perplexity")
    summaries = page.locator("#search-results li.kind-text p.context")
    sync_api.expect(summaries.first).to_be_visible(timeout=30_000)
    sync_api.expect(page.locator("#search-results")).to_contain_text("Search finished")
    assert summaries.count() == page.locator("#search-results li.kind-text").count()
    said = summaries.all_inner_texts()
    assert all("perplexit" in text.lower() for text in said), said  # or perplexities
    assert not [text for text in said if re.search(r"\\[a-z]+\{", text)], said
    assert page.abroad == []
    assert page.complaints == []


def test_folded_cells_that_made_nothing_stand_in_one_line_and_open(book, page):
    page.goto((book / f"{CHAPTERS[-1].name}.html").as_uri())
    bars = page.locator("article div.cell > details.hide:only-child")
    tops = {bars.nth(i).bounding_box()["y"] for i in range(2)}
    assert len(tops) == 1, "side by side"
    assert "installation" in bars.first.locator("summary").evaluate(
        "it => getComputedStyle(it.querySelector('p'), '::after').content"
    )
    bars.first.locator("summary").click()
    sync_api.expect(bars.first.locator("pre").first).to_be_visible()
    assert bars.first.bounding_box()["width"] > 400, "an open one takes the line"


def test_the_command_line_has_a_page_made_of_its_own_help(book, page):
    page.goto((book / "package" / "commands.html").as_uri())
    headings = page.locator("article h2").all_inner_texts()
    assert [text.strip("#\n ") for text in headings] == [f"labkit {name}" for name in COMMANDS]
    learning_rate = page.locator("dt", has_text="--learning-rate {None}|FLOAT").first
    sync_api.expect(learning_rate).to_be_visible()
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.abroad == []


def test_the_reference_says_what_a_docstring_says(book, page):
    page.goto((book / "package" / "models.html").as_uri())
    name = "labkit.models.attention.causal_mask"
    entry = page.locator("dl.py", has=page.locator(f'[id="{name}"]'))
    sync_api.expect(entry).to_contain_text("causal_mask")
    assert "softmax ──> weights_BHTS" in page.locator("article").inner_text(), (
        "a drawing, to the letter"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert page.abroad == []
    assert page.complaints == []


def test_no_page_names_a_file_from_the_network(book):
    away = r"""["'](?:https?:)?//"""
    source = re.compile(rf"<(?:script|img|iframe|source)\b[^>]*\bsrc={away}")
    style = re.compile(rf"<link\b[^>]*rel=.(?:stylesheet|preload|icon)\b[^>]*href={away}")
    for path in book.rglob("*.html"):
        text = path.read_text()
        assert not source.search(text), path.name
        assert not style.search(text), path.name
