"""Compare a run with the committed run of its profile.

Two machines sum in another order, and training carries the last bit on. How far apart one training
then ends is measured (results/reference/spread.json); values further apart do not agree.
"""

from typing import Any, NamedTuple

import pandas as pd

from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.files import read_json, reading
from paperlib.profiles import HARMLESS, NOTEBOOKS, load_settings
from paperlib.reporting.results import Results
from paperlib.run import Run
from paperlib.settings import flatten

KEY = ["record", "table", "row", "precision", "metric", "dataset"]
PRINTED = 1e-4
"""Nobody sees smaller differences: tables print four places."""
MOST = 6
"""Values that do not agree are listed up to so many."""


class Comparison(NamedTuple):
    """A run beside its reference."""

    values: pd.DataFrame
    """`KEY`, `here`, `there`, `allowed`, `agrees`; one line a value that both have."""
    different: dict[str, list[str]]
    """By notebook, the settings that differ; its values are not compared."""
    missing: int
    """How many values of the reference have no counterpart in notebooks that are compared."""


def kind_of(table: str, row: str, precision: str) -> str:
    """What stands behind a row: "untrained", "trained" weights, or "rounded" ones.

    Where kernels and ranges are rounded to grids of 256 steps, a last bit decides where a grid
    falls; the shipped student's grids lie fixed. Table C's FP32 is of fake-quantised networks.
    """
    if row.startswith("bicubic"):
        return "untrained"
    rounded = precision in ("int8", "fake-quant") or (table == "C" and not row.endswith("_float"))
    return "rounded" if rounded and table != "shipped" else "trained"


def stated_spread() -> dict[str, dict[str, float]]:
    """How far two machines may differ: by `kind_of` {metric: limit}, dB for PSNR."""
    path = root() / "results" / "reference" / "spread.json"
    with reading(path, "a record of how far machines differ"):
        return {kind: {metric: max(float(limit), PRINTED) for metric, limit in limits.items()}
                for kind, limits in read_json(path)["stated"].items()}


def _different(name: str, here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Settings behind a record that differ; one that the older does not know is the profile's."""
    usual = flatten("", load_settings(here["profile"]).model_dump(mode="json"))
    mine, theirs = flatten("", here["settings"]), flatten("", there["settings"])
    sections = [*NOTEBOOKS[name].sections, "seed"]
    return [f"{field} {mine[field]}, there {theirs.get(field, value)}"
            for field, value in usual.items()
            if field.split(".")[0] in sections and not field.endswith(HARMLESS) and field in mine
            and mine[field] != theirs.get(field, value)]


def compare(here: Results, there: Results, spread: dict[str, dict[str, float]]) -> Comparison:
    """Compare all values that both runs have; where `spread` has no limit, to four places."""
    both = [name for name in NOTEBOOKS if name in here.records and name in there.records]
    different = {name: _different(name, here.records[name], there.records[name]) for name in both}
    mine, theirs = (
        next((record["teacher"].split(" (")[0] for record in results.records.values()
              if record.get("teacher")), "none") for results in (here, there))
    for name in both:
        if mine != theirs and "teacher" in NOTEBOOKS[name].sections:
            different[name].append(f"teacher {mine}, there {theirs}")
    rows = [results.rows.dropna(subset="value").drop_duplicates(KEY, keep="last")[[*KEY, "value"]]
            for results in (here, there)]
    values = rows[0].merge(rows[1], on=KEY, suffixes=("_here", "_there")).rename(
        columns={"value_here": "here", "value_there": "there"})
    compared = [name for name in both if not different[name]]
    values = values[values["record"].isin(compared)].reset_index(drop=True)
    missing = int(rows[1]["record"].isin(compared).sum()) - len(values)
    values["allowed"] = [
        spread.get(kind_of(row.table, row.row, row.precision), {}).get(row.metric, PRINTED)
        for row in values.itertuples()]
    values["agrees"] = (values["here"] - values["there"]).abs() <= values["allowed"]
    different = {name: found for name, found in different.items() if found}
    return Comparison(values, different, missing)


def reference_text(source: Run | Results) -> str:
    """Whether a run gave what the committed run of its profile gave, in a few lines."""
    here = Results.of(source)
    profile, folder = here.run.settings.profile, root() / "results" / "reference"
    if folder.resolve() == here.run.out.resolve().parent:
        return "This run is the committed one of its profile: nothing else to compare it with."
    if not (folder / profile / "records").is_dir():
        return f"Did it work? No run of profile {profile} is committed, to compare this one with."
    try:
        there = Results(Run(here.run.settings, folder / profile, every_record=True))
        found = compare(here, there, stated_spread())
    except UserError as error:
        return f"Did it work? Not compared with the committed run of {profile}: {error}"
    values, beyond = found.values, found.values[~found.values["agrees"]]
    if values.empty:
        lines = [f"Did it work? Nothing can be compared with the committed {profile}."]
    elif beyond.empty:
        lines = [f"Did it work? Yes: {len(values)} of {len(values)} values agree with the "
                 "committed run of another machine (as closely as two machines agree)."]
    else:
        lines = [f"Did it work? Not as here before: {len(beyond)} of {len(values)} values differ "
                 "by more than two machines do:"]
        apart = (beyond["here"] - beyond["there"]).abs() / beyond["allowed"]
        lines += [f"  {row.record} {row.table} {row.row} {row.precision} {row.metric} on "
                  f"{row.dataset}: {row.here:.4f}, there {row.there:.4f}, "
                  f"at most ±{row.allowed:.4f}"
                  for row in beyond.loc[apart.nlargest(MOST).index].itertuples()]
        lines += [f"  and {len(beyond) - MOST} more"] if len(beyond) > MOST else []
    lines += [f"  {name} was not compared: {'; '.join(fields[:MOST])}"
              for name, fields in found.different.items()]
    if found.missing:
        lines.append(f"  {found.missing} values of that run were not measured here.")
    return "\n".join(lines)
