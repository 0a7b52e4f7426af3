"""What it would take to win: the challenge's score taken apart (paper section 7, Table A).

score = 2^(2·PSNR) / (C·t) with one C for all published rows (`paper_numbers.fitted_constant`): in log2 of the score a
decibel counts 2 and a halved time 1. Leaderboard figures are `reported.csv`'s; everything else is computed.
"""

import math
from functools import partial
from typing import Any

import pandas as pd
from IPython.display import Markdown

from paperlib.evaluation.paper_numbers import OURS, entries, fitted_constant, ms_per_db, reported, score, score_gap
from paperlib.reporting.tables import markdown, validation_psnr
from paperlib.run import Run


def leaderboard() -> pd.DataFrame:
    """Table A, one line an entry: what is reported, INT8's cost, and the score recomputed from PSNR and time."""
    lines = []
    for row, (psnr, ms) in entries().items():
        value = lambda precision, metric, row=row: reported().get(("A", row, precision, metric))
        full = value("fp32", "psnr")
        lines.append({
            "entry": row, "FP32 PSNR / SSIM": f"{full:.2f} / {value('fp32', 'ssim'):.4f}" if full else "not reported",
            "INT8 PSNR / SSIM": f"{psnr:.2f} / {value('int8', 'ssim'):.4f}",
            "INT8 costs (dB)": f"{full - psnr:.2f}" if full else "", "NPU (ms)": f"{ms:g}",
            "score": f"{value('int8', 'score'):.1f}", "score, recomputed": f"{score(psnr, ms):.2f}"})
    return pd.DataFrame(lines)


def leaders() -> pd.DataFrame:
    """The gap of the paper's entry to every other, split in log2 of the score."""
    mine = entries()[OURS]
    lines = []
    for row, entry in entries().items():
        if row != OURS:
            parts = score_gap(mine, entry)
            lines.append({"entry": row, "score": f"{score(*entry):.1f}", "ahead, log2": f"{parts['total']:+.2f}",
                          "from PSNR": f"{parts['psnr']:+.2f}", "from time": f"{parts['time']:+.2f}",
                          "0.1 dB is worth (ms)": f"{ms_per_db(0.1, entry[1]):.2f}"})
    return pd.DataFrame(lines)


def moves(run: Run) -> list[dict[str, Any]]:
    """What this run's own variants would add to log2 of the score, largest first: {"change", "log2", "basis"}.

    Differences of measured PSNR, and of the NPU cycles that 07 estimates for forms of the graph. What was not run is
    left out.
    """
    found = []
    psnr = partial(validation_psnr, run)
    shipped, full = psnr("B", "student_deploy"), psnr("export", "float_before_qat")
    post, stage2 = psnr("export", "tflite_post_training"), psnr("B", "student_stage2")
    for change, better, worse in (("no loss by INT8: the fused network's PSNR in the file", full, shipped),
                                  ("stage 2's float PSNR in the file", stage2, shipped),
                                  ("learnt grids instead of post-training ones (done)", shipped, post)):
        if better is not None and worse is not None:
            found.append({"change": change, "log2": 2 * (better - worse), "basis": f"{better - worse:+.3f} dB"})
    forms = next((record["graph_forms"] for record in run.records().values() if record.get("graph_forms")), {})
    for name, cycles in forms.items():
        if name != "add" and "add" in forms:
            basis = f"{forms['add'] / 1e6:.2f} → {cycles / 1e6:.2f} million NPU cycles (Vela's estimate)"
            found.append({"change": f"skip as {name} instead of ADD", "log2": math.log2(forms["add"] / cycles),
                          "basis": basis})
    return sorted(found, key=lambda line: -line["log2"])


def move_table(run: Run) -> pd.DataFrame:
    """`moves` for the eye."""
    return pd.DataFrame([line | {"log2": f"{line['log2']:+.3f}", "score": f"×\u00a0{2 ** line['log2']:.3f}"}
                         for line in moves(run)], columns=["change", "log2", "score", "basis"])


def sentences() -> list[str]:
    """The arithmetic in words."""
    mine = entries()[OURS]
    first, best = max(entries().items(), key=lambda item: score(*item[1]))
    parts, (psnr, ms) = score_gap(mine, best), mine
    return [
        f"score = 2^(2·PSNR) / (C·t), C = {fitted_constant():.4g}, fitted to the five published scores (Table A).",
        f"{first} is 2^{parts['total']:.2f} = {2 ** parts['total']:.1f} times ahead of {OURS}: 2^{parts['psnr']:.2f} "
        f"by {best[0] - psnr:.2f} dB, 2^{parts['time']:.2f} by {ms / best[1]:.1f} times less time. "
        f"{100 * parts['time'] / parts['total']:.0f} % of the gap is time.",
        f"0.1 dB more is worth {ms_per_db(0.1, ms):.2f} ms at {ms:g} ms and {ms_per_db(0.1, best[1]):.2f} ms at "
        f"{best[1]:g} ms.",
        f"To draw level, {OURS} would need {parts['total'] / 2:.2f} dB more at {ms:g} ms, or "
        f"{ms / 2 ** parts['total']:.2f} ms at {psnr:g} dB."]


def challenge_text(run: Run) -> str:
    """The section as Markdown, for the summary."""
    own = move_table(run)
    return "\n\n".join([" ".join(sentences()), markdown(leaders()), "What this run's own variants would move:",
                        markdown(own) if len(own) else "not run"])


def challenge_section(run: Run) -> Markdown:
    """The section for a notebook."""
    return Markdown(challenge_text(run))
