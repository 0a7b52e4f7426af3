"""What quality costs on devices, from a run's records: NPU cycles, CPU time, and the benchmarks (section 7)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from paperlib.errors import UserError
from paperlib.reporting.figures import scatter
from paperlib.reporting.tables import measured_values
from paperlib.run import STYLE, Run
from paperlib.student.graph import macs_per_lr_pixel
from paperlib.student.models import build_model, deployment_graph, fuse_model

FORMS = {"add": ("D", "qat_teacher_learnt"), "exact": ("switches", "skip_exact")}
"""Forms of the skip (`paperlib.evaluation.exported`) and the rows of 07 that were trained with them."""
FILES = {"student_dynamic_int8.tflite": ("abstract", "student_dynamic_tflite_learnt"),
         "student_fixed_int8.tflite": ("abstract", "student_fixed_tflite_learnt"),
         "student_ptq_int8.tflite": ("export", "tflite_post_training")}
"""Files that `paperlib bench` times and the rows that say what they score."""


def _scores(run: Run) -> dict[tuple[str, str], float]:
    """PSNR (dB) of every INT8 row on the validation photographs."""
    return {key[:2]: row["value"] for key, row in measured_values(run).items()
            if key[2:] == ("int8", "psnr") and row["value"] is not None}


def npu_points(run: Run) -> list[dict[str, Any]]:
    """Vela's cycles (millions) and PSNR (dB): 06's fixed file on each accelerator, 07's forms of the skip."""
    scores, points = _scores(run), []
    for record in run.records().values():
        for estimate in (record.get("export") or {}).get("npu") or []:
            left = ", ".join(dict.fromkeys(estimate["cpu_operators"]))
            points.append({"name": estimate["accelerator"], "row": ("abstract", "student_fixed_tflite_learnt"),
                           "group": f"shipped file{f' (without {left}, left to the CPU)' if left else ''}",
                           "cycles": estimate["cycles_total"] / 1e6})
        for form, cycles in (record.get("graph_forms") or {}).items():
            points.append({"name": f"skip: {form}", "row": FORMS.get(form), "cycles": cycles / 1e6,
                           "group": "07's short trainings, whole on ethos-u65-512"})
    return [point | {"psnr": scores[point["row"]]} for point in points if point["row"] in scores]


def read_bench(run: Run) -> dict[str, Any]:
    """The run's bench.json (`paperlib bench --json`); empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = run.out / "bench.json"
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run `paperlib bench --json {path}` again.") from error


def latency_points(run: Run) -> list[dict[str, Any]]:
    """CPU time (ns per LR pixel) and PSNR (dB) of the run's INT8 files, with one thread and with two."""
    scores, points = _scores(run), []
    for name, times in (read_bench(run).get("int8") or {}).get("files", {}).items():
        path = Path(name)
        row = FILES.get(path.name) if path.parts[-4:-1] == (run.out.name, "checkpoints", "export") else None
        if row not in scores:
            continue
        height, width = times["input_size"]
        points += [{"name": path.stem.removeprefix("student_").removesuffix("_int8"), "psnr": scores[row],
                    "group": label, "ns": 1e6 * times[key] / (height * width)}
                   for key, label in (("ms_1_thread", "one thread"), ("ms_2_threads", "two threads"))]
    return points


def npu_scatter(run: Run) -> Figure | None:
    """Quality against NPU cycles; None where fewer than two were estimated: one point is beside nothing."""
    points = npu_points(run)
    if len(points) < 2:
        return None
    return scatter(points, "cycles", "psnr", "NPU cycles of one inference (millions), Vela's estimate",
                   "PSNR RGB, validation (dB)", "Quality against NPU cycles: left is better")


def latency_scatter(run: Run) -> Figure | None:
    """Quality against CPU time; None where nothing was timed."""
    points = latency_points(run)
    return scatter(points, "ns", "psnr", "CPU time of one inference (ns per LR pixel)", "PSNR RGB, validation (dB)",
                   "Quality against CPU time: left is better") if points else None


OLD = ("ratio_wall", "ratio_memory")
"""Shares, ours of a bare script's, that an older version of the kit called ratios."""


def ratios(bench: Mapping[str, Any]) -> dict[str, float]:
    """Every ratio of a bench.json by what was measured; above 1 ours is faster."""
    return {f"{name}: {key.removeprefix('ratio_').replace('_', ' ')}": value
            for name, result in bench.items() if isinstance(result, Mapping)
            for key, value in result.items()
            if key.startswith("ratio_") and key not in OLD and isinstance(value, int | float)}


def speed_text(path: Path, link: str) -> str:
    """The benchmarks of a bench.json as a section of Markdown: every ratio with what was measured, and on what.

    Raises:
        UserError: the file is damaged.
    """
    bench = _read(path)
    about = bench.get("provenance") or {}
    cpu = about.get("cpu") or {}
    lines = [f"| {label} | {value:.3g} | {bench[label.partition(':')[0]].get('what', '')} |"
             for label, value in ratios(bench).items()]
    return "\n\n".join([
        "## How fast, and against what",
        f"[bench.json]({link}), by `paperlib bench`: commit {str(about.get('commit'))[:8]}, {about.get('threads')} "
        f"threads of an {cpu.get('model')} ({', '.join(cpu.get('instructions', []))}). A ratio is of interleaved runs "
        "in one process; above 1 the first is faster.",
        "\n".join(["| benchmark | times faster | measured |", "| --- | --- | --- |", *lines])])


