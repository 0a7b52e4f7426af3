"""Tables C and D as a grid of trainings: every switch runs, nothing is trained twice, a failure costs only itself."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paperlib.data.dataset import TrainSet, calibration, lr_batches, open_data
from paperlib.errors import UserError
from paperlib.evaluation.scoring import mean_psnr
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.convert import export_tflite
from paperlib.export.inspection import inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.profiles import METHODS, STAGE3_LOSS, load_settings
from paperlib.quantisation.int8 import post_training_graph
from paperlib.quantisation.qat import read_quantised
from paperlib.reporting.results import Results
from paperlib.run import Run, measured_row, open_run
from paperlib.settings import StudentSettings, override
from paperlib.student.models import build_model, fuse_model, load_model, read_weights, save_student
from paperlib.teacher.distillation import Targets
from paperlib.training import ablations, stages
from paperlib.training.ablations import CONDITIONS, abstract_claims, backbones, run_jobs, stage3_variants
from paperlib.training.loop import recalibrate_bn
from paperlib.training.losses import kd_weight

TINY = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 48, "data.valid_crop": 24,
        "data.max_train": 1, "data.max_valid": 1, "stage3.loss.kd": 0, "stage3.loss.kd_mid": None,
        "stage3.loss.kd_low": 0, "stage3.patch": 8, "stage2.patch": 8}


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(ablations.joblib, "cpu_count", lambda: 1)


def with_statistics(settings: StudentSettings) -> nn.Module:
    """A small student in expanded form whose BatchNorms are not the identity and whose output is a picture."""
    torch.manual_seed(0)
    model = build_model(settings)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        model.head.bias.add_(100)
    return model.eval()


def open_after_stage2(folder, switches, **more):
    run = open_run("smoke", folder, TINY | {"ablation.switches": switches} | more)
    save_student(with_statistics(run.settings.student), run.stage_folder("stage2") / "student.safetensors")
    return run, open_data(run.settings.data)


def test_every_switch_gives_an_int8_file_and_its_own_row(tmp_path):
    """Of post-training quantisation, the seed draws the photographs."""
    changes = {"data.max_train": 6, "quant.calibration_images": 2, "ablation.seeds": [1, 2]}
    run, data = open_after_stage2(tmp_path, ["post_training", "dct_off"], **changes)
    rows = stage3_variants(run, data)
    psnr = {row["row"]: row for row in rows if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert list(psnr) == [*(f"{name}{file}" for name in ("qat_teacher", "qat_direct")
                            for file in ("", "_fixed", "_learnt")), "post_training", "dct_off", "as_set"]
    assert psnr["post_training"]["steps"] + 2 == psnr["dct_off"]["steps"]  # two steps of stage 3
    for name in ("post_training", "dct_off"):
        for path in run.stage_folder("ablation").glob(f"{name}-*/**/dynamic_int8.tflite"):
            assert inspect_tflite(path, 8, 8)["float_tensors"] == [], name
    assert len({row["value"] for row in psnr.values()}) > 3
    assert psnr["post_training"]["values"][0] != psnr["post_training"]["values"][1]
    assert psnr["as_set"]["values"] == psnr["qat_teacher_learnt"]["values"]  # one training, two names
    assert not (tmp_path / "records" / "07" / "as_set-1.json").exists()
    drawn = [calibration(data, override(run.settings, {"seed": seed}), drawn=True) for seed in (1, 1, 2)]
    assert all(np.array_equal(one, other) for one, other in zip(*drawn[:2], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(*drawn[1:], strict=True))
    folder, path = run.stage_folder("ablation/kd_0-2/stage3"), tmp_path / "again.tflite"
    graph = post_training_graph(read_quantised(folder / "qat.safetensors"))
    export_tflite(graph, path, images=drawn[2])
    assert path.read_bytes() == (folder / "ptq_int8.tflite").read_bytes()


def test_a_training_is_joined_by_copying_its_record(tmp_path):
    """Over seeds each value and each image's value is that of its own training."""
    runs = {}
    for seed in (1, 2):
        runs[seed], data = open_after_stage2(tmp_path / str(seed), [], **{"ablation.seeds": [seed]})
        stage3_variants(runs[seed], data)
    table = lambda run: Results(run).rows.set_index(["row", "metric", "dataset"])
    own = {seed: table(run) for seed, run in runs.items()}
    for path in (tmp_path / "2" / "records" / "07").glob("*-2.json"):
        shutil.copy(path, tmp_path / "1" / "records" / "07")
    joined = table(runs[1])
    assert list(joined.index) == list(own[1].index)
    for key, row in joined.iterrows():
        assert (row["seed_ids"], row["record"]) == ([1, 2], "07_ablations")
        assert row["values"] == [own[seed].loc[key, "value"] for seed in (1, 2)]
        assert row["images"] == [own[seed].loc[key, "images"] for seed in (1, 2)]
    assert joined["images"].iloc[0][0] != joined["images"].iloc[0][1]
    again = stage3_variants(runs[1], data)  # trains nothing, and gives both seeds
    assert {row["row"]: row["values"] for row in again if row["metric"] == "psnr"} == {
        key[0]: row["values"] for key, row in joined.iterrows() if key[1] == "psnr"}


