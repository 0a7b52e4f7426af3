"""One measured number as a row of a record, and many of them as one frame (paper section 7)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError


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


Number = Annotated[float, Field(allow_inf_nan=False)]
Values = list[Number | None]
Object = dict[str, Any]


class _Loose(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Row(_Loose):
    table: str
    row: str
    precision: str
    metric: str
    dataset: str
    value: Number | None = None
    sd: Number | None = None
    steps: int | None = None
    values: Values | None = None
    seed_ids: list[int] | None = None
    images: Values | list[Values] | None = None


class _Estimate(_Loose):
    accelerator: str
    cpu_operators: list[str]
    cycles_total: Annotated[Number, Field(gt=0)]


class _Export(_Loose):
    npu: list[_Estimate] | None = None


class _Audited(_Loose):
    row: str
    precision: str
    metric: str
    verdict: str
    reported: Number | None = None
    reproduced: Number | None = None
    tolerance: Number | None = None
    table: str | None = None
    evidence: str | None = None


class _Part(_Loose):
    commit: str | None
    dirty: bool | None
    seconds: Number
    device: str
    threads: int
    versions: dict[str, str | None]
    seeds: list[int]
    archs: list[str]
    conditions: list[str]


class _Record(_Loose):
    """What tables, summary and report take from a record; those with a value here may be missing."""

    rows: list[_Row]
    run: str = ""
    profile: str
    commit: str | None
    dirty: bool | None
    seconds: Number
    seed: int
    device: str
    threads: int
    versions: dict[str, str | None]
    inputs: Object
    settings: Object
    teacher: str | None = None
    parts: list[_Part] | None = None
    history: list[dict[str, Number | None]] | None = None
    export: _Export | None = None
    audit: list[_Audited] | None = None
    graph_forms: dict[str, Annotated[Number, Field(gt=0)]] | None = None


def wrong_record(record: Any) -> str:
    """Where content read from a file is no record, and why; empty where it is one."""
    try:
        _Record.model_validate(record)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            return "nested too deep"
        first = error.errors()[0]
        return f"{'.'.join(str(part)[:40] for part in first['loc'][:4]) or 'content'}: {first['msg']}"
    return ""


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
