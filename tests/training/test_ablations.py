"""Tables C and D as a grid of trainings: every switch runs, nothing is trained twice, a failure costs only itself."""

import pickle

import numpy as np
import pytest
import torch
from networks import deployed
from torch import nn

from paperlib.data.dataset import open_data
from paperlib.errors import UserError
from paperlib.export.tflite import inspect_tflite
from paperlib.profiles import load_settings
from paperlib.quantisation.branch_qat import BranchQat, fuse_branches
from paperlib.quantisation.fx_qat import calibrate_paper
from paperlib.quantisation.qat import freeze_observers, quantised_graph
from paperlib.run import open_run
from paperlib.settings import StudentSettings
from paperlib.student.models import build_model, fuse_model, save_student
from paperlib.training import ablations
from paperlib.training.ablations import SWITCHES, stage3_variants

TINY = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 48, "data.valid_crop": 24,
        "data.max_train": 1, "data.max_valid": 1, "stage3.loss.kd": 0, "stage3.loss.kd_mid": None,
        "stage3.loss.kd_low": 0, "stage3.patch": 8, "stage2.patch": 8}
NEW = ("branches_qat", "bn_recalibration_off", "post_training", "skip_exact")


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
    run, data = open_after_stage2(tmp_path, NEW)
    rows = stage3_variants(run, data)
    psnr = {row["row"]: row for row in rows if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert list(psnr) == ["qat_teacher", "qat_direct", *NEW]
    assert psnr["post_training"]["steps"] + 2 == psnr["skip_exact"]["steps"]  # two steps of stage 3
    counts = {}
    for name in NEW:
        (path,) = run.stage_folder("ablation").glob(f"{name}-*/stage3/dynamic_int8.tflite")
        inside = inspect_tflite(path, 8, 8)
        assert inside["float_tensors"] == [], name
        counts[name] = inside["counts"]
    assert "ADD" not in counts["skip_exact"]
    assert counts["branches_qat"]["CONV_2D"] == 3  # stem, one fused block, head
    assert len({row["value"] for row in psnr.values()}) > 3


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    run, data = open_after_stage2(tmp_path, ["branches_qat"], **{"stage2.recalibrate_batches": 0})
    first = stage3_variants(run, data)
    drawn = []
    monkeypatch.setattr("paperlib.data.dataset.TrainSet.batch", lambda *_, **__: drawn.append(1))
    assert stage3_variants(run, data) == first
    assert drawn == []


def test_post_training_has_no_spread_over_seeds(tmp_path):
    run, data = open_after_stage2(tmp_path, ["post_training"], **{"ablation.seeds": [1, 2]})
    rows = {row["row"]: row for row in stage3_variants(run, data) if row["metric"] == "psnr"}
    assert "sd" not in rows["post_training"]
    assert len(rows["qat_direct"]["values"]) == 2


def test_unknown_switches_are_refused(tmp_path):
    run, data = open_after_stage2(tmp_path, ["branches"])
    with pytest.raises(UserError, match="branches_qat"):
        stage3_variants(run, data)


class TestBranches:
    student = with_statistics(StudentSettings(blocks=2, channels=4, branches=2))
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 255

    def prepared(self):
        model = BranchQat(self.student)
        calibrate_paper(model, [self.x])
        return model

    def test_without_rounding_the_branches_compute_the_student(self):
        model = self.prepared().eval()
        model.apply(torch.ao.quantization.disable_fake_quant)
        expected = fuse_model(self.student, clamp=True)(self.x)
        torch.testing.assert_close(model(self.x), expected, rtol=1e-4, atol=1e-2)

    def test_fusing_adds_the_branches_up_and_keeps_the_grids_between_blocks(self):
        model = self.prepared()
        merged = fuse_branches(model)
        expected = fuse_model(self.student)
        for index in range(2):
            conv = merged.fx.get_submodule(f"body.{index}.conv")
            torch.testing.assert_close(conv.weight, expected.body[index].conv.weight, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(conv.bias, expected.body[index].conv.bias, rtol=1e-5, atol=1e-5)
        grids = quantised_graph(merged).grids
        seen = model.fx.get_submodule("activation_post_process_1")  # after the stem
        assert grids["stem"].scale == float(seen.scale)
        assert set(grids) == {"input", "stem", "body.0.conv", "body.1.conv", "skip", "head"}
        assert (merged(self.x) - expected.eval()(self.x).clamp(0, 255)).abs().mean() < 3

    def test_every_branch_is_trained_and_grids_can_be_frozen(self):
        model = self.prepared()
        model(self.x).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
        freeze_observers(model)
        before = [float(grid.scale) for grid in quantised_graph(fuse_branches(model)).grids.values()]
        model.train()(3 * self.x)
        assert [float(grid.scale) for grid in quantised_graph(fuse_branches(model)).grids.values()] == before

    def test_other_networks_are_refused(self):
        with pytest.raises(UserError, match="MobileOne"):
            BranchQat(build_model(StudentSettings(arch="repdw", blocks=1, channels=4)))
        with pytest.raises(UserError, match="MobileOne"):
            BranchQat(deployed("mobileone"))


def test_table_d_has_the_papers_loss_where_a_profile_has_another(tmp_path):
    own = {"stage3.loss.mse": 1.0, "quant.quantiser": "tflite"}
    run, data = open_after_stage2(tmp_path, ["teacher_none", "quantiser_paper+teacher_none"], **own)
    rows = [row for row in stage3_variants(run, data) if row["metric"] == "psnr"]
    names = [(row["table"], row["row"]) for row in rows]
    assert names == [("switches", "as_set"), ("D", "qat_teacher"), ("D", "qat_direct"), ("switches", "teacher_none"),
                     ("switches", "quantiser_paper+teacher_none")]


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
