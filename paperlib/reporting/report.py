"""`summary.md` and `report.html`: one text from a run's results, as Markdown and as a page.

The page is that Markdown with the figures inside and the divider to drag; it loads nothing, fits a
phone and can be printed (paper section 7).
"""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import mistune
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from paperlib.environment import to_portable
from paperlib.files import write_text
from paperlib.profiles import NOTEBOOKS, TRAINED_BY, load_settings, note
from paperlib.reporting import costs, ending, figures, notes, tables, viewer
from paperlib.reporting.results import TABLES, Results
from paperlib.reporting.verdicts import MEANING, Verdict
from paperlib.run import Run
from paperlib.settings import flatten

CAPTIONS = {
    "pair": "One pair: LR, the baseline, HR. PSNR is over the whole photograph.",
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
    "backbones": "Trained on one short, equal schedule; the bars compare with each other alone.",
    "cost": "Public models on the same images. Peers were trained for longer, on DIV2K and more.",
}
"""Part of a figure's name → its caption; the first that is in the name."""


def caption(name: str) -> str:
    """What a figure shows, by the name of its file; empty where nobody has said so."""
    return next((text for part, text in CAPTIONS.items() if part in name), "")


def inert(value: Any) -> str:
    """Text of other people as Markdown that no reader takes for a tag, a link or a new cell."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return text.replace("](", "]\\(").replace("|", "\\|")


def _safe(value: Any) -> Any:
    return value if isinstance(value, Markup) else inert(value)


def _table(data: pd.DataFrame) -> Markup:
    """A data frame as a Markdown table of inert text; floats to three decimals."""
    lines = [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in line]
             for line in data.astype(object).where(data.notna(), "").to_numpy().tolist()]
    rows = [list(data.columns), ["---"] * len(data.columns), *lines]
    return Markup("\n".join(f"| {' | '.join(map(inert, row))} |" for row in rows))


def _settings(results: Results) -> tuple[str, Markup | None]:
    """How many steps were trained, in a sentence; and every setting that the paper has otherwise."""
    recorded = [record["settings"] for name, record in results.records.items() if name in NOTEBOOKS]
    mine = flatten("", recorded[-1] if recorded else results.run.settings.model_dump(mode="json"))
    paper = flatten("", load_settings("paper", {"method": "paper"}).model_dump(mode="json"))
    found = [(name, mine[name], value) for name, value in paper.items()
             if mine.get(name, value) != value and name != "profile" and not name.endswith(".expect")]
    trained = [f"{stage}.steps" for stage, name in TRAINED_BY.items() if name in results.records]
    steps = ", ".join(f"{name.removesuffix('.steps')} {value:,} steps for {usual:,}"
                      for name, value, usual in found if name in trained)
    whose = {"paper": "The paper's method", "released": "The released run's method",
             "ours": "Our method"}.get(mine.get("method"))
    if not found:
        return f"{whose}, data and schedule.", None
    shown = [(name, json.dumps(value, ensure_ascii=False), json.dumps(usual, ensure_ascii=False))
             for name, value, usual in found]
    said = ": ".join(filter(None, [whose, steps]))
    return said and f"{said}.", _table(pd.DataFrame(shown, columns=["setting", "here", "the paper"]))


def _teacher(record: Mapping[str, Any]) -> str:
    """A record's teacher without the details of how it was found; empty where none is named."""
    name = (record.get("teacher") or "").partition(";")[0]
    return name + ")" * (name.count("(") - name.count(")"))


def _ladder(results: Results) -> Markup | None:
    """PSNR of every step that ran, from bicubic to the shipped file; None where nothing did."""
    lines = [{"step": words, "PSNR (dB)": f"{value:.2f}", "against the line above": gain}
             for words, value, gain in ending.ladder(results)]
    return _table(pd.DataFrame(lines)) if lines else None


def _claims(shown: list[dict[str, Any]]) -> Markup:
    """The paper's claims that were measured, in dB of PSNR."""
    lines = []
    for claim in shown:
        lines.append({"claim": claim["claim"], "verdict": claim["verdict"].value,
                      "the paper": f"{claim['reported']:+.3f}", "here": tables.effect_text(claim),
                      "paper's inside": claim["reported_inside"],
                      "remarks": "; ".join(claim["remarks"])})
    return _table(pd.DataFrame(lines))


def _saw(results: Results) -> Markup:
    """What each notebook saw, a list under its name."""
    lines = ((name, notes.sentences(results.records, name)) for name in NOTEBOOKS)
    return Markup("\n\n".join(
        f"**{name[:2]} · {re.sub('stage', 'stage ', name[3:]).replace('_', ' ')}**\n\n"
        + "\n".join(f"- {line}" for line in said)
        for name, said in lines if said))


def _meanings(results: Results) -> Markup:
    """What the verdicts mean that occur."""
    words = {claim["verdict"] for claim in results.claims if claim["effect"] is not None}
    return Markup("\n".join(f"- {word}: {MEANING[word]}" for word in Verdict if word in words))


