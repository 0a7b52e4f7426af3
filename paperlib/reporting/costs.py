"""What quality costs: the challenge's score, other models, benchmarks (paper section 7, Table A).

score = 2^(2·PSNR) / (C·t) with one C for all published rows: in log2 of the score a decibel counts
2 and a halved time 1. The leaderboard's figures are reported; everything else is computed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from paperlib.evaluation.audit import LAST, SETTLED, SelectionNoise, selection_noise
from paperlib.evaluation.paper_numbers import (
    OURS,
    entries,
    fitted_constant,
    ms_per_db,
    reported,
    score,
    score_gap,
)
from paperlib.files import reading
from paperlib.reporting.results import Results
from paperlib.reporting.tables import markdown
from paperlib.run import Run
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model

PEERS = Path(__file__).with_name("peers.csv")
"""Published models of similar size, scored on the same images: parameters, multiply-accumulates
per LR pixel, PSNR in dB, the LR pixels they were trained on, protocol, where the weights are."""
STUDENTS = (("B", "student_stage2", "fp32"), ("B", "student_deploy", "int8"))


def leaders() -> pd.DataFrame:
    """The gap of the paper's entry to every other, split in log2 of the score."""
    mine = entries()[OURS]
    lines = []
    for row, entry in entries().items():
        if row != OURS:
            parts = score_gap(mine, entry)
            lines.append({
                "entry": row, "score": f"{score(*entry):.1f}",
                "ahead, log2": f"{parts['total']:+.2f}", "from PSNR": f"{parts['psnr']:+.2f}",
                "from time": f"{parts['time']:+.2f}",
                "0.1 dB is worth (ms)": f"{ms_per_db(0.1, entry[1]):.2f}"})
    return pd.DataFrame(lines)


def challenge_sentences() -> list[str]:
    """The arithmetic of the score in words."""
    mine = entries()[OURS]
    first, best = max(entries().items(), key=lambda item: score(*item[1]))
    parts, (psnr, ms) = score_gap(mine, best), mine
    return [
        f"score = 2^(2·PSNR) / (C·t), C = {fitted_constant():.4g}, fitted to the five published "
        "scores (Table A).",
        f"{first} is 2^{parts['total']:.2f} = {2 ** parts['total']:.1f} times ahead of {OURS}: "
        f"2^{parts['psnr']:.2f} by {best[0] - psnr:.2f} dB, 2^{parts['time']:.2f} by "
        f"{ms / best[1]:.1f} times less time. "
        f"{100 * parts['time'] / parts['total']:.0f} % of the gap is time.",
        f"0.1 dB more is worth {ms_per_db(0.1, ms):.2f} ms at {ms:g} ms and "
        f"{ms_per_db(0.1, best[1]):.2f} ms at {best[1]:g} ms.",
        f"To draw level, {OURS} would need {parts['total'] / 2:.2f} dB more at {ms:g} ms, or "
        f"{ms / 2 ** parts['total']:.2f} ms at {psnr:g} dB."]


def score_levers(source: Run | Results) -> pd.DataFrame:
    """What this run's own variants would add to the score, largest first; empty where not run."""
    psnr = Results.of(source).psnr
    shipped, whole = psnr("B", "student_deploy"), psnr("export", "float_before_qat")
    lines = []
    for change, better, worse in (
            ("no loss by INT8: the fused network's PSNR in the file", whole, shipped),
            ("stage 2's float PSNR in the file", psnr("B", "student_stage2"), shipped),
            ("learned grids instead of post-training ones (done)", shipped,
             psnr("export", "tflite_post_training"))):
        if better is not None and worse is not None:
            lines.append((better - worse, change))
    return pd.DataFrame(
        [{"change": change, "PSNR": f"{gain:+.3f} dB", "log2": f"{2 * gain:+.3f}",
          "score": f"×\u00a0{4 ** gain:.3f}"} for gain, change in sorted(lines, reverse=True)],
        columns=["change", "PSNR", "log2", "score"])


def challenge_text(source: Run | Results) -> str:
    """What it would take to win, as Markdown."""
    own = score_levers(source)
    return "\n\n".join([
        " ".join(challenge_sentences()), markdown(leaders()),
        "What this run's own variants would move:", markdown(own) if len(own) else "not run"])


def challenge_section(source: Run | Results) -> Markdown:
    """`challenge_text` for a notebook."""
    return Markdown(challenge_text(source))


def peer_points(dataset: str = "Set5") -> list[dict[str, Any]]:
    """Other people's models for `figures.scatter`: name, group, macs (thousands per LR pixel), psnr
    (dB, RGB, no crop)."""
    lines = pd.read_csv(PEERS)
    return [{"name": line.model, "group": f"{line.group}, {line.precision.upper()}",
             "macs": line.macs_per_lr_pixel / 1e3, "psnr": line.psnr_rgb}
            for line in lines[lines["set"] == dataset].itertuples()]


