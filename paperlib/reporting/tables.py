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

from paperlib.errors import UserError
from paperlib.evaluation.reported import DATASET, Key, _leaderboard, reported, score
from paperlib.files import write_text
from paperlib.reporting.verdicts import Row, Verdict, noise, tolerance, trend
from paperlib.run import Run

TABLES = {"B": "baselines on DIV2K validation", "C": "backbone, FP32 and INT8 TFLite", "D": "teacher in stage 3",
          "abstract": "the shipped files", "audit": "the authors' own artifacts",
          "A": "leaderboard of the challenge (MAI 2026)"}
"""What each table is about; the leaderboard comes last, since hardly anything of it can be measured."""
PAPER_TABLES = tuple(name for name in TABLES if name != "audit")
COLUMNS = ("table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance", "verdict", "evidence")


def measured_values(run: Run) -> dict[Key, dict[str, Any]]:
    """What a run measured on the validation photographs, by key; a field of `Run.rows` that is empty is None."""
    rows = run.rows()
    rows = rows[rows["dataset"] == DATASET].astype(object)
    lines = rows.where(rows.notna(), None).to_dict("records")
    return {(line["table"], line["row"], line["precision"], line["metric"]): line for line in lines}


def validation_psnr(run: Run, table: str, row: str, precision: str | None = None) -> float | None:
    """A measured PSNR on the validation photographs, in dB; None where there is none."""
    return next((line["value"] for key, line in measured_values(run).items()
                 if key == (table, row, precision or key[2], "psnr")), None)


def _row(profile: str, key: Key, values: dict[Key, dict[str, Any]]) -> Row:
    """One reported number with what is known of it in this run."""
    paper, (limit, _) = reported()[key], tolerance(key)
    if key[0] == "A":
        if key[3] == "score":
            return Row(*key, paper, score(*_leaderboard(key[1])), limit, Verdict.RECOMPUTED,
                       "arithmetic on the reported PSNR and time", profile)
        return Row(*key, paper, None, None, Verdict.NOT_PUBLIC, "needs the challenge's images and device", profile)
    if values.get(key, {}).get("value") is None:
        return Row(*key, paper, None, limit, Verdict.NOT_RUN, "", profile)
    mine, evidence = values[key]["value"], f"records/{values[key]['record']}.json"
    if values[key].get("sd") is not None:
        evidence += f" (mean of {len(values[key]['values'])} seeds, sd {values[key]['sd']:.2g})"
    if profile == "paper":
        verdict = Verdict.REPRODUCED if abs(mine - paper) <= limit else Verdict.MISSED
    else:
        verdict, note = trend(key, reported(), values)
        evidence += f": {note}"
    return Row(*key, paper, mine, limit, verdict, evidence, profile)


