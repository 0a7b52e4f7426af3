"""`results/README.md`: what each committed run answers, written by `python -m paperlib.reporting.answers`.

Everything is read from what is committed beside it: tables for verdicts, records for minutes, commits and settings,
`questions.json` for what each run was made to answer, `spread.json` for how far two machines may differ.
"""

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.files import write_text
from paperlib.profiles import NOTEBOOKS
from paperlib.reporting.costs import speed_text
from paperlib.reporting.settings_page import settings_text
from paperlib.reporting.strongest import strongest_text
from paperlib.reporting.tables import TABLES

HEADING = """# Committed results

Written by `python -m paperlib.reporting.answers` from the files in `reference/`; a test compares it with them. A run of
your own writes `results/<profile>/`, which git ignores, and ends with a comparison with the reference of its profile.
Commands are as they were given at the commit beside them; where several stand there, the experiment was trained in
parts and joined, and its record names each part's trainings. Minutes are those of
the notebooks that a table needs, on the machine of the record, with the trainings that they continued. Verdicts are
explained at the top of each summary. What can be set, with the profiles' values: [settings.md](settings.md)."""

AUTHORS = "authors' file"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}). Restore it with git.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: no JSON object. Restore it with git.")
    return found


def _records(run: Path) -> dict[str, dict[str, Any]]:
    """The notebooks' records and `00_reproduce`, by name, whatever settings they were made with."""
    return {path.stem: _json(path) for path in sorted((run / "records").glob("*.json"))}


def _overrides(run: Path, records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The single settings that a run was started with: from its record, else from an executed notebook.

    Raises:
        UserError: neither says them; a command without them would be another run's.
    """
    if "overrides" in records.get("00_reproduce", {}):
        return dict(records["00_reproduce"]["overrides"])
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        text = _json(path)["metadata"].get("papermill", {}).get("parameters", {}).get("overrides")
        if text:
            return dict(json.loads(text))
    raise UserError(f"{run} does not say which single settings it was started with. Give its 00_reproduce.json the "
                    "field overrides, {} where there were none.")


def _word(value: Any) -> str:
    """A setting's value as the command line takes it; folders of the machine it ran on are left out."""
    return re.sub(r"^/.*/", ".../", value) if isinstance(value, str) else json.dumps(value)


def command(profile: str, first: str, last: str, overrides: Mapping[str, Any]) -> str:
    """The command for the notebooks `first` to `last` (two digits) with single settings."""
    words = ["paperlib", "reproduce", "--profile", profile]
    words += ["--from", first] if first != "01" else []
    words += ["--until", last] if last != "07" else []
    if overrides:
        words += ["--set", *(f"{field}={_word(value)}" for field, value in overrides.items())]
    return " ".join(f'"{word}"' if "$PAPERLIB_" in word else shlex.quote(word) for word in words)


def _seconds(records: Mapping[str, dict[str, Any]], name: str) -> float:
    """What a notebook took, and its training where an earlier run of the notebook had done that."""
    notebook = records.get("00_reproduce", {}).get("notebooks", {}).get(name, records[name])["seconds"]
    training = max([0.0, *(point["seconds"] for point in records[name].get("history") or [])])
    return notebook + (training if training > notebook else 0.0)


def _table_line(run: Path, name: str, records: Mapping[str, dict[str, Any]], link: str) -> list[str] | None:
    """One line of a run's overview: table, notebooks, records, minutes, verdicts; None where nothing was measured."""
    path = run / "tables" / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"no table at {path}. Restore it with git.")
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["reproduced"]]
    if not lines:
        return None
    counts = Counter(line["verdict"] for line in lines)
    verdicts = ", ".join(f"{count} × {word}" for word, count in sorted(counts.items()))
    used = sorted({found for line in lines for found in re.findall(r"records/(\w+)\.json", line["evidence"])})
    used = used or [record for record, content in records.items() if name == "audit" and content.get("audit")]
    shown = [notebook for notebook in NOTEBOOKS if notebook in records and used and notebook <= used[-1]]
    seconds = sum(_seconds(records, notebook) for notebook in shown)
    numbers = " to ".join(dict.fromkeys((shown[0][:2], shown[-1][:2]))) if shown else "none (arithmetic)"
    return [f"{name}: {TABLES[name]}", numbers,
            ", ".join(f"[{record}]({link}/records/{record}.json)" for record in used),
            f"{seconds / 60:.0f}" if shown else "", verdicts]


