"""The paper's tables with what was measured beside every number (paper section 7).

`reported.csv` holds the paper's numbers; a run's records hold ours. Every reported number gets a row with a verdict,
also where nothing was measured.
"""

import csv
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.errors import UserError
from paperlib.files import write_text
from paperlib.records import Run
from paperlib.verdicts import Key, Row, Verdict, tolerance, trend

TABLES = {"B": "baselines on DIV2K validation", "C": "backbone, FP32 and INT8 TFLite", "D": "teacher in stage 3",
          "abstract": "the shipped files", "audit": "the authors' own artifacts",
          "A": "leaderboard of the challenge (MAI 2026)"}
"""What each table is about; the leaderboard comes last, since hardly anything of it can be measured."""
PAPER_TABLES = tuple(name for name in TABLES if name != "audit")
COLUMNS = ("table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance", "verdict", "evidence")
DATASET = "validation"
"""The image set of measured rows that the tables read; rows on other sets stay in the records."""


@cache
def reported() -> dict[Key, float]:
    """Every number of the paper, in the paper's order."""
    with Path(__file__).with_name("reported.csv").open(encoding="utf-8", newline="") as file:
        return {(line["table"], line["row"], line["precision"], line["metric"]): float(line["value"])
                for line in csv.DictReader(file)}


def _leaderboard(row: str) -> tuple[float, float]:
    """Reported PSNR (dB) and NPU time (ms) of a leaderboard entry's INT8 model."""
    return reported()["A", row, "int8", "psnr"], reported()["A", row, "int8", "npu_latency"]


@cache
def fitted_constant() -> float:
    """C of the challenge's score = 2^(2·PSNR_INT8) / (C·t), t in ms: least squares over the leaderboard's rows.

    Fitted on the scores themselves, so that 1.7 and 1.8, which carry the coarsest rounding, count least.
    """
    pairs = [(value, 2 ** (2 * psnr) / latency) for (table, row, _, metric), value in reported().items()
             if table == "A" and metric == "score" for psnr, latency in [_leaderboard(row)]]
    return sum(x * x for _, x in pairs) / sum(value * x for value, x in pairs)


def score(psnr_int8: float, latency_ms: float) -> float:
    """The challenge's score of an INT8 model: PSNR in dB, NPU time in ms (C fitted, see `fitted_constant`)."""
    return 2 ** (2 * psnr_int8) / (fitted_constant() * latency_ms)


def measured_values(run: Run) -> dict[Key, dict[str, Any]]:
    """The rows of a run's records measured on the validation photographs, each with its `record`'s name."""
    return {(row["table"], row["row"], row["precision"], row["metric"]): row | {"record": name}
            for name, record in run.records().items() for row in record["rows"] if row["dataset"] == DATASET}


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


def compare(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Reported against measured for the named tables: the closing cell of a notebook, its evidence shown whole."""
    pd.set_option("display.max_colwidth", None)
    shown = frame(table_rows(run, tables))
    return shown if run.settings.profile == "paper" else shown.drop(columns="tolerance")


def measured(run: Run, tables: Sequence[str]) -> pd.DataFrame:
    """Everything measured under the named tables, one line a model and image set, scores in columns."""
    lines = [row for record in run.records().values() for row in record["rows"]
             if row["table"] in tables and row["value"] is not None]
    if not lines:
        return pd.DataFrame(columns=["row", "precision", "dataset"])
    table = pd.DataFrame(lines).pivot_table(index=["row", "precision", "dataset"], columns="metric", values="value",
                                            sort=False)
    return table.reset_index().rename_axis(columns=None).round(4)


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
