"""`summary.md`: a run in one page of Markdown, for readers who open nothing else (paper section 7)."""

import html
import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from paperlib.environment import portable
from paperlib.evaluation.paper_numbers import fitted_constant, reported
from paperlib.files import write_text
from paperlib.profiles import NOTEBOOKS, differences_from_paper, load_settings, note
from paperlib.reporting.captions import caption, saved_figures
from paperlib.reporting.challenge import challenge_text
from paperlib.reporting.claims import claims_table
from paperlib.reporting.differences import changes
from paperlib.reporting.tables import TABLES, by_row, markdown, parity_line, score_ladder, table_rows
from paperlib.reporting.verdicts import Row, Verdict, tolerance
from paperlib.run import Run
from paperlib.settings import Settings, flatten

MEANING = {
    Verdict.REPRODUCED: "measured with the paper's data and schedule, inside the tolerance",
    Verdict.MISSED: "measured with the paper's data and schedule, outside the tolerance",
    Verdict.HOLDS: "a smaller experiment; the paper's comparisons point the same way",
    Verdict.FAILS: "a smaller experiment; at least one of the paper's comparisons points the other way, or no way",
    Verdict.UNDECIDED: "a smaller experiment; the interval allows both, or there is one seed",
    Verdict.RECOMPUTED: "arithmetic on reported values",
    Verdict.NOT_PUBLIC: "needs the challenge's test images or its device",
    Verdict.NOT_RUN: "nothing measured, or nothing to compare with",
}


def teacher_used(records: dict[str, dict[str, Any]]) -> str:
    """Which teacher the records name, in words; several where they differ."""
    named = list(dict.fromkeys(record["teacher"] for record in records.values() if record.get("teacher")))
    return "; ".join(named) or "no record names one"


def settings_used(run: Run) -> dict[str, Any]:
    """The settings that the last recorded notebook ran with, flat; the run's own where nothing is recorded."""
    records = [record for name, record in run.records().items() if name in NOTEBOOKS]
    return flatten("", records[-1]["settings"] if records else run.settings.model_dump(mode="json"))


def settings_changed(run: Run) -> str:
    """The used settings that differ from the profile's, as `name = value, …`; empty where none does."""
    usual = flatten("", load_settings(run.settings.profile).model_dump(mode="json"))
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings_used(run).items()
                     if value != usual.get(name) and not name.endswith(".expect"))


def method_line(run: Run) -> str:
    """Which method made the numbers, and in what a run differs from the paper: data, schedule and method.

    By the settings of the last recorded notebook; older versions of the kit did not record the method.
    """
    recorded = [record["settings"] for name, record in run.records().items() if name in NOTEBOOKS]
    try:
        settings = Settings.model_validate(recorded[-1]) if recorded else run.settings
    except ValidationError:
        settings = None
    if settings is None or (recorded and "method" not in recorded[-1]):
        return ("Recorded by an older version of the kit, which had no word for the method: the settings in records "
                "say how the numbers were made.")
    found = differences_from_paper(settings)
    if not found:
        return "The paper's method, data and schedule, nothing changed."
    listed = "; ".join(f"{name} = {json.dumps(value, ensure_ascii=False)} (the paper: "
                       f"{json.dumps(paper, ensure_ascii=False)})" for name, value, paper in found)
    whose = "The paper's method" if settings.method == "paper" else "Our method"
    return f"{whose}, on other data or another schedule. Differences from the paper: {listed}."


def verdict_counts(rows: list[Row]) -> dict[Verdict, int]:
    """How many rows have each verdict, in the order of the vocabulary, without those that none has."""
    counts = Counter(row.verdict for row in rows)
    return {verdict: counts[verdict] for verdict in Verdict if counts[verdict]}


