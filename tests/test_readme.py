"""Numbers of the READMEs against the committed records that they come from; wording is free."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paperlib.evaluation.paper_numbers import reported
from paperlib.files import sha256_file
from paperlib.profiles import load_settings
from paperlib.reporting.results import Results
from paperlib.reporting.tables import NAMES, changes, effect_text
from paperlib.run import Run
from paperlib.weights import pretrained
from paperlib.weights.release import seeds_table

ROOT = Path(__file__).parents[1]
README, PAGE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md"))
TEXT = " ".join(README.split())
REFERENCE = ROOT / "results" / "reference"
STAGE3 = "stage3_from_published"
SETS = ("Set5", "Set14", "B100", "validation")


def read(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def value(record: str, row: str, dataset: str, metric: str = "psnr", field: str = "value") -> Any:
    """A measured number of a committed record, or its images' where `field` is "images"."""
    (found,) = [line[field] for line in read(record)["rows"] if (line["row"], line["dataset"], line["metric"]) == (row,
                dataset, metric) and line["table"] not in ("B", "abstract")]
    return found


def ours(row: str, dataset: str, field: str = "value") -> Any:
    return value("benchmark/records/06_tflite_eval.json", row, dataset, field=field)


def bicubic(dataset: str) -> float:
    (found,) = [line["value"] for line in read("benchmark/records/01_data.json")["rows"] if
                (line["row"], line["metric"], line["dataset"]) == ("bicubic", "psnr", dataset)]
    return found


