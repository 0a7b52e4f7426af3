"""What `paperlib reproduce` prints at its end: what came out, whether it worked, where to look."""

from collections import Counter
from pathlib import Path

from paperlib.profiles import NOTEBOOKS, differences_from_paper, load_settings
from paperlib.reporting.reference import reference_text
from paperlib.reporting.results import Results
from paperlib.reporting.verdicts import Verdict
from paperlib.run import Run
from paperlib.settings import Settings

LADDER = (
    (("B", "bicubic"), "bicubic: a formula that has learned nothing"),
    (("stages", "stage1"), "stage 1, from pixels"),
    (("B", "student_stage2"), "stage 2, with frequencies and a teacher"),
    (("stages", "rounded_before_qat"), "rounded to 8 bits, not trained for it"),
    (("stages", "fakequant"), "stage 3, trained for 8 bits"),
    (("export", "tflite_dynamic"), "the INT8 file, which a phone runs"),
    (("export", "tflite_post_training"), "the same weights exported as the authors did"),
    (("box", "box_int8"), "the shipped file, trained for hours on other photographs"))
"""(table, row) → what it is, in the order of the method."""
ALONE = ("bicubic", "box_int8")
"""Rungs that are not a step from the one before."""


def _steps(settings: Settings) -> int:
    return settings.stage1.steps + settings.stage2.steps + settings.stage3.steps


def _heading(results: Results) -> str:
    """How much ran, how long, and what of it is not the paper's."""
    settings, records = results.run.settings, results.records
    costs = records.get("00_reproduce", {}).get("notebooks", {})
    ran = [name for name in NOTEBOOKS if name in records]
    minutes = sum(costs[name]["seconds"] for name in ran if name in costs) / 60
    start = f"Done: {len(ran)} notebook{'s' * (len(ran) != 1)} in {minutes:.0f} min."
    if settings.profile == "paper" and not differences_from_paper(settings):
        return f"{start} Profile paper: the paper's data, schedule and method."
    small = any((record.get("teacher") or "").startswith("small") for record in records.values())
    whose = "our method" if settings.method == "ours" else "the paper's method"
    parts = [f"{_steps(settings):,} steps for {_steps(load_settings('paper')):,}"]
    parts += ["other photographs than DIV2K's"] if settings.data.source != "div2k" else []
    parts += ["a small teacher of its own"] if small else []
    return (f"{start} Profile {settings.profile} is {whose} in small: {', '.join(parts)}.\n"
            "So these are not the paper's numbers.")


def ladder(results: Results) -> list[tuple[str, float, str]]:
    """Every step that ran, in words, with its PSNR (dB) and what it gained on the one before."""
    lines, before = [], None
    files = results.records.get("06_tflite_eval", {}).get("parity") or []
    for (table, row), words in LADDER:
        value = results.psnr(table, row)
        if value is None:
            continue
        gain = "" if before is None or row in ALONE else f"{value - before:+.2f}"
        if row == "tflite_dynamic" and files:
            gain = f"{100 * files[0]['equal']:.2f} % of its values are stage 3's"
        lines.append((words, value, gain))
        before = value
    return lines


def ladder_text(results: Results) -> str:
    """The ladder for a terminal; "" where nothing ran."""
    lines = [f"  {value:5.2f} dB  {words:<46}{gain}".rstrip()
             for words, value, gain in ladder(results)]
    images = max((len(line["images"] or []) for line in results.scores.values()), default=0)
    heading = (f"PSNR on {images} photographs that were not trained on (closeness to the original; "
               "higher is better, 0.1 dB counts):")
    return "\n".join([heading, *lines]) if lines else ""


def claims_text(results: Results) -> str:
    """What this run says of the paper's comparisons, in a line."""
    found = Counter(claim["verdict"] for claim in results.claims if claim["effect"] is not None)
    if not found:
        return ""
    if set(found) == {Verdict.ONE_SEED}:
        return ("The paper's comparisons need several seeds; with one, none is decided. "
                "What longer runs decided: results/README.md")
    words = ", ".join(f"{found[word]} × {word.value}" for word in Verdict if found[word])
    return f"The paper's comparisons: {words}. Each with its interval: paperlib table"


def ending_text(source: Run | Results) -> str:
    """The end of `paperlib reproduce`, about fifteen lines; one line for profile smoke."""
    results = Results.of(source)
    if results.run.settings.profile == "smoke":
        return "Every notebook ran. Scores of profile smoke mean nothing."
    out, here = results.run.out, Path.cwd()
    out = out.relative_to(here) if out.is_relative_to(here) else out
    pages = sorted(path.name for path in (results.run.out / "notebooks").glob("0*.html"))
    pages = [pages[0], f"to {pages[-1][:2]}"] if len(pages) > 1 else pages
    where = [f"Look         {out / 'report.html'}"]
    where += [f"Read         {out / 'notebooks' / ' '.join(pages)}"] if pages else []
    where += [f"All numbers  {out / 'summary.md'}, or: paperlib table --out {out}",
              "Next         make lab"]
    parts = [_heading(results), ladder_text(results),
             "\n".join(filter(None, [reference_text(results), claims_text(results)])),
             "\n".join(where)]
    return "\n\n".join(filter(None, parts))
