"""Which teacher is taken and why; its outputs are cached, continued and checked."""

import hashlib

import numpy as np
import pytest
import torch
from networks import small_teacher

from paperlib.data.pixel_store import open_store
from paperlib.errors import UserError
from paperlib.settings import DataSettings, TeacherSettings
from paperlib.student.models import weights_hash
from paperlib.teacher import distillation
from paperlib.teacher.distillation import (
    FILE,
    TeacherSource,
    decide_teacher,
    find_teacher,
    on_the_fly,
    outputs_key,
    pin_teacher,
    published_teacher,
    published_weights,
    teacher_outputs,
)
from paperlib.teacher.network import TeacherUpscaler


@pytest.fixture
def source():
    model = small_teacher()
    return TeacherSource(model, "small", weights_hash(model), "for a test")


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """No downloaded files anywhere, and no network."""
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(distillation, "URLS", ((tmp_path / "nowhere.pth").as_uri(),))
    return tmp_path


def store_settings():
    return DataSettings(train_crop=120, max_train=3)


@pytest.fixture
def store(empty):
    return open_store(store_settings())


def test_download_accepts_the_pinned_file_only(empty, monkeypatch):
    (empty / "right").write_bytes(b"weights")
    (empty / "wrong").write_bytes(b"<html>a")
    urls = tuple((empty / name).as_uri() for name in ("absent", "wrong", "right"))
    pinned = {"URLS": urls[:2], "BYTES": 7, "PUBLISHED_SHA256": hashlib.sha256(b"weights").hexdigest()}
    for name, value in pinned.items():
        monkeypatch.setattr(distillation, name, value)
    target, (path, problem) = empty / "cache" / "weights" / FILE, published_weights()
    assert path is None
    for part in ("absent", "No such file", "wrong bytes (a web page)", hashlib.sha256(b"<html>a").hexdigest()):
        assert part in problem
    assert not target.exists()
    monkeypatch.setattr(distillation, "URLS", urls)
    assert published_weights() == (target, "downloaded")
    assert target.read_bytes() == b"weights"


def test_weights_are_looked_for_in_assets_then_cache(empty, monkeypatch):
    folder = empty / "cache" / "weights"
    folder.parent.mkdir()
    folder.touch()  # a cache that takes no file is a reason, and no end
    assert "cannot write" in published_weights()[1]
    folder.unlink()
    path, reason = published_weights()
    assert path is None
    assert "nowhere.pth" in reason
    folder.mkdir(exist_ok=True)
    (folder / FILE).touch()
    assert published_weights()[0] == folder / FILE
    (empty / FILE).touch()
    monkeypatch.setenv("PAPERLIB_ASSETS", str(empty))
    assert published_weights()[0] == empty / FILE


def test_a_missing_published_teacher_is_an_error_or_said_aloud(empty, monkeypatch):
    monkeypatch.setattr(distillation, "fetch", lambda *args, **more: pytest.fail("downloaded"))
    monkeypatch.setenv("PAPERLIB_OFFLINE", "1")
    with pytest.raises(UserError, match=f"Put {FILE}"):
        published_teacher()
    pin = empty / "teacher.json"
    decided = decide_teacher(TeacherSettings(kind="auto", small_dim=8), pin)
    found = pin_teacher(find_teacher(decided, lambda model: model), decided.kind, pin)
    assert "not the paper's teacher" in found.describe()
    assert "downloads are off" in found.describe()
    assert found.sha256 == weights_hash(found.model)


def test_auto_is_decided_once(empty, monkeypatch):
    """Weights that go between two notebooks change nothing (`test_stages`: that turn up)."""
    auto, pin = TeacherSettings(kind="auto"), empty / "teacher.json"
    (empty / FILE).write_bytes(b"weights")
    monkeypatch.setenv("PAPERLIB_ASSETS", str(empty))
    assert decide_teacher(auto, pin).kind == "published"
    (empty / FILE).unlink()
    with pytest.raises(UserError, match="the published teacher is needed"):
        find_teacher(decide_teacher(auto, pin), lambda model: model)
    pin.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        decide_teacher(auto, pin)