def audited(name: str, dataset: str, field: str = "psnr_rgb") -> Any:
    """What `paperlib verify` measured of one of the authors' files."""
    (found,) = [line[field] for line in read("div2k/verify.json")["measured"]
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


@pytest.mark.parametrize(("start", "score", "on_36"), [
    ("**the shipped INT8 file", lambda name: ours("tflite_dynamic", name), "bundled_int8"),
    ("our float network", lambda name: ours("float_before_qat", name), None),
    ("the authors' INT8 file (dynamic)", lambda name: audited(
        "dynamic_int8", name.replace("validation", "clic_val")), "dynamic_int8"),
    ("bicubic, PyTorch's |", lambda name: bicubic(name), "bicubic_torch")])
def test_scores_are_the_recorded_ones(start, score, on_36):
    wanted = [f"{score(name):.3f}" for name in SETS]
    wanted += [f"{on_div2k(on_36)['psnr']:.3f}" if on_36 else ""]
    assert cells(start)[1:] == wanted


def peers() -> pd.DataFrame:
    return pd.read_csv(ROOT / "paperlib" / "reporting" / "peers.csv")


def test_the_best_peer_is_as_measured_and_the_best_of_the_list():
    row = "peer PureConvSR-trial10"
    names = ("Set5", "Set14", "B100", "clic_val")
    assert cells("PureConvSR trial 10")[1:] == [
        *(f"{audited(row, name):.3f}" for name in names), f"{on_div2k(row)['psnr']:.3f}"]
    int8 = peers().query("group == 'peers' and precision == 'int8'")
    best = int8.groupby("set").psnr_rgb.max()[list(SETS[:3])]
    assert [float(cell) for cell in cells("PureConvSR trial 10")[1:4]] == best.to_list()


def test_the_spread_over_seeds_is_the_recorded_one():
    record = read("benchmark/seeds.json")
    lines = seeds_table(record["rows"]).set_index("images")
    assert {len(row["values"]) for row in record["rows"]} == {len(record["seeds"])} == {3}
    assert cells("INT8, three seeds of stages 2 and 3")[1:5] == lines.loc[list(SETS), "INT8 TFLite"].to_list()
    assert record["files"]["1234"] == sha256_file(pretrained())
    assert record["stage2_shared_steps"] == 0


@pytest.mark.parametrize(("label", "file"), [
    ("the former student", "benchmark/before.json"), ("the candidate", "benchmark/restart.json")])
def test_what_was_turned_down_is_said_as_recorded(label, file):
    tried = (REFERENCE / "benchmark" / "tried.md").read_text(encoding="utf-8")
    line = [" / ".join(f"{value(file, row, name, metric):.3f}" for row in ("float_before_qat", "tflite_dynamic"))
            for metric, name in (*(("psnr", name) for name in SETS), ("psnr_y", "validation"))]
    assert f"| {label} | {' | '.join(line)} |" in tried


@pytest.mark.parametrize(("row", "other", "words"), [
    ("float_before_qat", "stage2_fp32", "authors' stage 2, in float, {:.2f} dB ahead of ours"),
    ("tflite_dynamic", "peer PureConvSR-trial10", "trial 10 is {:.2f} dB ahead of the shipped file")])
def test_who_is_ahead_on_the_photographs_is_said(row, other, words):
    """CLIC's 14 pictures are 13 photographs and a screenshot, the hardest of them."""
    mine = ours(row, "validation", "images")
    theirs = list(audited(other, "clic_val", "images").values())
    ahead = np.mean(np.delete(theirs, np.argmin(theirs))) - np.mean(np.delete(mine, np.argmin(mine)))
    assert words.format(ahead) in TEXT


def test_the_shipped_file_is_the_recorded_one():
    weights = ROOT / "paperlib" / "weights" / "weights.json"
    for line in json.loads(weights.read_text(encoding="utf-8"))["scores"]:
        if line["precision"] == "INT8 TFLite":
            assert line["PSNR RGB (dB)"] == f"{ours('tflite_dynamic', line['images']):.3f}"


@pytest.mark.parametrize(("start", "row"), [
    ('INT8, any size ("dynamic")', "dynamic_int8"), ('INT8, one size ("fixed")', "fixed_int8"),
    ("stage 3's weights in float, not rounded", "stage3_weights_fp32")])
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
    kept, thrown = (audited(name, "clic_val", "images") for name in ("re_exported_int8", "dynamic_int8"))
    assert sum(kept[name] < thrown[name] - 0.5 for name in kept) == 1  # "a bright picture"


def test_what_the_authors_export_loses_from_our_stage_2_is_the_recorded_one():
    run = Run(load_settings("benchmark"), REFERENCE / "stage3_from_own", every_record=True)
    effect = changes(run).set_index("stage 3").loc[NAMES["qat_teacher"] + ", learned grids", "difference (dB)"]
    assert "(5 seeds" in effect
    assert f"five seeds, their export loses {float(effect.split()[0]):.1f} dB" in TEXT


def test_a_float_peer_is_ahead_as_said():
    mine = [float(cell) for cell in cells("our float network")[1:3]]
    peer = peers().query("model == 'ETDS-M'").set_index("set").psnr_rgb
    ahead = [f"{peer[name] - value:.3f}" for name, value in zip(SETS, mine, strict=False)]
    assert f"ETDS-M, is {' and '.join(ahead)} dB ahead of our float network" in TEXT


def test_no_weight_of_the_teacher_was_seen_to_help():
    run = Run(load_settings("benchmark"), REFERENCE / STAGE3 / "teacher", every_record=True)
    found = changes(run).set_index("stage 3")
    for row in ("kd_10", "kd_100"):
        for words in (NAMES[row], f"{NAMES[row]}, learned grids"):
            assert "(5 seeds" in found.loc[words, "difference (dB)"]
            assert found.loc[words, "so it is"] in ("undecided", "no difference")


def test_the_teachers_share_is_the_recorded_one():
    lines = {line["condition"]: line for line in read(f"{STAGE3}/teacher/records/07_ablations.json")["shares"]}
    kd, dct = (100 * lines["qat_teacher"][f"{term} gradient"] for term in ("kd", "dct"))
    assert f"it has {kd:.2f} % of the gradient, the term of frequencies (DCT) {dct:.0f} %" in TEXT


CLAIMS = [line for line in README.splitlines() if line.startswith("| Table ")]
assert len(CLAIMS) >= 10, "the paper's comparisons"


@pytest.mark.parametrize("line", CLAIMS)
def test_claims_say_what_the_records_say(line):
    """Paper's difference, effect, interval, verdict, as the same code judges the committed records."""
    shown = [cell.strip() for cell in line.replace("−", "-").strip("|").split("|")]
    (folder,) = re.findall(rf"^\| {re.escape(shown[0])} .*\(reference/(.+)/summary.md\)", PAGE, re.M)
    images = read("questions.json")[folder].get("images", "validation")
    results = Results(Run(load_settings("benchmark"), REFERENCE / folder, every_record=True), images)
    (found,) = [claim for claim in results.claims if claim["claim"] == shown[0]]
    assert found["seeds"] == 5
    assert shown[1:] == [f"{found['reported']:+.3f}", effect_text(found).partition(" (")[0],
                         found["verdict"].value, found["reported_inside"]]


def test_decided_claims_are_counted():
    them = re.findall(r"\| ([\w ]+) \| (?:yes|no) \| \[", PAGE)
    assert f"{sum('trend' in w for w in them)} of [{len(them)} comparisons](results/README.md) are decided" in TEXT


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
    workers = sorted(read(f"demo/records/07/{path.name}")["peak_memory_bytes"]
                     for path in (REFERENCE / "demo/records/07").glob("*.json"))[-2:]
    together = costs["07_ablations"]["peak_bytes"] + sum(workers)
    assert (f"{minutes:.0f} minutes and {peak / 1e9:.1f} GB of memory, with the workers of notebook 07 up to "
            f"{together / 1e9:.0f} GB") in TEXT
    table = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for name, cost in costs.items():
        assert cells(f"[{name}]", table)[3] == f"{cost['seconds'] / 60:.1f}"


def test_the_paper_profile_is_said_not_to_have_been_run():
    run = any((REFERENCE / name).exists() for name in ("paper", "paper_schedule"))
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
