"""Numbers of the READMEs against the committed records that they come from; wording is free."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paperlib.evaluation.paper_numbers import reported
from paperlib.files import sha256_file
from paperlib.profiles import load_settings
from paperlib.reporting.results import Results
from paperlib.reporting.tables import differences
from paperlib.run import Run
from paperlib.weights import pretrained
from paperlib.weights.release import seeds_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = " ".join(README.split())
REFERENCE = ROOT / "results" / "reference"
STAGE3 = "stage3_from_published"
SETS = ("Set5", "Set14", "B100", "validation")


def read(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def value(record: str, row: str, dataset: str, metric: str = "psnr", field: str = "value") -> Any:
    """A measured number of a committed record, or its images' where `field` is "images"."""
    (found,) = [line[field] for line in read(record)["rows"]
                if (line["row"], line["dataset"], line["metric"]) == (row, dataset, metric)
                and line["table"] not in ("B", "abstract")]
    return found


def audited(name: str, dataset: str) -> float:
    """PSNR RGB of one of the authors' files, as `paperlib verify` measured it."""
    (found,) = [line["psnr_rgb"] for line in read("audit.json")["measured"]
                if (line["as"], line["dataset"]) == (name, dataset)]
    return found


def on_div2k(row: str) -> dict[str, float]:
    """What one file scores on the 36 photographs of DIV2K's validation set."""
    (found,) = [line for line in read("div2k/verify.json")["div2k_rows"] if line["row"] == row]
    return found


def cells(start: str, text: str = README) -> list[str]:
    """The cells of the table line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("start", "row", "on_36"), [
    ("**the shipped INT8 file", "tflite_dynamic", "bundled_int8"),
    ("our float network", "float_before_qat", None)])
def test_scores_of_the_shipped_file_are_the_recorded_ones(start, row, on_36):
    wanted = [f"{value('benchmark/records/06_tflite_eval.json', row, name):.3f}" for name in SETS]
    wanted += [f"{on_div2k(on_36)['psnr']:.3f}" if on_36 else ""]
    assert cells(start)[1:] == wanted


def test_scores_of_the_authors_file_and_of_bicubic_are_the_recorded_ones():
    names = ("Set5", "Set14", "B100", "clic_val")
    shown = cells("the authors' INT8 file (dynamic)")[1:]
    assert shown == [f"{audited('dynamic_int8', name):.3f}" for name in names] + [
        f"{on_div2k('dynamic_int8')['psnr']:.3f}"]
    rows = read("benchmark/records/01_data.json")["rows"]
    bicubic = {line["dataset"]: line["value"] for line in rows
               if (line["row"], line["metric"]) == ("bicubic", "psnr")}
    assert cells("bicubic |")[1:] == [f"{bicubic[name]:.3f}" for name in SETS] + [
        f"{on_div2k('bicubic_torch')['psnr']:.3f}"]


def peers() -> list[dict[str, str]]:
    with (ROOT / "paperlib" / "reporting" / "peers.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_peer_is_the_best_of_the_list():
    int8 = [line for line in peers() if (line["group"], line["precision"]) == ("peers", "int8")]
    for name, best in zip(SETS, cells("PureConvSR trial 10")[1:4], strict=False):
        assert float(best) == max(float(line["psnr_rgb"]) for line in int8 if line["set"] == name)


def test_the_spread_over_seeds_is_the_recorded_one():
    record = read("benchmark/seeds.json")
    lines = seeds_table(record["rows"])
    assert {len(row["values"]) for row in record["rows"]} == {len(record["seeds"])} == {3}
    assert cells("INT8, three seeds of stages 2 and 3")[1:5] == [
        line["INT8 TFLite"] for line in sorted(lines, key=lambda line: SETS.index(line["images"]))]
    assert record["files"]["1234"] == sha256_file(pretrained())
    assert record["stage2_shared_steps"] == 0


@pytest.mark.parametrize(("label", "file"), [
    ("the former student", "benchmark/before.json"), ("the candidate", "benchmark/restart.json")])
def test_what_was_turned_down_is_said_as_recorded(label, file):
    tried = (REFERENCE / "benchmark" / "tried.md").read_text(encoding="utf-8")
    line = [" / ".join(f"{value(file, row, name, metric):.3f}" for row in ("float_before_qat", "tflite_dynamic"))
            for metric, name in (*(("psnr", name) for name in SETS), ("psnr_y", "validation"))]
    assert f"| {label} | {' | '.join(line)} |" in tried


def test_the_authors_float_network_is_ahead_on_the_photographs_as_said():
    """CLIC's 14 pictures are 13 photographs and a screenshot, the hardest of them."""
    ours = value("benchmark/records/06_tflite_eval.json", "float_before_qat", "validation", field="images")
    (theirs,) = [line["images"] for line in read("audit.json")["measured"]
                 if (line["as"], line["dataset"]) == ("stage2_fp32", "clic_val")]
    theirs = list(theirs.values())
    ahead = np.mean(np.delete(theirs, np.argmin(theirs))) - np.mean(np.delete(ours, np.argmin(ours)))
    assert f"authors' *float* network is still {ahead:.2f} dB ahead of ours" in TEXT


