"""`summary.md` and `report.html`: one text from a run's results, as Markdown and as a page.

The page is that Markdown with the figures inside and the divider to drag; it loads nothing, fits a
phone and can be printed (paper section 7).
"""

import html
from pathlib import Path
from urllib.parse import unquote

import mistune
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from paperlib.environment import to_portable
from paperlib.evaluation.paper_numbers import DATASET
from paperlib.files import read_json, write_text
from paperlib.profiles import NOTEBOOKS
from paperlib.reporting import costs, ending, figures, notes, tables, viewer
from paperlib.reporting.results import TABLES, Results
from paperlib.reporting.tables import inert, markdown
from paperlib.reporting.verdicts import Verdict
from paperlib.run import Run

CAPTIONS = {
    "pair": "One pair: LR, bicubic by two kernels, HR. PSNR is over the whole photograph.",
    "batch": "Patches of one training step: LR above, HR below.",
    "curves": "Loss and its terms (left, means since the last point), validation PSNR of the "
              "averaged weights (right).",
    "crops": "The most detailed part of a validation photograph; PSNR is over the whole one.",
    "confidence": "Where the teacher is trusted: its weight in the distillation loss.",
    "error": "INT8 file minus float network, in grey levels.",
    "ranges": "What each layer's grid has to span.",
    "shares": "What each term of the loss is worth, in value and in gradient.",
    "sqnr": "How much of the signal survives the rounding up to each layer. The skip brings the "
            "picture itself back, which is large: there the ratio rises.",
    "backbones": "Trained on one short, equal schedule: the bars compare with each other alone, and "
                 "where they lie below bicubic not even that.",
    "ruler": "TensorFlow's float32 mean drifts once millions of numbers are added (left); what that "
             "adds to the SSIM of 36 photographs of DIV2K (right).",
    "selection": "The authors' log of stage 3: the reported score is the best of 150 epochs on the "
                 "reported images.",
    "cost": "Public models on the same images. Peers were trained for longer, on DIV2K and more. "
            "Of ours, the operations of the float network.",
}
"""Part of a figure's name → its caption; the first that is in the name."""


def _folded(results: Results) -> dict[str, pd.DataFrame]:
    """Tables by title, without those in which nothing was measured."""
    bench = results.run.out / "bench.json"
    found = {}
    for name, title in TABLES.items():
        table = results.tables[name]
        if name not in ("A", "audit") and table["reproduced"].notna().any():
            found[title] = tables.by_row(table)
    if results.dataset != DATASET:
        found["The paper's claims on the images for choosing"] = tables.claims_table(results.run)
    found |= {
        "The authors' own files": tables.audit_table(results),
        "What the abstract says of the method": tables.abstract_table(results),
        "Stage 3's choices, one changed at a time": tables.changes(results),
        "Everything measured, on every image set":
            tables.measured(results, results.rows["table"].unique()),
        "The shipped file in other runtimes":
            costs.portability_table(read_json(bench) if bench.is_file() else {}),
        "Settings that the paper has otherwise": ending.settings_table(results)}
    return {title: table for title, table in found.items() if len(table)}


def _records(results: Results) -> pd.DataFrame:
    """Links, provenance and cost of every notebook that ran."""
    run, lines, parts = results.run, [], results.records.get("00_reproduce", {}).get("notebooks", {})
    for name in (name for name in NOTEBOOKS if name in results.records):
        record, folder = results.records[name], run.out / "notebooks"
        cost = {"seconds": record["seconds"]} | parts.get(name, {})
        page = next((f"notebooks/{name}{kind}" for kind in (".html", ".ipynb")
                     if (folder / f"{name}{kind}").is_file()), None)
        lines.append({
            "notebook": Markup(f"[{name}]({page})") if page else name,
            "record": Markup(f"[{Path(path := run.record_path(name)).name}]({path})"),
            "commit": (record["commit"] or "none")[:10] + " with changes" * bool(record["dirty"]),
            "seed": record["seed"], "seconds": f"{cost['seconds']:.0f}",
            "memory": f"{cost['peak_bytes'] / 1e9:.1f} GB" if name in parts else "",
            "torch": record["versions"].get("torch"), "device": record["device"],
            "threads": record["threads"]})
    return pd.DataFrame(lines)


