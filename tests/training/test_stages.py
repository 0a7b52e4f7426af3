"""The three stages in a row: what binds a training to what came before it, and what does not."""

from itertools import pairwise

import pytest
import torch
from networks import TINY

from paperlib.cli import main
from paperlib.data.dataset import lr_batches, open_data
from paperlib.errors import UserError
from paperlib.quantisation.fx_qat import FakeQuantize
from paperlib.run import open_run
from paperlib.student.dead_channels import find_dead_channels
from paperlib.student.models import fuse_model, load_model, save_student
from paperlib.student.network import Student, with_form
from paperlib.teacher.distillation import FILE, Targets
from paperlib.training import stages
from paperlib.training.stages import (
    distillation_targets,
    open_teacher,
    recalibrated,
    stage1,
    stage2,
    start_path,
)
from paperlib.weights import pretrained

SHORT = TINY | {"stage1.patch": 8, "stage2.patch": 8, "stage2.loss.kd": 0, "teacher.stage3": "student"}


def run_of(folder, **changes):
    run = open_run("smoke", folder, SHORT | changes)
    return run, open_data(run.settings.data)


def test_settings_of_later_steps_do_not_undo_finished_trainings(tmp_path, monkeypatch):
    run, data = run_of(tmp_path)
    stage1(run, data)
    first = stage2(run, data, Targets("none"))
    run, data = run_of(tmp_path, **{"ablation.seeds": [1, 2], "quant.calibration_images": 1})
    monkeypatch.setattr("paperlib.data.dataset.TrainSet.batch", None)  # a step would fail
    stage1(run, data)
    again = stage2(run, data, Targets("none"))
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_other_settings_stages_or_photographs_are_not_continued(tmp_path):
    run, data = run_of(tmp_path)
    stage1(run, data)
    stage2(run, data, Targets("none"))
    other, more = run_of(tmp_path, **{"data.max_train": 2})
    assert more.valid_key == data.valid_key
    with pytest.raises(UserError, match="with other settings: data: "):
        stage1(other, more)
    with pytest.raises(UserError, match=r"stage\.lr: 0\.0001 → 0\.002"):
        stage1(*run_of(tmp_path, **{"stage1.lr": 2e-3}))
    save_student(Student(run.settings.student), run.stage_folder("stage1") / "student.safetensors")
    with pytest.raises(UserError, match="start: "):
        stage2(run, data, Targets("none"))


@pytest.mark.parametrize(("stage", "needs"), [("stage2", "02_stage1"), ("stage3", "04_stage2")])
def test_a_missing_stage_is_told_before_a_teacher_is_opened(tmp_path, monkeypatch, capsys, stage, needs):
    monkeypatch.setattr(stages, "open_teacher", lambda *_: pytest.fail("opened the teacher"))
    monkeypatch.setattr(stages, "open_data", lambda *_: pytest.fail("opened the data"))
    assert main(["train", stage, "--profile", "smoke", "--out", str(tmp_path)]) == 2
    assert needs in capsys.readouterr().err


def test_no_teacher_is_opened_where_the_loss_has_none(tmp_path, monkeypatch):
    changes = {"stage2.loss.kd": 0, "stage3.loss.kd": 0, "teacher.stage3": "same"}
    run, data = run_of(tmp_path, **changes)
    stage1(run, data)
    monkeypatch.setattr(stages, "open_teacher", lambda *_: pytest.fail("opened the teacher"))
    monkeypatch.setattr(stages, "open_data", lambda _: data)
    assert stages.train_stage(run, "stage2").path.is_file()
    assert stages.train_stage(run, "stage3").path.is_file()
    assert stages.distillation_targets(run, data, 2) is None
    with pytest.raises(pytest.fail.Exception, match="opened the teacher"):
        stages.distillation_targets(*run_of(tmp_path, **changes | {"stage2.loss.kd": 0.03}), 2)


def test_stage_3_starts_from_any_checkpoint_and_can_learn_from_it(tmp_path, monkeypatch):
    run, data = run_of(tmp_path)
    model = fuse_model(Student(run.settings.student))
    path = save_student(model, tmp_path / "mine.safetensors")
    run, data = run_of(tmp_path, **{"quant.start": str(path)})
    lr = torch.rand(1, 3, 8, 8) * 255
    expected = (model.eval()(lr) / 255).clamp(0, 1)
    torch.testing.assert_close(recalibrated(run, data)(lr), model(lr))
    targets = distillation_targets(run, data, 3)
    torch.testing.assert_close(targets.compute(lr), expected)
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    assert start_path(run_of(tmp_path, **{"quant.start": "mine.safetensors"})[0]) == path
    boxed, data = run_of(tmp_path, **{"quant.start": "pretrained-float"})
    shipped = load_model(pretrained("pretrained-float"))
    torch.testing.assert_close(recalibrated(boxed, data)(lr), shipped(lr))
    run, data = run_of(tmp_path, **{"quant.start": str(tmp_path / "none.safetensors")})
    with pytest.raises(UserError, match="no file at"):
        recalibrated(run, data)


def test_later_notebooks_get_the_teacher_of_the_first(tmp_path, monkeypatch):
    small = {"teacher.kind": "auto", "teacher.small_dim": 8, "teacher.small_layers": 1, "teacher.small_steps": 1,
             "teacher.small_patch": 16, "teacher.small_batch": 1}
    monkeypatch.setenv("PAPERLIB_OFFLINE", "1")
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    run, data = run_of(tmp_path / "run", **small)
    first = open_teacher(run, data)
    assert "downloads are off" in first.describe()
    (tmp_path / FILE).write_bytes(b"turned up")
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    again = open_teacher(*run_of(tmp_path / "run", **small))
    assert (again.sha256, again.describe()) == (first.sha256, first.describe())
    with pytest.raises(UserError, match="learns from the small teacher"):
        open_teacher(*run_of(tmp_path / "run", **small | {"teacher.kind": "published"}))