@style.context(STYLE)
def ratio_bars(bench: Mapping[str, Any]) -> Figure | None:
    """One bar a ratio on a logarithmic axis, from 1 to the right where ours is faster; None without ratios."""
    found = ratios(bench)
    if not found:
        return None
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(found)))
    axes = figure.subplots()
    values = list(found.values())
    drawn = axes.barh(range(len(found)), [value - 1 for value in values], left=1, height=0.6,
                      color=["C0" if value >= 1 else "C1" for value in values])
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, 0.6 * min(values)), max(2.0, 2.2 * max(values)))
    for bar, value in zip(drawn, values, strict=True):
        axes.annotate(f"{value:.3g} ×", (max(value, 1), bar.get_y() + 0.3), xytext=(4, 0), va="center", fontsize=9,
                      textcoords="offset points")
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="times faster than the alternative, in the same run (log scale; right of 1 ours is faster)",
             title="Benchmarks: longer to the right is better")
    return figure


def portability_table(bench: Mapping[str, Any]) -> list[dict[str, str]]:
    """`paperlib bench --only portability` for the eye: a runtime a line; empty where it was not run."""
    found = bench.get("portability") or {}
    size = {label: " × ".join(map(str, reversed(sides))) for label, sides in found.get("sizes", {}).items()}
    lines = []
    for line in found.get("runtimes", []):
        name = f"{line['runtime']} ({line.get('version', 'absent')})"
        if "skipped" in line:
            lines.append({"runtime": name, "threads": "", "equal": line["skipped"], "largest difference": "",
                          **{f"ms, {size[label]}": "" for label in size}})
            continue
        lines.append({
            "runtime": name, "threads": str(line["threads"]), "equal": f"{100 * line['share_equal']:.4g} %",
            "largest difference": str(line["max_difference"]),
            **{f"ms, {size[label]}": f"{line[f'ms_{label}']:.4g}" if f"ms_{label}" in line else "" for label in size}})
    return lines


def portability_notes(bench: Mapping[str, Any]) -> str:
    """What the table was measured on, and remarks on single lines."""
    found = bench.get("portability") or {}
    if not found:
        return ""
    cpu = found["cpu"]
    notes = {line["note"]: line["runtime"] for line in found["runtimes"] if "note" in line}
    sets = ", ".join(cpu["instructions"]) or "instruction sets unknown"
    return " ".join([f"{found['what'][0].upper()}{found['what'][1:]}. {cpu['model']}, {cpu['cores']} cores, {sets}; "
                     f"least of {found['rounds']} runs.",
                     *(f"{runtime}: {note}." for note, runtime in notes.items())])


def npu_form_table(bench: Mapping[str, Any]) -> list[dict[str, str]]:
    """Vela's cycles by form of skip and PixelShuffle, each against the paper's skip with DEPTH_TO_SPACE."""
    lines = [line for line in (bench.get("portability") or {}).get("npu_forms", []) if "skipped" not in line]
    usual = {line["accelerator"]: line["cycles_per_lr_pixel"] for line in lines
             if (line["skip"], line["upsample"]) == ("add", "depth_to_space")}
    return [{"skip": line["skip"], "PixelShuffle": line["upsample"], "accelerator": line["accelerator"],
             "MACs / LR pixel": f"{line['macs_per_lr_pixel']:,}", "cycles / LR pixel":
             f"{line['cycles_per_lr_pixel']:.1f}",
             "ratio": f"{line['cycles_per_lr_pixel'] / usual[line['accelerator']]:.2f}",
             "left to the CPU, not counted": ", ".join(line["left_to_cpu"]) or "nothing"} for line in lines]


def standing_table(bench: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where the paper's student would have stood with such a file; the assumptions: `evaluation.npu_forms.standing`."""
    return [{"skip": line["skip"], "PixelShuffle": line["upsample"], "assumed share of the transpose in 41.1 ms":
             f"{100 * line['transpose_share']:.0f} %", "ms": f"{line['ms']:.1f}", "PSNR (dB)": f"{line['psnr']:.2f}",
             "score": f"{line['score']:.1f}", "place of 5": str(line["place"])}
            for line in (bench.get("portability") or {}).get("standing", [])]


OURS = (("B", "student_stage2", "fp32"), ("B", "student_deploy", "int8"))


def our_points(run: Run, dataset: str = "Set5") -> list[dict[str, Any]]:
    """The run's students on the same set, as further points; empty where the profile does not measure it."""
    rows = run.rows()
    rows = rows[(rows["metric"] == "psnr") & (rows["dataset"] == dataset) & rows["value"].notna()]
    found = [row for row in rows.itertuples() if (row.table, row.row, row.precision) in OURS]
    macs = macs_per_lr_pixel(deployment_graph(fuse_model(build_model(run.settings.student)))) / 1e3 if found else 0
    return [{"name": f"ours, {row.row.replace('student_', '')}", "group": f"this run, {row.precision.upper()}",
             "macs": macs, "psnr": row.value} for row in found]
