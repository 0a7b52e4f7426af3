"""The paper's tables with what was measured beside every number (paper section 7).

`reported.csv` holds the paper's numbers; a run's records hold ours. Every reported number gets a row with a verdict,
also where nothing was measured.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.evaluation.paper_numbers import DATASET, Key, entries, reported, score
from paperlib.files import write_text
from paperlib.profiles import equals_paper, part_of
from paperlib.reporting.verdicts import Row, Verdict, comparisons, kept_order, tolerance, trend
from paperlib.run import Run
from paperlib.settings import Settings

TABLES = {"B": "baselines on DIV2K validation", "C": "backbone, FP32 and INT8 TFLite", "D": "teacher in stage 3",
          "abstract": "the shipped files", "audit": "the authors' own artifacts",
          "A": "leaderboard of the challenge (MAI 2026)"}
"""What each table is about; the leaderboard comes last, since hardly anything of it can be measured."""
PAPER_TABLES = tuple(name for name in TABLES if name != "audit")
COLUMNS = ("table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance", "verdict", "evidence",
           "effect_reported", "effect", "low", "high", "seeds", "images")


SAME_NETWORK = {
    ("B", "student_stage2", "fp32"): ("C", "mobileone_float", "fp32"),
    ("B", "student_deploy", "int8"): ("C", "mobileone", "fp32"),
    ("abstract", "student_dynamic_tflite", "int8"): ("C", "mobileone", "int8"),
}
"""Rows that Table C's pipeline measures under another name, with MobileOne by the paper's method: float after stage 2,
fake-quantised after stage 3 (Table B's "INT8", the very number that Table C calls FP32), the post-training file."""


def measured_values(run: Run) -> dict[Key, dict[str, Any]]:
    """What a run measured on the validation photographs, by key; a field of `Run.rows` that is empty is None.

    Where notebooks 04 and 06 did not run, Table C's pipeline stands for them (`SAME_NETWORK`; `also` names its row).
    """
    rows = run.rows()
    rows = rows[rows["dataset"] == DATASET].astype(object)
    lines = rows.where(rows.notna(), None).to_dict("records")
    found = {(line["table"], line["row"], line["precision"], line["metric"]): line for line in lines}
    whole = all((*row, "psnr") in found for row in SAME_NETWORK.values())  # older records: another pipeline
    for row, other in SAME_NETWORK.items() if whole else ():
        for metric in ("psnr", "ssim"):
            if (*other, metric) in found:
                found.setdefault((*row, metric), found[*other, metric] | {"also": f"as {' '.join(other)}"})
    return found


def validation_psnr(run: Run, table: str, row: str, precision: str | None = None) -> float | None:
    """A measured PSNR on the validation photographs, in dB; None where there is none."""
    return next((line["value"] for key, line in measured_values(run).items()
                 if key == (table, row, precision or key[2], "psnr")), None)


def _row(settings: Settings, key: Key, values: dict[Key, dict[str, Any]]) -> Row:
    """One reported number with what is known of it in this run."""
    profile = settings.profile
    if key[0] != "A":  # the paper's in name is not enough: data, schedule and method must be its own
        part = part_of(key[0], key[1]) if not values.get(key, {}).get("also") else "C"
        profile = "paper" if equals_paper(settings, part) else f"{profile}, changed"
    paper, (limit, _) = reported()[key], tolerance(key)
    if key[0] == "A":
        if key[3] == "score":
            return Row(*key, paper, score(*entries()[key[1]]), limit, Verdict.RECOMPUTED,
                       "arithmetic on the reported PSNR and time", profile)
        return Row(*key, paper, None, None, Verdict.NOT_PUBLIC, "needs the challenge's images and device", profile)
    if values.get(key, {}).get("value") is None:
        return Row(*key, paper, None, limit, Verdict.NOT_RUN, "", profile)
    mine, evidence = values[key]["value"], f"records/{values[key]['record']}.json"
    if values[key].get("sd") is not None:
        evidence += f" (mean of {len(values[key]['values'])} seeds, sd {values[key]['sd']:.2g})"
    if values[key].get("also"):
        evidence += f" ({values[key]['also']})"
    if profile == "paper":
        near = abs(mine - paper) <= limit and kept_order(key, reported(), values)
        verdict = Verdict.REPRODUCED if near else Verdict.MISSED
    else:
        verdict, note = trend(key, reported(), values)
        evidence += f": {note}"
    compared = next(iter(comparisons(key, reported(), values)), None)
    return Row(*key, paper, mine, limit, verdict, evidence, profile, compared)


def table_rows(run: Run, tables: Sequence[str] = PAPER_TABLES) -> list[Row]:
    """Every row of the named tables; what has no measurement is `not run`.

    Raises:
        UserError: a record is damaged.
        ValueError: an unknown table.
    """
    if unknown := set(tables) - set(TABLES):
        raise ValueError(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    values = measured_values(run)
    rows = [_row(run.settings, key, values) for key in reported() if key[0] in tables]
    return rows + (audit_rows(run) if "audit" in tables else [])


def audit_rows(run: Run) -> list[Row]:
    """The audit's rows, from the field `audit` of any record; empty where the authors' files were not at hand."""
    lines = [(name, line) for name, record in run.records().items() for line in record.get("audit") or []]
    return [Row(line.get("table") or "audit", line["row"], line["precision"], line["metric"], line.get("reported"),
                line.get("reproduced"), line.get("tolerance"), line["verdict"],
                ": ".join(filter(None, (f"records/{name}.json", line.get("evidence")))), run.settings.profile)
            for name, line in lines]


def audit_table(run: Run) -> pd.DataFrame:
    """The audit's rows for the eye."""
    return frame(audit_rows(run))


def _values(row: Row) -> dict[str, Any]:
    effect = row.comparison.effect if row.comparison else None
    compared = {"effect_reported": row.comparison.reported if row.comparison else None} | {
        name: getattr(effect, field, None) for name, field in (
            ("effect", "mean"), ("low", "low"), ("high", "high"), ("seeds", "seeds"), ("images", "images"))}
    return {name: getattr(row, name) for name in COLUMNS[:10]} | {"verdict": row.verdict.value} | compared


def _number(value: Any, places: int, sign: str = "") -> str:
    """Text for the eye: fixed decimals without trailing zeros, empty where there is none."""
    if value is None or value == "":
        return ""
    text = f"{float(value):{sign}.{places}f}".rstrip("0").rstrip(".")
    return "0" if text in ("+0", "-0") else text


def rounded(data: pd.DataFrame) -> pd.DataFrame:
    """A copy with its numbers as text for the eye."""
    shown = data.copy()
    for name in ("reported", "reproduced"):
        shown[name] = [_number(value, 4) for value in data[name]]
    shown["delta"] = [_number(value, 4, "+") for value in data["delta"]]
    shown["tolerance"] = [_number(value, 3) for value in data["tolerance"]]
    for name in ("effect_reported", "effect", "low", "high"):
        if name in data:
            shown[name] = [_number(value, 3, "+") for value in data[name]]
    return shown


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table for the eye: numbers rounded, empty where there is none; effects in words stand in `evidence`."""
    data = pd.DataFrame([_values(row) for row in rows], columns=list(COLUMNS), dtype=object)
    return rounded(data[list(COLUMNS[:10])].map(lambda value: "" if value is None else value))


def by_row(rows: Sequence[Row]) -> pd.DataFrame:
    """One line a row of the paper, PSNR and SSIM together, the paper's first difference beside ours with its interval.

    Columns: table, row, precision, reported, measured ("PSNR / SSIM"), compared with, paper's difference, ours, verdict
    (PSNR's, and SSIM's where it is another).
    """
    lines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.table, row.row, row.precision), {})[row.metric] = row
    shown = []
    for (table, name, precision), found in lines.items():
        first, both = next(iter(found.values())), [found[metric] for metric in ("psnr", "ssim") if metric in found]
        words = list(dict.fromkeys(row.verdict.value for row in both or [first]))
        compared = first.comparison
        shown.append({
            "table": table, "row": name, "precision": precision,
            "reported": " / ".join(filter(None, (_number(row.reported, 4) for row in both or [first]))),
            "measured": " / ".join(filter(None, (_number(row.reproduced, 4) for row in both or [first]))),
            "compared": compared.label if compared else "",
            "paper's difference": f"{compared.reported:+.4g}" if compared else "",
            "ours": str(compared.effect) if compared else "",
            "verdict": words[0] if len(words) == 1 else f"{words[0]} (SSIM: {words[1]})"})
    return pd.DataFrame(shown)


class Whole(pd.DataFrame):
    """A table that a notebook or terminal shows with the whole text of every cell."""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return super()._repr_html_()

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return super().__repr__()


def reported_vs_measured(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Reported beside measured for the named tables, one line a row: the closing cell of a notebook, shown whole."""
    return Whole(by_row(table_rows(run, tables)))


def measured(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Everything measured under the named tables, one line a model and image set, scores in columns.

    Rows with one name in two tables, or in two records, are different measurements: each keeps its line.
    """
    rows = run.rows()
    rows = rows[rows["table"].isin(tables) & rows["value"].notna()]
    if rows.empty:
        return pd.DataFrame(columns=["table", "row", "precision", "dataset"])
    shown = rows.pivot_table(index=["record", "table", "row", "precision", "dataset"], columns="metric", values="value",
                             aggfunc="last", sort=False)
    return shown.reset_index().drop(columns="record").rename_axis(columns=None).round(4)


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV in the contract's columns, numbers to six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(_number(value, 6) if isinstance(value, float) else value for value in _values(row).values())
    return text.getvalue()


def markdown(data: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(data.columns), *data.to_numpy().tolist()]
    text = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + " --- |" * len(data.columns), *text[1:]])


def write_tables(run: Run) -> Path:
    """Write tables/*.csv of a run, one file a table; returns the folder."""
    folder = run.folder("tables")
    for name in TABLES:
        write_text(folder / f"{name}.csv", csv_text(table_rows(run, [name])))
    return folder


STEPS = {
    ("B", "bicubic"): "bicubic", ("stages", "teacher"): "teacher", ("stages", "stage1"): "stage 1",
    ("B", "student_stage2"): "stage 2", ("stages", "fused_before_qat"): "fused, before QAT",
    ("stages", "rounded_before_qat"): "rounded to INT8 without training",
    ("export", "float_after_qat"): "stage 3, only the weights rounded",
    ("export", "fakequant"): "stage 3, fake-quantised",
    ("export", "tflite_dynamic"): "INT8 TFLite, dynamic",
    ("abstract", "student_fixed_tflite_learnt"): "INT8 TFLite, fixed",
    ("export", "tflite_post_training"): "INT8 TFLite by post-training quantisation (the authors' way), dynamic",
    ("abstract", "student_fixed_tflite"): "the same, fixed, with the authors' padding and tiles"}
"""(table, row) of a measured row → what it is, in the order of the method."""


def score_ladder(run: Run) -> pd.DataFrame:
    """PSNR (dB) and SSIM in RGB of every step on every image set, one line a step; steps not run are left out."""
    rows, table = run.rows(), []
    for (name, row), label in STEPS.items():
        chosen = rows[(rows["table"] == name) & (rows["row"] == row) & rows["metric"].isin(["psnr", "ssim"])]
        if chosen.empty:
            continue
        line = {"step": label, "precision": chosen["precision"].iloc[0]}
        for metric, dataset, value in zip(chosen["metric"], chosen["dataset"], chosen["value"], strict=True):
            places = 3 if metric == "psnr" else 4
            line[f"{dataset} {metric.upper()}"] = "" if math.isnan(value) else f"{value:.{places}f}"
        table.append(line)
    return pd.DataFrame(table).fillna("")


def parity_line(run: Run) -> str:
    """How far the INT8 files are from the fake-quantised network, as 06 measured it, in a sentence."""
    files = run.records().get("06_tflite_eval", {}).get("parity")
    if not files:
        return "not measured (06_tflite_eval has not run)"
    return "; ".join(
        f"{file['file']}: {100 * file['equal']:.2f} % of {file['values']:,} values equal, "
        f"{100 * file['within_1_lsb']:.3f} % within one step, largest difference {file['max_lsb']:.0f}"
        for file in files)
