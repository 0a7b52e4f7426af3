"""Write the pages of the committed results anew: `python results/pages.py`.

Every run's tables and results/README.md, from the records in results/reference; results/settings.md
from the package. `questions.json` says what each run was made to answer.
"""

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).parent))
from settings_page import settings_text

from paperlib.errors import UserError
from paperlib.evaluation.paper_numbers import DATASET
from paperlib.files import read_json, write_text
from paperlib.profiles import NOTEBOOKS, load_settings
from paperlib.reporting.report import write_report, write_summary
from paperlib.reporting.results import TABLES, Results
from paperlib.reporting.tables import effect_text, markdown, write_tables
from paperlib.reporting.verdicts import Verdict
from paperlib.run import Run

HEADING = """# Committed results

Written by `python results/pages.py` from the files in `reference/`. A run of your own writes
`results/<profile>/`, which git ignores, and ends with a comparison with the run of its profile here.
What can be set, with the profiles' values: [settings.md](settings.md)."""
CLAIMS = """## The paper's claims

Differences are in dB of PSNR RGB; in brackets the 95 % interval over five seeds and 14 images, unless
said otherwise. *Inside*: the interval contains the paper's value. Where several runs measured a claim,
one on the paper's photographs is shown, else the one with the most decisive verdict; all are below.
Table D's experiment from our own stage 2 is [undecided](reference/stage3_from_own/summary.md)."""
RUNS = """## The runs

Commands are as they were given at the commit beside them. Where several commits stand, the
experiment was trained in parts, and its record names them. Minutes are those of the notebooks that
a table needs, on the machine of the record, and of trainings that an earlier call had begun."""
STRENGTH = (Verdict.REPRODUCED, Verdict.MISSED, Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED,
            Verdict.ONE_SEED, Verdict.NOT_RUN)
"""Of several runs that of the first of these verdicts is shown, after any on the paper's photographs;
of equal ones the paper's method (where there are several seeds), more seeds, more images."""
BESIDE = ("summary.md", "report.html", "tried.md", "seeds.json", "bench.json")


def open_results(folder: Path, asked: Mapping[str, str]) -> Results:
    """A committed run, with the settings of its profile.

    Args:
        asked: what it was made to answer; `images`: the set it is judged on, if not the validation.

    Raises:
        UserError: it holds no record of a notebook.
    """
    records = sorted((folder / "records").glob("0[1-7]*.json")) or sorted(
        (folder / "records" / "07").glob("*.json"))
    if not records:
        raise UserError(f"{folder} holds no record of a notebook. Restore it, or remove the folder.")
    settings = load_settings(read_json(records[-1])["profile"])
    return Results(Run(settings, folder, every_record=True), asked.get("images", DATASET))


def claims_text(runs: Mapping[str, Results]) -> str:
    """Every claim with the strongest verdict of any run."""
    lines = []
    for index, claim in enumerate(next(iter(runs.values())).claims):
        def rank(name: str, index: int = index) -> tuple[bool, int, bool, int, int]:
            found = runs[name].claims[index]
            papers = found["verdict"] is Verdict.ONE_SEED or any(
                record["settings"].get("method") == "paper"
                for record in runs[name].records.values())
            papers_photographs = runs[name].dataset != DATASET and found["effect"] is not None
            return (not papers_photographs, STRENGTH.index(found["verdict"]), not papers,
                    -(found["seeds"] or 0), -(found["images"] or 0))

        name = min(runs, key=rank)
        found = runs[name].claims[index]
        lines.append({
            "claim": claim["claim"], "paper": f"{claim['reported']:+.3f}",
            "here": effect_text(found).removesuffix(" (5 seeds, 14 images)"),
            "verdict": found["verdict"].value, "inside": found["reported_inside"],
            "run": Markup(f"[{name}](reference/{name}/summary.md)"
                          if found["seeds"] else "")})
    words = [word for word in Verdict if word.value in {line["verdict"] for line in lines}]
    last = max(record["started"] for run in runs.values() for record in run.records.values())[:10]
    return "\n\n".join([
        f"{CLAIMS} The last was measured on {last}.", markdown(pd.DataFrame(lines)),
        "\n".join(f"- *{word.value}*: {word.meaning}" for word in words),
        "What would decide or strengthen them: more seeds for the undecided one of Table C, "
        "DIV2K and the published schedule for the others. The last line's files are those "
        "of Table D with the teacher, by post-training quantisation, the fixed one with the "
        "authors' padding and tiles; the shipped student's fixed file gives the pixels of its "
        "dynamic one.",
        "Table A: one formula gives all five published scores from PSNR and time (*recomputed*). "
        "The challenge's images and phone are not public, so nothing else can be measured."])


