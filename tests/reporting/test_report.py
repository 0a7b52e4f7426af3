import json
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest

import paperlib
from paperlib.data.images import read_rgb
from paperlib.data.sources import embedded_path
from paperlib.errors import UserError
from paperlib.evaluation.paper_numbers import reported
from paperlib.reporting import costs, figures, viewer
from paperlib.reporting.claims import CLAIMS
from paperlib.reporting.exported import export_notebooks
from paperlib.reporting.report import write_report
from paperlib.reporting.summary import method_line, write_summary
from paperlib.run import measured_row, open_run


class _Page(HTMLParser):
    """Tags and attributes of a page, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.links, self.ids, self.open, self.text = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids.add(values.get("id"))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    return open_run("demo", tmp_path / "out")


def fill(run):
    """Fabricated records, figures and an executed notebook."""
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    keys = [key for key in reported() if key[0] in "BCD" or key[0] == "abstract"]
    run.record("06_tflite_eval", [measured_row(*key, reported()[key] - 2, "validation") for key in keys],
               teacher="<small> teacher")
    run.record("05_fuse_qat", [], drop=[{"what": "weights only", "psnr": 27.1, "drop": 0.05}])
    run.record("00_reproduce", [], notebooks={"06_tflite_eval": {"seconds": 33.3, "peak_bytes": 2e9}})
    history = [{"step": 1, "loss": 0.1, "psnr_rgb": 26.0}, {"step": 2, "loss": 0.05, "psnr_rgb": 27.0}]
    run.figure("02_curves", figures.curves(history))
    run.figure("09_surprise", figures.curves(history))
    viewer.save_comparison(run, "noise", {"bicubic": image, "INT8": image, "original": image})
    cell = nbformat.v4.new_code_cell("1 + 1", outputs=[nbformat.v4.new_output("stream", text="two\n")])
    run.folder("notebooks")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), run.out / "notebooks" / "06_tflite_eval.ipynb")


def test_the_page_needs_nothing_from_anywhere(run):
    fill(run)
    export_notebooks(run)
    text = write_report(run).read_text()
    page = _Page(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for source in page.sources)
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert (run.out / link).exists(), link


def test_claims_come_first_and_a_page_for_ones_own_pictures_is_linked_where_it_is(run):
    fill(run)
    text = write_report(run).read_text()
    words = " ".join(" ".join(_Page(text).text).split())
    assert words.index("Table B: the student beats bicubic, FP32") < words.index("Reported and measured")
    assert len(re.findall(r'<td class="what">Table [BCD]: ', text)) == len(CLAIMS)
    assert "paperlib page --out out/upscale.html in results/" in words
    (run.out / "upscale.html").touch()
    assert '<a href="upscale.html">' in write_report(run).read_text()


def test_every_figure_is_on_both_pages_photographs_and_drawings(run):
    fill(run)
    hr = read_rgb(embedded_path("astronaut.png"))[:240, :240]
    run.figure("06_crops", figures.crops(hr[::3, ::3], {"one": hr}, hr, 240))
    summary = write_summary(run).read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", summary)
    assert links == ["figures/02_curves.png", "figures/06_crops.webp", "figures/09_surprise.png"]
    assert all((run.out / link).is_file() for link in links)
    text = write_report(run).read_text()
    assert all(f'alt="{name}' in text for name in ("02 curves", "06 crops", "09 surprise"))


def test_the_page_shows_verdicts_numbers_teacher_and_what_rounding_costs(run):
    fill(run)
    text = write_report(run).read_text()
    words = " ".join(" ".join(_Page(text).text).split())
    assert "&lt;small&gt; teacher" in text
    assert "not the paper's numbers" in words
    assert "26.26 dB" in words  # bicubic
    assert "+2.020 dB against bicubic" in words
    assert "weights only 27.100 0.050" in words
    assert "2.0 GB" in words
    assert 'class="badge undecided"' in text  # one seed
    assert 'class="badge not-public"' in text
    assert "09_surprise" in words


def test_changed_settings_are_named_and_another_runs_records_are_not_shown(tmp_path, run):
    changed = open_run("demo", run.out, {"stage1.steps": 7, "quant.start": "there.pt"})
    fill(changed)
    page, summary = write_report(changed).read_text(), write_summary(changed).read_text()
    for text in (page.replace("&#34;", '"'), summary):
        assert 'stage1.steps = 7, quant.start = "there.pt"' in text
    plain = open_run("demo", run.out)  # the same folder, with the profile's own settings
    assert "no record names one" in write_summary(plain).read_text()
    fill(plain)
    assert "Settings that differ" not in write_summary(plain).read_text()


def test_an_empty_run_says_not_run_everywhere(run):
    page = write_report(run)
    words = " ".join(" ".join(_Page(page.read_text()).text).split())
    for notebook in ("02_stage1", "05_fuse_qat", "06_tflite_eval", "07_ablations"):
        assert re.search(rf"not run Written by notebook [\w, ]*{notebook}", words), notebook
    assert "trend holds" not in words


def test_notebook_pages_load_nothing(run):
    fill(run)
    (page,) = export_notebooks(run)
    text = page.read_text()
    assert "two" in text
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", text)
    assert "cdnjs" not in text


def test_formulas_of_notebook_pages_are_typeset_without_a_script(run):
    text = "\n".join([r"The fold is $w' = \frac{\gamma}{\sigma} w$:", "", "$$",
                      r"\lambda(t) = \begin{cases} a & t < p \\ b & t \ge p \end{cases}", "$$"])
    run.folder("notebooks")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, run.out / "notebooks" / "05_fuse_qat.ipynb")
    page = export_notebooks(run)[0].read_text()
    body = page[page.index("<body"):]
    assert body.count("<math") == 2
    assert "<mfrac>" in body
    assert "<mtable" in body
    assert 'display="block"' in body
    assert "\\frac" not in body
    assert "$" not in re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)


def test_what_is_no_formula_stays_as_it_was_written(run):
    run.folder("notebooks")
    words = r"Open: $\left( x$ and $a_{$. Then $x^2$."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(words)])
    nbformat.write(notebook, run.out / "notebooks" / "05_fuse_qat.ipynb")
    page = export_notebooks(run)[0].read_text()
    assert r"$\left( x$ and $a_{$. Then <math" in page
    assert page.count("<math") == 1


def test_the_package_ships_what_the_page_is_made_of():
    folder = Path(paperlib.__file__).parent
    patterns = tomllib.loads((folder.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for place, names in {"data": ["open.csv", "cid22.csv", "clic_val.csv"], "evaluation": ["reported.csv"],
                         "reporting": ["report.html", "report.css", "compare.css", "peers.csv"],
                         "": ["paper.mplstyle"]}.items():
        package = f"paperlib.{place}".rstrip(".")
        for name in names:
            assert (folder / place / name).is_file()
            assert any(fnmatch(name, pattern) for pattern in patterns[package]), name


def test_costs_are_drawn_from_records_and_bench_json_and_not_run_without(run):
    empty = " ".join(" ".join(_Page(write_report(run).read_text()).text).split())
    assert empty.count("Written by paperlib bench --json out/bench.json") == 2
    assert "not run Written by notebook 06_tflite_eval, with the extra npu" in empty
    peers = "Peers were trained for longer"
    assert peers not in empty
    psnr = lambda row, value: measured_row(*row, "int8", "psnr", value, "validation")
    estimate = {"accelerator": "ethos-u65-512", "cpu_operators": ["DEPTH_TO_SPACE"], "cycles_total": 3_000_000}
    run.record("06_tflite_eval", [psnr(("abstract", "student_fixed_tflite_learnt"), 27.0)], export={"npu": [estimate]})
    forms = {"add": 4_000_000, "exact": 5_000_000}
    run.record("07_ablations", [psnr(("D", "qat_teacher_learnt"), 26.5)], graph_forms=forms)
    path = "/elsewhere/out/checkpoints/export/student_fixed_int8.tflite"
    times = {"ms_1_thread": 4.0, "ms_2_threads": 2.0, "input_size": [100, 200]}
    bench = {"data": {"ratio_cache_vs_decode": 150.0, "what": "x"}, "scan": {"ratio_vs_loop": None},
             "int8": {"files": {path: times, path.replace("/out/", "/other/"): times}}, "skipped": {"teacher": "no"},
             "light": {"ratio_wall": 0.6, "memory_of_bare": 1.1}, "provenance": {"commit": "0123456789", "threads": 2,
             "cpu": {"model": "Some CPU", "instructions": ["avx2"]}}}
    (run.out / "bench.json").write_text(json.dumps(bench))
    assert [(point["name"], point["cycles"], point["psnr"]) for point in costs.npu_points(run)] == [
        ("ethos-u65-512", 3.0, 27.0), ("skip: add", 4.0, 26.5)]
    assert [(point["name"], point["group"], point["ns"]) for point in costs.latency_points(run)] == [
        ("fixed", "one thread", 200.0), ("fixed", "two threads", 100.0)]
    assert costs.ratios(bench) == {"data: cache vs decode": 150.0}  # shares of an older version are none
    text = costs.speed_text(run.out / "bench.json", "there/bench.json")
    assert "[bench.json](there/bench.json), by `paperlib bench`: commit 01234567, 2 threads of an Some CPU (avx2)" in (
        text)
    assert text.endswith("| data: cache vs decode | 150 | x |")
    alone = open_run(run.settings.profile, run.out.parent / "alone")
    alone.record("07_ablations", [psnr(("D", "qat_teacher_learnt"), 26.5)], graph_forms=forms)
    assert costs.npu_scatter(run) is not None
    assert costs.npu_scatter(alone) is None
    axes = costs.ratio_bars(bench).axes[0]
    assert axes.get_xscale() == "log"
    assert "right of 1 ours is faster" in axes.get_xlabel()
    page = _Page(write_report(run).read_text())
    words = " ".join(" ".join(page.text).split())
    assert "paperlib bench" not in words
    assert peers in words
    assert len(page.sources) == 4
    assert "AntYSP is 2^3.59" in words
    (run.out / "bench.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_report(run)


def test_the_method_line_follows_the_record_and_not_the_profile(run):
    """A record of an older version does not say which method made it, and nothing is made up for it."""
    path = run.record("05_fuse_qat", [])
    assert method_line(run).startswith("The paper's method, on other data")
    record = json.loads(path.read_text())
    record["settings"]["method"] = "ours"
    path.write_text(json.dumps(record))
    assert method_line(run).startswith("Our method")
    del record["settings"]["method"]
    path.write_text(json.dumps(record))
    assert method_line(run).startswith("Recorded by an older version")