def _run_text(run: Path, link: str, question: str) -> str:
    records = _records(run)
    notebooks = [name for name in NOTEBOOKS if name in records]
    if not notebooks:
        raise UserError(f"{run} holds no record of a notebook. Restore it with git, or remove the folder.")
    last = records[notebooks[-1]]
    parts = [part for name in notebooks for part in records[name].get("parts") or [records[name]]]
    made = ", ".join(dict.fromkeys((part.get("commit") or "none")[:8] for part in parts))
    lines = [_table_line(run, name, records, link) for name in TABLES]
    table = ["| paper's table | notebooks | records | minutes | verdicts |", "| --- | --- | --- | --- | --- |",
             *("| " + " | ".join(line) + " |" for line in lines if line)]
    beside = [f"[{path.name}]({link}/{path.name})" for name in ("summary.md", "report.html", "tried.md", "seeds.json",
                                                              "bench.json")
              for path in [run / name] if path.is_file()]
    return "\n\n".join([
        f"## {link.removeprefix('reference/')}", question,
        f"```\n{command(last['profile'], notebooks[0][:2], notebooks[-1][:2], _overrides(run, records))}\n```",
        f"Commit {made}; threads: {last['threads']}, {'a' if last['cuda'] else 'no'} GPU, "
        f"torch {last['versions']['torch']}. {', '.join(beside)}", "\n".join(table)])


def _spread_text(path: Path) -> str:
    spread = _json(path)
    whole = "" if "stage1.steps" in spread["settings"] else " --whole"
    lines = [f"| {kind} | {metric} | {value['median']:.4f} | {value['largest']:.4f} | "
             f"{spread['stated'][kind][metric]:.4f} |"
             for kind, metrics in spread["seen"].items() for metric, value in metrics.items()]
    machines = ", ".join(f"{name} ({machine['seconds'] / 60:.0f} min)" for name, machine in spread["machines"].items())
    return "\n\n".join([
        "## How far two machines may differ",
        f"[spread.json](reference/spread.json), by `python -m paperlib.benchmarks.spread{whole}`: {spread['what']}; "
        f"{machines}. Stated is {spread['allowance']} times the largest difference between any two. PSNR in dB.",
        "\n".join(["| rows | metric | median | largest | stated |", "| --- | --- | --- | --- | --- |", *lines])])


def _audit_text(path: Path) -> str:
    """The authors' files on public sets, and where the learnt grids lose against the file of post-training."""
    audit = _json(path)
    found = {(line["as"], line["dataset"]): line for line in audit["measured"]}
    names, sets = (list(dict.fromkeys(key[part] for key in found)) for part in (0, 1))
    table = [f"| authors' file | as | {' | '.join(sets)} |", "| --- " * (len(sets) + 2) + "|"]
    for name in names:
        cells = " | ".join(f"{found[name, image_set]['psnr_rgb']:.3f}" for image_set in sets)
        table.append(f"| {found[name, sets[0]][AUTHORS]} | {name.replace('_', ' ')} | {cells} |")
    loss, where, image_set = max((value - found["re_exported_int8", image_set]["images"][image], image, image_set)
                                 for image_set in sets
                                 for image, value in found["dynamic_int8", image_set]["images"].items())
    return "\n\n".join([
        "## The authors' files, measured again",
        "What do the published checkpoints and TFLite files score on public sets, and what do the learnt grids give?",
        "```\npaperlib verify --json results/reference/audit.json\n```",
        f"Commit {audit['provenance']['commit'][:8]}; hashes of their files and PSNR of every image in "
        "[audit.json](reference/audit.json). PSNR RGB in dB:", "\n".join(table),
        f"The file with the learnt grids (re exported int8) is ahead on average and {loss:.2f} dB behind their dynamic "
        f"one on one photograph, {where} of {image_set}: its input grid ends at {audit['input_grid'][1]:.0f}, where "
        "stage 3's observers left it, so it cannot tell brighter pixels apart."])