def table_rows(run: Run, tables: Sequence[str] = PAPER_TABLES) -> list[Row]:
    """Every row of the named tables; what has no measurement is `not run`.

    Raises:
        UserError: a record is damaged.
        ValueError: an unknown table.
    """
    if unknown := set(tables) - set(TABLES):
        raise ValueError(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    values = measured_values(run)
    rows = [_row(run.settings.profile, key, values) for key in reported() if key[0] in tables]
    return rows + (audit_rows(run) if "audit" in tables else [])


def audit_rows(run: Run) -> list[Row]:
    """The audit's rows, from the field `audit` of any record; empty where the authors' files were not at hand."""
    lines = [(name, line) for name, record in run.records().items() for line in record.get("audit") or []]
    return [Row(line.get("table") or "audit", line["row"], line["precision"], line["metric"], line.get("reported"),
                line.get("reproduced"), line.get("tolerance"), line["verdict"],
                line.get("evidence") or f"records/{name}.json", run.settings.profile) for name, line in lines]


def audit_table(run: Run) -> pd.DataFrame:
    """The audit's rows for the eye."""
    return frame(audit_rows(run))


def _values(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COLUMNS} | {"verdict": row.verdict.value}


def _number(value: Any, places: int, sign: str = "") -> str:
    """Text for the eye: fixed decimals without trailing zeros, empty where there is none."""
    if value is None or value == "":
        return ""
    text = f"{float(value):{sign}.{places}f}".rstrip("0").rstrip(".")
    return "0" if text in ("+0", "-0") else text


def _rounded(data: pd.DataFrame) -> pd.DataFrame:
    shown = data.copy()
    for name in ("reported", "reproduced"):
        shown[name] = [_number(value, 4) for value in data[name]]
    shown["delta"] = [_number(value, 4, "+") for value in data["delta"]]
    shown["tolerance"] = [_number(value, 3) for value in data["tolerance"]]
    return shown


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table for the eye: numbers rounded, empty where there is none."""
    return _rounded(pd.DataFrame([_values(row) for row in rows], columns=list(COLUMNS), dtype=object).map(
        lambda value: "" if value is None else value))


def reported_vs_measured(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Reported against measured for the named tables: the closing cell of a notebook, its evidence shown whole."""
    pd.set_option("display.max_colwidth", None)
    shown = frame(table_rows(run, tables))
    return shown if run.settings.profile == "paper" else shown.drop(columns="tolerance")


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


def _body(data: pd.DataFrame, fmt: str) -> str:
    if fmt == "markdown":
        return markdown(data)
    if fmt == "latex":
        return data.to_latex(index=False, escape=True)
    return data.drop(columns=["tolerance", "evidence"]).to_string(index=False)


def format_tables(out: str | Path, fmt: str = "text") -> str:
    """The tables of a results folder.

    Args:
        fmt: "text" for the terminal (without tolerance and evidence, which are in the CSV), "markdown" or "latex".

    Raises:
        UserError: no tables there yet.
        ValueError: an unknown format.
    """
    if fmt not in ("text", "markdown", "latex"):
        raise ValueError(f"no format {fmt!r}; there are text, markdown, latex")
    files = {name: Path(out) / "tables" / f"{name}.csv" for name in TABLES}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise UserError(f"no table at {missing[0]}. Run `paperlib reproduce` first, or name another folder with --out.")
    parts = []
    for name, path in files.items():
        data = _rounded(pd.read_csv(path, dtype=str, keep_default_na=False)).drop(columns="table")
        heading = f"Table {name}: {TABLES[name]}" if len(name) == 1 else f"{name.capitalize()}: {TABLES[name]}"
        heading = f"## {heading}\n" if fmt == "markdown" else f"% {heading}" if fmt == "latex" else heading
        parts.append(f"{heading}\n{_body(data, fmt) if len(data) else 'not run'}")
    return "\n\n".join(parts) + "\n"


def write_tables(run: Run) -> Path:
    """Write tables/*.csv of a run, one file a table; returns the folder."""
    folder = run.folder("tables")
    for name in TABLES:
        write_text(folder / f"{name}.csv", csv_text(table_rows(run, [name])))
    return folder


PUBLISHED = ("D", "qat_teacher")
OWN = ("switches", "as_set")
"""Stage 3 as a profile sets it, where that is not the paper's; the switches are then changes of it."""
AGAINST = {"branches_qat": ("switches", "quantiser_paper")}
"""Rows that are one change away from another row than stage 3 as published; where that was not run, both changed."""
SEEDLESS = ("post_training",)
"""Rows in which nothing is drawn at random: their seeds cannot differ."""


def in_words(difference: float, spread: float | None) -> str:
    """What may be said of a difference: two-sided, its size against the noise whatever its sign."""
    if spread is None:
        return "one seed: noise unknown"
    return f"below the seeds' noise of {spread:.2g}" if abs(difference) < spread else f"above the noise of {spread:.2g}"


def differences(run: Run, metric: str = "psnr") -> list[dict[str, Any]]:
    """One line a row of Table D and the switches: value, row it differs from, difference, noise (None: unknown), words.

    Noise is the standard deviation of the difference, √(sd² + sd²) over the seeds of both rows. Empty where stage 3 as
    published was not run.
    """
    rows = {key[:2]: row for key, row in measured_values(run).items()
            if key[0] in ("D", "switches") and key[3] == metric and row["value"] is not None}
    lines = []
    for key, row in rows.items() if PUBLISHED in rows else ():
        if key == PUBLISHED:
            continue
        own = OWN if OWN in rows and key[0] == "switches" and key != OWN else PUBLISHED
        base = AGAINST.get(key[1], own)
        base = base if base in rows else own
        pair = [row | {"sd": 0.0} if key[1] in SEEDLESS else row, rows[base]]
        difference, spread = row["value"] - rows[base]["value"], noise(pair)
        lines.append({"row": key[1], "value": row["value"], "against": base[1], "difference": difference,
                      "noise": spread, "words": in_words(difference, spread)})
    return lines


def changes(run: Run) -> pd.DataFrame:
    """`differences` in PSNR for the eye; empty where 07 has not run."""
    return pd.DataFrame([{"row": line["row"], "INT8 PSNR RGB (dB)": f"{line['value']:.3f}", "against": line["against"],
                          "difference (dB)": f"{line['difference']:+.3f}", "the difference is": line["words"]}
                         for line in differences(run) if math.isfinite(line["value"])])


STEPS = {
    ("B", "bicubic"): "bicubic", ("stages", "teacher"): "teacher", ("stages", "stage1"): "stage 1",
    ("B", "student_stage2"): "stage 2", ("stages", "fused_before_qat"): "fused, before QAT",
    ("stages", "rounded_before_qat"): "rounded to INT8 without training",
    ("export", "float_after_qat"): "stage 3, only the weights rounded",
    ("export", "fakequant"): "stage 3, fake-quantised",
    ("export", "tflite_dynamic"): "INT8 TFLite, dynamic", ("abstract", "student_fixed_tflite"): "INT8 TFLite, fixed",
    ("export", "tflite_post_training"): "INT8 TFLite by post-training quantisation (the authors' way)"}
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
