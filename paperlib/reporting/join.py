"""One experiment, trained in parts, as one run: `python -m paperlib.reporting.join INTO PART`.

A grid of trainings (paper Tables C and D) takes hours; a part of it is a run of notebook 07 with other seeds, blocks or
conditions, on another day or machine. Everything else must have been set alike. The joined record keeps of each part
what it was made with (`parts`).
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paperlib.errors import UserError
from paperlib.files import read_json, write_json
from paperlib.profiles import load_settings
from paperlib.reporting.figures import drops
from paperlib.reporting.report import write_report
from paperlib.reporting.summary import write_summary
from paperlib.reporting.tables import write_tables
from paperlib.reporting.verdicts import UNTRAINED
from paperlib.run import Run, measured_row
from paperlib.settings import flatten

NAME = "07_ablations"
GRID = ("archs", "seeds", "conditions", "switches")
"""The settings of `ablation` that say which trainings there are; the others say how each is made."""
FACTS = ("run", "commit", "dirty", "versions", "device", "cuda", "cpu", "threads", "platform", "load_average",
         "started", "seconds", "peak_memory_bytes", "inputs")
NO_SEED = -1
"""Stands for the seed of a row in which nothing is drawn at random."""
_KEY = ("table", "row", "precision", "metric", "dataset")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of notebook 07 and of `reproduce`."""
    record, about = (read_json(folder / "records" / f"{name}.json") for name in (NAME, "00_reproduce"))
    return record, about


