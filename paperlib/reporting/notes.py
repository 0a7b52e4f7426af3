""""What we saw": a run's own numbers in plain sentences, for notebooks and report."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from paperlib.evaluation.paper_numbers import DATASET
from paperlib.reporting.figures import TERMS
from paperlib.reporting.results import Results
from paperlib.reporting.tables import NAMES
from paperlib.run import SMOKE, Run

Records = Mapping[str, Mapping[str, Any]]
"""Notebook → its record."""
LEVEL = 0.005
"""Differences of PSNR below this (dB) are called none."""
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
    "07_ablations": [("Stage 3 with its teacher", "D qat_teacher", [("the same without it", "D qat_direct")])],
}
"""Notebook → what it compares: words, row of the records, and the rows beside it."""


def scores(records: Records) -> dict[str, float]:
    """PSNR on the validation images in dB by "table row"; the first of several precisions."""
    found: dict[str, float] = {}
    for row in (row for record in records.values() for row in record["rows"]):
        if (row["metric"], row["dataset"]) == ("psnr", DATASET) and row["value"] is not None:
            found.setdefault(f"{row['table']} {row['row']}", row["value"])
    return found


def against(difference: float, other: str) -> str:
    """A difference of PSNR in words, such as "0.12 dB above bicubic"."""
    if abs(difference) < LEVEL:
        return f"level with {other}"
    places = 2 if abs(difference) >= 0.1 else 3
    return f"{abs(difference):.{places}f} dB {'above' if difference > 0 else 'below'} {other}"


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part < 0.995 else f"{100 * part:.2f} %"


def _found(record: Mapping[str, Any]) -> Iterable[str]:
    """What a record holds beside scores, one sentence each."""
    if silent := record.get("silent"):
        yield f"{sum(silent) or 'No'} channel{'s' * (sum(silent) > 1)} fell silent."
    shares = record.get("shares") or []
    if parts := {line["term"]: line["gradient share"] for line in shares if "term" in line}:
        pulls = (f"{TERMS[term]} {_percent(part)}" for term, part in parts.items())
        yield f"Of the gradient of the loss: {', '.join(pulls)}."
    for line in shares:
        if line.get("condition") == "qat_teacher":
            yield (f"The teacher has {_percent(line['kd value'])} of stage 3's loss and "
                   f"{_percent(line['kd gradient'])} of its gradient when the stage begins.")
    if cost := {line["what"]: line["drop"] for line in record.get("drop") or []}:
        yield (f"Rounding the weights alone costs {cost['weights only']:.3f} dB, the activations "
               f"alone {cost['activations only']:.3f} dB, both {cost['both']:.3f} dB.")
    if parity := record.get("parity"):
        equal = min(line["equal"] for line in parity)
        steps = round(max(line["max_lsb"] for line in parity))
        yield (f"{100 * equal:.2f} % of the file's values are those of the network trained in "
               f"stage 3; no other is more than {steps} step{'s' * (steps != 1)} away.")


def sentences(records: Records, name: str) -> list[str]:
    """What notebook `name` of a run showed; scores of other notebooks come from their records."""
    if name not in records:
        return []
    known, said = scores(records), []
    for what, row, others in COMPARED[name]:
        if row in known:
            beside = [against(known[row] - known[key], words) for words, key in others if key in known]
            said.append(", ".join([f"{what}: {known[row]:.2f} dB", *beside]) + ".")
    if name == "03_teacher" and known.get("stages teacher", 99) < known.get("stages stage1", 0):
        said.append("**The teacher is weaker than the student it is to teach**: expect no help.")
    said += _found(records[name])
    order = {row["row"]: row["value"] for row in records[name]["rows"] if row["dataset"] == DATASET
             and (row["table"], row["precision"], row["metric"]) == ("C", "int8", "psnr")
             and row["value"] is not None and row["row"] in NAMES}
    if order:
        best = sorted(order, key=order.get, reverse=True)
        said.append("Table C, INT8: " + ", ".join(f"{NAMES[row]} {order[row]:.2f} dB" for row in best) + ".")
        if order[best[0]] < known.get("B bicubic", 0):
            said.append(f"All of them are below bicubic ({known['B bicubic']:.2f} dB): after so short "
                        "a training their order says nothing about the paper's.")
    return said


def saw(run: Run, name: str) -> Markdown:
    """`sentences` for display, a smoke run named in red above them."""
    lines = [f"- {sentence}" for sentence in sentences(Results(run).records, name)]
    smoke = f'<span style="color:#d93025">**{SMOKE}**</span>\n'
    return Markdown("\n".join([smoke] * (run.settings.profile == "smoke") + lines))


def shown(table: pd.DataFrame, otherwise: str = "", digits: int = 3) -> HTML | Markdown:
    """A table for display, whole and without row numbers; where it has no lines, why."""
    if table.empty:
        return Markdown(f"*{otherwise}*")
    with pd.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, border=0, na_rep="",
                                  float_format=f"{{:.{digits}f}}".format))


def source(*functions: Callable[..., Any]) -> Markdown:
    """The code of functions or classes of this package for display, under the file's name."""
    root, parts = Path(__file__).parents[2], []
    for function in map(inspect.unwrap, functions):
        path = Path(inspect.getfile(function)).relative_to(root).as_posix()
        parts.append(f"`{path}`\n\n```python\n{inspect.getsource(function).rstrip()}\n```")
    return Markdown("\n\n".join(parts))


def committed_audit() -> HTML | Markdown:
    """The committed audit of the authors' published report: the paper's numbers beside theirs."""
    path = Path(__file__).parents[2] / "results" / "reference" / "audit.json"
    if not path.is_file():
        return Markdown("*No table: it lies in the repository, in `results/reference`.*")
    lines = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["recomputed"])
    lines = lines[(lines["metric"] == "psnr") & lines["reported"].notna()]
    names = {"row": "row", "precision": "precision", "reported": "paper (dB)",
             "reproduced": "their own files (dB)", "evidence": "from"}
    return shown(lines[list(names)].rename(columns=names))