def test_the_shipped_file_is_the_recorded_one():
    weights = ROOT / "paperlib" / "weights" / "weights.json"
    for line in json.loads(weights.read_text(encoding="utf-8"))["scores"]:
        if line["precision"] == "INT8 TFLite":
            recorded = value("benchmark/records/06_tflite_eval.json", "tflite_dynamic", line["images"])
            assert line["PSNR RGB (dB)"] == f"{recorded:.3f}"


@pytest.mark.parametrize(("start", "row"), [
    ('INT8, any size ("dynamic")', "dynamic_int8"), ('INT8, one size ("fixed")', "fixed_int8"),
    ("the same network in float", "stage3_weights_fp32")])
def test_the_audit_on_div2k_is_the_recorded_one(start, row):
    found, largest = on_div2k(row), cells(start)[3]
    assert cells(start)[1:3] == [f"{found['psnr_reported']:.4f} dB", f"{found['psnr']:.4f} dB"]
    assert largest == f"{found['psnr_largest']:.6f} dB"
    assert cells(start)[4] == found["verdict"]


def test_the_rulers_drift_and_the_learned_grids_are_the_recorded_ones():
    dynamic, learned = on_div2k("dynamic_int8"), on_div2k("re_exported_int8")
    assert f"it says {dynamic['ssim_tensorflow']:.4f} where the SSIM is {dynamic['ssim']:.4f}" in TEXT
    assert f"{learned['psnr']:.3f} dB on the 36 instead of {dynamic['psnr']:.3f}" in TEXT
    assert len(read("div2k/verify.json")["div2k"]) == 36
    rounded = on_div2k("stage3_fakequant")
    for ruler in ("ssim", "ssim_tensorflow"):
        assert f"by one, it is {rounded[ruler] - dynamic[ruler]:.3f} on the 36" in TEXT
    fp32, int8 = (reported()["C", "mobileone", precision, "ssim"] for precision in ("fp32", "int8"))
    assert f"Table C's loss by INT8, {fp32 - int8:.3f}" in TEXT


def test_what_the_released_run_had_beside_the_paper_is_recorded():
    released = read("div2k/verify.json")["released_run"]
    assert all(released[term] > 0 for term in ("kd_res_w", "wav_w", "fqkd_w"))


def test_keeping_the_learned_grids_costs_a_bright_picture_as_said():
    lines = {line["as"]: line["images"] for line in read("audit.json")["measured"] if line["dataset"] == "clic_val"}
    kept, thrown = lines["re_exported_int8"], lines["dynamic_int8"]
    assert sum(kept[name] < thrown[name] - 0.5 for name in kept) == 1


def test_what_the_authors_export_loses_from_our_stage_2_is_the_recorded_one():
    run = Run(load_settings("benchmark"), REFERENCE / "stage3_from_own", every_record=True)
    found = {line.row: line for line in differences(run)}["qat_teacher_learnt"]
    assert found.effect.seeds == 5
    assert f"five seeds, their export loses {found.effect.mean:.1f} dB" in TEXT


