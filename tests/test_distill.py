"""Which teacher is used is always said, and cached outputs are what the network gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paperlib import distill
from paperlib.config import DataSettings, TeacherSettings
from paperlib.data import embedded_path
from paperlib.distill import (
    FILE,
    OnTheFlyTeacher,
    TeacherSource,
    find_teacher,
    outputs_key,
    published_weights,
    teacher_outputs,
)
from paperlib.errors import UserError
from paperlib.files import sha256_file
from paperlib.images import read_rgb
from paperlib.patches import TrainSet
from paperlib.store import open_store
from paperlib.teacher import MambaIRv2Light, TeacherShape, TeacherUpscaler

SMALL = TeacherShape(dim=8, groups=1, layers=1, heads=2, window=8, states=4, tokens=8, rank=4)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    image = read_rgb(embedded_path("coffee.png"))
    for number in range(3):
        Image.fromarray(image[60 * number : 60 * number + 60, :72]).save(tmp_path / "p" / f"{number}.png")
    return open_store(DataSettings(source="folders", train=(str(tmp_path / "p"),)))


def small_source() -> TeacherSource:
    return TeacherSource(MambaIRv2Light(SMALL).eval(), "small", "0" * 64, "test")


def test_cached_outputs_are_the_networks_to_half_a_grey_level(store):
    source = small_source()
    outputs = teacher_outputs(store, source)
    for index in range(3):
        exact = TeacherUpscaler(source.model)(store.lr(index))
        assert np.abs(outputs[index] - exact).max() <= 0.5 + 1e-3
    on_the_fly = OnTheFlyTeacher(source.model)(torch.from_numpy(store.lr(0).copy()).permute(2, 0, 1)[None].float())
    assert np.abs(on_the_fly[0].permute(1, 2, 0).numpy() * 255 - outputs[0]).max() <= 0.5 + 1e-3
    batch = TrainSet(store, DataSettings(), 1, "s", 20).batch(0, 4, teacher=outputs_key(source))
    photograph, top, left, turn = batch.samples[0]
    patch = outputs[photograph][3 * top : 3 * top + 60, 3 * left : 3 * left + 60]
    patch = np.rot90(patch[:, ::-1] if turn >= 4 else patch, turn % 4)
    assert np.array_equal(batch.teacher[0].permute(1, 2, 0), patch)


def test_stopped_caching_continues(store, monkeypatch):
    source, calls = small_source(), []
    whole = TeacherUpscaler.__call__

    def stopping(self, lr):
        calls.append(lr.shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, lr)

    monkeypatch.setattr(TeacherUpscaler, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        teacher_outputs(store, source)
    assert not store.companion_path(outputs_key(source)).exists()
    outputs = teacher_outputs(store, source)
    assert len(calls) == 4  # the first photograph was kept
    assert np.abs(outputs[0] - whole(TeacherUpscaler(source.model), store.lr(0))).max() <= 0.5 + 1e-3


def test_without_weights_the_small_one_is_named_and_published_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(distill, "URLS", ("http://127.0.0.1:9/none",))
    (tmp_path / "small.pth").write_bytes(b"weights")
    train = lambda model: (model, tmp_path / "small.pth")
    source = find_teacher(TeacherSettings(kind="auto", small_dim=8), train)
    assert "not the paper's teacher" in source.name
    assert "not downloadable" in source.reason
    assert "small one takes its place" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"Put {FILE}"):
        find_teacher(TeacherSettings(kind="published"), train)
    with pytest.raises(UserError, match="03_teacher"):
        find_teacher(TeacherSettings(kind="small"))


def test_downloads_are_checked_and_offline_is_obeyed(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    good = tmp_path / "good.bin"
    good.write_bytes(b"weights")
    wrong = distill.download(tmp_path / "x.pth", (Path(good).as_uri(),))
    assert "SHA-256" in wrong
    assert not (tmp_path / "x.pth").exists()
    assert distill.download(tmp_path / "x.pth", (good.as_uri(),), sha256_file(good)) == ""
    assert (tmp_path / "x.pth").read_bytes() == b"weights"
    monkeypatch.setenv("PAPERLIB_OFFLINE", "1")
    assert published_weights() == (None, f"not at {tmp_path / 'weights' / FILE}, and downloads are off")