def our_points(source: Run | Results, dataset: str = "Set5") -> list[dict[str, Any]]:
    """The run's students as further points; empty where the profile does not measure the set."""
    results = Results.of(source)
    rows = results.rows
    rows = rows[(rows["metric"] == "psnr") & (rows["dataset"] == dataset) & rows["value"].notna()]
    found = [row for row in rows.itertuples() if (row.table, row.row, row.precision) in STUDENTS]
    if not found:
        return []
    graph = deployment_graph(fuse_model(build_model(results.run.settings.student)))
    return [{"name": f"ours, {row.row.replace('student_', '')}",
             "group": f"this run, {row.precision.upper()}",
             "macs": macs_per_lr_pixel(graph) / 1e3, "psnr": row.value} for row in found]


def read_bench(path: Path) -> dict[str, Any]:
    """A bench.json (`paperlib bench --json`); empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    with reading(path, "a file of `paperlib bench`"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def bench_table(bench: Mapping[str, Any]) -> pd.DataFrame:
    """Every ratio of a bench.json; above 1 ours is faster."""
    return pd.DataFrame(
        [{"benchmark": f"{name}: {key.removeprefix('ratio_').replace('_', ' ')}",
          "times faster": f"{value:.3g}", "measured": result.get("what", "")}
         for name, result in bench.items() if isinstance(result, Mapping)
         for key, value in result.items()
         if key.startswith("ratio_") and isinstance(value, int | float)],
        columns=["benchmark", "times faster", "measured"])


def portability_table(bench: Mapping[str, Any]) -> pd.DataFrame:
    """The shipped file in other runtimes, one a line; empty where that was not measured."""
    found = bench.get("portability") or {}
    sizes = {label: f"ms, {width} × {height}"
             for label, (height, width) in found.get("sizes", {}).items()}
    lines = []
    for line in found.get("runtimes", []):
        shown = {"runtime": f"{line['runtime']} ({line.get('version', 'absent')})"}
        if "skipped" in line:
            lines.append(shown | {"equal": line["skipped"]})
            continue
        lines.append(shown | {
            "threads": str(line["threads"]), "equal": f"{100 * line['share_equal']:.4g} %",
            "largest difference": str(line["max_difference"])} | {
            name: f"{line[f'ms_{label}']:.4g}" for label, name in sizes.items()
            if f"ms_{label}" in line})
    columns = ["runtime", "threads", "equal", "largest difference", *sizes.values()]
    return pd.DataFrame(lines, columns=columns).fillna("")


def selection_figure(noise: SelectionNoise) -> Figure:
    """The authors' stage 3 by epoch, the mean of its last ones, and the epoch that was reported."""
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    axes.plot(noise.epochs, noise.psnr, marker=".", markersize=3, linewidth=0.8)
    axes.axvline(SETTLED, linestyle=":", linewidth=1)
    axes.annotate("grids frozen", (SETTLED, noise.psnr.min()), xytext=(4, 4), fontsize=8,
                  textcoords="offset points")
    axes.axhspan(noise.settled - noise.scatter, noise.settled + noise.scatter, alpha=0.15)
    axes.axhline(noise.settled, linewidth=1, linestyle="--", label=(
        f"mean of the last {LAST} epochs {noise.settled:.3f} dB, "
        f"± {noise.scatter:.3f} between epochs"))
    best = int(noise.psnr.argmax())
    axes.plot(noise.epochs[best], noise.best, "o", markersize=7, fillstyle="none",
              label=f"reported: the best epoch, {noise.best:.3f} dB")
    axes.set(xlabel="epoch of stage 3 (the authors' log)",
             ylabel="PSNR RGB on the reported images (dB)")
    axes.legend(fontsize=8, loc="lower right")
    plt.close(figure)
    return figure


def selection_section(run: Run) -> Markdown:
    """What choosing the best epoch is worth: the figure, shown and saved, and two sentences."""
    noise = selection_noise()
    if noise is None:
        return Markdown("*The authors' log is not at hand: `paperlib verify` downloads it (3 MB), "
                        "or set `PAPERLIB_ASSETS` to a folder that holds their release as "
                        "`aio_mai/`.*")
    display(run.figure("07_selection", selection_figure(noise)))
    teacher, direct = (
        reported()["D", row, "int8", "psnr"] for row in ("qat_teacher", "qat_direct"))
    return Markdown(
        f"The best of {len(noise.psnr)} epochs, chosen on the images that are reported, is "
        f"{noise.best - noise.settled:.3f} dB above the mean of the last {LAST}; epochs scatter by "
        f"{noise.scatter:.3f} dB. Table D's {teacher - direct:.3f} dB is a difference of two such "
        "maxima, of one run each.")