def _folded(results: Results, settings: Markup | None) -> dict[str, Markup]:
    """Tables by title, without those in which nothing was measured."""
    found, bench = {}, costs.read_bench(results.run.out / "bench.json")
    for name, title in TABLES.items():
        table = results.tables[name]
        if name in ("A", "audit") or table["reproduced"].isna().all():
            continue
        heading = f"Table {name}" if len(name) == 1 else name.capitalize()
        found[f"{heading}: {title}"] = _table(tables.by_row(table))
    more = {"The authors' own files": tables.audit_table(results),
            "Stage 3's choices, one changed at a time": tables.changes(results),
            "Everything measured, on every image set":
                tables.measured(results, results.rows["table"].unique()),
            "The shipped file in other runtimes": costs.portability_table(bench)}
    found |= {title: _table(data) for title, data in more.items() if len(data)}
    return found | ({"Settings that the paper has otherwise": settings} if settings else {})


def _records(results: Results) -> Markup:
    lines, parts = [], results.records.get("00_reproduce", {}).get("notebooks", {})
    for name in (name for name in NOTEBOOKS if name in results.records):
        record, folder = results.records[name], results.run.out / "notebooks"
        page = next((f"notebooks/{name}{kind}" for kind in (".html", ".ipynb")
                     if (folder / f"{name}{kind}").is_file()), None)
        lines.append({
            "notebook": Markup(f"[{name}]({page})") if page else name,
            "record": Markup(f"[{name}.json](records/{name}.json)"),
            "commit": (record["commit"] or "none")[:10] + " with changes" * record["dirty"],
            "seed": str(record["seed"]), "seconds": f"{record['seconds']:.0f}",
            "memory": f"{parts[name]['peak_bytes'] / 1e9:.1f} GB" if name in parts else "",
            "torch": record["versions"].get("torch"), "device": record["device"],
            "threads": str(record["threads"])})
    return _table(pd.DataFrame(lines)) if lines else Markup("Nothing was run.")


def saved_figures(run: Run) -> list[Path]:
    """The figures of notebooks and report, PNG and WebP, in the notebooks' order."""
    return sorted(path for path in (run.out / "figures").glob("[0-9]*")
                  if path.suffix in (".png", ".webp"))


def _draw_costs(results: Results) -> None:
    """Save the one figure that no notebook draws: quality against cost, where Set5 was measured."""
    if ours := costs.our_points(results):
        results.run.figure("08_cost", figures.scatter(
            costs.peer_points() + ours, "macs", "psnr",
            "multiply-accumulates per LR pixel (thousands)", "PSNR RGB on Set5 (dB)",
            "Quality against cost, public models on the same images"))


def _text(results: Results, dividers: Markup) -> str:
    """The text; only the divider differs between summary and page."""
    run, whose = results.run, note(results.run.settings)
    steps, settings = _settings(results)
    teachers = dict.fromkeys(filter(None, map(_teacher, results.records.values())))
    shown = [claim for claim in results.claims if claim["effect"] is not None]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), finalize=_safe, trim_blocks=True,
        lstrip_blocks=True)
    return environment.get_template("summary.md.jinja").render(
        run=run, question=_question(run), whose=whose[0].upper() + whose[1:], steps=steps,
        teacher="; ".join(teachers) or "none was asked", ladder=_ladder(results), dividers=dividers,
        upscale_page=(run.out / "upscale.html").is_file(), saw=_saw(results),
        claims=_claims(shown) if shown else None,
        claimed=len(results.claims), unmeasured=len(results.claims) - len(shown), meanings=_meanings(results),
        figures=Markup("\n\n".join(
            f"![{inert(path.stem.replace('_', ' '))}](figures/{quote(path.name)})\n\n"
            f"{caption(path.stem)}".strip() for path in saved_figures(run))),
        folded=_folded(results, settings), records=_records(results))


def _question(run: Run) -> str:
    """What a committed run asks, from the list beside it; empty for a run of one's own."""
    for folder in list(run.out.parents)[:2]:
        if (folder / "questions.json").is_file():
            asked = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
            question = asked.get(run.out.relative_to(folder).as_posix(), "")
            return re.sub(r" ?\([^()]*\)", "", question).partition("? ")[0]
    return ""


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
        word = text.partition(" (SSIM")[0]
        if word in set(Verdict):
            text = f'<span class="badge {word.split(" (")[0].replace(" ", "-")}">{text}</span>'
        return f'<td data-label="{html.escape(name)}">{text}</td>'


def write_summary(source: Run | Results) -> Path:
    """Write summary.md from whatever records there are; returns its path.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    results = Results.of(source)
    _draw_costs(results)
    found = viewer.saved_comparisons(results.run)
    link = "With a divider to drag: [report.html](report.html)." if found else ""
    text = _text(results, Markup(link))
    return write_text(results.run.out / "summary.md", to_portable(text, results.run.out))


def write_report(source: Run | Results) -> Path:
    """Write report.html, the same text on a page; returns its path. Errors as `write_summary`."""
    results, folder = Results.of(source), Path(__file__).parent
    _draw_costs(results)
    dividers = "\n".join(viewer.divider(name, pictures)
                         for name, pictures in viewer.saved_comparisons(results.run).items())
    text = _text(results, Markup(f'<div class="dividers">\n{dividers}\n</div>' if dividers else ""))
    render = mistune.create_markdown(renderer=_Page(results.run.out), plugins=["table"])
    css = "".join(path.read_text(encoding="utf-8") for path in (viewer.STYLESHEET, folder / "report.css"))
    page = Environment(loader=FileSystemLoader(folder), autoescape=True).get_template("report.html").render(
        title=text.partition("\n")[0].removeprefix("# "), css=Markup(css),
        script=Markup(viewer.PICK), body=Markup(render(text)))
    return write_text(results.run.out / "report.html", to_portable(page, results.run.out))
