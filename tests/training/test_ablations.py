"""Tables C and D as a grid of trainings: every switch runs, nothing is trained twice, a failure costs only itself."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from paperlib.data.dataset import TrainSet, lr_batches, open_data
from paperlib.errors import UserError
from paperlib.evaluation.scoring import score_pairs
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.evaluation.upscalers import Bicubic
from paperlib.export.tflite import TFLiteUpscaler, inspect_tflite
from paperlib.profiles import METHODS, load_settings
from paperlib.quantisation.qat import read_quantised
from paperlib.run import open_run
from paperlib.settings import StudentSettings
from paperlib.student.models import build_model, fuse_model, load_model, read_weights, save_student
from paperlib.teacher.distillation import Targets
from paperlib.training import ablations
from paperlib.training.ablations import (
    CONDITIONS,
    PUBLISHED,
    SWITCHES,
    backbones,
    run_jobs,
    stage3_variants,
    teacher_shares,
)
from paperlib.training.loop import recalibrate_bn
from paperlib.training.losses import kd_weight

TINY = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 48, "data.valid_crop": 24,
        "data.max_train": 1, "data.max_valid": 1, "stage3.loss.kd": 0, "stage3.loss.kd_mid": None,
        "stage3.loss.kd_low": 0, "stage3.patch": 8, "stage2.patch": 8}
SWITCHED = ("bn_recalibration_off", "post_training", "weight_clip_off")


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


def test_every_new_switch_gives_an_int8_file_and_its_own_row(tmp_path):
    run, data = open_after_stage2(tmp_path, SWITCHED)
    rows = stage3_variants(run, data)
    psnr = {row["row"]: row for row in rows if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert list(psnr) == ["qat_teacher", "qat_teacher_learnt", "qat_direct", "qat_direct_learnt", "as_set", *SWITCHED]
    assert psnr["post_training"]["steps"] + 2 == psnr["weight_clip_off"]["steps"]  # two steps of stage 3
    for name in SWITCHED:
        (path,) = run.stage_folder("ablation").glob(f"{name}-*/stage3/dynamic_int8.tflite")
        inside = inspect_tflite(path, 8, 8)
        assert inside["float_tensors"] == [], name
    assert len({row["value"] for row in psnr.values()}) > 3


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, ["dct_off"], **{"stage2.recalibrate_batches": 0})
    first = stage3_variants(run, data)
    drawn = []
    monkeypatch.setattr("paperlib.data.dataset.TrainSet.batch", lambda *_, **__: drawn.append(1))
    assert stage3_variants(run, data) == first
    assert drawn == []


def test_post_training_has_no_spread_over_seeds(tmp_path):
    run, data = open_after_stage2(tmp_path, ["post_training"], **{"ablation.seeds": [1, 2]})
    rows = {row["row"]: row for row in stage3_variants(run, data) if row["metric"] == "psnr"}
    assert set(rows) > {"as_set", "qat_teacher_learnt"}
    assert rows["as_set"]["values"] == rows["qat_teacher_learnt"]["values"]
    assert "sd" not in rows["post_training"]
    assert len(rows["qat_direct"]["values"]) == 2


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
        ("D", "qat_teacher"), ("D", "qat_teacher_learnt"), ("D", "qat_direct"), ("D", "qat_direct_learnt"),
        ("switches", "as_set"), ("switches", "teacher_none"), ("switches", "quantiser_paper+teacher_none")]
    for name, quantiser in (("kd_1", "paper"), ("kd_0", "paper"), ("as_set", "tflite")):
        path = run.stage_folder(f"ablation/{name}-1234/stage3") / "qat.safetensors"
        assert read_weights(path)[1]["quantiser"] == quantiser


def test_conditions_are_the_papers_stage_3_with_another_teacher_or_dct(tmp_path):
    settings = load_settings("benchmark")
    found = {name: ablations._short(settings, 3, PUBLISHED | changes) for name, changes in CONDITIONS.items()}
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
    assert settings.ablation.conditions[:2] == ("kd_1", "kd_0")
    assert set(settings.ablation.conditions) == set(CONDITIONS)
    assert len(settings.ablation.seeds) == 5


def test_the_teachers_share_is_that_of_its_weight_and_of_the_dct_beside_it(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, [], **{"ablation.conditions": list(CONDITIONS)})
    teacher = lambda lr: torch.nn.functional.interpolate(lr, scale_factor=3) / 255
    monkeypatch.setattr(ablations, "distillation_targets", lambda *_: Targets("nearest", compute=teacher))
    table = teacher_shares(run, data).set_index("condition")
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
    assert not torch.equal(weights[0]["fx.stem.weight"], weights[1]["fx.stem.weight"])
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
        ("repconv_float", "fp32"), ("repconv", "fp32"), ("repconv", "int8"), ("repconv_learnt", "int8")]
    assert [row["steps"] for row in rows] == [4, 6, 6, 6]
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
    fakequant = [score_pairs(QuantisedUpscaler(qat), [pair])["psnr_rgb"] for pair in data.valid]
    assert values["repconv", "fp32"] == pytest.approx(fakequant, abs=1e-4)
    unrounded = [score_pairs(TorchUpscaler(fused, ""), [pair])["psnr_rgb"] for pair in data.valid]
    assert values["repconv_float", "fp32"] == pytest.approx(unrounded, abs=1e-4)
    for kind, row in (("ptq", "repconv"), ("dynamic", "repconv_learnt")):
        file = folder / "stage3" / f"{kind}_int8.tflite"
        assert inspect_tflite(file, 8, 8)["float_tensors"] == []
        shipped = [score_pairs(TFLiteUpscaler(file), [pair])["psnr_rgb"] for pair in data.valid]
        assert values[row, "int8"] == pytest.approx(shipped, abs=1e-4)
    assert values["repconv", "int8"] != values["repconv_learnt", "int8"]


def test_ablations_leave_the_last_weights_and_the_paper_profile_the_best():
    for profile, keep, every in (("benchmark", "last", 300), ("paper", "best", 50)):
        stage = ablations._short(load_settings(profile), 1, {}).stage3
        assert (stage.keep, stage.validate_every) == (keep, every)


def test_switches_are_settings_that_exist(tmp_path):
    run = open_run("smoke", tmp_path)
    for changes in SWITCHES.values():
        ablations.override(run.settings, changes)


def test_data_travels_as_its_settings(tmp_path):
    data = open_data(open_run("smoke", tmp_path, TINY).settings.data)
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    assert len(sent) < 2000
    assert again.store.key == data.store.key
    assert np.array_equal(again.valid[0].hr, data.valid[0].hr)


def test_two_trainings_on_a_cluster_are_those_of_this_process(tmp_path, monkeypatch, scheduler):
    def rows(folder):
        run, data = open_after_stage2(folder, [])
        return stage3_variants(run, data)

    here = rows(tmp_path / "here")
    monkeypatch.setenv("PAPERLIB_DASK", scheduler)
    assert rows(tmp_path / "there") == here
    assert len(list((tmp_path / "there").glob("checkpoints/ablation/*/stage3/qat.safetensors"))) == 2


def test_short_schedules_warm_up_for_a_tenth_and_keep_a_longer_or_no_warm_up():
    for warmup, expected in ((0.02, 0.1), (0.3, 0.3), (0.0, 0.0)):
        settings = load_settings("benchmark", {"stage1.warmup": warmup})
        assert ablations._short(settings, 1, {}).stage1.warmup == expected


def test_bicubic_stands_beside_table_bs_networks_unless_notebook_01_has_measured_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "_backbone", lambda run, data, arch, seed: [])
    run = open_run("smoke", tmp_path, TINY | {"ablation.archs": ["fsrcnn"], "ablation.seeds": [1, 2]})
    data = open_data(run.settings.data)
    rows = backbones(run, data)
    assert {(row["table"], row["row"], row["precision"]) for row in rows} == {("B", "bicubic", "fp32")}
    expected = [score_pairs(Bicubic(), [pair])["psnr_rgb"] for pair in data.valid]
    assert rows[0]["images"] == pytest.approx(expected, abs=1e-4)
    run.record("07_ablations", rows)
    assert len(backbones(run, data)) == len(rows)  # 07 run again: its own record is no reason to leave the row out
    run.record("01_data", rows)
    assert backbones(run, data) == []
    other = open_run("smoke", tmp_path / "c", TINY | {"ablation.archs": ["repdw"], "ablation.seeds": [1]})
    monkeypatch.setattr(ablations, "distillation_targets", lambda *_: None)
    assert backbones(other, data) == []  # Table C has no such row


def test_fsrcnn_is_a_baseline_at_its_best_start(tmp_path):
    """From PyTorch's start it is behind bicubic for thousands of steps."""
    run = open_run("smoke", tmp_path, TINY | {"student.init": "default", "ablation.archs": ["fsrcnn"],
                                              "ablation.seeds": [1], "ablation.stage1_steps": 1})
    backbones(run, open_data(run.settings.data))
    first = load_model(run.stage_folder("ablation/fsrcnn-1/stage1") / "student.safetensors")
    assert first.settings.init == "bilinear"


