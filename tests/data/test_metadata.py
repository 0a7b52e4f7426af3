"""Sound pixels in a file whose metadata are damaged, and pictures of other kinds: taken with a note."""

import copy
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, features
from skimage.data import coffee

from paperlib.cli import main
from paperlib.data.images import Picture, find_images, read_picture, write_picture
from paperlib.data.metadata import Metadata
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


@pytest.mark.parametrize(("name", "text", "what"), [
    ("log", "x" * 2 * PngImagePlugin.MAX_TEXT_CHUNK, "metadata are"),
    ("Raw profile type exif", "\nexif\n  12\nnot hexadecimal", "EXIF is")])
def test_a_text_that_is_too_long_or_no_profile(tmp_path, name, text, what):
    texts = PngImagePlugin.PngInfo()
    texts.add_text(name, text, zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=texts)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.notes == [f"its damaged {what} left out"]


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


EXIF = Image.Exif()
EXIF[ExifTags.Base.Orientation] = 6
EXIF[ExifTags.Base.Copyright] = "somebody"
EXIF[ExifTags.Base.ImageWidth] = 30
EXIF[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "2026:11:30 09:00:00",
                           ExifTags.Base.ExifImageWidth: 30, ExifTags.Base.ExifImageHeight: 21}
EXIF[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_metadata_are_carried_over(tmp_path, suffix, strip):
    path, out = tmp_path / f"a.{suffix}", tmp_path / "o"
    options = {"exif": copy.deepcopy(EXIF), "dpi": (300, 300)}
    if suffix == "tif":
        options["exif"][ExifTags.Base.XMLPacket] = XMP
    elif suffix == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("parameters", "steps: 20")
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = texts
    else:
        options["xmp"] = XMP
    if suffix == "jpg":
        options["comment"] = b"a comment"
    Image.fromarray(RGB).save(path, **options | {"exif": options["exif"].tobytes()})
    words = ["upscale", str(path), "--out", str(out), "--model", "bicubic"]
    assert main([*words, *(["--strip"] if strip else [])]) == 0
    with Image.open(out / f"a_x3.{suffix}") as result:
        exif, xmp = result.getexif(), result.info.get("xmp", b"")
        assert result.size == (3 * RGB.shape[0], 3 * RGB.shape[1])  # turned
        assert exif.get(ExifTags.Base.Orientation, 1) == 1
        assert exif.get(ExifTags.Base.Copyright) == (None if strip else "somebody")
        below, place = (exif.get_ifd(part) for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))
        assert bool(place) != strip
        assert bool(below) != strip
        if not strip:
            assert below[ExifTags.Base.DateTimeOriginal] == "2026:11:30 09:00:00"
            assert (below[ExifTags.Base.ExifImageWidth], below[ExifTags.Base.ExifImageHeight]) == result.size
            assert place[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert (XMP in (xmp.encode() if isinstance(xmp, str) else xmp)) != strip
        if suffix != "webp":
            assert (round(result.info.get("dpi", (0, 0))[0]) == 300) != strip
        if suffix == "png":
            assert result.text.get("parameters") == (None if strip else "steps: 20")
        if suffix == "jpg":
            assert result.info.get("comment") == (None if strip else b"a comment")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_colours_mean_is_carried_over_or_said(tmp_path, suffix, capsys):
    plain, path, out = tmp_path / "plain.png", tmp_path / f"a.{suffix}", tmp_path / "o"
    Image.fromarray(RGB).save(plain)
    content = plain.read_bytes()
    chunks = {b"gAMA": struct.pack(">I", 100_000), b"cICP": bytes([9, 16, 0, 1])}
    for name, data in chunks.items():
        content = with_chunk(content, name, data, False)
    path.write_bytes(content)
    assert main(["upscale", str(path), "--out", str(out), "--model", "bicubic", "--strip"]) == 0
    result = (out / f"a_x3.{suffix}").read_bytes()
    for name, data in chunks.items():
        assert (struct.pack(">I", len(data)) + name + data in result) == (suffix == "png")
    assert ("JPEG cannot say what its colours mean" in capsys.readouterr().out) == (suffix == "jpg")


def test_pieces_larger_than_a_format_can_hold_are_left_out_and_said(tmp_path):
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    texts.add_itxt("XML:com.adobe.xmp", "x" * 70_000)
    exif[ExifTags.Base.ImageDescription] = "y" * 70_000
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=texts, exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert len(picture.notes) == 2
    assert not picture.metadata.xmp
    assert picture.metadata.exif is None


@pytest.mark.parametrize("metadata", [
    {"comment": b"\xe9" * 65_500}, {"comment": b"\xe9" * 70_000}, {"xmp": b"x" * 65_530}])
def test_what_cannot_be_written_costs_the_metadata_alone(tmp_path, metadata):
    picture = Picture(RGB, metadata=Metadata(**metadata))
    write_picture(tmp_path / "a.jpg", picture)
    with Image.open(tmp_path / "a.jpg") as written:
        assert written.size == (30, 21)
        kept = written.info.get("comment") == metadata.get("comment", 0)
    assert picture.notes == [] if kept else picture.notes == ["its metadata cannot be written and are left out"]
    assert kept == (metadata.get("comment", b"") == b"\xe9" * 65_500)


@pytest.mark.parametrize(("content", "kind"), [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\xff\x0a" + bytes(40), "JPEG XL"),
    (b"%PDF-1.7", "PDF"), (b"<?xml version='1.0'?>\n<svg xmlns=''/>", "SVG")])
def test_kinds_that_are_not_read_are_refused_by_name(tmp_path, content, kind):
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(UserError, match=f"is a {kind} picture.*Convert it"):
        read_picture(find_images(tmp_path)[0])


@pytest.mark.parametrize("suffix", ["gif", *(["avif"] if features.check("avif") else [])])
def test_the_first_frame_of_gif_and_avif(tmp_path, capsys, suffix):
    frames = [Image.fromarray(frame).quantize(64).convert("RGB") for frame in (RGB, RGB[::-1])]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert main(["upscale", str(tmp_path), "--out", str(tmp_path / "o"), "--model", "bicubic"]) == 0
    assert "only the first of 2 frames" in capsys.readouterr().out
    assert Image.open(tmp_path / "o" / "a_x3.png").size == (90, 63)
    assert np.abs(read_picture(path).rgb.astype(int) - np.asarray(frames[0])).mean() < 6
