"""Every reported number with the strongest verdict that any committed run gives it (paper section 7)."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperlib.errors import UserError
from paperlib.evaluation.paper_numbers import reported
from paperlib.files import read_json
from paperlib.profiles import load_settings
from paperlib.reporting.tables import PAPER_TABLES, measured_values
from paperlib.reporting.verdicts import Key, Verdict, comparisons
from paperlib.run import Run

STRENGTH = {Verdict.REPRODUCED: 0, Verdict.MISSED: 0, Verdict.RECOMPUTED: 1, Verdict.HOLDS: 2, Verdict.FAILS: 2,
            Verdict.UNDECIDED: 3, Verdict.NOT_PUBLIC: 4, Verdict.NOT_RUN: 5}
"""Strongest first. Between runs of one strength the paper's method comes first, then the more seeds."""
DIV2K = "DIV2K, the published schedule"
NEEDED = {
    Verdict.REPRODUCED: "", Verdict.MISSED: "", Verdict.RECOMPUTED: "", Verdict.HOLDS: DIV2K, Verdict.FAILS: DIV2K,
    Verdict.UNDECIDED: "more seeds", Verdict.NOT_PUBLIC: "the challenge's images, or its device",
    Verdict.NOT_RUN: "a run that measures it, and a row to compare it with",
}
"""What a stronger verdict needs."""
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "npu_latency": "time"}


def _lines(folder: Path, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Every line of the paper's tables in all runs, with its run and what it is sorted by."""
    found = []
    for run in runs:
        records = [read_json(path) for path in (folder / run / "records").glob("[0-9]*.json")]
        papers = any(record["settings"].get("method") == "paper" for record in records)
        for table in PAPER_TABLES:
            path = folder / run / "tables" / f"{table}.csv"
            if not path.is_file():
                raise UserError(f"no table at {path}. Restore it with git.")
            with path.open(encoding="utf-8", newline="") as file:
                found += [line | {"run": run, "order": (STRENGTH[Verdict(line["verdict"])], not papers,
                                                        -int(line["seeds"] or 0))} for line in csv.DictReader(file)]
    return found


def strongest(folder: Path, runs: Sequence[str]) -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """By (table, row, precision) and metric the line of `tables/*.csv` with the strongest verdict, and its `run`.

    Args:
        folder: results/reference.
        runs: folders of committed runs in it.

    Raises:
        UserError: a record or table is missing or damaged.
    """
    found: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for line in sorted(_lines(folder, runs), key=lambda line: line["order"]):
        found.setdefault((line["table"], line["row"], line["precision"]), {}).setdefault(line["metric"], line)
    return found


def _difference(key: Key, line: dict[str, Any], values: dict[Key, dict[str, Any]]) -> tuple[str, str]:
    """The paper's difference and ours with its interval: of the first comparison that says what the verdict says."""
    found = comparisons(key, reported(), values)
    if not found:
        return "", ""
    chosen = next((comparison for comparison in found if comparison.word.value == line["verdict"]), found[0])
    return f"{chosen.reported:+.3f} {chosen.label}", str(chosen.effect)


def _words(metrics: dict[str, dict[str, Any]]) -> str:
    """The verdict of a row; of several, each with its metrics."""
    by_verdict: dict[str, list[str]] = {}
    for metric, line in metrics.items():
        by_verdict.setdefault(line["verdict"], []).append(METRICS.get(metric, metric))
    if len(by_verdict) == 1:
        return next(iter(by_verdict))
    return "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in by_verdict.items())


def strongest_text(folder: Path, runs: Sequence[str]) -> str:
    """`strongest` as a part of `results/README.md`: one line a row, in the order of the tables."""
    found, lines = strongest(folder, runs), []
    values = {name: measured_values(Run(load_settings("benchmark"), folder / name, every_record=True)) for name in runs}
    for key in dict.fromkeys(key[:3] for key in reported()):
        metric = "psnr" if "psnr" in found[key] else next(iter(found[key]))
        first = found[key][metric]
        run = f"[{first['run']}](reference/{first['run']}/summary.md)" if first["reproduced"] else ""
        difference = _difference((*key, metric), first, values[first["run"]]) if run else ("", "")
        lines.append([" ".join(key), *difference, _words(found[key]), run, NEEDED[Verdict(first["verdict"])]])
    head = ["row", "the paper", "here", "strongest verdict", "run", "a stronger one needs"]
    return "\n\n".join([
        "## Every reported row",
        "The strongest verdict of any run below. Differences: dB (PSNR RGB), one that says what the verdict says; "
        "the run's tables name all. Without the paper's data and schedule no row is *reproduced* or *missed*.",
        "\n".join(["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)])])
