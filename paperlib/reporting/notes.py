"""What a notebook measured, in one table, and other things that notebooks show."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from paperlib.environment import root
from paperlib.evaluation.paper_numbers import DATASET
from paperlib.files import read_json
from paperlib.reporting.figures import TERMS
from paperlib.reporting.results import Results
from paperlib.run import SMOKE, Run

BICUBIC = ("bicubic", "B bicubic")
FLOAT = ("the float network", "stages fused_before_qat")
COMPARED: dict[str, list[tuple[str, str, list[tuple[str, str]]]]] = {
    "01_data": [("Bicubic with PyTorch's kernel", "B bicubic", [("MATLAB's", "B bicubic_matlab")])],
    "02_stage1": [("Stage 1", "stages stage1", [BICUBIC])],
    "03_teacher": [("The teacher", "stages teacher",
                    [BICUBIC, ("the student of stage 1", "stages stage1")])],
    "04_stage2": [("Stage 2", "B student_stage2", [("stage 1", "stages stage1")])],
    "05_fuse_qat": [
        ("Rounded to 8 bits, not trained for it", "stages rounded_before_qat", [FLOAT]),
        ("Trained for 8 bits", "stages fakequant",
         [("plain rounding", "stages rounded_before_qat"), FLOAT])],
    "06_tflite_eval": [
        ("The INT8 file", "export tflite_dynamic",
         [("the network trained in stage 3", "export fakequant"),
          ("the float network", "export float_before_qat"),
          ("the same weights quantised after training", "export tflite_post_training")]),
        ("The shipped file, trained for much longer", "box box_int8",
         [("this run's own file", "export tflite_dynamic"), BICUBIC])],
    "07_ablations": [
        ("Stage 3 with its teacher", "D qat_teacher", [("the same without it", "D qat_direct")])],
}
"""Notebook → what it compares: words, row of the records, and the rows beside it."""


def _scores(records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """PSNR on the validation images in dB by "table row"; the first of several precisions."""
    found: dict[str, float] = {}
    for row in (row for record in records.values() for row in record["rows"]):
        if (row["metric"], row["dataset"]) == ("psnr", DATASET) and row["value"] is not None:
            found.setdefault(f"{row['table']} {row['row']}", row["value"])
    return found


def findings(records: Mapping[str, Mapping[str, Any]], name: str) -> list[tuple[str, str]]:
    """What notebook `name` of a run measured: words and value, line by line.

    Args:
        records: all of the run; scores of other notebooks are compared with.
    """
    if name not in records:
        return []
    known, record, lines = _scores(records), records[name], []
    for what, row, others in COMPARED[name]:
        if row in known:
            lines.append((what, f"{known[row]:.2f} dB"))
            lines += [(f"{what}, against {words}", f"{known[row] - known[key]:+.3f} dB")
                      for words, key in others if key in known]
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
                  ("Largest difference, in steps of 255",
                   f"{max(line['max_lsb'] for line in parity):.0f}")]
    return lines


def saw(run: Run, name: str) -> HTML:
    """`findings` for display, a smoke run named in red above them."""
    table = shown(pd.DataFrame(findings(Results(run).records, name), columns=["measured", "value"]),
                  "nothing measured")
    smoke = f'<p style="color:#d93025"><b>{SMOKE}</b></p>' * (run.settings.profile == "smoke")
    return HTML(smoke + table.data)


def shown(table: pd.DataFrame, otherwise: str = "", digits: int = 3) -> HTML | Markdown:
    """A table for display, whole and without row numbers; where it has no lines, why."""
    if table.empty:
        return Markdown(f"*{otherwise}*")
    with pd.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, border=0, na_rep="",
                                  float_format=f"{{:.{digits}f}}".format))


def source(*functions: Callable[..., Any]) -> Markdown:
    """The code of functions or classes of this package for display, under the file's name."""
    parts = []
    for function in map(inspect.unwrap, functions):
        path = Path(inspect.getfile(function)).relative_to(Path(__file__).parents[2]).as_posix()
        parts.append(f"`{path}`\n\n```python\n{inspect.getsource(function).rstrip()}\n```")
    return Markdown("\n\n".join(parts))


def committed_audit() -> HTML | Markdown:
    """The committed audit of the authors' published report: the paper's numbers beside theirs."""
    path = root() / "results" / "reference" / "audit.json"
    if not path.is_file():
        return Markdown("*No table: it lies in the repository, in `results/reference`.*")
    lines = pd.DataFrame(read_json(path)["recomputed"])
    lines = lines[(lines["metric"] == "psnr") & lines["reported"].notna()]
    names = {"row": "row", "precision": "precision", "reported": "paper (dB)",
             "reproduced": "their own files (dB)", "evidence": "from"}
    return shown(lines[list(names)].rename(columns=names))