def div2k_text(path: Path) -> str:
    """The authors' dynamic INT8 file on the photographs of DIV2K that were at hand."""
    record = read_json(path)
    images = pd.DataFrame(record["div2k"])
    apart = (images["psnr"] - images["psnr_reported"]).abs().max()
    return "\n\n".join([
        "## DIV2K's own photographs",
        f"The authors' dynamic INT8 file on {len(images)} of the 100 validation photographs, beside "
        f"their own report, image by image ([{path.name}](reference/div2k/{path.name})): "
        f"{images['psnr'].mean():.4f} dB here and {images['psnr_reported'].mean():.4f} dB in the "
        f"report, at most {apart:.1g} dB apart on any. SSIM: the report has "
        f"{images['ssim_reported'].mean():.4f}, by tf.image.ssim on whole pictures; the usual SSIM "
        f"of the same pictures is {images['ssim'].mean():.4f}."])


def overrides(results: Results) -> dict[str, Any]:
    """The single settings that a run was started with, from its record or an executed notebook.

    Raises:
        UserError: neither says them; a command without them would be another run's.
    """
    if "overrides" in results.records.get("00_reproduce", {}):
        return dict(results.records["00_reproduce"]["overrides"])
    for path in sorted((results.run.out / "notebooks").glob("*.ipynb")):
        parameters = read_json(path)["metadata"].get("papermill", {}).get("parameters", {})
        if parameters.get("overrides"):
            return dict(json.loads(parameters["overrides"]))
    raise UserError(f"{results.run.out} does not say which single settings it was started with. "
                    "Give its 00_reproduce.json the field overrides, {} where there were none.")


def command(profile: str, first: str, last: str, single: Mapping[str, Any]) -> str:
    """The command for the notebooks `first` to `last` (two digits) with single settings.

    Folders of the machine it ran on are left out.
    """
    words = ["paperlib", "reproduce", "--profile", profile]
    words += ["--from", first] if first != "01" else []
    words += ["--until", last] if last != "07" else []
    for field, value in single.items():
        text = re.sub(r"^/.*/", ".../", value) if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"{field}={text}"]
    head, *settings = " ".join(
        f'"{word}"' if "$PAPERLIB_" in word else shlex.quote(word) for word in words).split(" --set ")
    return " \\\n  ".join([head, *("--set " + setting for setting in settings)])


def seconds(records: Mapping[str, dict[str, Any]], name: str) -> float:
    """What a notebook took, and its training where an earlier run of the notebook had done that."""
    costs = records.get("00_reproduce", {}).get("notebooks", {})
    notebook = costs.get(name, records[name])["seconds"]
    history = records[name].get("history") or []
    training = max([0.0, *(point["seconds"] for point in history)])
    return notebook + (training if training > notebook else 0.0)


def table_line(results: Results, name: str, link: str) -> dict[str, str] | None:
    """A table of a run: notebooks, records, minutes, verdicts; None where nothing was measured."""
    table = results.tables[name]
    table = table[table["reproduced"].notna() & (table["metric"] == "psnr")]
    if table.empty or name == "A":
        return None
    start = f"Table {name}:" if len(name) == 1 else f"{name.capitalize()}:"
    counts = Counter(claim["verdict"].value for claim in results.claims
                     if claim["claim"].startswith(start) and claim["effect"] is not None)
    counts = counts or Counter(map(str, table["verdict"]))  # the audit makes no claims
    used = sorted({found for evidence in table["evidence"]
                   for found in re.findall(r"records/(\w+)", evidence)})
    shown = [notebook for notebook in NOTEBOOKS
             if notebook in results.records and notebook[:2] <= used[-1][:2]]
    minutes = sum(seconds(results.records, notebook) for notebook in shown) / 60
    return {
        "paper's table": TABLES[name],
        "notebooks": " to ".join(dict.fromkeys((shown[0][:2], shown[-1][:2]))),
        "records": Markup(", ".join(f"[{record}]({link}/{results.run.record_path(record)})"
                                    for record in used)),
        "minutes": f"{minutes:.0f}",
        "claims (PSNR)": ", ".join(f"{count} × {word}" for word, count in sorted(counts.items()))}