def test_stages_can_be_trained_from_the_command_line(tmp_path, capsys):
    changes = [f"{field}={value}" for field, value in SHORT.items()]
    for _ in range(2):
        for name, file in (("stage1", "student"), ("stage2", "student"), ("stage3", "qat")):
            assert main(["train", name, "--profile", "smoke", "--out", str(tmp_path), "--set", *changes,
                         "teacher.outputs=on_the_fly"]) == 0
            assert f"checkpoints/{name}/{file}.safetensors" in capsys.readouterr().out
    history = (tmp_path / "checkpoints" / "stage1" / "history.csv").read_text().splitlines()
    assert len(history) == 3  # header and two validations: trained once


def test_grids_are_learnt_until_the_observers_stop_and_then_stay(tmp_path, monkeypatch):
    short = {"stage3.steps": 10, "stage3.validate_every": 1, "stage3.patch": 8, "stage3.lr": 1e-3, "stage3.loss.kd": 0,
             "quant.observe_until": 0.4, "stage3.ema": 0}
    run, data = run_of(tmp_path, **short)
    seen = []

    def scorer(_):
        def score(model):
            seen.append([float(part.scale) for part in model.modules() if isinstance(part, FakeQuantize)
                         and part.qscheme == torch.per_tensor_affine])
            return {"psnr_rgb": 0.0}
        return score

    monkeypatch.setattr(stages, "psnr_scorer", scorer)
    stages.stage3(run, data, fuse_model(Student(run.settings.student)), None)
    start = run.stage_folder("stage3") / "fused.safetensors"
    before = start.read_bytes()
    with pytest.raises(UserError, match="start: "):
        stages.stage3(run, data, fuse_model(Student(run.settings.student)), None)
    assert start.read_bytes() == before  # what is refused leaves the finished one whole
    moved = [one != other for one, other in pairwise(seen)]
    assert len(seen[0]) >= 4
    assert moved == [True] * 3 + [False] * 6  # steps 1 to 4 observe


def test_stage_3_starts_from_weights_fused_with_bn_statistics_estimated_anew(tmp_path):
    run, data = run_of(tmp_path, **{"stage2.recalibrate_batches": 3, "stage2.steps": 2,
                                    "stage3.patch": 8, "stage3.steps": 1, "stage3.loss.kd": 0})
    stage1(run, data)
    stage2(run, data, Targets("none"))
    left = load_model(run.stage_folder("stage2") / "student.safetensors")
    batches = lr_batches(data, run.settings, "recalibration", run.settings.stage2)
    assert len(batches) == 3
    with torch.no_grad():  # of the first block's input, by hand
        features = [left.stem(batch) for batch in batches]
    mean = torch.stack([part.mean((0, 2, 3)) for part in features]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in features]).mean(0)
    assert float((left.body[0].identity.running_mean - mean).abs().max()) > 1
    anew = recalibrated(run, data)
    torch.testing.assert_close(anew.body[0].identity.running_mean, mean, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(anew.body[0].identity.running_var, variance, rtol=1e-3, atol=1e-2)
    stages.train_stage(run, "stage3")
    start = load_model(run.stage_folder("stage3") / "fused.safetensors").body[0].conv.weight
    torch.testing.assert_close(start, fuse_model(anew).body[0].conv.weight)
    assert not torch.allclose(start, fuse_model(left).body[0].conv.weight, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_a_collapsed_stage_2_begins_where_a_collapsed_stage_1_ended(tmp_path, optimizer):
    """Its BN statistics belong to its weights; estimated anew they once cost 2 dB of PSNR at the first step."""
    run, data = run_of(tmp_path, **{f"{stage}.{field}": value for stage in ("stage1", "stage2") for field, value in (
        ("form", "collapsed"), ("optimizer", optimizer), ("clip_body", 0.0), ("clip_ends", 0.0))},
        **{"stage1.lr": 3e-3, "stage2.lr": 1e-12})
    first = fuse_model(stage1(run, data).model)
    second = fuse_model(stage2(run, data, Targets("none")).model)
    for name, weight in first.named_parameters():
        torch.testing.assert_close(dict(second.named_parameters())[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("revive", [False, True])
def test_stage_2_revives_the_channels_that_stage_1_silenced(tmp_path, revive, capsys):
    run, data = run_of(tmp_path, **{"stage1.form": "collapsed", "stage2.form": "collapsed", "stage2.lr": 1e-12,
                                    "stage2.clip_body": 0.0, "stage2.clip_ends": 0.0, "stage2.revive": revive,
                                    "student.blocks": 3, "student.channels": 8})
    model = with_form(stage1(run, data).model, "expanded")
    model.body[1].identity.bias.data[[3, 7]] = -1e6
    save_student(model, run.stage_folder("stage1") / "student.safetensors")
    capsys.readouterr()
    patches = data.store.lr(0)[None].transpose(0, 3, 1, 2)
    silent = find_dead_channels(stage2(run, data, Targets("none")).model, torch.tensor(patches).float())
    assert silent[1] == ([] if revive else [3, 7])
    assert ("2 dead channels get fresh kernels" in capsys.readouterr().err) == revive


def test_other_blocks_go_on_as_they_are_and_say_so(tmp_path, capsys):
    run, data = run_of(tmp_path, **{"stage2.revive": True, "student.arch": "repconv"})
    stage1(run, data)
    stage2(run, data, Targets("none"))
    assert "revive is for MobileOne blocks" in capsys.readouterr().err