def job(folder, name):
    """A stand-in for a training: idempotent, leaves a file, fails where told."""
    done = folder / f"{name}.done"
    if not done.exists():
        if (folder / f"{name}.fails").exists():
            raise UserError(f"{name} failed")
        done.write_text("trained")
        with (folder / f"{name}.log").open("a") as log:
            log.write("x")
    return name


def test_a_cluster_runs_all_jobs_in_order_and_repeats_nothing(tmp_path, monkeypatch, scheduler):
    monkeypatch.setenv("PAPERLIB_DASK", scheduler)
    jobs = [(tmp_path, str(number)) for number in range(4)]
    (tmp_path / "1.fails").touch()
    with pytest.raises(UserError, match="1 failed"):
        run_jobs(job, jobs)
    assert sorted(path.stem for path in tmp_path.glob("*.done")) == ["0", "2", "3"]
    (tmp_path / "1.fails").unlink()
    for _ in range(2):
        assert run_jobs(job, jobs) == ["0", "1", "2", "3"]
    assert [path.read_text() for path in sorted(tmp_path.glob("*.log"))] == ["x"] * 4


def test_without_a_cluster_jobs_run_here_and_the_first_failure_ends_them(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_DASK", raising=False)
    (tmp_path / "1.fails").touch()
    with pytest.raises(UserError, match="1 failed"):
        run_jobs(partial(job, tmp_path), [("0",), ("1",), ("2",)])
    assert (tmp_path / "0.done").exists()
    assert not (tmp_path / "2.done").exists()


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("PAPERLIB_DASK", "nowhere")
    with pytest.raises(UserError, match="PAPERLIB_DASK=nowhere"):
        run_jobs(print, [])
