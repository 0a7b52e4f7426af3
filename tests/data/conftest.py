"""A cache of the test's own, and a folder of three small photographs."""

import pytest
from PIL import Image
from skimage.data import astronaut


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photographs(tmp_path, cache):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, (top, height, width) in {"a": (0, 90, 120), "b": (100, 63, 66), "c": (200, 20, 150)}.items():
        Image.fromarray(astronaut()[top : top + height, :width]).save(folder / f"{name}.png")
    return folder
