"""The README's figures against the committed records that they come from; none stands there without one."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paperlib.reporting.claims import judged_claims
from paperlib.reporting.differences import differences
from paperlib.reporting.effects import paired_effect
from paperlib.reporting.peers import peers_sentence

from paperlib.evaluation.paper_numbers import reported
from paperlib.files import sha256_file
from paperlib.profiles import load_settings
from paperlib.reporting.verdicts import values_of
from paperlib.run import Run
from paperlib.weights import pretrained
from paperlib.weights.release import seeds_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "results" / "reference"
STAGE3 = "stage3_from_published"


def value(record: str, row: str, dataset: str, metric: str = "psnr", field: str = "value") -> Any:
    """A measured number of a committed record, or its images' where `field` is "images"."""
    rows = json.loads((REFERENCE / record).read_text(encoding="utf-8"))["rows"]
    (found,) = [line[field] for line in rows if (line["row"], line["dataset"], line["metric"]) == (row, dataset, metric)
                and line["table"] not in ("B", "abstract")]
    return found


def audited(name: str, dataset: str) -> float:
    """PSNR RGB of one of the authors' files, as `paperlib verify` measured it."""
    lines = json.loads((REFERENCE / "audit.json").read_text(encoding="utf-8"))["measured"]
    (found,) = [line["psnr_rgb"] for line in lines if (line["as"], line["dataset"]) == (name, dataset)]
    return found