def _provenance(run: Run, records: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for name in NOTEBOOKS:
        record = records.get(name)
        if record is None:
            lines.append(f"- {name}: not run")
            continue
        for part in record.get("parts") or [record]:  # several: trained apart and joined
            commit = (part["commit"] or "no commit")[:12] + (", with changes" if part["dirty"] else "")
            seeds = (f"seed {record['seed']}" if part is record else "seeds " + ", ".join(map(str, part["seeds"]))
                     + " of " + ", ".join((*part["archs"], *part["conditions"])))
            lines.append(f"- [{name}](records/{name}.json): {part['seconds']:.0f} s, {commit}, {seeds}, "
                         f"torch {part['versions'].get('torch')}, {part['device']}, {part['threads']} threads")
    return lines


def _tolerances() -> str:
    keys = [key for key in reported() if key[0] != "A" or key[3] == "score"]
    reasons: dict[tuple[float, str], list[str]] = {}
    for key in keys:
        reasons.setdefault((key[3], *tolerance(key)), []).append(f"{key[0]} {key[1]} {key[2]}")
    return "\n".join(f"- {metric} ±{limit}: {reason} ({', '.join(rows)})"
                     for (metric, limit, reason), rows in reasons.items())


def _inert(text: str) -> str:
    """Text of other people (names, settings) as Markdown that no reader takes for a tag or a link."""
    return html.escape(" ".join(text.split()), quote=False).replace("](", "]\\(")


def write_summary(run: Run) -> Path:
    """Write summary.md from whatever records there are; returns its path.

    Raises:
        UserError: a record is damaged, or the folder cannot be written.
    """
    records = run.records()
    rows = {name: table_rows(run, [name]) for name in TABLES}
    counts = verdict_counts([row for part in rows.values() for row in part])
    parts = [
        f"# Results, profile {run.settings.profile}",
        f"**{note(run.settings)[0].upper()}{note(run.settings)[1:]}.** Teacher: {_inert(teacher_used(records))}.",
        _inert(method_line(run)),
        *([f"Settings that differ from the profile's: {_inert(changed)}."]
          if (changed := settings_changed(run)) else []),
        "\n".join(f"- {count} × {verdict.value}: {MEANING[verdict]}" for verdict, count in counts.items()),
        "Reported are the paper's numbers on DIV2K validation; measured are ours on this profile's validation "
        f"photographs. With dividers to drag: [report.html](report.html). Score = 2^(2·PSNR)/(C·t) with one "
        f"C = {fitted_constant():.4g} for all five rows.",
    ]
    parts.append(f"## The paper's claims\n\n{markdown(claims_table(run))}\n\nPSNR RGB on the validation "
                 "photographs, paired by image and seed; in brackets its 95 % interval. One seed is undecided.")
    if len(way := score_ladder(run)):
        parts.append(f"## From bicubic to the shipped file\n\n{markdown(way)}\n\nThe INT8 files against the "
                     f"fake-quantised network: {parity_line(run)}.")
    for name, lines in rows.items():
        title = f"Table {name}" if len(name) == 1 else name.capitalize()
        body = markdown(by_row(lines).drop(columns="table")) if lines else "Not run."
        parts.append(f"## {title}: {TABLES[name]}\n\n{html.escape(body, quote=False)}")
    if len(changed_one := changes(run)):
        parts.append(f"## Stage 3's choices, one changed at a time\n\n{markdown(changed_one)}")
    parts.append(f"## What it would take to win\n\n{challenge_text(run)}")
    if pictures := saved_figures(run):
        parts.append("## Figures\n\n" + "\n\n".join(
            f"![{_inert(path.stem.replace('_', ' '))}](figures/{quote(path.name)})\n\n{caption(path.stem)}".strip()
            for path in pictures))
    parts.append("## Tolerances\n\nWhat `reproduced` allows in the paper profile, and why.\n\n" + _tolerances())
    parts.append("## Records\n\n" + "\n".join(_provenance(run, records)))
    return write_text(run.out / "summary.md", portable("\n\n".join(parts) + "\n", run.out))
