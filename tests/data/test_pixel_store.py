"""The cache of pixels against damage, full disks and unreadable photographs."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from paperlib.data import pixel_store
from paperlib.data.images import free_memory, read_rgb
from paperlib.data.photographs import make_pair, read_source
from paperlib.data.pixel_store import open_store, read_pixels, write_pixels
from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.settings import DataSettings

RECORD = "results/reference/demo/records/01_data.json"


def folders(path, **more) -> DataSettings:
    return DataSettings(source="folders", train=(str(path),), valid=(str(path),), **more)


def test_pixels_come_back_and_damaged_ones_do_not(tmp_path, capsys):
    path, pixels = tmp_path / "folder" / "a.npy", astronaut()[:20, :30]
    write_pixels(path, pixels)
    assert np.array_equal(read_pixels(path), pixels)
    assert read_pixels(tmp_path / "none.npy") is None
    assert capsys.readouterr().out == ""
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:500] + b"x" + whole[501:], bytes(32) + whole[32:]):
        path.write_bytes(content)
        assert read_pixels(path) is None
        assert f"{path} is damaged" in capsys.readouterr().out


@pytest.fixture
def decoded(monkeypatch):
    """Names of what is decoded."""
    names = []
    monkeypatch.setattr(pixel_store, "read_source",
                        lambda source, crop: names.append(source.name) or read_source(source, crop))
    return names


@pytest.mark.parametrize("part", ["hr", "lr"])
def test_damaged_pixels_are_named_and_decoded_again(photographs, capsys, decoded, part):
    store = open_store(folders(photographs))
    wanted = getattr(store, part)(1).copy()
    path = sorted(store.folder.glob(f"*.{part}.npy"), key=lambda path: path.stat().st_size)[1]
    before = path.read_bytes()
    path.write_bytes(before[:-100] + bytes(100))
    decoded.clear()
    again = open_store(folders(photographs))
    assert len(decoded) == 1
    assert np.array_equal(getattr(again, part)(1), wanted)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert again.key == store.key


def test_a_photograph_is_decoded_once(photographs, decoded):
    first = open_store(folders(photographs))
    assert sorted(decoded) == ["photographs/a", "photographs/b", "photographs/c"]
    for index, name in enumerate("abc"):
        pair = make_pair(name, read_rgb(photographs / f"{name}.png"))
        assert np.array_equal(first.hr(index), pair.hr)
        assert np.array_equal(first.lr(index), pair.lr)
    assert open_store(folders(photographs)).key == first.key
    Image.fromarray(astronaut()[300:400]).save(photographs / "d.png")
    store = open_store(folders(photographs))
    assert decoded[3:] == ["photographs/d"]
    assert store.key != first.key
    assert np.array_equal(store.hr(0), first.hr(0))
    assert not np.array_equal(open_store(folders(photographs, train_crop=30)).hr(0), first.hr(0))


def test_the_key_is_that_of_the_committed_records(cache):
    record = json.loads((root() / RECORD).read_text(encoding="utf-8"))
    settings = DataSettings(**record["settings"]["data"])
    assert open_store(settings).key == record["inputs"]["training pixels"]


def test_memory_bounds_how_many_are_decoded_at_a_time(photographs, monkeypatch):
    sources = pixel_store.split_sources(folders(photographs), "train")
    largest = 90 * 120 * pixel_store.DECODING
    for photographs_at_once, expected in ((0, 1), (1, 1), (2, 2), (100, 4)):
        monkeypatch.setattr(pixel_store, "free_memory", lambda n=photographs_at_once: n * largest)
        monkeypatch.setattr(pixel_store.os, "cpu_count", lambda: 4)
        assert pixel_store._at_once(sources) == expected
    assert free_memory() > 10**8


def test_an_unreadable_photograph_is_left_out_named_and_changes_the_key(photographs):
    whole = open_store(folders(photographs))
    (photographs / "b.png").write_bytes((photographs / "b.png").read_bytes()[:900])
    store = open_store(folders(photographs))
    assert store.names == ["photographs/a", "photographs/c"]
    assert list(store.left_out) == ["photographs/b"]
    assert "b.png" in store.left_out["photographs/b"]
    assert store.key != whole.key
    assert np.array_equal(store.hr(1), whole.hr(2))
    for name in "ac":
        (photographs / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png.*b\.png.*c\.png"):
        open_store(folders(photographs))


def test_a_full_disk_is_an_error(small_disk, monkeypatch, photographs):
    monkeypatch.setenv("PAPERLIB_CACHE", str(small_disk / "cache"))
    for number in range(20):
        Image.fromarray(astronaut()[:300, : 200 + number]).save(photographs / f"d{number}.png")
    with pytest.raises(UserError, match=r"No space left.*PAPERLIB_CACHE"):
        open_store(folders(photographs))