def run_text(results: Results, name: str, asked: Mapping[str, str]) -> str:
    """A run: its question and answer, command, commit and tables."""
    link, records = f"reference/{name}", results.records
    notebooks = [notebook for notebook in NOTEBOOKS if notebook in records]
    last = records[notebooks[-1]]
    parts = [part for notebook in notebooks
             for part in records[notebook].get("parts") or [records[notebook]]]
    parts += results.run.trainings()
    commits = dict.fromkeys((part.get("commit") or "none")[:8] for part in parts)
    lines = [table_line(results, table, link) for table in TABLES]
    beside = [f"[{file}]({link}/{file})" for file in BESIDE if (results.run.out / file).is_file()]
    words = asked.get("command") or command(
        last["profile"], notebooks[0][:2], notebooks[-1][:2], overrides(results))
    return "\n\n".join([
        f"### {name}", f"**{asked['title']}** {asked.get('answer', '')}".rstrip(),
        f"<details><summary>How it was run</summary>\n\n{asked['how']}\n\n```\n{words}\n```\n\n</details>",
        f"Commit {', '.join(commits)}; threads: {last['threads']}, "
        f"{'a' if last['cuda'] else 'no'} GPU, torch {last['versions']['torch']}. "
        f"{', '.join(beside)}",
        markdown(pd.DataFrame(list(filter(None, lines))))])


COMPARED = {
    "data cache_vs_decode": "photographs from the pixel cache / decoded each time",
    "step vs_plain": "branches merged into one convolution / seven branches",
    "step collapsed_vs_expanded": "collapsed blocks / expanded ones, merged",
    "epoch vs_naive": "all of this kit / none of it",
    "epoch collapsed_vs_naive": "the same, with collapsed blocks",
    "metrics vs_one_call": "scikit-image strip by strip on all cores / in one call",
    "scan vs_loop": "scan in numba / a loop in PyTorch",
    "scan vs_loop_training": "the same, with its gradient",
    "teacher vs_loop_scan": "teacher with that scan / with that loop",
    "light vs_bare": "`paperlib upscale` / a bare script"}
"""Ratio of the benchmarks → what is compared, the faster first."""
SPREAD = {"rounded": "networks rounded to 8 bits", "trained": "float networks", "untrained": "formulas"}
"""Kind of row → what is measured in it."""


def speed_text(path: Path, link: str) -> str:
    """The benchmarks of a bench.json."""
    bench = read_json(path)
    about = bench["provenance"]
    cpu = about["cpu"]
    ratios = pd.DataFrame(
        [{"compared": COMPARED[f"{name} {key.removeprefix('ratio_')}"],
          "times faster": f"{value:.3g}", "measured": result["what"]}
         for name, result in bench.items() if isinstance(result, dict)
         for key, value in result.items()
         if key.startswith("ratio_") and isinstance(value, int | float)])
    return "\n\n".join([
        "## How fast, and against what",
        f"[bench.json]({link}), by `paperlib bench`: commit {about['commit'][:8]}, "
        f"{about['threads']} threads of an {cpu['model']} "
        f"({', '.join(cpu['instructions'])}). Each ratio is of runs taken in turn on one machine; above "
        "1 this kit's way is faster.", markdown(ratios)])


AUDITED = {
    "stage2_fp32": "stage 2, float", "stage3_weights_fp32": "stage 3's weights without rounding",
    "stage3_fakequant": "stage 3, fake-quantised", "dynamic_int8": "their INT8 file, any size",
    "fixed_int8": "their INT8 file, one size",
    "re_exported_int8": "stage 3 with its learned grids kept, INT8 (our export)"}
"""Row of the audit → its name for people."""


def audit_text(path: Path) -> str:
    """The authors' files and peers on public sets, and where the learned grids lose."""
    audit = read_json(path)
    found = {(line["as"], line["dataset"]): line for line in audit["measured"]}
    names, sets = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    on_div2k = {line["row"]: line["psnr"] for line in audit["div2k_rows"]}
    table = pd.DataFrame([
        {"file": AUDITED.get(name, f"{name.removeprefix('peer ')} (peer, INT8)"),
         **{image_set.replace("clic_val", "CLIC (14)"): f"{found[name, image_set]['psnr_rgb']:.3f}"
            for image_set in sets},
         f"DIV2K ({audit['div2k_images']} of 100)": f"{on_div2k[name]:.3f}"} for name in names])
    loss, where = max((value - found["re_exported_int8", image_set]["images"][image], image)
                      for image_set in sets
                      for image, value in found["dynamic_int8", image_set]["images"].items())
    return "\n\n".join([
        "## The authors' files and peers, measured again",
        f"Commit {audit['provenance']['commit'][:8]}, {audit['date']}; hashes and PSNR of every image "
        f"are in [{path.name}](reference/div2k/{path.name}). PSNR RGB in dB:", markdown(table),
        f"The file with the learned grids is ahead on average and {loss:.2f} dB behind their dynamic "
        f"one on one bright photograph of CLIC ({where[:4]}…). Its input grid ends at "
        f"{audit['input_grid'][1]:.0f}, where stage 3's observers left it, so it cannot tell brighter "
        "pixels apart."])


