"""The summary and the page of a run: one text, complete in itself, with what was measured alone."""

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest

import paperlib
from paperlib import environment
from paperlib.data.images import read_rgb
from paperlib.data.sources import embedded_path
from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting import figures, viewer
from paperlib.reporting.report import write_report, write_summary
from paperlib.run import measured_row, open_run
from paperlib.running.notebooks import to_html


class _Page(HTMLParser):
    """Tags and attributes of a page, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.links, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        if tag not in ("meta", "link", "img", "input", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def words_of(text):
    return " ".join(" ".join(_Page(text).text).split())


def write_notebook(run, name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), run.folder("notebooks") / f"{name}.ipynb")


def fill(run):
    """Fabricated records, figures of both kinds and an executed notebook."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    keys = [key for key in reported() if key[0] in "BCD" or key[0] == "abstract"]
    rows = [measured_row(*key, reported()[key] - 2, "validation") for key in keys]
    run.record("06_tflite_eval", rows, teacher="<small> teacher")
    with pytest.MonkeyPatch.context() as patch:  # an unpacked archive, without git
        patch.setattr(environment, "_commit", lambda: {"commit": None, "dirty": None})
        run.record("05_fuse_qat", [], silent=[0, 2])
    run.record("00_reproduce", [], notebooks={"06_tflite_eval": {"seconds": 33.3, "peak_bytes": 2e9}})
    history = [{"step": 1, "loss": 0.1, "psnr_rgb": 26.0}, {"step": 2, "loss": 0.05, "psnr_rgb": 27.0}]
    hr = read_rgb(embedded_path("astronaut.png"))[:240, :240]
    run.figure("02_curves", figures.curves(history))
    run.figure("06_crops", figures.crops(hr[::3, ::3], {"one": hr}, hr, 240))
    run.figure("09_surprise", figures.curves(history))
    viewer.save_comparison(run, "noise", {"bicubic": image, "INT8": image, "original": image})
    output = nbformat.v4.new_output("stream", text="two\n")
    write_notebook(run, "06_tflite_eval", nbformat.v4.new_code_cell("1 + 1", outputs=[output]))


@pytest.fixture
def run(tmp_path):
    return open_run("demo", tmp_path / "out")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A filled run, its page and its summary."""
    run = open_run("demo", tmp_path_factory.mktemp("filled"))
    fill(run)
    to_html(run)
    return run, write_report(run).read_text(), write_summary(run).read_text()


def test_the_page_needs_nothing_from_anywhere(made):
    run, text, _ = made
    page = _Page(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for source in page.sources)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert {"records/06_tflite_eval.json", "notebooks/06_tflite_eval.html"} <= set(page.links)
    for link in page.links:
        assert link.startswith("data:") or (run.out / link).exists(), link
    notebook = (run.out / "notebooks" / "06_tflite_eval.html").read_text()
    assert "two" in notebook
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", notebook)
    assert "cdnjs" not in notebook


def test_summary_and_page_say_the_same_and_open_with_what_came_out(made):
    page, summary = words_of(made[1]), made[2]
    parts = ("What came out", "left bicubic", "What we saw", "The paper's claims", "Table B")
    order = [page.index(words) for words in parts]
    assert order == sorted(order)
    for line in summary.splitlines():
        if line.startswith(("- ", "# ", "## ")):
            assert re.sub(r"[#*-]+ ?", "", line).strip()[:40] in page.replace("-", ""), line
    assert "| bicubic: a formula that has learned nothing | 26.26 |  |" in summary
    assert "| stage 2, with frequencies and a teacher | 28.28 | +2.02 |" in summary


def test_every_figure_is_on_both_a_cell_carries_its_heading_and_a_verdict_is_a_badge(made):
    run, page, summary = made
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", summary)
    assert links == ["figures/02_curves.png", "figures/06_crops.webp", "figures/09_surprise.png"]
    assert all((run.out / link).is_file() for link in links)
    for words in ('alt="02 curves', 'alt="06 crops', 'alt="09 surprise', 'data-label="PSNR (dB)">26.26<', "2.0 GB",
                  '<td data-label="verdict"><span class="badge one-seed">one seed</span></td>',
                  "&lt;small&gt; teacher"):
        assert words in page


def test_what_was_not_measured_is_not_there(run):
    words = words_of(write_report(run).read_text())
    assert "Nothing was run." in words
    for heading in ("What came out", "What we saw", "claims", "Figures", "Table B", "not run"):
        assert heading not in words, heading
    run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 27.0, "validation")])
    words = words_of(write_report(run).read_text())
    assert "Table B" in words
    assert "Table C" not in words


def test_what_the_paper_has_otherwise_is_listed_and_another_runs_records_are_not_shown(run):
    changed = open_run("demo", run.out, {"stage2.steps": 7})
    changed.record("04_stage2", [])
    text = write_summary(changed).read_text()
    assert "The paper's method: stage 2 in 7 steps instead of 10,000" in text
    assert "| stage2.steps | 7 | 10000 |" in text
    assert "Nothing was run." in write_summary(run).read_text()  # of the profile's own settings


def test_a_committed_run_is_headed_by_its_question(tmp_path):
    (tmp_path / "questions.json").write_text('{"x/y": {"title": "Does it help?", "answer": "Yes."}}')
    text = write_summary(open_run("demo", tmp_path / "x" / "y")).read_text()
    assert text.startswith("# Does it help?\n\nYes.\n\n**")
    assert write_summary(open_run("demo", tmp_path / "mine")).read_text().startswith("# Results of profile demo\n")


def test_quality_against_cost_is_drawn_where_set5_was_measured(run):
    for dataset, drawn in (("validation", False), ("Set5", True)):
        run.record("06_tflite_eval", [measured_row("B", "student_deploy", "int8", "psnr", 31.4, dataset)])
        assert ("figures/08_cost.png" in write_summary(run).read_text()) == drawn


def test_formulas_of_notebook_pages_are_typeset_without_a_script(run):
    text = "\n".join([r"The fold is $w' = \frac{\gamma}{\sigma} w$:", "", "$$",
                      r"\lambda(t) = \begin{cases} a & t < p \\ b & t \ge p \end{cases}", "$$"])
    write_notebook(run, "05_fuse_qat", nbformat.v4.new_markdown_cell(text))
    page = to_html(run)[0].read_text()
    body = page[page.index("<body"):]
    assert body.count("<math") == 2
    for mark in ("<mfrac>", "<mtable", 'display="block"'):
        assert mark in body
    assert "\\frac" not in body
    assert "$" not in re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    words = r"No formula: $\left( x$ and $a_{$. Then $x^2$."
    write_notebook(run, "05_fuse_qat", nbformat.v4.new_markdown_cell(words))
    page = to_html(run)[0].read_text()
    assert r"$\left( x$ and $a_{$. Then <math" in page
    assert page.count("<math") == 1


def test_the_package_ships_what_the_page_is_made_of():
    folder = Path(paperlib.__file__).parent
    project = tomllib.loads((folder.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".html", ".css", ".jinja", ".mplstyle"):
            package = ".".join(path.parent.relative_to(folder.parent).parts)
            assert any(fnmatch(path.name, pattern) for pattern in patterns[package]), path.name