def test_a_runs_teacher_keeps_its_weights(source, tmp_path):
    pin, other = tmp_path / "teacher.json", small_teacher(1)
    for _ in range(2):
        assert pin_teacher(source, "small", pin).sha256 == source.sha256
    with pytest.raises(UserError, match="other weights"):
        pin_teacher(TeacherSource(other, "small", weights_hash(other), ""), "small", pin)
    assert decide_teacher(TeacherSettings(kind="small"), pin).kind == "small"


def test_small_teacher_on_request_has_the_asked_size_and_the_same_start(empty):
    settings = TeacherSettings(kind="small", small_dim=12, small_layers=3)
    one, other = (find_teacher(settings, lambda model: model).model for _ in range(2))
    assert (one.shape.dim, one.shape.groups, one.shape.layers) == (12, 1, 3)
    assert weights_hash(one) == weights_hash(other)


def test_on_the_fly_equals_cached_on_a_whole_photograph(store, source):
    cached = teacher_outputs(store, source)[0]
    lr = torch.from_numpy(store.lr(0).copy()).permute(2, 0, 1)[None]
    target = on_the_fly(source.model, 1)(lr)
    assert not target.requires_grad
    assert 0 <= float(target.min()) <= float(target.max()) <= 1
    assert np.abs(target[0].permute(1, 2, 0).numpy() * 255 - cached).max() <= 0.5 + 1e-4


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the LR pixels that the teacher was asked to upscale."""
    asked = []

    class Counting(TeacherUpscaler):
        def __call__(self, lr):
            asked.append(lr.shape)
            return super().__call__(lr)

    monkeypatch.setattr(distillation, "TeacherUpscaler", Counting)
    return asked


def test_photographs_of_another_store_are_not_upscaled_again(store, source, calls):
    first = [output.copy() for output in teacher_outputs(store, source)]
    larger = open_store(store_settings().model_copy(update={"max_train": 5}))
    assert larger.key != store.key
    outputs = teacher_outputs(larger, source)
    assert len(calls) == len(larger) == 5
    for name, wanted in zip(store.names, first, strict=True):
        assert np.array_equal(outputs[larger.names.index(name)], wanted)
    other = small_teacher(1)
    teacher_outputs(larger, TeacherSource(other, "small", weights_hash(other), ""))
    assert len(calls) == 10


def test_stopped_computation_continues_where_it_was(store, source, calls, monkeypatch):
    write = distillation.write_pixels

    def stop(path, pixels):
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, pixels)

    monkeypatch.setattr(distillation, "write_pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        teacher_outputs(store, source)
    monkeypatch.setattr(distillation, "write_pixels", write)
    with pytest.raises(UserError, match=r"1 teacher outputs are missing.*Run 03_teacher"):
        store.teacher_outputs(outputs_key(source))
    outputs = teacher_outputs(store, source)
    assert len(calls) == len(store) + 1 == 4  # the third was upscaled twice
    teacher_outputs(store, source)
    assert len(calls) == 4
    for index, output in enumerate(outputs):
        assert np.array_equal(output, np.round(TeacherUpscaler(source.model)(store.lr(index))))


def test_a_damaged_output_is_named_and_computed_again(store, source, calls, capsys):
    wanted = [output.copy() for output in teacher_outputs(store, source)]
    path = store.output_path(outputs_key(source), 1)
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes(5000) + content[10_000:])
    fresh = open_store(store_settings())
    with pytest.raises(UserError, match="Run 03_teacher"):
        fresh.teacher_outputs(outputs_key(source))
    capsys.readouterr()
    assert len(calls) == 3
    for index, output in enumerate(teacher_outputs(fresh, source)):
        assert np.array_equal(output, wanted[index])
    assert len(calls) == 4
    assert capsys.readouterr().out.count("is damaged") == 1
    assert path.read_bytes() == content