def _set(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a record's trainings were made; what an older version of the kit did not know has the method's value."""
    recorded = record["settings"]
    usual = load_settings(record["profile"], {"method": recorded["method"]} if "method" in recorded else None)
    known = flatten("", usual.model_dump(mode="json"))
    found = known | {field: value for field, value in flatten("", recorded).items() if field in known}
    left_out = {"seed", "data.tests", *(f"ablation.{name}" for name in GRID)}
    return {field: value for field, value in found.items() if field not in left_out and not field.endswith(".expect")}


def _by_seed(record: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[dict[str, Any], dict[int, tuple[Any, Any]]]]:
    """Rows by key: the row, and its value and its images' values by seed."""
    found = {}
    for row in record["rows"]:
        several = row.get("values") is not None
        seeds = row.get("seed_ids") or record["settings"]["ablation"]["seeds"][: len(row["values"]) if several else 1]
        if row["row"] in UNTRAINED:
            seeds = [NO_SEED]
        values = row["values"] if several else [row["value"]]
        images = row.get("images") if several else [row["images"]] if row.get("images") else None
        found[tuple(row[name] for name in _KEY)] = row, dict(zip(
            seeds, zip(values, images or [None] * len(values), strict=True), strict=True))
    return found


def _joined_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every row of both, with the seeds of both, in the order of the seeds.

    Raises:
        UserError: both hold the same training with other values, or trainings of other lengths.
    """
    mine, theirs = _by_seed(one), _by_seed(other)
    rows = []
    for key in dict.fromkeys((*mine, *theirs)):
        present = [part[key] for part in (mine, theirs) if key in part]
        name = " ".join(key)
        if len({row.get("steps") for row, _ in present}) > 1:
            raise UserError(f"{name} was trained for {' and '.join(str(row.get('steps')) for row, _ in present)} "
                            "steps; parts of one experiment have one schedule.")
        found: dict[int, tuple[Any, Any]] = {}
        for _, values in present:
            if twice := [seed for seed in values if seed in found and found[seed] != values[seed]]:
                raise UserError(f"{name} is in both parts with other values, seed {twice[0]}. Give only trainings that "
                                "the first does not hold.")
            found |= values
        row, seeds = present[0][0], sorted(found)
        if missing := [seed for seed in seeds if found[seed][0] is None]:
            raise UserError(f"{name} has no value for seed {missing[0]}. Run the part that lacks it again.")
        if len(seeds) == 1:
            rows.append(dict(row) | ({} if seeds == [NO_SEED] else {"seed_ids": seeds}))
            continue
        known = {"steps", "images", "seed_ids", "value", "values", "sd", *_KEY}
        more = {field: value for field, value in row.items() if field not in known}
        if row.get("steps") is not None:
            more["steps"] = row["steps"]
        images = [found[seed][1] for seed in seeds]
        rows.append(measured_row(*key[:4], [found[seed][0] for seed in seeds], key[4], seed_ids=seeds,
                                 **({"images": images} if all(images) else {}), **more))
    return rows


def _union(*lists: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(value for values in lists for value in values))


def _grid(*records: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Which trainings there are altogether, seeds in order."""
    found = {name: _union(*(record["settings"]["ablation"][name] for record in records)) for name in GRID}
    return found | {"seeds": sorted(found["seeds"])}


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The record of notebook 07 with the trainings of two.

    Args:
        one, other: its records, of runs that differ in seeds, blocks, conditions or switches alone.

    Returns:
        The first, with the rows of both, the seconds of both, and `parts`: of each what it was made with.

    Raises:
        UserError: something else was set otherwise, the teachers differ, a training is in both with other values, or
            there is no new one.
    """
    mine, theirs = _set(one), _set(other)
    fields = [field for field in mine if mine[field] != theirs[field]]
    different = [f"{field} = {json.dumps(mine[field])} and {json.dumps(theirs[field])}" for field in fields]
    if one["profile"] != other["profile"]:
        different.insert(0, f"profile = {one['profile']} and {other['profile']}")
    if one.get("teacher") != other.get("teacher"):
        different.append(f"teacher = {one.get('teacher')} and {other.get('teacher')}")
    known, others = _inputs(one), _inputs(other)
    different += [f"{name} = {known[name]} and {others[name]}" for name in sorted(known.keys() & others.keys())
                  if known[name] != others[name]]
    if different:
        raise UserError(f"parts of one experiment are set alike; here {'; '.join(different)}. Run the part again with "
                        "the settings of the first.")
    rows = _joined_rows(one, other)
    before = sum(len(values) for _, values in _by_seed(one).values())
    if sum(len(row.get("seed_ids") or [NO_SEED]) for row in rows) == before:
        raise UserError("the part brings no training that the first does not hold. Nothing was joined.")
    return dict(one) | {
        "settings": one["settings"] | {"ablation": one["settings"]["ablation"] | _grid(one, other)},
        "seconds": round(one["seconds"] + other["seconds"], 1),
        "peak_memory_bytes": max(one["peak_memory_bytes"], other["peak_memory_bytes"]),
        "rows": rows, "shares": _shares(one, other), "parts": _parts(one) + _parts(other)}


def _shares(*records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The shares of the gradient of every condition; of one in several, the first."""
    found = [line for record in records for line in record.get("shares") or []]
    return list({line["condition"]: line for line in reversed(found)}.values())[::-1]


def _parts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each part of a record was made with, and which trainings it brought."""
    return record.get("parts") or [{field: record[field] for field in FACTS if field in record} | _grid(record)]


def _inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """What all parts of a record read, by name; parts of an older version of the kit say nothing of it."""
    return {name: found for part in record.get("parts") or [record] for name, found in part.get("inputs", {}).items()}


def _both(one: Mapping[str, Any], other: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    """The record of `reproduce`: the minutes of both, and the single settings of both, with all trainings in them.

    Both were set alike (`joined`): what one command leaves out was its profile's value then, and is so by these.
    """
    given = one.get("overrides", {}) | other.get("overrides", {})
    costs = [record.get("notebooks", {}).get(NAME) for record in (one, other)]
    notebooks = {NAME: {"seconds": round(sum(cost["seconds"] for cost in costs), 1),
                        "peak_bytes": max(cost["peak_bytes"] for cost in costs)}} if all(costs) else {}
    return dict(one) | {"seconds": round(one["seconds"] + other["seconds"], 1),
                        "notebooks": one.get("notebooks", {}) | notebooks,
                        "overrides": given | {f"ablation.{name}": values for name, values in grid.items()}}


def join(into: Path, part: Path) -> Path:
    """Add the trainings of the run `part` to the run `into`: records, figure, tables, summary and report.

    Returns:
        The summary.

    Raises:
        UserError: a record is missing or damaged, or see `joined`.
    """
    (one, about), (other, beside) = _read(into), _read(part)
    try:
        record = joined(one, other)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a record of {NAME} in {into} or {part} is damaged ({error!r}). Run the notebook again, or "
                        "restore the file with git.") from error
    both = _both(about, beside, _grid(one, other))
    run = Run(load_settings(record["profile"], both["overrides"]), into, every_record=True)
    write_json(into / "records" / f"{NAME}.json", record)
    write_json(into / "records" / "00_reproduce.json", both)
    if record["settings"]["ablation"]["archs"]:
        run.figure("07_backbones", drops(record["rows"]))
    write_tables(run)
    summary = write_summary(run)
    write_report(run)
    return summary


def commits(record: Mapping[str, Any]) -> list[str]:
    """The commits of a record's parts, each once: settings say nothing of what the code did with them."""
    return _union([(part.get("commit") or "none")[:8] for part in record.get("parts") or [record]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("into", type=Path, help="folder of the run that takes the trainings")
    parser.add_argument("part", type=Path, help="folder of the run that has them")
    given = parser.parse_args()
    try:
        print(join(given.into, given.part))
        if len(made := commits(_read(given.into)[0])) > 1:
            print(f"Parts of commits {', '.join(made)}: see by `git log` that nothing between them changed how these "
                  "networks are trained; else restore the folder with git and train the part again.", file=sys.stderr)
    except UserError as error:
        parser.exit(2, f"{error}\n")
