"""The tables of a results folder as text, Markdown or LaTeX, for `paperlib table`."""

import csv
from pathlib import Path

import pandas as pd

from paperlib.errors import UserError
from paperlib.files import explain
from paperlib.reporting.tables import COLUMNS, TABLES, markdown, rounded

NUMBERS = ("reported", "reproduced", "delta", "tolerance", "effect_reported", "effect", "low", "high")
"""The columns that are rounded for the eye."""


def _body(data: pd.DataFrame, fmt: str) -> str:
    if fmt == "markdown":
        return markdown(data)
    if fmt == "latex":
        return data.to_latex(index=False, escape=True)
    return data[["row", "precision", "metric", "reported", "reproduced", "effect_reported", "effect", "low", "high",
                 "verdict"]].to_string(index=False)


def _read(path: Path) -> pd.DataFrame:
    """A table as it was written, all cells text.

    Raises:
        UserError: it cannot be read, has other columns, or a cell that is no number where one belongs, or no text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
        if tuple(header) != COLUMNS or any(len(line) != len(COLUMNS) for line in lines):
            raise ValueError("it has other columns")
        if not all(cell.isprintable() for line in lines for cell in line):
            raise ValueError("it has characters that are no text")
        data = pd.DataFrame(lines, columns=list(COLUMNS), dtype=str)
        for name in NUMBERS:
            [float(cell) for cell in data[name] if cell]
    except OSError as error:
        raise explain(error, path, "read") from error
    except (ValueError, csv.Error) as error:  # also what is no UTF-8
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no table of this kit ({reason}). Run `paperlib reproduce` again, which writes it "
                        "anew, or name another folder with --out.") from error
    return data


def format_tables(out: str | Path, fmt: str = "text") -> str:
    """The tables of a results folder.

    Args:
        fmt: "text" for the terminal (without tolerance and evidence, which are in the CSV), "markdown" or "latex".

    Raises:
        UserError: no tables there yet, or one that is damaged.
        ValueError: an unknown format.
    """
    if fmt not in ("text", "markdown", "latex"):
        raise ValueError(f"no format {fmt!r}; there are text, markdown, latex")
    files = {name: Path(out) / "tables" / f"{name}.csv" for name in TABLES}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise UserError(f"no table at {missing[0]}. Run `paperlib reproduce` first, or name another folder with --out.")
    parts = []
    for name, path in files.items():
        data = rounded(_read(path)).drop(columns="table")
        heading = f"Table {name}: {TABLES[name]}" if len(name) == 1 else f"{name.capitalize()}: {TABLES[name]}"
        heading = f"## {heading}\n" if fmt == "markdown" else f"% {heading}" if fmt == "latex" else heading
        parts.append(f"{heading}\n{_body(data, fmt) if len(data) else 'not run'}")
    return "\n\n".join(parts) + "\n"
