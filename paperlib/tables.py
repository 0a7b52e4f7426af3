"""The paper's tables with what was measured beside every number (paper section 7; contract: results).

A verdict is one of seven words. `reproduced` and `missed` exist only in the paper profile; smaller profiles can say no
more than whether the paper's comparison points the same way.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.errors import UserError
from paperlib.files import write_text
from paperlib.records import Run

TABLES = {"A": "leaderboard (MAI 2026)", "B": "baselines on DIV2K validation", "C": "backbone, FP32 → INT8 TFLite",
          "D": "teacher in stage 3", "abstract": "the shipped files", "audit": "the authors' own artifacts"}
COLUMNS = ("table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance", "verdict", "evidence")


class Verdict(StrEnum):
    """What may be said about a row."""

    REPRODUCED = "reproduced"
    MISSED = "missed"
    HOLDS = "trend holds"
    FAILS = "trend fails"
    RECOMPUTED = "recomputed"
    NOT_PUBLIC = "not public"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One line of a table; `evidence` names the record, and for a trend what it was compared with."""

    table: str
    row: str
    precision: str
    metric: str
    reported: float | None
    reproduced: float | None
    delta: float | None
    tolerance: float | None
    verdict: Verdict
    evidence: str


def make_row(profile: str, key: "Key", reported: float | None, reproduced: float | None, verdict: Verdict,
             evidence: str, tolerance: float | None = None) -> Row:
    """A row, its delta computed.

    Raises:
        ValueError: `reproduced` or `missed` outside the paper profile.
    """
    verdict = Verdict(verdict)
    if verdict in (Verdict.REPRODUCED, Verdict.MISSED) and profile != "paper":
        raise ValueError(f"verdict {verdict.value!r} is for the paper profile alone, not for {profile!r}")
    delta = reproduced - reported if reproduced is not None and reported is not None else None
    return Row(*key, reported, reproduced, delta, tolerance, verdict, evidence)


Key = tuple[str, str, str, str]
"""(table, row, precision, metric)."""

TOLERANCE = {"psnr": 0.05, "ssim": 0.002, "score": 0.05}
"""Largest |delta| of a reproduced row. psnr: a choice, about the gain that the paper's smallest claims stand on (Table
D is 0.09 dB); ssim: reported to three digits, and two definitions are in use; score: printed to one decimal."""

CLOSE = {"psnr": 0.02, "ssim": 0.0015}
"""Reported differences below this are no order but a tie; the trend then is that ours stays within twice as much."""

COMPARED: dict[tuple[str, str, str], tuple[str, str, str]] = {
    ("B", "bicubic", "fp32"): ("B", "student_stage2", "fp32"),
    ("B", "fsrcnn", "fp32"): ("B", "bicubic", "fp32"),
    ("B", "abpn", "int8"): ("B", "bicubic", "fp32"),
    ("B", "student_stage2", "fp32"): ("B", "bicubic", "fp32"),
    ("B", "student_deploy", "int8"): ("B", "student_stage2", "fp32"),
    ("C", "repconv", "fp32"): ("C", "mobileone", "fp32"),
    ("C", "repconv", "int8"): ("C", "mobileone", "int8"),
    ("C", "repdw", "fp32"): ("C", "mobileone", "fp32"),
    ("C", "repdw", "int8"): ("C", "mobileone", "int8"),
    ("C", "mobileone", "fp32"): ("C", "repdw", "fp32"),
    ("C", "mobileone", "int8"): ("C", "mobileone", "fp32"),
    ("D", "qat_direct", "int8"): ("D", "qat_teacher", "int8"),
    ("D", "qat_teacher", "int8"): ("D", "qat_direct", "int8"),
    ("abstract", "student_dynamic_tflite", "int8"): ("abstract", "student_fixed_tflite", "int8"),
    ("abstract", "student_fixed_tflite", "int8"): ("abstract", "student_dynamic_tflite", "int8"),
}
"""In smaller profiles, the row whose reported difference to this one must have the same sign."""


@cache
def reported() -> dict[Key, float]:
    """Every number of the paper, in the paper's order."""
    with Path(__file__).with_name("reported.csv").open(encoding="utf-8", newline="") as file:
        return {(line["table"], line["row"], line["precision"], line["metric"]): float(line["value"])
                for line in csv.DictReader(file)}


def fitted_constant() -> float:
    """C of the challenge's score = 2^(2·PSNR_INT8)/(C·t), t in ms: geometric mean over the leaderboard's rows."""
    logs = []
    for table, row, precision, metric in reported():
        if metric == "score":
            psnr, latency = (reported()[table, row, precision, name] for name in ("psnr", "npu_latency"))
            logs.append(2 * psnr - math.log2(latency * reported()[table, row, precision, "score"]))
    return 2 ** (sum(logs) / len(logs))


def score(psnr_int8: float, latency_ms: float) -> float:
    """The challenge's score of an INT8 model (C fitted, see `fitted_constant`)."""
    return 2 ** (2 * psnr_int8) / (fitted_constant() * latency_ms)


def measured_values(run: Run) -> dict[Key, tuple[dict[str, Any], str]]:
    """Rows of the run's records that were measured on the validation photographs: key → (row, record's name)."""
    return {(row["table"], row["row"], row["precision"], row["metric"]): (row, name)
            for name, record in run.records().items() for row in record["rows"] if row["dataset"] == "validation"}


