"""A run against the committed run of its profile: what a reader's machine gives again, and what it does not.

Two machines sum in another order, and training carries the last bit on. How far apart one training then ends is
measured (`python -m paperlib.benchmarks.spread`) and stated in `results/reference/spread.json`; values further apart
than that do not agree. Where settings or teacher differ there is nothing to compare, and the text says which.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.profiles import HARMLESS, NOTEBOOKS, load_settings
from paperlib.run import Run
from paperlib.settings import flatten

KEY = ["record", "table", "row", "precision", "metric", "dataset"]
PRINTED = 1e-4
"""Nobody sees smaller differences: tables print four places."""
MOST = 12
"""Lines of values that do not agree; more are counted."""


@dataclass(frozen=True)
class Comparison:
    """A run beside its reference."""

    values: pd.DataFrame
    """`KEY`, `here`, `there`, `difference` (here − there), `allowed` and `agrees`; one line a value that both have."""
    different: dict[str, list[str]]
    """By record, what differs in settings or teacher as "name: here, there there"; its values are not compared."""
    missing: dict[str, int]
    """By record, how many values only one of the two has."""


def kind_of(table: str, row: str, precision: str) -> str:
    """What stands behind a row: nothing trained ("untrained", the bicubic baselines), "trained" weights, or "rounded".

    Where kernels and ranges are rounded to grids of 256 steps, a last bit decides where a grid falls; not so in the
    student in the box, whose grids lie fixed. Table C's column FP32 is of fake-quantised networks, as in the paper.
    """
    if row.startswith("bicubic"):
        return "untrained"
    rounded = precision in ("int8", "fake-quant") or (table == "C" and not row.endswith("_float"))
    return "rounded" if rounded and table != "box" else "trained"


def reference_folder(profile: str) -> Path:
    """Where the committed run of a profile lies in a clone (whether or not there is one)."""
    return root() / "results" / "reference" / profile


def stated_spread() -> dict[str, dict[str, float]]:
    """How far two machines may differ: by `kind_of` {metric: limit}, dB for PSNR.

    Raises:
        UserError: the record of it is missing or damaged.
    """
    path = root() / "results" / "reference" / "spread.json"
    again = "Restore it with git."
    if not path.is_file():
        raise UserError(f"no spread between machines at {path}. {again}")
    try:
        return {kind: {metric: max(float(limit), PRINTED) for metric, limit in limits.items()}
                for kind, limits in json.loads(path.read_text(encoding="utf-8"))["stated"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). {again}") from error


def _teacher(records: dict[str, dict[str, Any]]) -> str:
    """The teacher that the records name, without the remarks behind it."""
    return next((record["teacher"].split(" (")[0] for record in records.values() if record.get("teacher")), "none")


def _different(name: str, here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Settings behind a record that differ; what an older record does not know has the profile's value."""
    usual = flatten("", load_settings(here["profile"]).model_dump(mode="json"))
    mine = flatten("", here["settings"])
    theirs = {field: value for field, value in flatten("", there["settings"]).items() if field in usual}
    sections = [*NOTEBOOKS[name].sections, "seed"]
    return [f"{field}: {mine[field]}, there {theirs.get(field, usual[field])}" for field in usual
            if field.split(".")[0] in sections and not field.endswith(HARMLESS) and field in mine
            and mine[field] != theirs.get(field, usual[field])]


def compare(run: Run, reference: Run, spread: dict[str, dict[str, float]]) -> Comparison:
    """Compare all values that both runs have; pure arithmetic on records.

    Args:
        spread: see `stated_spread`; a metric that it does not know must agree to four places.

    Raises:
        UserError: a record is damaged.
    """
    here, there = run.records(), reference.records()
    both = [name for name in here if name in there and name in NOTEBOOKS]
    different = {name: _different(name, here[name], there[name]) for name in both}
    mine, theirs = _teacher(here), _teacher(there)
    for name in both:
        if mine != theirs and "teacher" in NOTEBOOKS[name].sections:
            different[name].append(f"teacher: {mine}, there {theirs}")
    rows = [part.rows().dropna(subset="value").drop_duplicates(KEY, keep="last") for part in (run, reference)]
    joined = pd.merge(*(part[[*KEY, "value"]] for part in rows), on=KEY, how="outer", suffixes=("_here", "_there"),
                      sort=False).rename(columns={"value_here": "here", "value_there": "there"})
    joined = joined[[name in both and not different[name] for name in joined["record"]]]
    alone = joined["here"].isna() | joined["there"].isna()
    values = joined[~alone].reset_index(drop=True)
    values["difference"] = values["here"] - values["there"]
    values["allowed"] = [spread.get(kind_of(table, row, precision), {}).get(metric, PRINTED) for table, row, precision,
                         metric in values[["table", "row", "precision", "metric"]].itertuples(index=False)]
    values["agrees"] = values["difference"].abs() <= values["allowed"]
    return Comparison(values, {name: found for name, found in different.items() if found},
                      joined[alone].groupby("record").size().to_dict())