def _hostile_text(path: Path) -> str:
    """How many damaged files the command line was given, and what became of them."""
    record = _json(path)
    lines = [f"| {kind} | {' | '.join(str(counts[name]) for name in ('commands', 'files', 'refused', 'wrong'))} |"
             for kind, counts in record["kinds"].items()]
    return "\n\n".join([
        "## Damaged files",
        f"[hostile.json](reference/{path.name}), by `python -m paperlib.benchmarks.hostile --seed {record['seed']}` "
        f"(other projects' pictures by `--corpus FOLDER`): commit {record['commit'][:8]}. Wrong: a command that broke "
        "a promise: exit code 0, 1 or 2, one line a failure, no traceback, inputs as they were, nothing outside of the "
        "output, the good picture of a batch enlarged.",
        "\n".join(["| kind | commands | files | refused | wrong |", "| --- | --- | --- | --- | --- |", *lines])])


def answers_text(folder: Path) -> str:
    """The page for the committed runs below `folder` (results/reference), in the order of `questions.json`.

    Raises:
        UserError: a file is missing or damaged, or a run has no question.
    """
    questions = _json(folder / "questions.json")
    runs = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("records") if path.is_dir()}
    if runs != questions.keys():
        raise UserError(f"{folder / 'questions.json'} and the runs beside it differ in "
                        f"{', '.join(sorted(runs ^ questions.keys()))}. Say there what each run answers.")
    parts = [HEADING, strongest_text(folder, list(questions)),
             *(_run_text(folder / name, f"reference/{name}", text) for name, text in questions.items())]
    parts += [speed_text(path, f"reference/{path.relative_to(folder).as_posix()}")
              for path in sorted(folder.rglob("bench.json"))]
    if (folder / "audit.json").is_file():
        parts.append(_audit_text(folder / "audit.json"))
    if (folder / "hostile.json").is_file():
        parts.append(_hostile_text(folder / "hostile.json"))
    if (folder / "spread.json").is_file():
        parts.append(_spread_text(folder / "spread.json"))
    return "\n\n".join(parts) + "\n"


def run_page(folder: Path, name: str) -> str:
    """The page inside a committed run with executed notebooks, which link to it as to the project's README."""
    question = _json(folder / "questions.json")[name]
    up = "../" * (name.count("/") + 3)
    notebooks = ", ".join(f"[{path.stem}](notebooks/{path.name})"
                          for path in sorted((folder / name / "notebooks").glob("*.ipynb")))
    return "\n\n".join([
        f"# The committed run {name}", question, f"Its notebooks as executed, with every picture: {notebooks}.",
        "In short: [summary.md](summary.md); on one page, with dividers to drag: [report.html](report.html). Records, "
        f"commands and minutes of all runs: [results]({up[3:]}README.md). To run the notebooks yourself, open "
        f"those in [notebooks/]({up}notebooks); what the project is: [README]({up}README.md).\n"])


def write_answers(results: Path) -> Path:
    """Write README.md and settings.md into the folder `results`, README.md into each run with notebooks below it.

    Returns:
        The first.
    """
    folder = results / "reference"
    write_text(results / "settings.md", settings_text())
    path = write_text(results / "README.md", answers_text(folder))
    for name in _json(folder / "questions.json"):
        if (folder / name / "notebooks").is_dir():
            write_text(folder / name / "README.md", run_page(folder, name))
    return path


if __name__ == "__main__":
    print(write_answers(root() / "results"))
