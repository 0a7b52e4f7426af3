"""Public photographs from a local host that breaks off or lies: what is wrong is told."""

import io
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hosts import answer, break_off, host
from PIL import Image

from paperlib.cli import main
from paperlib.data import download
from paperlib.data.download import Photograph, fetch, fetch_photographs, listed, reduce_photograph
from paperlib.errors import UserError


def original(seed: int, size: tuple[int, int] = (300, 200), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 20, size[0] // 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


CONTENTS = {f"sets/some where/{name}.jpg": original(number) for number, name in enumerate("abc")}


@pytest.fixture
def photographs(tmp_path):
    """Three lines of a list whose reduced files are those of this machine."""
    found = []
    for path, content in CONTENTS.items():
        (tmp_path / "x.jpg").write_bytes(content)
        reduce_photograph(tmp_path / "x.jpg", tmp_path / "y.jpg", (200, 133))
        found.append(Photograph(f"of_{Path(path).name}", "owner/name", path, "CC0-1.0", "200x133",
                                sha256(content).hexdigest(), sha256((tmp_path / "y.jpg").read_bytes()).hexdigest()))
    return found


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("paperlib.data.download.time.sleep", lambda _: None)
    with host(CONTENTS, "/owner/name/HEAD/") as httpd:
        monkeypatch.setattr(download, "RAW", f"http://127.0.0.1:{httpd.server_port}")
        yield httpd


PAGE = answer(200, b"<!DOCTYPE html><title>Sign in</title>", Content_Length="37")


def test_they_are_fetched_reduced_and_kept(server, photographs, tmp_path):
    told, folder = [], tmp_path / "open"
    assert fetch_photographs(folder, photographs, told.append) == []
    assert told[0] == f"3 photographs into {folder}: 3 × CC0-1.0"
    assert sorted(path.name for path in folder.iterdir()) == ["of_a.jpg", "of_b.jpg", "of_c.jpg"]
    with Image.open(folder / "of_a.jpg") as image:
        assert image.size == (200, 133)
    assert server.asked[0] == ("sets/some where/a.jpg", None)
    server.asked.clear()
    assert fetch_photographs(folder, photographs, told.append) == []
    assert server.asked == []
    assert told[-1].startswith("3 of 3 are in")


def pixels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(seed: int, level: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(seed)).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def test_a_lossless_file_is_believed_by_its_pixels_and_kept_as_it_comes(server, monkeypatch, tmp_path):
    pixels, others = (sha256(pixels_of(seed).tobytes()).hexdigest() for seed in (1, 2))
    for name, content in {"a": png(1), "b": png(1, level=0), "c": png(2), "d": b"no picture"}.items():
        monkeypatch.setitem(CONTENTS, f"sets/{name}.png", content)
    photographs = [Photograph(f"{name}.png", "owner/name", f"sets/{name}.png", "CC0-1.0", "30x20", commit="HEAD",
                              pixels_sha256=pixels) for name in "abcd"]
    folder = tmp_path / "lossless"
    other, none = fetch_photographs(folder, photographs, lambda _: None)
    assert f"sets/c.png: it gave wrong bytes, SHA-256 {others}, expected {pixels}" in other
    assert "sets/d.png: it gave wrong bytes, SHA-256 none (" in none
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.png": png(1), "b.png": png(1, level=0)}
    server.asked.clear()
    assert fetch_photographs(folder, photographs[:2], lambda _: None) == []
    assert server.asked == []
    (folder / "a.png").write_bytes(png(2))
    told = []
    assert fetch_photographs(folder, photographs[:2], told.append) == []
    assert told[-1].startswith("1 of them are in other bytes")
    assert told[-1].endswith("a.png")


@pytest.mark.parametrize(("name", "count"), [("open", 51), ("cid22", 209), ("clic_val", 14)])
def test_the_lists_are_those_of_the_photographs_at_hand(name, count, data_root):
    photographs = listed(name)
    assert len(photographs) == count
    assert {one.file for one in photographs} == {path.name for path in (data_root / name).iterdir()}
    for photograph in photographs[:: 1 + count // 52]:
        path = data_root / name / photograph.file
        assert photograph.matches(path)
        with Image.open(path) as image:
            assert "x".join(map(str, image.size)) == photograph.size


def test_a_page_wrong_bytes_or_nothing_costs_only_itself(server, photographs, tmp_path):
    server.behave = {"a.jpg": PAGE, "c.jpg": break_off}
    photographs.append(Photograph("of_d.jpg", "owner/name", "sets/d.jpg", "CC0-1.0", "1x1", "0" * 64, "0" * 64))
    folder = tmp_path / "open"
    first, second = fetch_photographs(folder, photographs, lambda _: None)
    assert "a.jpg: it gave wrong bytes (a web page)" in first
    assert second.endswith("sets/d.jpg: the host answered 404 Not Found")
    assert sorted(path.name for path in folder.iterdir()) == ["of_b.jpg", "of_c.jpg"]
    assert [ask[1] for ask in server.asked if ask[0].endswith("c.jpg")] == [None, "bytes=100-"]
    server.behave = {}
    (again,) = fetch_photographs(folder, photographs, lambda _: None)
    assert "sets/d.jpg" in again
    assert (folder / "of_a.jpg").is_file()


def test_a_host_out_of_reach_is_not_asked_for_every_photograph(photographs, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "RAW", "http://127.0.0.1:9")
    monkeypatch.setattr("paperlib.data.download.time.sleep", lambda _: None)
    told = []
    failed = fetch_photographs(tmp_path / "open", photographs * 2, told.append)
    assert len(failed) == 4
    assert all("Connection refused" in line for line in failed[:3])
    assert "3 more were not tried" in failed[3]
    assert told[-1].startswith("0 of 6 are in")


def test_a_file_of_unknown_size_is_cut_off_where_no_photograph_ends(server, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1000)
    problem = fetch(photographs[0].url, tmp_path / "z", None, photographs[0].original_sha256)
    assert "more than the 1000 bytes" in problem
    assert list(tmp_path.glob("z*")) == []


def test_other_bytes_of_the_same_original_are_kept_and_told(server, photographs, tmp_path):
    other = Photograph(**vars(photographs[0]) | {"reduced_sha256": "0" * 64})
    told, folder = [], tmp_path / "open"
    assert fetch_photographs(folder, [other], told.append) == []
    assert told[-1].startswith("1 of them are in other bytes than the list's (another Pillow")
    (folder / other.file).write_bytes(b"my own")
    assert fetch_photographs(folder, [other], told.append) == []
    assert len(server.asked) == 1
    assert (folder / other.file).read_bytes() == b"my own"


def test_a_photograph_is_turned_and_reduced_as_the_list_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(original(3, (3200, 2000), exif=exif))
    reduce_photograph(tmp_path / "a.jpg", tmp_path / "b.jpg", (1275, 2040))
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (1275, 2040)
        assert image.mode == "RGB"
        assert not image.getexif()
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"c\.jpg"):
        reduce_photograph(tmp_path / "c.jpg", tmp_path / "d.jpg", (1, 1))
    assert not (tmp_path / "d.jpg").exists()


def test_the_list_of_wallpapers_is_pinned_named_and_shares_nothing_with_the_others():
    wallpapers, others = listed("open_wallpapers"), listed("open")
    for names in ("file", "original_sha256", "reduced_sha256"):
        values = [getattr(one, names) for one in wallpapers + others]
        assert len(set(values)) == len(values), names
    for one in wallpapers:
        assert re.fullmatch("[0-9a-f]{40}", one.commit)
        assert one.licence
        assert 1280 <= max(map(int, one.size.split("x"))) <= 2040


def test_the_command_needs_a_folder_and_gives_1_where_some_are_missing(
        server, photographs, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    assert main(["data", "fetch", "open"]) == 2
    assert "PAPERLIB_DATA" in capsys.readouterr().err
    assert main(["data", "fetch"]) == 2
    assert main(["data", "status", "open"]) == 2
    monkeypatch.setattr(download, "listed", lambda name: photographs)
    server.behave = {"b.jpg": PAGE}
    capsys.readouterr()
    assert main(["data", "fetch", "open", "--to", str(tmp_path / "mine")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    server.behave = {}
    assert main(["data", "fetch", "open"]) == 0
    assert len(list((tmp_path / "open").glob("*.jpg"))) == 3
