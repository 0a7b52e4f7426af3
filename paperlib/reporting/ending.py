"""What `paperlib reproduce` prints at its end: what came out, whether it worked, where to look."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.profiles import NOTEBOOKS, TRAINED_BY, load_settings, note
from paperlib.reporting.reference import reference_text
from paperlib.reporting.results import Results
from paperlib.reporting.verdicts import Verdict
from paperlib.run import Run
from paperlib.settings import flatten

LADDER = (
    (("B", "bicubic"), "bicubic: a formula that has learned nothing"),
    (("stages", "stage1"), "stage 1, from pixels"),
    (("stages", "teacher"), "the teacher of the next stages"),
    (("B", "student_stage2"), "stage 2, with frequencies and a teacher"),
    (("stages", "rounded_before_qat"), "rounded to 8 bits, not trained for it"),
    (("stages", "fakequant"), "stage 3, trained for 8 bits"),
    (("export", "tflite_dynamic"), "the INT8 file, which a phone runs"),
    (("export", "tflite_post_training"), "the same weights exported as the authors did"),
    (("shipped", "shipped_int8"), "the shipped file, trained for hours on other photographs"))
"""(table, row) → what it is, in the order of the method."""
ALONE = ("teacher", "shipped_int8")
"""Rungs that are no step of the student's way."""


def _settings(results: Results) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that the run's last notebook recorded, and the paper's, by dotted name."""
    recorded = [record["settings"] for name, record in results.records.items() if name in NOTEBOOKS]
    mine = recorded[-1] if recorded else results.run.settings.model_dump(mode="json")
    paper = load_settings("paper", {"method": "paper"}).model_dump(mode="json")
    return flatten("", mine), flatten("", paper)


def settings_table(results: Results) -> pd.DataFrame:
    """Every setting that the paper has otherwise, as JSON: setting, here, the paper; what notebook
    07 trains left out, for its rows show that."""
    mine, paper = _settings(results)
    untrained = {f"{stage}.steps" for stage, name in TRAINED_BY.items()
                 if name not in results.records}
    plan = {f"ablation.{part}" for part in ("archs", "conditions", "switches", "claims")}
    return pd.DataFrame([
        (name, *(json.dumps(value, ensure_ascii=False) for value in (mine[name], usual)))
        for name, usual in paper.items()
        if mine.get(name, usual) != usual and name not in untrained | plan | {"profile"}
        and not name.endswith(".expect")],
        columns=["setting", "here", "the paper"])


def about(results: Results) -> tuple[str, str, str]:
    """Whose numbers these are, the teacher, and the method with its steps, each for a sentence."""
    whose = note(results.run.settings)
    named = [(record.get("teacher") or "").partition(";")[0] for record in results.records.values()]
    teachers = dict.fromkeys(name + ")" * (name.count("(") - name.count(")"))
                             for name in named if name)
    mine, paper = _settings(results)
    method = {"paper": "The paper's method", "released": "The released run's method",
              "ours": "Our method"}.get(mine.get("method"), "")  # older records do not say
    steps = [f"stage {stage[-1]} in {mine[field]:,} steps instead of {paper[field]:,}"
             for stage, name in TRAINED_BY.items() if name in results.records
             and mine[field := f"{stage}.steps"] != paper[field]]
    if settings_table(results).empty:
        method += ", data and schedule"
    said = ": ".join(filter(None, [method, ", ".join(steps)]))
    return (whose[0].upper() + whose[1:], "; ".join(teachers) or "none was asked",
            said and f"{said}.")


def ladder(results: Results) -> pd.DataFrame:
    """PSNR of every step that ran, and what it gained on the student's step before."""
    lines, before = [], None
    parity = results.records.get("06_tflite_eval", {}).get("parity")
    for (table, row), words in LADDER:
        value = results.psnr(table, row)
        if value is None:
            continue
        gain = "" if before is None or row in ALONE else f"{value - before:+.2f}"
        if row == "tflite_dynamic" and parity:
            gain = f"{100 * parity[0]['equal']:.2f} % of its values are stage 3's"
        lines.append((words, f"{value:.2f}", gain))
        before = before if row in ALONE else value
    return pd.DataFrame(lines, columns=["step", "PSNR (dB)", "against the step before"])


def _claims_line(results: Results) -> str:
    """What this run says of the paper's comparisons; "" where none was measured."""
    found = Counter(claim["verdict"] for claim in results.claims if claim["effect"] is not None)
    if set(found) == {Verdict.ONE_SEED}:
        return ("The paper's comparisons need several seeds; with one, none is decided. "
                "What longer runs decided: results/README.md")
    words = ", ".join(f"{found[word]} × {word.value}" for word in Verdict if found[word])
    return words and f"The paper's comparisons: {words}. Each with its interval: paperlib table"


def ending_text(source: Run | Results) -> str:
    """The end of `paperlib reproduce`, about fifteen lines; one line for profile smoke."""
    results = Results.of(source)
    if results.run.settings.profile == "smoke":
        return "Every notebook ran. Scores of profile smoke mean nothing."
    out, here = results.run.out, Path.cwd()
    out = out.relative_to(here) if out.is_relative_to(here) else out
    ran = [name for name in NOTEBOOKS if name in results.records]
    costs = results.records.get("00_reproduce", {}).get("notebooks", {})
    minutes = sum(costs[name]["seconds"] for name in ran if name in costs) / 60
    whose, teacher, steps = about(results)
    lines = [f"Done: {len(ran)} of {len(NOTEBOOKS)} notebooks in {minutes:.0f} min. {whose}.",
             f"Teacher: {teacher}.", steps, ""]
    if len(rungs := ladder(results)):
        images = max((len(line["images"] or []) for line in results.scores.values()), default=0)
        lines += [f"PSNR on {images} photographs that were not trained on (closeness to the "
                  "original; higher is better, 0.1 dB counts):"]
        lines += [f"  {psnr} dB  {words:<52}{gain}".rstrip()
                  for words, psnr, gain in rungs.itertuples(index=False)] + [""]
    lines += [*filter(None, [reference_text(results), _claims_line(results)]), "",
              f"Look         {out / 'report.html'}",
              f"Read         {out / 'notebooks'}: the notebooks, executed",
              f"All numbers  {out / 'summary.md'}, or: paperlib table --out {out}",
              "Next         make lab"]
    return "\n".join(lines)
