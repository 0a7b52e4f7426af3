"""One measured number as a row of a record, and many of them as one frame (paper section 7)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd


def measured_row(table: str, row: str, precision: str, metric: str, value: float | Sequence[float] | None,
                 dataset: str, **more: Any) -> dict[str, Any]:
    """One measured number for a record.

    Args:
        table: the paper's table (A, B, C, D, abstract), or a name of ours for numbers that no table of the paper has.
        row: the model, as in `reported.csv`.
        precision: fp32, int8 or fake-quant.
        metric: psnr, ssim, or a further one.
        value: the number, or one per seed (then their mean and sample standard deviation are kept too); None where
            it could not be measured.
        dataset: the image set it was measured on; the tables read "validation".
        more: anything that belongs beside the number, such as `note`, or `steps` of the training behind it.
    """
    line = {"table": table, "row": row, "precision": precision, "metric": metric, "dataset": dataset}
    if isinstance(value, Sequence):
        mean = math.fsum(value) / len(value)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in value) / (len(value) - 1)) if len(value) > 1 else None
        return line | {"value": mean, "values": list(value), "sd": spread} | more
    return line | {"value": value} | more


ROW_COLUMNS = ("record", "table", "row", "precision", "metric", "dataset", "value", "sd", "seeds", "steps", "values",
               "seed_ids", "images")


def tidy_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Rows of records as one frame with the columns `ROW_COLUMNS`.

    Args:
        rows: pairs of a record's name and one of its rows (see `measured_row`).

    Returns:
        `value` and `sd` (over the seeds) as floats, nan where there is none; `seeds` how many there were; `steps` of
        the training behind the number, <NA> where the row does not say; `values` one number a seed in a list, or None;
        `seed_ids` which seeds; `images` the values of the set's images, a list, or one a seed.
    """
    lines = [{"record": record, "seeds": len(row.get("values") or [None])} | {
        name: row.get(name) for name in ROW_COLUMNS if name not in ("record", "seeds")} for record, row in rows]
    return pd.DataFrame(lines, columns=list(ROW_COLUMNS)).astype(
        {"value": float, "sd": float, "seeds": int, "steps": "Int64", "values": object, "seed_ids": object,
         "images": object})