def test_a_record_of_other_settings_is_measured_again_and_not_read(tmp_path):
    run, data = open_after_stage2(tmp_path, [])
    first = stage3_variants(run, data)
    path = tmp_path / "records" / "07" / "kd_0-1234.json"
    record = run.read_record("07/kd_0-1234")
    record["training"]["identity"], record["rows"][0]["value"] = "another", 5.0
    path.write_text(json.dumps(record))
    assert stage3_variants(run, data) == first
    longer, _ = open_after_stage2(tmp_path, [], **{"ablation.stage3_steps": 3})
    assert longer.trainings() == []


def test_other_images_or_another_teacher_are_another_training(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, [])
    trained = []
    monkeypatch.setattr(ablations, "_variant", lambda *job: trained.append(job) or [])
    shared = {"data": {"training pixels": "a"}, "teacher": "none"}
    for changes in ({}, {}, {"teacher": "small"}, {"data": {"training pixels": "b"}}):
        shared |= changes
        ablations.train_one(run, data, shared, "kd_0", 1)
    assert len(trained) == 3
    other, _ = open_after_stage2(tmp_path, [], seed=5)  # its records are read by themselves
    ablations.train_one(other, data, shared, "kd_0", 1)
    assert len(trained) == 4


def test_records_without_an_identity_are_read_as_a_committed_run(tmp_path):
    """As results/reference/experiments/train.py of the first trainings wrote them."""
    run = open_run("smoke", tmp_path)
    for seed, value in ((7, 30.0), (3, 31.0)):
        rows = [measured_row("C", "mobileone", "int8", "psnr", value, "validation", steps=5, images=[value])]
        run.record(f"07/mobileone-{seed}", rows, training={"name": "mobileone", "seed": seed})
    (row,) = Run(run.settings, tmp_path, every_record=True).records()["07_ablations"]["rows"]
    assert (row["values"], row["seed_ids"], row["images"]) == ([31.0, 30.0], [3, 7], [[31.0], [30.0]])


def test_the_paper_profile_trains_nothing_again_that_02_to_05_trained(tmp_path, monkeypatch):
    changes = {"stage1.steps": 2, "stage2.steps": 2, "stage3.steps": 2, "ablation.keep": "best", "stage1.warmup": 0.1,
               "ablation.archs": ["mobileone"], "ablation.switches": ["teacher_none"], "stage2.loss.kd": 0}
    run = open_run("smoke", tmp_path, TINY | {"data.max_valid": 2} | changes | {
        f"stage3.loss.{name}": value for name, value in STAGE3_LOSS.items()})
    data = open_data(run.settings.data)
    targets = Targets("nearest", compute=lambda lr: torch.nn.functional.interpolate(lr, scale_factor=3) / 255)
    monkeypatch.setattr(stages, "distillation_targets", lambda *_: targets)
    monkeypatch.setattr(stages, "open_teacher", lambda *_: targets)
    stages.stage1(run, data)
    stages.stage2(run, data, targets)
    stages.stage3(run, data, fuse_model(stages.recalibrated(run, data), clamp=True), targets)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state-*.pt")}
    rows = backbones(run, data) + stage3_variants(run, data)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    trained = {path.parent.parent.name for path in tmp_path.rglob("state-*.pt")} - {"checkpoints"}
    assert trained == {"kd_0-1234"}
    psnr = {row["row"]: row["value"] for row in rows if row["metric"] == "psnr" and row["precision"] == "int8"}
    assert psnr["mobileone_learnt"] == psnr["qat_teacher_learnt"]
    assert psnr["teacher_none"] == psnr["qat_direct_learnt"]
    settings = load_settings("paper")
    run = Run(settings, tmp_path / "paper")
    for name in ("mobileone", "kd_1"):
        assert ablations._settings(run, name, settings.seed) == settings
    assert ablations._settings(run, "teacher_none", 1) == ablations._settings(run, "kd_0", 1)


