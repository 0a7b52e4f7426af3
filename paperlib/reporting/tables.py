"""A run's tables for the eye and as files (paper section 7)."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from paperlib.errors import UserError
from paperlib.evaluation.paper_numbers import entries, reported, score
from paperlib.files import reading, write_text
from paperlib.reporting.results import COLUMNS, TABLES, Results
from paperlib.reporting.verdicts import OTHER_SSIM, Effect, Verdict, change_word, paired
from paperlib.run import Run

NUMBERS = (
    "reported", "reproduced", "delta", "tolerance", "effect_reported", "effect", "low", "high",
    "seeds", "images")
"""Columns of a table that hold numbers."""
NAMES = {
    "fsrcnn": "FSRCNN", "abpn": "ABPN", "repconv": "RepConv", "repdw": "RepDW",
    "mobileone": "MobileOne", "student_stage2": "student after stage 2",
    "student_deploy": "student after stage 3", "qat_direct": "stage 3 without a teacher",
    "qat_teacher": "stage 3 with the teacher", "student_dynamic_tflite": "TFLite file, any size",
    "student_fixed_tflite": "TFLite file, fixed size", "kd_10": "teacher's weight × 10",
    "kd_100": "teacher's weight × 100", "ortho_kd_1": "orthonormal DCT",
    "ortho_kd_0": "orthonormal DCT, no teacher", "as_set": "as the profile sets it",
    "teacher_none": "no teacher", "teacher_student": "stage 2's student as teacher",
    "loss_published": "the paper's loss", "dct_off": "no DCT term",
    "confidence_off": "no confidence weights", "quantiser_paper": "the paper's quantiser",
    "skip_add": "skip as ADD", "residual_add": "skip as ADD", "post_training": "no stage 3: post-training quantisation",
    "published": "as published", "stage1_longer": "stage 1 continued", "kd_off": "no teacher",
    "clip_off": "no weight clipping", "recalibration_off": "no BN recalibration",
    "bicubic_matlab": "bicubic, MATLAB's kernel", "stage1": "student after stage 1",
    "fused_before_qat": "student, folded", "rounded_before_qat": "rounded to 8 bits, untrained",
    "fakequant": "student after stage 3", "tflite_dynamic": "INT8 file",
    "tflite_post_training": "INT8 file, the authors' way", "float_before_qat": "before stage 3",
    "float_in_8_bits": "before stage 3, output rounded to 8 bits",
    "float_after_qat": "after stage 3, without rounding",
    "dynamic_tflite": "TFLite file, any size", "fixed_tflite": "TFLite file, fixed size",
    "shipped_int8": "shipped INT8 file", "shipped_float": "shipped student in float"}
"""Row of a table → its name for people; what is not here is shown as it is called."""
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "psnr_y": "PSNR of Y (dB)", "ssim_y": "SSIM of Y"}
PUBLISHED, LEARNT = ("D", "qat_teacher"), ("D", "qat_teacher_learnt")
"""Stage 3 as published: its file by post-training quantisation, and with its learned grids."""
OWN = ("switches", "as_set")
"""Stage 3 as a profile sets it, where that is not the paper's; switches change it."""
AGAINST = {
    f"{row}{file}": ("D", f"{base}{file}") for file in ("", "_learnt", "_fixed")
    for row, base in (("ortho_kd_0", "ortho_kd_1"), ("kd_10", "qat_direct"),
                      ("kd_100", "qat_direct"))} | {"qat_direct_fixed": ("D", "qat_teacher_fixed")}
"""Rows that are one change away from another row than stage 3 as published."""


def name(row: str) -> str:
    """A row's name for people."""
    kinds = {"learnt": "learned grids", "float": "float", "fixed": "fixed size",
             "fakequant": "fake-quantised"}
    if row not in NAMES and (parts := row.rpartition("_"))[2] in kinds:
        return f"{name(parts[0])}, {kinds[parts[2]]}"
    return " + ".join(NAMES.get(part, part.replace("_", " ")) for part in row.split("+"))


def number(value: Any, places: int) -> str:
    """Fixed decimals, the paper's without trailing zeros; empty where there is no number."""
    return "" if pd.isna(value) else f"{value:.{places}f}"


def effect_text(line: Any) -> str:
    """The effect of a claim, or of a line of a table, with interval, seeds and images."""
    if pd.isna(line["effect"]):
        return ""
    low, high = (None if pd.isna(line[end]) else line[end] for end in ("low", "high"))
    return str(Effect(line["effect"], low, high, int(line["seeds"]), int(line["images"])))


def claims_table(source: Run | Results) -> pd.DataFrame:
    """The paper's claims for the eye, in dB of PSNR; those that were not measured left out.

    So is the column "paper's value inside" where no claim has an interval.
    """
    table = pd.DataFrame(
        [(line["claim"], f"{line['reported']:+.3f}", effect_text(line), line["verdict"].value,
          line["reported_inside"], "; ".join(line["remarks"]))
         for line in Results.of(source).claims if line["effect"] is not None],
        columns=["claim", "paper", "here", "verdict", "paper's value inside", "remarks"])
    inside = "paper's value inside"
    return table if table[inside].any() else table.drop(columns=inside)