def _trend(key: Key, mine: float, values: dict[Key, tuple[dict[str, Any], str]]) -> tuple[Verdict, str]:
    table, name, precision = COMPARED[key[:3]]
    other = (table, name, precision, key[3])
    if other not in values or values[other][0]["value"] is None:
        return Verdict.NOT_RUN, f"; {name} {precision} not measured"
    theirs, ours = reported()[key] - reported()[other], mine - values[other][0]["value"]
    close = CLOSE[key[3]]
    holds = abs(ours) <= 2 * close if abs(theirs) < close else theirs * ours > 0
    note = f"; against {name} {precision}: paper {theirs:+.4g}, here {ours:+.4g}"
    spreads = [values[k][0].get("sd") for k in (key, other)]
    if None not in spreads and abs(ours) < math.hypot(*spreads):
        note += f", below the seeds' noise of {math.hypot(*spreads):.2g}"
    return (Verdict.HOLDS if holds else Verdict.FAILS), note


def table_rows(run: Run, tables: Sequence[str] = ("A", "B", "C", "D", "abstract")) -> list[Row]:
    """Every row of the paper's tables with its verdict; a row without measurement is `not run`."""
    values, profile, rows = measured_values(run), run.settings.profile, []
    for key, paper in reported().items():
        if key[0] not in tables:
            continue
        tolerance = TOLERANCE.get(key[3])
        if key[0] == "A" and key[3] == "score":
            table, name, precision, _ = key
            ours = score(reported()[table, name, precision, "psnr"], reported()[table, name, precision, "npu_latency"])
            rows.append(make_row(profile, key, paper, ours, Verdict.RECOMPUTED, "reported.csv: 2^(2·PSNR)/(C·t)",
                                 tolerance))
        elif key[0] == "A":
            rows.append(make_row(profile, key, paper, None, Verdict.NOT_PUBLIC, "the challenge's images and device"))
        elif key not in values or values[key][0]["value"] is None:
            rows.append(make_row(profile, key, paper, None, Verdict.NOT_RUN, "", tolerance))
        else:
            measured, record = values[key]
            evidence = f"records/{record}.json"
            if profile == "paper":
                verdict = Verdict.REPRODUCED if abs(measured["value"] - paper) <= tolerance else Verdict.MISSED
            else:
                verdict, note = _trend(key, measured["value"], values)
                evidence += note
            rows.append(make_row(profile, key, paper, measured["value"], verdict, evidence, tolerance))
    return rows


def audit_rows(run: Run) -> list[Row]:
    """The audit's rows from 06's record; empty where the authors' files were not at hand."""
    record = run.records().get("06_tflite_eval", {})
    return [make_row(run.settings.profile, (line["table"], line["row"], line["precision"], line["metric"]),
                     line["reported"], line["reproduced"], Verdict(line["verdict"]), line["evidence"])
            for line in record.get("audit", [])]


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as a table for the eye: numbers rounded, empty where there is none."""
    digits = {"reported": 4, "reproduced": 4, "delta": 4, "tolerance": 3}
    data = pd.DataFrame([asdict(row) | {"verdict": row.verdict.value} for row in rows], columns=COLUMNS)
    for name, places in digits.items():
        data[name] = [f"{value:.{places}f}".rstrip("0").rstrip(".") if value is not None and pd.notna(value) else ""
                      for value in data[name]]
    return data


def compare(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Reported against measured for the named tables: the closing cell of a notebook."""
    return frame(table_rows(run, tables)).drop(columns=["tolerance"])


def measured(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Everything measured under the named tables, one line a model and image set, scores in columns."""
    lines = [row for record in run.records().values() for row in record["rows"] if row["table"] in tables]
    if not lines:
        return pd.DataFrame(columns=["row", "precision", "dataset"])
    table = pd.DataFrame(lines).pivot_table(index=["row", "precision", "dataset"], columns="metric", values="value",
                                            sort=False)
    return table.reset_index().rename_axis(columns=None).round(4)


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV in the contract's columns, full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def markdown(data: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = ["| " + " | ".join(map(str, data.columns)) + " |", "|" + " --- |" * len(data.columns)]
    lines += ["| " + " | ".join("" if pd.isna(v) else str(v) for v in line) + " |" for line in data.to_numpy()]
    return "\n".join(lines)


def format_tables(out: str | Path, style: str = "text") -> str:
    """The tables of a results folder for the terminal ("text"), or as "markdown" or "latex".

    Raises:
        UserError: no tables there yet.
    """
    files = [Path(out) / "tables" / f"{name}.csv" for name in TABLES]
    if not all(path.is_file() for path in files):
        raise UserError(f"no tables in {out}. Run `paperlib reproduce` first, or name another folder with --out.")
    parts = []
    for name, path in zip(TABLES, files, strict=True):
        data = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=["table"])
        for column in ("reported", "reproduced", "delta"):
            data[column] = [f"{float(value):.4f}" if value else "" for value in data[column]]
        title = f"Table {name}: {TABLES[name]}"
        body = {"text": lambda d: d.to_string(index=False), "markdown": markdown,
                "latex": lambda d: d.to_latex(index=False, escape=True)}[style](data) if len(data) else "(not run)"
        parts.append(f"{title}\n{body}")
    return "\n\n".join(parts) + "\n"


def write_tables(run: Run) -> Path:
    """Write tables/*.csv of a run; returns the folder."""
    folder = run.folder("tables")
    for name in TABLES:
        rows = audit_rows(run) if name == "audit" else table_rows(run, [name])
        write_text(folder / f"{name}.csv", csv_text(rows))
    return folder