def test_the_abstracts_claims_go_on_from_one_stage_1(tmp_path):
    run = open_run("smoke", tmp_path, TINY | {"stage2.recalibrate_batches": 2, "ablation.claims": [
        "published", "post_training", "stage1_longer", "clip_off", "recalibration_off", "clip_off+recalibration_off"]})
    data = open_data(run.settings.data)
    rows = [row for row in abstract_claims(run, data) if row["metric"] == "psnr"]
    psnr = {(row["row"], row["precision"]): row["value"] for row in rows}
    assert {row["table"] for row in rows} == {"abstract_claims"}
    assert psnr["published", "fp32"] == psnr["post_training", "fp32"] == psnr["clip_off", "fp32"]  # nothing to clip
    assert psnr["published", "fp32"] != psnr["recalibration_off", "fp32"]
    assert psnr["published", "fp32"] != psnr["stage1_longer", "fp32"]
    assert ("stage1_longer", "int8") not in psnr
    assert {f"published{file}" for file in ("", "_fixed", "_learnt")} < {name for name, _ in psnr}
    trained = {str(path.parent.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("state-*.pt")}
    assert trained - {"teacher"} == {
        f"ablation/{name}-1234/{stage}" for name, stage in (
            ("mobileone", "stage1"), ("mobileone", "stage2"), ("mobileone", "stage3"),
            ("claim_stage1_longer", "stage2"), ("claim_clip_off", "stage2"), ("claim_clip_off", "stage3"),
            ("claim_recalibration_off", "stage3"), ("claim_clip_off+recalibration_off", "stage3"))}
    record = run.read_record("07/claim_published-1234")
    assert [line["name"] for line in record["layers"]] == ["stem", "body.0.conv", "head"]
    base = ablations._settings(run, "mobileone", 1234)
    start = load_model(run.stage_folder("ablation/mobileone-1234/stage1") / "student.safetensors")
    shares = stages.stage_shares(data, base, 2, start, stages.distillation_targets(run, data, 2, base))
    assert list(shares["term"]) == ["charbonnier", "dct", "kd"]
    assert record["shares"] == [pytest.approx(line) for line in shares.to_dict("records")]
    longer, published = (ablations._settings(run, f"claim_{name}", 1).stage2 for name in ("stage1_longer", "published"))
    assert (longer.loss.l1, longer.loss.charbonnier, longer.loss.dct, longer.loss.kd) == (1.0, 0.0, 0.0, 0.0)
    assert longer.steps == published.steps


def test_unknown_switches_are_refused(tmp_path):
    run, data = open_after_stage2(tmp_path, ["dct"])
    with pytest.raises(UserError, match=r"'dct'\. Nearest: dct_off"):
        stage3_variants(run, data)
    with pytest.raises(UserError, match="Nearest: dct_off"):  # not after the hours that the networks take
        backbones(run, data)


def test_table_d_is_the_papers_whatever_the_run_s_own_method(tmp_path):
    own = {"method": "ours", "stage1.form": "expanded", "stage2.form": "expanded"}
    run, data = open_after_stage2(tmp_path, ["teacher_none", "quantiser_paper+teacher_none"], **own)
    rows = [row for row in stage3_variants(run, data) if row["metric"] == "psnr"]
    assert [(row["table"], row["row"]) for row in rows] == [
        *(("D", f"{name}{file}") for name in ("qat_teacher", "qat_direct") for file in ("", "_fixed", "_learnt")),
        ("switches", "as_set"), ("switches", "teacher_none"), ("switches", "quantiser_paper+teacher_none")]
    for name, quantiser in (("kd_1", "paper"), ("kd_0", "paper"), ("as_set", "tflite")):
        path = run.stage_folder(f"ablation/{name}-1234/stage3") / "qat.safetensors"
        assert read_weights(path)[1]["quantiser"] == quantiser


def test_conditions_are_the_papers_stage_3_with_another_teacher_or_dct(tmp_path):
    settings = load_settings("benchmark")
    found = {name: ablations._short(settings, 3, ablations.PUBLISHED | changes) for name, changes in CONDITIONS.items()}
    losses = {name: setting.stage3.loss for name, setting in found.items()}
    times = {"kd_0": 0, "kd_1": 1, "kd_10": 10, "kd_100": 100, "ortho_kd_0": 0, "ortho_kd_1": 1}
    for name, loss in losses.items():
        for progress, weight in ((0.1, 0.010), (0.425, 0.0075), (0.9, 0.01)):
            assert kd_weight(loss, progress) == pytest.approx(weight * times[name]), name
        assert (loss.charbonnier, loss.dct, loss.mse, loss.confidence) == (1.0, 0.015, 0.0, True)
        assert loss.dct_norm == ("ortho" if name.startswith("ortho") else "none")
    for setting in found.values():
        assert (setting.quant.quantiser, setting.quant.skip, setting.teacher.stage3) == ("paper", "add", "same")
        assert (setting.seed, setting.stage3.keep, setting.stage3.permute_colours) == (3, "last", False)
        assert setting.data.sampling == "image"
    assert settings.ablation.conditions[:2] == ("kd_1", "kd_0")
    assert set(settings.ablation.conditions) == set(CONDITIONS)
    assert len(settings.ablation.seeds) == 5


def test_the_teachers_share_is_that_of_its_weight_and_of_the_dct_beside_it(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, [], **{"ablation.conditions": list(CONDITIONS)})
    teacher = lambda lr: torch.nn.functional.interpolate(lr, scale_factor=3) / 255
    monkeypatch.setattr(stages, "distillation_targets", lambda *_: Targets("nearest", compute=teacher))
    table = ablations.teacher_shares(run, data).set_index("condition")
    assert list(table.index) == ["qat_teacher", "qat_direct", "kd_10", "kd_100", "ortho_kd_1", "ortho_kd_0"]
    for what in ("value", "gradient"):
        shares = table[[f"{term} {what}" for term in ("charbonnier", "dct", "kd")]]
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        kd = table[f"kd {what}"]
        assert kd["qat_direct"] == kd["ortho_kd_0"] == 0
        odds = kd / (1 - kd)  # the others pull as before
        assert odds["kd_10"] == pytest.approx(10 * odds["qat_teacher"], rel=1e-3)
        assert odds["kd_100"] == pytest.approx(100 * odds["qat_teacher"], rel=1e-3)
        dct = table[f"dct {what}"] / table[f"charbonnier {what}"]
        side = 3 * run.settings.stage3.patch
        assert dct["qat_teacher"] == pytest.approx(2 * side * dct["ortho_kd_1"], rel=0.2)


def test_each_seed_draws_patches_of_its_own_and_conditions_share_them(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, [], **{"ablation.seeds": [1, 2], "data.train_crop": 120})
    drawn, real = {}, TrainSet.batch

    def recording(patches, step, *args, **more):
        batch = real(patches, step, *args, **more)
        drawn.setdefault(patches.key, {}).setdefault(step, []).append(batch.samples)
        return batch

    monkeypatch.setattr(TrainSet, "batch", recording)
    rows = stage3_variants(run, data)
    first = [batches[0] for _, batches in sorted(drawn.items())]
    trained = [samples for samples in first if len(samples) == 2]  # stage 3's trainings, of both seeds
    assert len(trained) == 2
    assert all(len(samples) == 2 and samples[0] == samples[1] for samples in trained)  # kd_1 and kd_0
    assert trained[0] != trained[1]
    weights = [read_weights(run.stage_folder(f"ablation/kd_0-{seed}/stage3") / "qat.safetensors")[0] for seed in (1, 2)]
    assert not torch.equal(weights[0]["stem.weight"], weights[1]["stem.weight"])
    row = next(row for row in rows if row["row"] == "qat_direct")
    assert row["seed_ids"] == [1, 2]
    assert np.shape(row["images"]) == (2, 1)  # seeds × validation photographs


def test_a_backbone_goes_through_the_papers_whole_pipeline(tmp_path):
    own = {"method": "ours", "ablation.archs": ["repconv"], "ablation.seeds": [1, 2], "stage2.loss.kd": 0.03,
           "stage2.recalibrate_batches": 3}
    run = open_run("smoke", tmp_path, TINY | own)
    data = open_data(run.settings.data)
    rows = [row for row in backbones(run, data) if row["metric"] == "psnr"]
    assert [(row["row"], row["precision"]) for row in rows] == [
        ("repconv_float", "fp32"), ("repconv", "fp32"), ("repconv", "int8"), ("repconv_fixed", "int8"),
        ("repconv_learnt", "int8")]
    assert [row["steps"] for row in rows] == [4, 6, 6, 6, 6]
    folder = run.stage_folder("ablation/repconv-1")
    first, second = (load_model(folder / stage / "student.safetensors") for stage in ("stage1", "stage2"))
    assert (first.form, first.settings.init) == ("expanded", "default")
    assert not torch.equal(first.stem.weight, second.stem.weight)
    other = load_model(run.stage_folder("ablation/repconv-2/stage1") / "student.safetensors")
    assert not torch.equal(first.body[0].conv.weight, other.body[0].conv.weight)
    settings = ablations._short(run.settings, 1, METHODS["paper"] | {"student.arch": "repconv"})
    batches = lr_batches(data, settings, "recalibration", settings.stage2)
    assert len(batches) == 3
    expected = fuse_model(recalibrate_bn(second, batches), clamp=True)
    fused = load_model(folder / "stage3" / "fused.safetensors")
    torch.testing.assert_close(fused.body[0].conv.weight, expected.body[0].conv.weight)
    qat = read_quantised(folder / "stage3" / "qat.safetensors")
    assert qat.quantiser == "paper"
    values = {(row["row"], row["precision"]): row["images"][0] for row in rows}
    fakequant = [mean_psnr([pair], QuantisedUpscaler(qat)) for pair in data.valid]
    assert values["repconv", "fp32"] == pytest.approx(fakequant, abs=1e-4)
    unrounded = [mean_psnr([pair], TorchUpscaler(fused, "")) for pair in data.valid]
    assert values["repconv_float", "fp32"] == pytest.approx(unrounded, abs=1e-4)
    for kind, row, borders in (("ptq", "repconv", "true"), ("dynamic", "repconv_learnt", "true"),
                               ("ptq_fixed", "repconv_fixed", "reflected")):
        file = folder / "stage3" / f"{kind}_int8.tflite"
        assert inspect_tflite(file, 8, 8)["float_tensors"] == []
        upscaler = TFLiteUpscaler(file, borders=borders)
        shipped = [mean_psnr([pair], upscaler) for pair in data.valid]
        assert values[row, "int8"] == pytest.approx(shipped, abs=1e-4)
    assert values["repconv", "int8"] != values["repconv_learnt", "int8"]


def test_schedules_keep_and_start_as_they_should(tmp_path):
    for profile, keep, every in (("benchmark", "last", 300), ("paper", "best", 50)):
        stage = ablations._short(load_settings(profile), 1, {}).stage3
        assert (stage.keep, stage.validate_every) == (keep, every)
    for warmup, expected in ((0.02, 0.1), (0.3, 0.3), (0.0, 0.0)):  # a tenth, a longer one, none
        settings = load_settings("benchmark", {"stage1.warmup": warmup})
        assert ablations._short(settings, 1, {}).stage1.warmup == expected
    for profile, halved in (("benchmark", 42), ("paper", 2000)):  # 500 of 24,000 steps
        stage = ablations._short(load_settings(profile), 1, {}).stage2
        assert (stage.halve_every, stage.ema_warmup) == (halved, profile != "paper")
    run = open_run("smoke", tmp_path)
    assert run.settings.student.init == "default"
    # from PyTorch's start FSRCNN is behind bicubic for thousands of steps
    settings = ablations._settings(run, "fsrcnn", 1)
    assert (settings.student.init, settings.stage3.loss.kd) == ("bilinear", 0)
    for stage in ("stage2", "stage3"):
        clipped = getattr(ablations._settings(run, "claim_clip_off", 1), stage)
        assert (clipped.clip_body, clipped.clip_ends) == (0, 0)
    for name in ablations.SWITCHES:
        ablations._settings(run, name, 1)  # settings that exist


@pytest.mark.parametrize("place", ["cores", "cluster"])
def test_two_trainings_in_other_processes_are_those_of_this_process(tmp_path, monkeypatch, request, place):
    def rows(folder):
        run, data = open_after_stage2(folder, [])
        return stage3_variants(run, data)

    here = rows(tmp_path / "here")
    monkeypatch.setenv("PAPERLIB_DASK", request.getfixturevalue("scheduler") if place == "cluster" else "")
    monkeypatch.setattr(ablations.joblib, "cpu_count", lambda: 2 if place == "cores" else 1)
    assert rows(tmp_path / "there") == here
    assert len(list((tmp_path / "there").glob("checkpoints/ablation/*/stage3/qat.safetensors"))) == 2


def test_bicubic_stands_beside_table_bs_networks_unless_notebook_01_has_measured_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "_grid", lambda run, data, names: [])
    run = open_run("smoke", tmp_path, TINY | {"ablation.archs": ["fsrcnn"], "ablation.seeds": [1, 2]})
    data = open_data(run.settings.data)
    rows = backbones(run, data)
    assert {(row["table"], row["row"], row["precision"]) for row in rows} == {("B", "bicubic", "fp32")}
    expected = [mean_psnr([pair], Bicubic()) for pair in data.valid]
    assert rows[0]["images"] == pytest.approx(expected, abs=1e-4)
    run.record("07_ablations", rows)
    assert len(backbones(run, data)) == len(rows)  # 07 run again: its own record is no reason to leave the row out
    run.record("01_data", rows)
    assert backbones(run, data) == []
    other = open_run("smoke", tmp_path / "c", TINY | {"ablation.archs": ["repdw"], "ablation.seeds": [1]})
    assert backbones(other, data) == []  # Table C has no such row