def by_row(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of `Results.tables`, PSNR and SSIM of a model together; a star where the paper's SSIM is
    another one."""
    shown = []
    for model, both in table.groupby(["table", "row", "precision"], sort=False):
        paper = [f"{value:g}" for value in both["reported"][both["metric"].isin(["psnr", "ssim"])]
                 if pd.notna(value)]
        here = [number(value, 3 if metric == "psnr" else 4)
                for metric, value in zip(both["metric"], both["reproduced"], strict=True)]
        shown.append({
            "model": name(model[1]), "precision": model[2],
            "paper: PSNR / SSIM": " / ".join(paper) + " *" * (model in OTHER_SSIM),
            "here: PSNR / SSIM": " / ".join(filter(None, here)) or Verdict.NOT_RUN.value})
    return pd.DataFrame(shown)


def reported_vs_measured(source: Run | Results, tables: Sequence[str]) -> pd.DataFrame:
    """Reported beside measured for the named tables: the closing cell of a notebook."""
    found = Results.of(source).tables
    return by_row(pd.concat([found[table] for table in tables]))


def audit_table(source: Run | Results) -> pd.DataFrame:
    """What the authors' own log and report say beside the paper; empty where not at hand."""
    table = Results.of(source).tables["audit"]
    shown = table[["row", "precision", "metric", "reported", "reproduced", "evidence"]].copy()
    shown["row"] = shown["row"].map(name)
    for column in ("reported", "reproduced"):
        shown[column] = [number(value, 4) for value in table[column]]
    return shown.rename(columns={"reported": "paper", "reproduced": "their own files"})


def measured(source: Run | Results, tables: Sequence[str]) -> pd.DataFrame:
    """Everything measured under the named tables, one line a record, model and image set."""
    rows = Results.of(source).rows
    rows = rows[rows["table"].isin(tables) & rows["value"].notna()]
    keys = ["record", "table", "row", "precision", "dataset"]
    shown = rows.pivot_table(
        index=keys, columns="metric", values="value", aggfunc="last", sort=False).reset_index()
    shown["row"] = shown["row"].map(name)
    for metric in (metric for metric in METRICS if metric in shown):
        places = 3 if metric.startswith("psnr") else 4
        shown[metric] = [number(value, places) for value in shown[metric]]
    shown = shown.drop(columns="record").drop_duplicates().rename_axis(columns=None)
    return shown.rename(columns={"row": "model", "dataset": "images"} | METRICS)


def leaderboard() -> pd.DataFrame:
    """Table A, one line an entry: what is reported, INT8's cost, the score from PSNR and time."""
    lines = []
    for row, (psnr, ms) in entries().items():
        value = lambda precision, metric, row=row: reported().get(("A", row, precision, metric))
        full = value("fp32", "psnr")
        both = f"{full:.2f} / {value('fp32', 'ssim'):.4f}" if full else "not reported"
        lines.append({
            "entry": row, "FP32 PSNR / SSIM": both,
            "INT8 PSNR / SSIM": f"{psnr:.2f} / {value('int8', 'ssim'):.4f}",
            "INT8 costs (dB)": f"{full - psnr:.2f}" if full else "", "NPU (ms)": f"{ms:g}",
            "score": f"{value('int8', 'score'):.1f}",
            "score, recomputed": f"{score(psnr, ms):.2f}"})
    return pd.DataFrame(lines)


def changes(source: Run | Results) -> pd.DataFrame:
    """Stage 3's choices, one changed at a time, in PSNR; empty where 07 has not run stage 3."""
    rows = {key[:2]: row for key, row in Results.of(source).scores.items()
            if key[0] in ("D", "switches") and key[3] == "psnr"}
    lines = []
    for key, row in rows.items() if PUBLISHED in rows else ():
        bases = [AGAINST.get(key[1])]
        if key[0] == "switches":  # files with the learned grids
            bases += [OWN, LEARNT]
        elif key[1].endswith("_learnt"):
            bases += [LEARNT]
        base = next((base for base in bases if base in rows and base != key), PUBLISHED)
        if key != PUBLISHED:
            effect = paired([row, rows[base]])
            lines.append((name(key[1]), f"{row['value']:.3f}", name(base[1]), str(effect),
                          change_word(effect)))
    return pd.DataFrame(lines, columns=["stage 3", "INT8 PSNR RGB (dB)", "against",
                                        "difference (dB)", "so it is"])


ABSTRACT = (
    ("stage 2 refines fidelity", "stage 2 / as many more steps of stage 1, float",
     "published", "stage1_longer"),
    ("DCT supervision", "stage 2 with / without it, float", "published", "dct_off"),
    ("confidence weighting", "stage 2 with / without it, float", "published", "confidence_off"),
    ("distillation from a teacher", "stage 2 with / without it, float", "published", "kd_off"),
    ("quantisation-aware training", "stage 3 / none, the authors' way of exporting",
     "published.int8", "post_training.int8"),
    ("quantisation-aware training", "stage 3 / none, its grids kept",
     "published_learnt.int8", "post_training_learnt.int8"),
    ("weight clipping", "what INT8 costs, with / without",
     "published.int8 clip_off", "published clip_off.int8"),
    ("batch normalisation recalibrated", "what INT8 costs, with / without",
     "published.int8 recalibration_off", "published recalibration_off.int8"),
    ("both of these", "what INT8 costs, with / without",
     "published.int8 clip_off+recalibration_off", "published clip_off+recalibration_off.int8"))
"""Sentences of the abstract on the method: its words, what is compared, and the sum of measured
rows (FP32 where they do not say) less that of others. Positive is for the abstract."""
ALSO = {"Table D: the Mamba teacher helps stage 3, INT8": "29.91 → 30.0003 dB by the teacher",
        "Abstract: the fixed file beats the dynamic one": "30.0003 dB, 30.006 in a fixed size"}
"""Claims with numbers of the paper that the abstract makes too."""


def abstract_table(source: Run | Results) -> pd.DataFrame:
    """What the abstract says of the method, sentence by sentence, as far as it was measured."""
    results, lines = Results.of(source), []
    for words, compared, plus, minus in ABSTRACT:
        parts = [row.partition(".") for row in f"{plus} {minus}".split()]
        rows = [results.scores.get(("abstract_claims", row, precision or "fp32", "psnr"))
                for row, _, precision in parts]
        signs = [1] * len(plus.split()) + [-1] * len(minus.split())
        effect = all(rows) and paired(rows, signs)
        if effect and effect.seeds:
            lines.append((words, compared, str(effect), change_word(effect)))
    for line in results.claims if lines else ():
        if line["claim"] in ALSO and line["effect"] is not None:
            lines.append((ALSO[line["claim"]], line["claim"].partition(": ")[2],
                          effect_text(line), line["verdict"].value))
    if lines:
        lines.append(("a score of 1.8 in the challenge", "its images and phone are not public", "",
                      Verdict.NOT_PUBLIC.value))
    return pd.DataFrame(lines, columns=["the abstract", "compared", "effect (dB)", "so it is"])


def inert(value: Any) -> str:
    """Text of other people as Markdown that no reader takes for a tag, a link or a new cell.

    `Markup` is our own and stays as it is.
    """
    if isinstance(value, Markup):
        return value
    text = html.escape(" ".join(str(value).split()), quote=False)
    return text.replace("](", "]\\(").replace("|", "\\|")


def markdown(data: pd.DataFrame) -> Markup:
    """A data frame as a Markdown table of inert text; floats to three decimals."""
    lines = [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in line]
             for line in data.astype(object).where(data.notna(), "").to_numpy().tolist()]
    rows = [list(data.columns), ["---"] * len(data.columns), *lines]
    return Markup("\n".join(f"| {' | '.join(map(inert, row))} |" for row in rows))


