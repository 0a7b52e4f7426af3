"""`report.html`: a run on one self-contained page, to be read offline, on a phone, or printed (paper section 7).

Styles, pictures and the few lines of script are inside the file; nothing is loaded from anywhere. What was not run says
so in its place.
"""

from fnmatch import fnmatch
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from paperlib.environment import portable
from paperlib.files import write_text
from paperlib.profiles import NOTEBOOKS, note
from paperlib.reporting import challenge
from paperlib.reporting.captions import caption, saved_figures
from paperlib.reporting.claims import claims_table
from paperlib.reporting.costs import (
    latency_scatter,
    npu_form_table,
    npu_scatter,
    our_points,
    portability_notes,
    portability_table,
    ratio_bars,
    read_bench,
    standing_table,
)
from paperlib.reporting.differences import changes
from paperlib.reporting.figures import scatter
from paperlib.reporting.peers import peer_points
from paperlib.reporting.summary import MEANING, settings_changed, settings_used, teacher_used, verdict_counts
from paperlib.reporting.tables import TABLES, frame, measured, table_rows, validation_psnr
from paperlib.reporting.viewer import PICK, STYLESHEET, data_url, divider, saved_comparisons
from paperlib.run import STYLE, Run

FIGURES = {
    "training": ("*_curves",), "pictures": ("*_crops", "*_pair", "*_batch"), "errors": ("*error*",),
    "layers": ("05_*",), "distillation": ("03_*",), "ablations": ("07_*",),
}
"""Which figures belong to which section; each goes to the first that takes it, the others to the end of the page."""

def _picture(picture: bytes, name: str, words: str) -> dict[str, Any]:
    """A figure (PNG or WebP) for the template, shown at half its pixel size."""
    with Image.open(BytesIO(picture), formats=["PNG", "WEBP"]) as opened:
        width = opened.width // 2
    return {"url": data_url(picture), "width": width, "name": name, "caption": words}


def _figures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The run's figures by section."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in [*FIGURES, "other"]}
    for path in saved_figures(run):
        section = next((name for name, patterns in FIGURES.items()
                        if any(fnmatch(path.stem, pattern) for pattern in patterns)), "other")
        sections[section].append(_picture(path.read_bytes(), path.stem, caption(path.stem)))
    return sections


def _tables(run: Run) -> list[dict[str, Any]]:
    """The tables as text, one dict each; evidence split into record and remark."""
    tables = []
    for name, title in TABLES.items():
        lines = frame(table_rows(run, [name])).to_dict("records")
        for line in lines:
            record, _, remark = line["evidence"].partition(": ")
            if record.startswith("records/"):
                line |= {"record": record.split(" ")[0], "evidence": remark or record.partition(" ")[2]}
        heading = f"Table {name}" if len(name) == 1 else name.capitalize()
        tables.append({"name": name, "heading": heading, "title": title, "lines": lines})
    return tables


def _glance(run: Run) -> list[dict[str, str]]:
    """The few numbers that a reader wants first."""
    psnr = partial(validation_psnr, run)
    bicubic, student = psnr("B", "bicubic", "fp32"), psnr("B", "student_stage2", "fp32")
    int8, before = psnr("B", "student_deploy", "int8"), psnr("export", "float_before_qat", "fp32")
    fake, teacher = psnr("export", "fakequant", "fake-quant"), psnr("stages", "teacher", "fp32")
    cards = [("bicubic", bicubic, None, ""), ("teacher", teacher, bicubic, "against bicubic"),
             ("student, FP32", student, bicubic, "against bicubic"),
             ("student, INT8 TFLite", int8, before, "against its float network"),
             ("fake-quant in PyTorch", fake, int8, "against the INT8 file")]
    return [{"label": label, "value": "not run" if value is None else f"{value:.2f} dB",
             "note": "" if value is None or other is None else f"{value - other:+.3f} dB {what}"}
            for label, value, other, what in cards]


def _drawn(figure: Figure, name: str, words: str) -> dict[str, Any]:
    """A figure drawn for this page."""
    buffer = BytesIO()
    with style.context(STYLE):
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return _picture(buffer.getvalue(), name, words)


def _costs(run: Run) -> dict[str, dict[str, Any] | None]:
    """Quality against operations, NPU cycles and CPU time, and the benchmarks; None where nothing was measured.

    Other people's points stand only beside a run that made a file.
    """
    made, ours = "06_tflite_eval" in run.records(), our_points(run)
    remark = "" if ours else "This run measured nothing on Set5, so it is not in the figure. "
    drawn = {
        "macs": (scatter(peer_points() + ours, "macs", "psnr", "multiply-accumulates per LR pixel (thousands)",
                         "PSNR RGB on Set5 (dB)", "Quality against cost, public models on the same images")
                 if made else None,
                 remark + "Peers were trained for longer, on DIV2K and some on more."),
        "npu": (npu_scatter(run), "Cycles are estimated by Arm's Vela for Ethos-U NPUs: they rank forms of the "
                "graph and say nothing of the challenge's phone."),
        "latency": (latency_scatter(run), "Least time of an inference with XNNPACK, per pixel, since the files "
                    "have inputs of different size."),
        "bench": (ratio_bars(read_bench(run)), "Each ratio is of interleaved runs in one process.")}
    return {name: _drawn(figure, f"{name} costs" if name != "bench" else "benchmarks", text) if figure else None
            for name, (figure, text) in drawn.items()}


def _provenance(run: Run, records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    costs = records.get("00_reproduce", {}).get("notebooks", {})
    lines = []
    for name in NOTEBOOKS:
        pages = [path for path in (f"notebooks/{name}.html", f"notebooks/{name}.ipynb") if (run.out / path).is_file()]
        lines.append({"name": name, "record": records.get(name), "cost": costs.get(name),
                      "page": pages[0] if pages else ""})
    return lines


def write_report(run: Run) -> Path:
    """Write report.html from records, figures and comparisons; returns its path.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    records, folder, bench = run.records(), Path(__file__).parent, read_bench(run)
    sheets = [STYLESHEET, folder / "report.css"]
    rows = table_rows(run, list(TABLES))
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("report.html").render(
        run=run, whose=note(run.settings), records=records, teacher=teacher_used(records), tables=_tables(run),
        claims=claims_table(run).to_dict("records"), figures=_figures(run),
        page="upscale.html" if (run.out / "upscale.html").is_file() else "",
        counts=verdict_counts(rows), meaning=MEANING, glance=_glance(run), costs=_costs(run),
        dividers=[divider(name, pictures) for name, pictures in saved_comparisons(run).items()],
        portability={"runtimes": portability_table(bench), "notes": portability_notes(bench),
                     "forms": npu_form_table(bench), "standing": standing_table(bench)},
        measured=measured(run, run.rows()["table"].unique()),
        changes=changes(run).to_dict("records"), win=challenge,
        provenance=_provenance(run, records), settings=settings_used(run), changed=settings_changed(run),
        script=PICK, css="".join(path.read_text(encoding="utf-8") for path in sheets))
    return write_text(run.out / "report.html", portable(text, run.out))