def test_a_float_peer_is_ahead_as_said():
    ours = [float(cell) for cell in cells("our float network")[1:3]]
    peer = {line["set"]: float(line["psnr_rgb"]) for line in peers() if line["model"] == "ETDS-M"}
    ahead = [f"{peer[name] - value:.3f}" for name, value in zip(SETS, ours, strict=False)]
    assert f"ETDS-M, is {' and '.join(ahead)} dB ahead of our float network" in TEXT


def test_no_weight_of_the_teacher_was_seen_to_help():
    run = Run(load_settings("benchmark"), REFERENCE / STAGE3 / "teacher", every_record=True)
    found = {line.row: line for line in differences(run)}
    for row in ("kd_10", "kd_100", "kd_10_learnt", "kd_100_learnt"):
        assert found[row].effect.seeds == 5
        assert found[row].word in ("undecided", "no difference")


def test_the_teachers_share_is_the_recorded_one():
    lines = {line["condition"]: line for line in read(f"{STAGE3}/teacher/records/07_ablations.json")["shares"]}
    kd, dct = (100 * lines["qat_teacher"][f"{term} gradient"] for term in ("kd", "dct"))
    assert f"it has {kd:.2f} % of the gradient, the DCT term {dct:.0f} %" in TEXT


CLAIMS = [line for line in README.splitlines() if line.startswith("| Table ")]


def test_the_claims_table_has_the_papers_comparisons():
    assert len(CLAIMS) >= 10


@pytest.mark.parametrize("line", CLAIMS)
def test_claims_say_what_the_records_say(line):
    """Paper's difference, effect, interval, verdict, as the same code judges the committed records."""
    shown = [cell.strip() for cell in line.replace("−", "-").strip("|").split("|")]
    folder = f"{STAGE3}/teacher" if shown[0].startswith("Table D") else "blocks"
    results = Results(Run(load_settings("benchmark"), REFERENCE / folder, every_record=True))
    (found,) = [claim for claim in results.claims if claim["claim"] == shown[0]]
    assert found["seeds"] == 5
    assert shown[1:] == [
        f"{found['reported']:+.3f}", f"{found['effect']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]",
        found["verdict"].value, found["reported_inside"]]


def test_damaged_files_are_counted_as_recorded():
    record = read("hostile.json")
    files, commands, wrong = (sum(kind[name] for kind in record["kinds"].values())
                              for name in ("files", "commands", "wrong"))
    assert f"{files:,} damaged or odd files in {commands} commands, {wrong} commands" in TEXT
    assert wrong == len(record["wrong"])
    assert not record["dirty"]


def test_minutes_and_memory_of_the_demo_are_those_of_its_record():
    costs = read("demo/records/00_reproduce.json")["notebooks"]
    minutes = sum(cost["seconds"] for cost in costs.values()) / 60
    peak = max(cost["peak_bytes"] for cost in costs.values())
    assert f"{minutes:.0f} minutes and {peak / 1e9:.1f} GB of memory" in TEXT
    table = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for name, cost in costs.items():
        assert cells(f"[{name}]", table)[3] == f"{cost['seconds'] / 60:.1f}"


def test_the_paper_profile_is_said_not_to_have_been_run():
    run = any((folder / "paper").exists() for folder in (REFERENCE, ROOT / "results"))
    assert ("has not been run" in TEXT) is not run


def test_the_runtimes_table_is_the_recorded_one():
    """Two threads: share of equal values, largest difference, least ms of a 256² tile and of 720×1280."""
    text = (ROOT / "paperlib" / "weights" / "README.md").read_text(encoding="utf-8")
    measured = read("benchmark/bench.json")["portability"]
    assert measured["model"] == sha256_file(pretrained())
    assert re.search(rf"two threads of an {measured['cpu']['model']} with AVX-512 VNNI", text)
    shown = [line for line in measured["runtimes"] if line["threads"] == 2]
    assert len(shown) >= 6
    for found in shown:
        line = cells(f"{found['runtime']} |", text)
        assert line[1] == f"{100 * found['share_equal']:.2f} %, {found['max_difference']}"
        assert line[2:] == [f"{found[name]:,.0f}" if name in found else "" for name in ("ms_tile", "ms_frame")]