def table_line(start: str) -> list[str]:
    """The cells of the README's table line that begins so."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


SETS = ("Set5", "Set14", "B100", "validation")
BOX = {"float |": "float_before_qat", "float, result": "float_in_8_bits", "**INT8 TFLite": "tflite_dynamic",
       "the weights in the box by post-training": "tflite_post_training"}


@pytest.mark.parametrize("start", BOX)
def test_scores_of_the_box_are_the_recorded_ones(start):
    wanted = [f"{value('benchmark/records/06_tflite_eval.json', BOX[start], name):.3f}" for name in SETS]
    assert table_line(start)[1:] == wanted


def test_the_spread_over_seeds_is_the_recorded_one():
    record = json.loads((REFERENCE / "benchmark" / "seeds.json").read_text(encoding="utf-8"))
    lines = seeds_table(record["rows"])
    assert {len(row["values"]) for row in record["rows"]} == {len(record["seeds"])} == {3}
    assert table_line("INT8, three seeds of stages 2 and 3")[1:] == [line["INT8 TFLite"] for line in sorted(
        lines, key=lambda line: SETS.index(line["images"]))]
    assert record["files"]["1234"] == sha256_file(pretrained())
    assert record["stage2_shared_steps"] == 0
    card = (ROOT / "paperlib" / "weights" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert all(" | ".join(line.values()) in card for line in lines)


def split(file: str, row: str, metric: str = "psnr") -> tuple[float, float]:
    """CLIC's 14 images are 13 photographs and a screenshot, the hardest of them: the photographs' mean, the screenshot.
    """
    images = value(file, row, "validation", metric, "images")
    return float(np.mean(np.delete(images, np.argmin(images)))), min(images)


def test_what_text_gives_and_costs_is_the_recorded_difference():
    now, before = (split(file, "tflite_dynamic") for file in (
        "benchmark/records/06_tflite_eval.json", "benchmark/before.json"))
    gain, loss = now[1] - before[1], before[0] - now[0]
    assert gain > 0 < loss
    words = f"the screenshot {gain:.2f} dB better and the photographs {loss:.3f} dB worse"
    assert words in " ".join(README.split())


def test_what_was_turned_down_is_said_as_recorded():
    tried = (REFERENCE / "benchmark" / "tried.md").read_text(encoding="utf-8")
    files = {"in the box": "benchmark/before.json", "the candidate": "benchmark/restart.json"}
    for start, file in files.items():
        cells = [" / ".join(f"{value(file, row, name, metric):.3f}" for row in ("float_before_qat", "tflite_dynamic"))
                 for metric, name in (*(("psnr", name) for name in SETS), ("psnr_y", "validation"))]
        assert f"| {start} | {' | '.join(cells)} |" in tried
        pairs = [split(file, "float_before_qat", metric) for metric in ("psnr", "psnr_y")]
        photographs, screenshot = (" / ".join(f"{pair[part]:.3f}" for pair in pairs) for part in (0, 1))
        assert f"| {start} | {photographs} | {screenshot} |" in tried


def test_who_leads_is_said_as_the_list_says_it():
    ours = {name: value("benchmark/records/06_tflite_eval.json", "tflite_dynamic", name) for name in SETS[:3]}
    assert peers_sentence(ours).rstrip(".") in " ".join(README.split())


def test_the_box_is_the_recorded_file():
    scores = json.loads((ROOT / "paperlib" / "weights" / "weights.json").read_text(encoding="utf-8"))["scores"]
    for line in scores:
        if line["precision"] == "INT8 TFLite":
            assert line["PSNR RGB (dB)"] == (
                f"{value('benchmark/records/06_tflite_eval.json', 'tflite_dynamic', line['images']):.3f}")


@pytest.mark.parametrize(("words", "number"), [
    ("float {} dB on Set5", lambda: audited("stage2_fp32", "Set5")),
    ("the paper's way {} (31.322", lambda: value(f"{STAGE3}/teacher/records/07_ablations.json", "qat_teacher", "Set5")),
    ("({} without stage 3)", lambda: value(f"{STAGE3}/grid/records/07_ablations.json", "post_training", "Set5")),
    ("{} with its learnt grids",
     lambda: value(f"{STAGE3}/teacher/records/07_ablations.json", "qat_teacher_learnt", "Set5")),
    ("rounded to data: with an ADD {},",
     lambda: value(f"{STAGE3}/rounded/records/07_ablations.json", "residual_add", "Set5")),
    ("with an exact skip {} ±", lambda: value(f"{STAGE3}/rounded/records/07_ablations.json", "as_set", "Set5")),
    ("± {} dB (three seeds",
     lambda: value(f"{STAGE3}/rounded/records/07_ablations.json", "as_set", "Set5", field="sd"))])
def test_findings_have_a_record(words: str, number: Any):
    text = " ".join(README.split())
    assert words.format(f"{number():.3f}") in text


def test_the_teachers_share_is_the_recorded_one():
    record = json.loads((REFERENCE / STAGE3 / "teacher" / "records" / "07_ablations.json").read_text(encoding="utf-8"))
    lines, text = {line["condition"]: line for line in record["shares"]}, " ".join(README.split())
    kd, dct = (100 * lines["qat_teacher"][f"{term} gradient"] for term in ("kd", "dct"))
    assert f"it has {kd:.2f} % of the gradient when it begins, the DCT {dct:.0f} %" in text
    ortho = {term: 100 * lines["ortho_kd_1"][f"{term} gradient"] for term in ("dct", "kd")}
    assert f"({ortho['dct']:.1f} % of the gradient, the teacher {ortho['kd']:.1f} %)" in text
    ten, hundred = (100 * lines[f"kd_{times}"]["kd gradient"] for times in (10, 100))
    assert f"({ten:.1f} %, {hundred:.0f} % of the gradient)" in text


def test_what_a_larger_weight_of_the_teacher_gives_is_the_recorded_effect():
    run = Run(load_settings("benchmark"), REFERENCE / STAGE3 / "teacher", every_record=True)
    found, text = {line.row: line for line in differences(run)}, " ".join(README.split()).replace("−", "-")
    ten, hundred = (found[f"kd_{times}_learnt"] for times in (10, 100))
    gains = [f"{line.effect.mean:+.3f} [{line.effect.low:+.3f}, {line.effect.high:+.3f}]" for line in (ten, hundred)]
    assert f"the learnt grids gains {' and '.join(gains)} dB: no difference" in text
    assert ten.words() == hundred.words() == "no difference"
    assert {line.effect.seeds for line in (ten, hundred)} == {5}
    ortho, alone = found["ortho_kd_1"], found["ortho_kd_0"]
    effect = ortho.effect
    interval = f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] dB"
    assert f"the post-training file is {ortho.words()}, {interval}" in text
    assert (ortho.against, alone.against) == ("qat_teacher", "ortho_kd_1")
    assert (ortho.effect.seeds, alone.effect.seeds) == (5, 5)
    learnt = found["ortho_kd_0_learnt"]
    assert f"gives beside it: {alone.words()}, inside ±0.03, and {learnt.words()} with learnt grids" in text
    noisier = [found["kd_10"], found["kd_100"], alone]
    assert [line.words() for line in noisier] == ["undecided"] * 3
    assert all(-0.03 < line.effect.low < line.effect.high < 0.03 for line in noisier)


def test_what_the_teacher_gives_our_own_stage_2_is_the_recorded_effect():
    run = Run(load_settings("benchmark"), REFERENCE / "stage3_from_own", every_record=True)
    (found,) = [judged for part, judged in judged_claims(run) if part.text.startswith("Table D") and judged]
    effect, record = found.effect, "stage3_from_own/records/07_ablations.json"
    assert (found.word.value, effect.seeds) == ("undecided", 5)
    lost = (value("benchmark/before.json", "float_before_qat", "validation")
            - value(record, "qat_teacher", "validation"))
    gain = f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] dB over five seeds".replace("-", "−")
    words = f"the post-training file is {lost:.3f} dB below float on CLIC and the teacher undecided, {gain}"
    assert words in " ".join(README.split())
    start, before = (json.loads((REFERENCE / file).read_text(encoding="utf-8")) for file in (
        record, "benchmark/before.json"))
    assert start["inputs"]["stage 3's start"]["sha256"] == before["files"]["pretrained-float"]


@pytest.mark.parametrize(("claim", "folder", "words"), [
    ("Table B: the student beats bicubic, FP32", "blocks", "Table B: the student beats bicubic, FP32"),
    ("Table B: the student beats FSRCNN, FP32", "blocks", "Table B: the student beats FSRCNN, FP32"),
    ("Table B: what FP32 to INT8 costs the student", "blocks", "Table B: what FP32 to INT8 costs the student"),
    ("Table C: MobileOne beats RepConv, FP32", "blocks", "Table C: MobileOne beats RepConv, FP32"),
    ("Table C: MobileOne beats RepConv, INT8", "blocks", "Table C: MobileOne beats RepConv, INT8"),
    ("Table C: MobileOne beats RepDW, FP32", "blocks", "Table C: MobileOne beats RepDW, FP32"),
    ("Table C: INT8 costs MobileOne less than RepDW", "blocks", "Table C: INT8 costs MobileOne less than RepDW"),
    ("Table C: INT8 costs MobileOne less than RepConv", "blocks", "Table C: INT8 costs MobileOne less than RepConv"),
    ("Table D: the Mamba teacher helps stage 3, INT8", f"{STAGE3}/teacher",
     "Table D: the Mamba teacher helps stage 3")])
def test_claims_say_what_the_records_say(claim, folder, words):
    """Paper's difference, effect, interval, seeds and verdict, as the same code judges the committed records."""
    run = Run(load_settings("benchmark"), REFERENCE / folder, every_record=True)
    (found,) = [comparison for part, comparison in judged_claims(run) if part.text == claim]
    cells = table_line(words)
    assert cells[1].replace("−", "-") == f"{found.reported:+.3f} dB"
    effect = found.effect
    assert cells[2].replace("−", "-").startswith(
        f"{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] dB, {effect.seeds} seeds")
    assert cells[3] == found.word.value