def job(folder, name):
    """A stand-in for a training: leaves a file, fails where told."""
    assert torch.get_num_threads() == 1
    if (folder / f"{name}.fails").exists():
        raise UserError(f"{name} failed")
    (folder / f"{name}.done").touch()
    return name


@pytest.mark.parametrize("place", ["cluster", "cores", "here"])
def test_jobs_come_back_in_order_and_a_failure_costs_only_itself(tmp_path, monkeypatch, request, place):
    monkeypatch.setenv("PAPERLIB_DASK", request.getfixturevalue("scheduler") if place == "cluster" else "")
    monkeypatch.setattr(ablations.joblib, "cpu_count", lambda: 2 if place == "cores" else 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    jobs = [(tmp_path, str(number)) for number in range(4)]
    (tmp_path / "1.fails").touch()
    with pytest.raises(UserError, match="1 failed"):
        run_jobs(job, jobs)
    assert sorted(path.stem for path in tmp_path.glob("*.done")) == ["0", "2", "3"]
    (tmp_path / "1.fails").unlink()
    assert run_jobs(job, jobs) == ["0", "1", "2", "3"]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def hang(path):
    path.write_text(str(os.getpid()))
    time.sleep(60)


def test_workers_end_with_the_process_that_they_work_for(tmp_path):
    script = ("import sys; from pathlib import Path; from tests.training.test_ablations import hang\n"
              "from paperlib.training import ablations\nablations.joblib.cpu_count = lambda: 2\n"
              "ablations.free_memory = lambda: 10**12\n"
              "ablations.run_jobs(hang, [(Path(name),) for name in sys.argv[1:]])")
    files = [tmp_path / "a", tmp_path / "b"]
    with subprocess.Popen([sys.executable, "-c", script, *map(str, files)]) as process:
        wait_for(lambda: all(path.is_file() and path.read_text() for path in files))
        process.kill()
    wait_for(lambda: not any(Path(f"/proc/{path.read_text()}").exists() for path in files))


def wait_for(condition):
    until = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("PAPERLIB_DASK", "nowhere")
    with pytest.raises(UserError, match="PAPERLIB_DASK=nowhere"):
        run_jobs(print, [])
