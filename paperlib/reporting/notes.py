"""What a notebook measured, in tables, and other things that notebooks show."""

import html
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from paperlib.environment import root
from paperlib.evaluation.verify import COMMITTED
from paperlib.files import read_json
from paperlib.reporting import tables
from paperlib.reporting.ending import ladder
from paperlib.reporting.figures import TERMS
from paperlib.reporting.results import Results
from paperlib.run import LEFT, SMOKE, Run


def findings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a notebook's record holds beside scores: words and value, line by line."""
    lines = []
    if silent := record.get("silent"):
        lines.append(("Channels that fell silent", str(sum(silent))))
    for line in record.get("shares") or []:
        if "term" in line:
            lines.append((f"{TERMS[line['term']]}, share of the loss's gradient",
                          f"{100 * line['gradient share']:.1f} %"))
        elif line.get("condition") == "qat_teacher":
            lines.append(("The teacher's share of stage 3's gradient when the stage begins",
                          f"{100 * line['kd gradient']:.2f} %"))
    lines += [(f"Lost by rounding {line['what']}", f"{line['drop']:.3f} dB")
              for line in record.get("drop") or [] if line["what"] != "float"]
    if parity := record.get("parity"):
        lines += [("Values of the file that are those of the network trained in stage 3",
                   f"{100 * min(line['equal'] for line in parity):.2f} %"),
                  ("Largest difference, in steps of the output grid",
                   f"{max(line['max_lsb'] for line in parity):.0f}")]
    return lines


def saw(run: Run, name: str) -> HTML:
    """The ladder up to notebook `name` and its `findings`, a smoke run named in red above them."""
    results = Results(run)
    parts = [ladder(results), pd.DataFrame(findings(results.records[name]),
                                           columns=["measured", "value"])]
    smoke = f'<p style="color:#d93025"><b>{SMOKE}</b></p>' * (run.settings.profile == "smoke")
    return HTML(smoke + "".join(shown(table).data for table in parts if len(table)))


def shown(table: pd.DataFrame, otherwise: str = "", digits: int = 3) -> HTML | Markdown:
    """A table for display, whole and without row numbers, its columns of words aligned to the
    left; where it has no lines, why."""
    if table.empty:
        return Markdown(f"*{otherwise}*")
    left = lambda cell: LEFT.format(html.escape(str(cell), quote=False))
    words = [name for name, cells in table.select_dtypes(exclude="number").items()
             if cells.dropna().astype(str).str.contains("[A-Za-z]{2}").any()]
    heads = {name: left(name) if name in words else html.escape(str(name)) for name in table}
    table = table.fillna(dict.fromkeys(words, "")).rename(columns=heads)
    with pd.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, border=0, na_rep="", escape=False,
                                  float_format=f"{{:.{digits}f}}".format,
                                  formatters={heads[name]: left for name in words}))


def source(*functions: Callable[..., Any]) -> Markdown:
    """The code of functions or classes of this package for display, under the file's name."""
    parts = []
    for function in map(inspect.unwrap, functions):
        path = Path(inspect.getfile(function)).relative_to(Path(__file__).parents[2]).as_posix()
        parts.append(f"`{path}`\n\n```python\n{inspect.getsource(function).rstrip()}\n```")
    return Markdown("\n\n".join(parts))


def committed_audit() -> HTML | Markdown:
    """The committed audit of the authors' published report: the paper's numbers beside theirs."""
    path = root() / COMMITTED
    if not path.is_file():
        return Markdown("*No table: it lies in the repository, in `results/reference`.*")
    lines = pd.DataFrame(read_json(path)["recomputed"])
    lines = lines[(lines["metric"] == "psnr") & lines["reported"].notna()]
    lines = lines.assign(row=lines["row"].map(tables.name))[
        ["row", "precision", "reported", "reproduced", "evidence"]]
    return shown(lines.set_axis(
        ["row", "precision", "paper (dB)", "their own files (dB)", "from"], axis=1))


def committed_claims() -> Markdown:
    """The paper's claims as the committed experiments answer them, from `results/README.md`."""
    path = root() / "results" / "README.md"
    if not path.is_file():
        return Markdown("*No table: it lies in the repository, in `results`.*")
    text = path.read_text(encoding="utf-8").partition("## The paper's claims\n\n")[2]
    return Markdown(re.sub(r"\[([^]]+)]\([^)]+\)", r"\1", "\n\n".join(text.split("\n\n")[:2])))
