""""What we saw": the closing words of each notebook, computed from its own values (paper section 7).

Every sentence is arithmetic on what the cells above it measured; it says so when the values point the other way. A
smoke run is named as one, in red, before anything else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from paperlib.evaluation.paper_numbers import DATASET, reported
from paperlib.reporting.figures import TERMS
from paperlib.reporting.verdicts import paired
from paperlib.run import SMOKE, Run

Rows = Sequence[Mapping[str, Any]]
"""Measured rows, see `paperlib.run.measured_row`."""
LEVEL = 0.005
"""Differences below this (dB) are called none."""


def said(run: Run, sentences: Sequence[str]) -> Markdown:
    """Sentences as a list for display, a smoke run named in red above them."""
    banner = f'<span style="color:#d93025">**{SMOKE}**</span>\n\n' if run.settings.profile == "smoke" else ""
    return Markdown(banner + "\n".join(f"- {sentence}" for sentence in sentences if sentence))


def shown(table: pd.DataFrame, otherwise: str) -> pd.DataFrame | Markdown:
    """A table, or where it has no lines a sentence that says why."""
    return table if len(table) else Markdown(f"*{otherwise}*")


def _row(rows: Rows, table: str, row: str, metric: str = "psnr") -> Mapping[str, Any] | None:
    key = {"table": table, "row": row, "metric": metric, "dataset": DATASET}
    found = (line for line in rows if key.items() <= line.items() and line["value"] is not None)
    return next(found, None)


def _psnr(source: Run | Rows, table: str, row: str) -> float | None:
    """Measured PSNR on the validation photographs, dB; from rows, or from all records of a run."""
    rows = source if not isinstance(source, Run) else [
        line for record in source.records().values() for line in record["rows"]]
    line = _row(rows, table, row)
    return None if line is None else line["value"]


def against(difference: float, other: str) -> str:
    """A difference of PSNR in words, such as "0.12 dB above bicubic"."""
    if abs(difference) < LEVEL:
        return f"level with {other} (less than {LEVEL:g} dB apart)"
    places = 2 if abs(difference) >= 0.1 else 3
    return f"{abs(difference):.{places}f} dB {'above' if difference > 0 else 'below'} {other}"


def _compared(value: float | None, other: float | None, what: str, name: str, missing: str) -> str:
    """`what` scores so much, so far from `name`; or which notebook would make the comparison possible."""
    if value is None:
        return ""
    if other is None:
        return f"{what}: {value:.2f} dB. Run {missing} to compare it with {name}."
    return f"{what}: {value:.2f} dB, {against(value - other, name)}."


def baseline(run: Run, rows: Rows, changed: float) -> Markdown:
    """01: the two bicubic kernels, and what rounding once instead of twice changes.

    Args:
        rows: of this notebook.
        changed: share of LR values that differ, 0..1.
    """
    torch, matlab = (_psnr(rows, "B", name) for name in ("bicubic", "bicubic_matlab"))
    paper = reported()["B", "bicubic", "fp32", "psnr"]
    return said(run, [
        f"One kernel against the other: PyTorch's bicubic scores {torch:.2f} dB on the validation photographs, "
        f"{against(torch - matlab, 'MATLAB’s')}, from the same LR images.",
        f"{100 * changed:.1f} % of the photograph's LR values depend on MATLAB's rounding after each axis.",
        f"{torch:.2f} dB here and {paper:.2f} dB in the paper are scores of different photographs and say nothing of "
        "each other." if run.settings.profile != "paper" else
        f"The paper's {paper:.2f} dB is {against(paper - torch, 'PyTorch’s kernel')} and "
        f"{against(paper - matlab, 'MATLAB’s')}, as measured here."])


def stage1(run: Run, rows: Rows, history: Sequence[Mapping[str, float]], silent: Sequence[int]) -> Markdown:
    """02: the student against bicubic, whether the training was long enough, and the channels that it lost.

    Args:
        history: rows of `Fit.history`.
        silent: channels without a signal in each block.
    """
    mine, bicubic = _psnr(rows, "stages", "stage1"), _psnr(run, "B", "bicubic")
    best = max(history, key=lambda row: row["psnr_rgb"])
    first, last = history[0], history[-1]
    rising = best["step"] == last["step"] and len(history) > 1 and best["psnr_rgb"] - first["psnr_rgb"] > LEVEL
    return said(run, [
        _compared(mine, bicubic, "Stage 1", "bicubic", "01_data"),
        f"The loss went from {first['loss']:.3g} to {last['loss']:.3g}: it "
        f"{'fell' if last['loss'] < first['loss'] else 'did not fall'}.",
        f"The best validation is the last (step {last['step']:,}): a longer training might still gain." if rising else
        f"The best of {len(history)} validations is at step {best['step']:,} of {last['step']:,}.",
        "No channel has fallen silent." if not sum(silent) else
        f"{sum(silent)} of {len(silent) * run.settings.student.channels} channels have fallen silent and learn nothing "
        "more unless `stage2.revive` wakes them.",
        "" if bicubic is None or mine is None or mine > bicubic else
        "So far the network is worse than the formula it is to replace: this training is too short."])


def teacher(run: Run, rows: Rows, weights: np.ndarray) -> Markdown:
    """03: whether the teacher has something to teach, and where it is trusted.

    Args:
        weights: the confidence map w(p), (H, W).
    """
    mine, student = _psnr(rows, "stages", "teacher"), _psnr(run, "stages", "stage1")
    loss = run.settings.stage2.loss
    weaker = student is not None and mine < student
    full, least = (100 * float(np.isclose(weights, edge).mean()) for edge in (loss.w_max, loss.w_min))
    return said(run, [
        _compared(mine, _psnr(run, "B", "bicubic"), "Teacher", "bicubic", "01_data"),
        _compared(mine, student, "Teacher", "the student of stage 1", "02_stage1"),
        "**The teacher is weaker than the student it is to teach.** The confidence weight spares the student its worst "
        "pixels; expect no help from distillation in this run." if weaker else "",
        f"On the photograph above w averages {weights.mean():.2f}; {full:.0f} % of the pixels have full weight "
        f"({loss.w_max:g}), {least:.0f} % the least ({loss.w_min:g})."])


def stage2(run: Run, rows: Rows, table: pd.DataFrame) -> Markdown:
    """04: the gain over stage 1, and which term of the loss made it.

    Args:
        table: see `formulas.shares`.
    """
    mine, before = _psnr(rows, "B", "student_stage2"), _psnr(run, "stages", "stage1")
    shares = {term: {"value": value, "gradient": gradient} for term, value, gradient in zip(
        table["term"], table["value share"], table["gradient share"], strict=True)}
    leader = max(shares, key=lambda name: shares[name]["gradient"])
    sentences = [
        _compared(mine, before, "Stage 2", "stage 1", "02_stage1"),
        f"{TERMS[leader]} pulls hardest: {100 * shares[leader]['value']:.1f} % of the loss and "
        f"{100 * shares[leader]['gradient']:.1f} % of the gradient."]
    if "kd" in shares:
        value, gradient = shares["kd"]["value"], shares["kd"]["gradient"]
        sentences.append(
            f"Distillation is {100 * value:.2g} % of the loss and {100 * gradient:.2g} % of the gradient: "
            + ("whether the teacher is there or not can hardly be felt by the student." if gradient < 0.05 else
               "enough to be felt by the student."))
        theirs = _psnr(run, "stages", "teacher")
        if theirs is not None and before is not None and theirs < before:
            sentences.append(f"The teacher ({theirs:.2f} dB) is weaker than the student it teaches ({before:.2f} dB).")
    else:
        sentences.append("This run does not distil.")
    return said(run, sentences)


def qat(run: Run, rows: Rows, drop: pd.DataFrame, noise_rows: Rows) -> Markdown:
    """05: what rounding costs, which half of it, what training wins back, and the noisiest layer.

    Args:
        drop: `quantisation.drop_decomposition` as a table.
        noise_rows: of `quantisation.layer_sqnr`.
    """
    full, rounded, trained = (
        _psnr(rows, "stages", name) for name in ("fused_before_qat", "rounded_before_qat", "fakequant"))
    cost = drop.set_index("what")["drop"]
    parts = {"weights": cost["weights only"], "activations": cost["activations only"]}
    larger = max(parts, key=parts.get)
    alike = abs(parts["weights"] - parts["activations"]) < LEVEL
    worst = min((row for row in noise_rows if row["sqnr_db"] is not None and np.isfinite(row["sqnr_db"])),
                key=lambda row: row["sqnr_db"], default=None)
    lost, won = full - rounded, trained - rounded
    sentences = [
        f"Plain rounding puts the network {against(-lost, 'its float form')}; "
        f"{'weights and activations cost alike' if alike else f'the {larger} are the dearer half'} "
        f"({parts['weights']:+.3f} dB lost by the weights, {parts['activations']:+.3f} dB by the activations).",
        f"Training under rounding puts it {against(won, 'plain rounding')}"
        + (f": {100 * won / lost:.0f} % of the loss is won back." if lost > LEVEL and won > 0 else
           ": it won nothing back." if won <= 0 else "; there was next to nothing to win back."),
        f"What is left: {against(trained - full, 'the float form it started from')}."]
    if worst is not None:
        sentences.append(f"Least signal to quantisation noise after {worst['name']}: {worst['sqnr_db']:.1f} dB.")
    return said(run, sentences)


def shipped(run: Run, rows: Rows, parity: pd.DataFrame) -> Markdown:
    """06: whether the file computes what was trained, what post-training quantisation would cost, and the box.

    Args:
        parity: of `Exported.parity`.
    """
    file, fake, ptq, full, pixels = (_psnr(rows, "export", name) for name in (
        "tflite_dynamic", "fakequant", "tflite_post_training", "float_before_qat", "float_in_8_bits"))
    equal, far = parity["equal"].min(), round(parity["max_lsb"].max())
    gain, box = file - ptq, _psnr(rows, "box", "box_int8")
    return said(run, [
        f"The file is {against(file - fake, 'the fake-quantised network')}: {100 * equal:.2f} % of its values are "
        f"equal, the others at most {far} step{'s' if far > 1 else ''} away.",
        f"INT8 against float: the file is {against(file - full, 'the float network it was trained from')}; rounding "
        f"that network's result to 8-bit pixels alone costs {full - pixels:.3f} dB.",
        f"Learnt grids are {against(gain, 'post-training ones')} on the same weights"
        + ("." if gain > 0.02 else ": in this run keeping them gains nothing."),
        _compared(box, file, "The student in the box", "this run's own file", "06_tflite_eval"),
        _compared(box, _psnr(run, "B", "bicubic"), "The student in the box", "bicubic", "01_data")])


def ablations(run: Run, rows: Rows, shares: pd.DataFrame | None = None) -> Markdown:
    """07: the order of the networks, the effect of stage 3's teacher beside the paper's, and what it can do at all.

    Args:
        shares: `training.teacher_shares`.
    """
    order = sorted((row for row in rows if (row["table"], row["precision"], row["metric"], row["dataset"]) == (
        "C", "int8", "psnr", DATASET) and row["value"] is not None
        and ("C", row["row"], "int8", "psnr") in reported()), key=lambda row: -row["value"])  # not our variants
    names = [row["row"] for row in order]
    paper = sorted(names, key=lambda name: -reported()["C", name, "int8", "psnr"])
    taught, direct = _row(rows, "D", "qat_teacher"), _row(rows, "D", "qat_direct")
    sentences = []
    if order:
        scores = ", ".join(f"{row['row']} {row['value']:.2f} dB" for row in order)
        same = "the same" if names == paper else f"another: {', '.join(paper)}"
        sentences.append(f"As INT8 files, best first: {scores}. The paper's order is {same}.")
    if taught and direct:
        effect = paired(taught, direct)
        theirs = reported()["D", "qat_teacher", "int8", "psnr"] - reported()["D", "qat_direct", "int8", "psnr"]
        sentences.append(f"With its teacher, stage 3 is {against(effect.mean, 'stage 3 without')}; the paper reports "
                         f"{theirs:+.3f} dB.")
        sentences.append(
            "One seed each: whether that is more than chance is not known. Run several (exercise 1) to find out."
            if effect.low is None else f"As an effect: {effect} dB, with its 95 % interval.")
    published = {} if shares is None or shares.empty else shares.set_index("condition").to_dict("index")
    if taught := published.get("qat_teacher"):
        sentences.append(
            f"At its published weight the teacher has {100 * taught['kd value']:.2g} % of stage 3's loss and "
            f"{100 * taught['kd gradient']:.2g} % of its gradient when it begins; the DCT term has "
            f"{100 * taught['dct gradient']:.0f} % of the gradient.")
    return said(run, sentences)
