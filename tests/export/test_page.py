"""The page that upscales in a browser: offline, from file://, in a real Chromium, with `paperlib upscale`'s pixels."""

import base64
import re
import time
from io import BytesIO

import numpy as np
import pytest
from browser import chromium, open_page
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export import page as module
from paperlib.export.page import BINARY, INTEGRITY, VERSION, fetch_litert
from paperlib.upscale import upscale_pixels

LR = coffee()
DONE = "!busy && (!$('result').hidden || $('status').classList.contains('wrong'))"


def test_an_archive_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    (tmp_path / "litertjs").mkdir()
    for name in INTEGRITY:
        (tmp_path / "litertjs" / f"litertjs-{name}-{VERSION}.tgz").write_bytes(b"another")
    with pytest.raises(UserError, match=r"is not @litertjs/core 2\.\S+: its SHA-512"):
        fetch_litert()
    assert not (tmp_path / "litertjs" / f"litertjs-core-{VERSION}.tgz").exists()


def test_without_npm_or_network_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no npm here"):
        fetch_litert()
    broken = tmp_path / "npm"
    broken.write_text("#!/bin/sh\necho 'npm error network down' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(broken))
    with pytest.raises(UserError, match=r"cannot fetch @litertjs/core@\S+ \(npm error network down\)"):
        fetch_litert()
    assert list(tmp_path.rglob("*.tgz")) == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    try:
        fetch_litert()
    except UserError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("page") / "upscale.html"
    assert main(["page", "--out", str(path)]) == 0
    return path


def test_it_holds_everything_and_names_its_licences(built):
    text = built.read_text(encoding="utf-8")
    assert built.stat().st_size < 6e6
    assert not re.search(r"@@[A-Z]", text)
    assert "connect-src 'none'" in text
    assert re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?([^\">]*)", text) == ["data:,"]
    for notice in ("Apache License", f"@litertjs/core {VERSION}", "XNNPACK", "TERMS AND CONDITIONS FOR USE"):
        assert notice in text
    assert "threaded" not in BINARY  # threads need headers that file:// cannot send


@pytest.fixture(scope="module")
def page(built):
    if chromium() is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    pytest.importorskip("websocket")
    with open_page() as browser:
        browser.open(built)
        assert browser.run("ready.then(() => hands.length)") >= 1
        yield browser
        assert [address.split("/")[-1] for address in browser.requests] == [built.name]


def choose(page, path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path)
    page.choose("#file", path)
    page.wait(DONE)


def pixels(page, canvas: str) -> np.ndarray:
    data = base64.b64decode(page.run(f"$('{canvas}').toDataURL()").split(",")[1])
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(300, 420), (90, 61), (256, 256), (257, 30), (1, 1)])
def test_a_picture_comes_out_as_upscale_gives_it(page, tmp_path, size):
    lr = LR[:size[0], :size[1]]
    choose(page, tmp_path / "photo.png", lr)
    sr = pixels(page, "after")
    assert sr.shape == (3 * size[0], 3 * size[1], 3)
    if min(size) >= 20:  # twice the reach; two borders nearer than that do not fit into one tile
        np.testing.assert_array_equal(sr, upscale_pixels(load_upscaler("pretrained"), lr))
    bicubic = np.rint(load_upscaler("bicubic")(lr))
    assert np.abs(pixels(page, "before") - bicubic).max() <= 1
    assert f"{size[1]} × {size[0]} → {3 * size[1]} × {3 * size[0]}" in page.run("$('size').textContent")
    assert page.errors == []


def test_the_line_moves_and_the_download_is_the_picture(page, tmp_path):
    choose(page, tmp_path / "photo.png", LR[:80, :120])
    page.run("$('divider').value = 20; $('divider').oninput({target: $('divider')})")
    assert page.run("getComputedStyle($('before')).clipPath").startswith("inset(0px 80%")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("$('save').click()")
    made, end = tmp_path / "photo_x3.png", time.monotonic() + 30
    while not made.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    with Image.open(made) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels(page, "after"))


def test_transparency_is_laid_on_white(page, tmp_path):
    choose(page, tmp_path / "a.png", np.dstack([LR[:40, :40], np.zeros((40, 40), np.uint8)]))
    white = np.full((40, 40, 3), 255, np.uint8)
    np.testing.assert_array_equal(pixels(page, "after"), upscale_pixels(load_upscaler("pretrained"), white))


@pytest.mark.parametrize(("content", "says"), [
    (b"\x89PNG hello", "no picture that this browser can read, or it is broken"), (b"", "no picture"), ((4000, 10),
    "4000 × 10 pixels. The page takes up to 3000 a side"), ((2100, 2000), "and 4 megapixels")])
def test_what_it_cannot_do_it_says(page, tmp_path, content, says):
    if isinstance(content, bytes):
        (tmp_path / "a.png").write_bytes(content)
    else:
        Image.new("RGB", content).save(tmp_path / "a.png")
    page.choose("#file", tmp_path / "a.png")
    page.wait(DONE)
    assert says in page.run("$('status').textContent")
    assert page.run("$('result').hidden && $('status').classList.contains('wrong')")