def hostile_text(path: Path) -> str:
    """How many damaged files the command line was given, and what became of them."""
    record = read_json(path)
    table = pd.DataFrame([
        {"kind": kind} | {name: counts[name] for name in ("commands", "files", "refused", "wrong")}
        for kind, counts in record["kinds"].items()])
    return "\n\n".join([
        "## Damaged files",
        f"[hostile.json](reference/{path.name}), at commit {record['commit'][:8]}, seed "
        f"{record['seed']}. Wrong is a command that broke a promise: exit code 0, 1 or 2, one line "
        "a failure, no traceback, inputs as they were, nothing outside of the output, the good "
        "picture of a batch enlarged.", markdown(table)])


def spread_text(path: Path) -> str:
    """How far two machines may differ."""
    spread = read_json(path)
    seen = {kind: metrics["psnr"] for kind, metrics in spread["seen"].items()}
    kinds = "; ".join(f"{words} {value['median']:.4f} and {value['largest']:.4f}"
                      for kind, value in seen.items() for words in [SPREAD[kind]])
    return "\n\n".join([
        "## How far two machines may differ",
        f"[spread.json](reference/spread.json): {spread['what']}. Median and largest difference of "
        f"PSNR in dB between any two of {len(spread['machines'])}: {kinds}. `paperlib reproduce` accepts "
        f"{spread['allowance']} times the largest."])


def page(folder: Path, runs: Mapping[str, Results], questions: Mapping[str, Mapping[str, str]]) -> str:
    """results/README.md for the committed runs below `folder`, in the order of the questions."""
    div2k = sorted((folder / "div2k").glob("*.json"))
    parts = [HEADING, claims_text(runs), *(div2k_text(path) for path in div2k), RUNS]
    parts += [run_text(runs[name], name, asked) for name, asked in questions.items()]
    parts += [speed_text(path, f"reference/{path.relative_to(folder).as_posix()}")
              for path in sorted(folder.rglob("bench.json"))]
    parts += [audit_text(path) for path in div2k]
    for name, text in (("hostile", hostile_text), ("spread", spread_text)):
        if (path := folder / f"{name}.json").is_file():
            parts.append(text(path))
    return "\n\n".join(parts) + "\n"


def run_page(folder: Path, name: str, asked: Mapping[str, str]) -> str:
    """The page inside a run with executed notebooks, which link to it as to the README."""
    up = "../" * (name.count("/") + 3)
    notebooks = ", ".join(f"[{path.stem}](notebooks/{path.name})"
                          for path in sorted((folder / name / "notebooks").glob("*.ipynb")))
    return "\n\n".join([
        f"# The committed run {name}", f"{asked['title']}. {asked['how']}",
        f"Its notebooks as executed, with every picture: {notebooks}.",
        "In short: [summary.md](summary.md); on one page, with dividers to drag: "
        f"[report.html](report.html). Records, commands and minutes of all runs: "
        f"[results]({up[3:]}README.md). To run the notebooks yourself, open those in "
        f"[notebooks/]({up}notebooks); what the project is: [README]({up}README.md).\n"])


def read_runs(folder: Path) -> tuple[dict[str, Results], dict[str, dict[str, str]]]:
    """The committed runs below `folder`, and what each was made to answer.

    Raises:
        UserError: a file is missing or damaged, or runs and questions differ.
    """
    questions = read_json(folder / "questions.json")
    found = {path.parent.relative_to(folder).as_posix()
             for path in folder.rglob("records") if path.is_dir()}
    if found != questions.keys():
        raise UserError(f"{folder / 'questions.json'} and the runs beside it differ in "
                        f"{', '.join(sorted(found ^ questions.keys()))}. Say what each answers.")
    return {name: open_results(folder / name, asked) for name, asked in questions.items()}, questions


def write_pages(results: Path) -> Sequence[Path]:
    """Write everything that is generated below the folder `results`."""
    folder = results / "reference"
    runs, questions = read_runs(folder)
    pages = [write_text(results / "settings.md", settings_text()),
             write_text(results / "README.md", page(folder, runs, questions))]
    for name, found in runs.items():
        write_tables(found)
        write_summary(found)
        if (folder / name / "report.html").is_file():
            write_report(found)
        if (folder / name / "notebooks").is_dir():
            text = run_page(folder, name, questions[name])
            pages.append(write_text(folder / name / "README.md", text))
    return pages


if __name__ == "__main__":
    print(*write_pages(Path(__file__).parent), sep="\n")