def _text(results: Results, dividers: str) -> str:
    """The text; only the divider differs between summary and page."""
    run = results.run
    if len(points := costs.cost_points(results)):  # the one figure that no notebook draws
        run.figure("08_cost", figures.quality_against_cost(points))
    whose, teacher, steps = ending.about(results)
    claims = tables.claims_table(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: markdown(value) if isinstance(value, pd.DataFrame) else inert(value))
    return environment.get_template("summary.md.jinja").render(
        run=run, images=results.dataset.replace(DATASET, "the validation images"),
        asked=_asked(run), whose=whose, teacher=teacher, steps=steps,
        dividers=Markup(dividers),
        ladder=ending.ladder(results),
        saw=pd.DataFrame([(*found, name[:2]) for name, record in results.records.items()
                          for found in notes.findings(record)],
                         columns=["measured", "value", "notebook"]),
        upscale_page=(run.out / "upscale.html").is_file(), claims=claims,
        unmeasured=len(results.claims) - len(claims), claimed=len(results.claims),
        verdicts=[word for word in Verdict if word in set(claims["verdict"])],
        figures={path.name: next((text for part, text in CAPTIONS.items() if part in path.stem), "")
                 for path in sorted(run.out.glob("figures/[0-9]*"))
                 if path.suffix in (".png", ".webp")},
        folded=_folded(results), records=_records(results))


def _asked(run: Run) -> dict[str, str]:
    """`title`, `answer` and `how` of a committed run, from the list beside it; else empty."""
    for folder in list(run.out.parents)[:2]:
        if (folder / "questions.json").is_file():
            asked = read_json(folder / "questions.json")
            found = isinstance(asked, dict) and asked.get(run.out.relative_to(folder).as_posix())
            return found if isinstance(found, dict) else {}  # or somebody else's file
    return {}


class _Page(mistune.HTMLRenderer):
    """Markdown as the page: figures inside, every cell with its heading, verdicts as badges."""

    def __init__(self, out: Path) -> None:
        super().__init__(escape=False)
        self._out, self._heads, self._place = out, [], 0

    def image(self, text: str, url: str, title: str | None = None) -> str:
        source = viewer.data_url((self._out / unquote(url)).read_bytes())
        return f'<img class="figure" alt="{html.escape(text)}" src="{source}">'

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        if head:
            self._heads, self._place = [*self._heads, text] if self._place == 0 else [text], 0
            return f"<th>{text}</th>"
        name = self._heads[self._place % len(self._heads)]
        self._place += 1
        if text in set(Verdict):
            text = f'<span class="badge {text.split(" (")[0].replace(" ", "-")}">{text}</span>'
        return f'<td data-label="{html.escape(name)}">{text}</td>'


def write_summary(source: Run | Results) -> Path:
    """Write summary.md from whatever records there are; returns its path."""
    results = Results.of(source)
    found = viewer.saved_comparisons(results.run)
    text = _text(results, "With a divider to drag: [report.html](report.html)." if found else "")
    return write_text(results.run.out / "summary.md", to_portable(text, results.run.out))


def write_report(source: Run | Results) -> Path:
    """Write report.html, the same text on a page; returns its path."""
    results, folder = Results.of(source), Path(__file__).parent
    dividers = "\n".join(viewer.divider(name, pictures)
                         for name, pictures in viewer.saved_comparisons(results.run).items())
    text = _text(results, dividers and f'<div class="dividers">\n{dividers}\n</div>')
    render = mistune.create_markdown(renderer=_Page(results.run.out), plugins=["table"])
    css = "".join(path.read_text(encoding="utf-8")
                  for path in (viewer.STYLESHEET, folder / "report.css"))
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True)
    page = environment.get_template("report.html").render(
        title=text.partition("\n")[0].removeprefix("# "), css=Markup(css),
        script=Markup(viewer.PICK), body=Markup(render(text)))
    return write_text(results.run.out / "report.html", to_portable(page, results.run.out))