def overview(found: Comparison) -> pd.DataFrame:
    """One line a notebook: values that agree and do not, the largest difference, or why it was not compared."""
    lines = []
    for name in NOTEBOOKS:
        part = found.values[found.values["record"] == name]
        if name in found.different:
            lines.append({"notebook": name, "remark": f"not compared: {found.different[name][0]}" + (
                f" and {len(found.different[name]) - 1} more" if len(found.different[name]) > 1 else "")})
        elif len(part) or name in found.missing:
            psnr = part[part["metric"] == "psnr"]["difference"].abs()
            lines.append({"notebook": name, "agree": int(part["agrees"].sum()), "differ": int((~part["agrees"]).sum()),
                          "largest, PSNR (dB)": f"{psnr.max():.4f}" if len(psnr) else "",
                          "remark": f"{found.missing[name]} values in one of the two only" if name in found.missing
                          else ""})
    columns = ["notebook", "agree", "differ", "largest, PSNR (dB)", "remark"]
    return pd.DataFrame(lines, columns=columns, dtype=object).fillna("")


def disagreements(found: Comparison) -> pd.DataFrame:
    """The values that do not agree, those furthest beyond what is allowed first."""
    beyond = found.values[~found.values["agrees"]]
    beyond = beyond.loc[(beyond["difference"].abs() / beyond["allowed"]).sort_values(ascending=False).index]
    return pd.DataFrame({
        "notebook": beyond["record"], "row": beyond["table"] + " " + beyond["row"], "measure": beyond["precision"] + " "
        + beyond["metric"], "set": beyond["dataset"], "here": beyond["here"].map("{:.4f}".format),
        "reference": beyond["there"].map("{:.4f}".format), "difference": beyond["difference"].map("{:+.4f}".format),
        "allowed": beyond["allowed"].map("±{:.4f}".format)})


def reference_text(run: Run) -> str:
    """What the end of `reproduce` prints: a line, a small table, and the values that do not agree.

    A committed file that cannot be read is said here too: the run itself has ended well.
    """
    folder = reference_folder(run.settings.profile)
    if not (folder / "records").is_dir():
        return f"No reference for profile {run.settings.profile}: nothing committed to compare this run with."
    if folder.resolve() == run.out.resolve():
        return "This run is the reference of its profile; there is nothing else to compare it with."
    reference = Run(run.settings, folder, every_record=True)
    try:
        spread, records = stated_spread(), reference.records()
        found = compare(run, reference, spread)
    except UserError as error:
        return f"Not compared with the committed {run.settings.profile}: {error}"
    commits = ", ".join(dict.fromkeys((record["commit"] or "no commit")[:8] for record in records.values()))
    table = overview(found)
    if table.empty:
        return (f"Not compared with the committed {run.settings.profile} ({commits}): it has no record of a notebook "
                "that ran here.")
    limits = "; ".join(f"{kind} rows: PSNR ±{spread.get(kind, {}).get('psnr', PRINTED):.3f} dB, SSIM "
                       f"±{spread.get(kind, {}).get('ssim', PRINTED):.4f}" for kind in ("trained", "rounded"))
    line = (f"Against the committed {run.settings.profile} ({commits}): {int(found.values['agrees'].sum())} of "
            f"{len(found.values)} values agree within the spread between machines ({limits}; "
            f"results/reference/spread.json).")
    parts, beyond = [line, table.to_string(index=False)], disagreements(found)
    if len(beyond):
        rest = f"\nand {len(beyond) - MOST} more" if len(beyond) > MOST else ""
        parts.append(f"These do not agree:\n{beyond.head(MOST).to_string(index=False)}{rest}")
    return "\n\n".join(parts)