def csv_text(table: pd.DataFrame) -> str:
    """One of `Results.tables` as CSV, numbers to six decimals."""
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6f}".rstrip("0").rstrip(".")
        return "" if value is None else str(value)

    return table.map(cell).to_csv(index=False, lineterminator="\n")


def write_tables(source: Run | Results) -> Path:
    """Write tables/*.csv of a run, one file a table; returns the folder."""
    results = Results.of(source)
    folder = results.run.folder("tables")
    for table, content in results.tables.items():
        write_text(folder / f"{table}.csv", csv_text(content))
    return folder


def read_table(path: Path) -> pd.DataFrame:
    """A table as `write_tables` wrote it; missing or damaged is a `UserError`."""
    if not path.is_file():
        raise UserError(f"no table at {path}. Run `paperlib reproduce` first, or name another "
                        "folder with --out.")
    with reading(path, "a table of this kit"):
        return pd.read_csv(
            path, usecols=COLUMNS, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, ""),
            dtype=dict.fromkeys(COLUMNS, str) | dict.fromkeys(NUMBERS, float))


def format_tables(out: str | Path, fmt: str = "text") -> str:
    """The tables of a results folder for `paperlib table`, as text, markdown or latex."""
    heading, body = {"text": ("{}", lambda data: data.to_string(index=False)),
                     "markdown": ("## {}\n", markdown),
                     "latex": ("% {}", lambda data: data.to_latex(index=False, escape=True))}[fmt]
    parts = []
    for table, title in TABLES.items():
        lines = read_table(Path(out) / "tables" / f"{table}.csv")
        shown = body(leaderboard() if table == "A" else by_row(lines)) if len(lines) else "not run"
        parts.append(f"{heading.format(title)}\n{shown}")
    return "\n\n".join(parts) + "\n"
