"""Sound pixels in a file whose metadata are damaged, and pictures of other kinds: taken with a note."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features
from skimage.data import coffee

from paperlib.cli import main
from paperlib.data.images import read_picture
from paperlib.errors import UserError

RGB = np.ascontiguousarray(coffee()[:21, :30])


def with_chunk(png: bytes, kind: bytes, body: bytes, damaged: bool, place: int = 33) -> bytes:
    """A PNG file with one more chunk, at `place` (33: behind the header)."""
    check = zlib.crc32(kind + body) ^ damaged
    return png[:place] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check) + png[place:]


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"eXIf", b"tIME"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_wrong_check_sum_of_metadata(tmp_path, kind, behind):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    png = path.read_bytes()
    path.write_bytes(with_chunk(png, kind, b"a\0\0b", True, len(png) - 12 if behind else 33))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert behind or picture.notes == ["its damaged metadata are left out"]
    path.write_bytes(path.read_bytes()[:400])  # damaged pixels are refused as before
    with pytest.raises(UserError):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01", b"Exif\0\0nonsense",
                                  b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_malformed_exif(tmp_path, suffix, exif):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, exif=exif)
    Image.fromarray(RGB).save(tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(read_picture(path).rgb, read_picture(tmp_path / f"b.{suffix}").rgb)


def test_an_unreadable_raw_profile(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  12\nnot hexadecimal", zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=text)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.notes == ["its damaged EXIF is not used"]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_with_a_profile_that_is_none(tmp_path, suffix):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    cmyk.save(tmp_path / f"a.{suffix}", icc_profile=b"no profile" * 20)
    cmyk.save(tmp_path / f"b.{suffix}")
    picture = read_picture(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(picture.rgb, read_picture(tmp_path / f"b.{suffix}").rgb)
    assert picture.notes == ["CMYK without a valid colour profile: colours are approximate"]


def test_an_odd_second_page(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RGB).save(path)
    content = path.read_bytes()
    place = struct.unpack("<I", content[4:8])[0]
    last = place + 2 + 12 * struct.unpack("<H", content[place:place + 2])[0]
    odd = struct.pack("<H", 1) + struct.pack("<HHII", 256, 2, 1, 2**31)  # a width that is text, and nowhere
    path.write_bytes(content[:last] + struct.pack("<I", len(content)) + content[last + 4:] + odd)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.notes


def test_a_gamma_that_is_lost_is_said(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    for value, said in ((100_000, True), (45_455, False)):
        (tmp_path / "b.png").write_bytes(with_chunk(path.read_bytes(), b"gAMA", struct.pack(">I", value), False))
        assert bool(read_picture(tmp_path / "b.png").notes) == said


@pytest.mark.parametrize("suffix", ["gif", *(["avif"] if features.check("avif") else [])])
def test_the_first_frame_of_gif_and_avif(tmp_path, capsys, suffix):
    frames = [Image.fromarray(frame).quantize(64).convert("RGB") for frame in (RGB, RGB[::-1])]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert main(["upscale", str(tmp_path), "--out", str(tmp_path / "o"), "--model", "bicubic"]) == 0
    assert "only the first of 2 frames" in capsys.readouterr().out
    assert Image.open(tmp_path / "o" / "a_x3.png").size == (90, 63)
    assert np.abs(read_picture(path).rgb.astype(int) - np.asarray(frames[0])).mean() < 6