def test_what_int8_costs_from_float_is_computed_from_the_record():
    """MobileOne's loss from its float network to its post-training file less RepConv's, by seed and image."""
    record = json.loads((REFERENCE / "blocks" / "records" / "07_ablations.json").read_text(encoding="utf-8"))
    rows = {(row["row"], row["precision"]): row for row in record["rows"]
            if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert len({tuple(rows[key]["seed_ids"]) for key in rows if key[0].startswith(("mobileone", "repconv"))}) == 1
    cost = lambda arch: values_of(rows[arch, "int8"]) - values_of(rows[f"{arch}_float", "fp32"])
    effect = paired_effect(cost("mobileone"), cost("repconv"))
    found = f"(from float: {effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}])".replace("-", "−")
    assert table_line("Table C: INT8 costs MobileOne less than RepConv")[2].endswith(found)


def test_the_reported_number_of_the_files_is_the_papers():
    assert reported()["abstract", "student_dynamic_tflite", "int8", "psnr"] == 30.0003
    assert "30.0003 dB" in README


def test_the_authors_report_gives_the_recomputed_values():
    lines = json.loads((REFERENCE / "audit.json").read_text(encoding="utf-8"))["recomputed"]
    means = [line["reproduced"] for name in ("dynamic TFLite", "fixed TFLite") for line in lines
             if line["row"].startswith(name) and line["metric"] == "psnr"]
    assert "{:.4f} and {:.4f} dB".format(*means) in README


def test_damaged_files_are_counted_as_recorded():
    record = json.loads((REFERENCE / "hostile.json").read_text(encoding="utf-8"))
    files, commands, wrong = (sum(kind[name] for kind in record["kinds"].values())
                              for name in ("files", "commands", "wrong"))
    words = f"Of {files:,} damaged or odd files in {commands} commands, {wrong} commands broke"
    assert words in " ".join(README.split())
    assert wrong == len(record["wrong"])
    assert not record["dirty"]


def test_minutes_and_memory_of_the_demo_are_those_of_its_record():
    costs = json.loads((REFERENCE / "demo" / "records" / "00_reproduce.json").read_text(encoding="utf-8"))["notebooks"]
    minutes, peak = sum(cost["seconds"] for cost in costs.values()) / 60, max(c["peak_bytes"] for c in costs.values())
    assert f"{minutes:.0f} minutes, {peak / 1e9:.1f} GB" in README


def test_the_paper_profile_is_said_not_to_have_been_run():
    run = any((folder / "paper").exists() for folder in (REFERENCE, ROOT / "results"))
    assert ("has not been run" in README) is not run
    assert not re.search(r"reproduced`? \|$", README, re.MULTILINE)


def test_the_runtimes_table_is_the_recorded_one():
    """Two threads: share of equal values, largest difference, least milliseconds for a 256² tile and for 720×1280."""
    bench = json.loads((REFERENCE / "benchmark" / "bench.json").read_text(encoding="utf-8"))
    about, lines = bench["portability"]["cpu"], bench["portability"]["runtimes"]
    assert bench["portability"]["model"] == sha256_file(pretrained())
    assert f"two threads of an {about['model']} with AVX-512 VNNI" in " ".join(README.split())
    assert "avx512_vnni" in about["instructions"]
    shown = [line for line in lines if line["threads"] == 2]
    assert {line["runtime"] for line in shown} == {line["runtime"] for line in lines}
    assert len(shown) >= 6
    for found in shown:
        cells = table_line(f"{found['runtime']} |")
        assert cells[1] == f"{100 * found['share_equal']:.2f} %, {found['max_difference']}"
        assert cells[2:] == [f"{found[name]:,.0f}" if name in found else "" for name in ("ms_tile", "ms_frame")]
