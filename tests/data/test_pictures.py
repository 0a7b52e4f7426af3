"""Reading and writing every kind of picture that people have."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage.data import coffee

from paperlib.data import images
from paperlib.data.images import (
    Picture,
    check_writable,
    compress_figure,
    image_size,
    read_picture,
    read_rgb,
    write_picture,
)
from paperlib.errors import UserError

RGB = coffee()[100:140, 200:260]
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".TIFF", ".bmp"])
def test_what_is_written_can_be_read(tmp_path, suffix):
    icc, lossy = None if suffix == ".bmp" else SRGB, suffix in (".jpg", ".jpeg", ".webp")
    again = read_picture(write_picture(tmp_path / f"a{suffix}", Picture(RGB, icc=icc)))
    assert np.abs(again.rgb.astype(int) - RGB).mean() < (4 if lossy else 1e-9)
    assert (again.alpha, again.grey, again.icc, again.notes) == (None, False, icc, [])
    grey = read_picture(write_picture(tmp_path / f"b{suffix}", Picture(np.stack([GREY] * 3, 2), grey=True)))
    assert grey.grey or suffix == ".webp"  # WebP knows no grey
    assert np.abs(grey.rgb[..., 0].astype(int) - GREY).mean() < 4


def test_alpha_comes_back(tmp_path):
    alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
    for grey in (False, True):
        rgb = np.stack([GREY] * 3, 2) if grey else RGB
        picture = read_picture(write_picture(tmp_path / "a.png", Picture(rgb, alpha, grey)))
        np.testing.assert_array_equal(picture.alpha, alpha)
        np.testing.assert_array_equal(picture.rgb, rgb)
        assert picture.grey == grey


def test_palettes_with_and_without_transparency(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    for name, options in (("plain.png", {}), ("clear.png", {"transparency": 3})):
        palette.save(tmp_path / name, **options)
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.rgb, np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(picture.alpha == 0, np.asarray(palette) == 3)


def test_16_bits_are_rounded_to_8_and_said(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "grey.tif", deep)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "rgb.tif", RGB.astype(np.uint16) * 257, photometric="rgb")
    for name in ("grey.tif", "grey.png", "rgb.tif"):
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.rgb, RGB if "rgb" in name else np.stack([GREY] * 3, 2))
        assert picture.grey == ("grey" in name)
        assert picture.notes == ["16 bits a channel reduced to 8"]


def test_orientation_is_applied_once(tmp_path):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    picture = read_picture(tmp_path / "turned.png")
    np.testing.assert_array_equal(picture.rgb, np.rot90(RGB, -1))
    again = read_picture(write_picture(tmp_path / "again.png", picture))
    np.testing.assert_array_equal(again.rgb, picture.rgb)


def test_only_the_first_frame_is_used_and_said(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.notes == ["only the first of 2 frames is used"]


def test_cmyk_becomes_rgb(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    picture = read_picture(tmp_path / "a.jpg")
    assert np.abs(picture.rgb.astype(int) - RGB).mean() < 6
    assert "approximate" in picture.notes[0]
    assert picture.icc is None


def test_what_memory_or_8_bits_cannot_hold_is_refused(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "float.tif", GREY.astype(np.float32))
    with pytest.raises(UserError, match="32 bits a channel"):
        read_picture(tmp_path / "float.tif")
    Image.fromarray(RGB).save(tmp_path / "good.png")
    monkeypatch.setattr(images, "free_memory", lambda: images.DECODED * RGB.shape[0] * RGB.shape[1])
    assert image_size(tmp_path / "good.png") == RGB.shape[:2]
    with pytest.raises(UserError, match="Cut it into parts"):
        read_picture(tmp_path / "good.png", images.DECODED + 1)


def test_what_a_format_cannot_hold_is_known_before_the_work():
    check_writable("a.png", 100_000, 100_000, transparent=True)
    check_writable("a.tif", 30_000, 30_000)
    check_writable("a.jpg", 10, 10)
    for name, size, clear, words in (
            ("a.jpg", (70_000, 10), False, "JPEG cannot hold"), ("a.webp", (70_000, 10), False, "WEBP cannot hold"),
            ("a.gif", (10, 10), False, "unknown kind"), ("a.jpg", (10, 10), True, "is transparent"),
            ("a.bmp", (10, 10), True, "is transparent"),
            ("a.tif", (100_000, 100_000), False, "Convert the input to PNG")):
        with pytest.raises(UserError, match=words):
            check_writable(name, *size, clear)


def test_training_takes_opaque_pictures_alone(tmp_path):
    for alpha in (255, 100):
        image = Image.fromarray(RGB)
        image.putalpha(alpha)
        image.save(tmp_path / f"{alpha}.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "255.png"), RGB)
    with pytest.raises(UserError, match="transparent pixels"):
        read_rgb(tmp_path / "100.png")


def png(pixels: np.ndarray, kind: int, clear: bytes, size: tuple[int, int] | None = None) -> bytes:
    """A PNG file of 16 bits a channel with a transparent colour; `size` (height, width) may lie."""
    height, width = size or pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks)


def test_no_helper_program_is_started(tmp_path, monkeypatch):
    marker, helper = tmp_path / "started", tmp_path / "bin" / "gs"
    helper.parent.mkdir()
    helper.write_text(f"#!/bin/sh\ntouch {marker}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    for read in (read_picture, read_rgb):
        with pytest.raises(UserError, match=r"not a picture \(PNG, JPEG, WEBP, TIFF, BMP"):
            read(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "b.png", format="PPM")
    with pytest.raises(UserError, match="not a picture"):
        read_picture(tmp_path / "b.png")
    assert not marker.exists()


def test_both_readers_catch_everything(tmp_path, capfd):
    small = GREY.astype(np.uint16)
    (tmp_path / "huge.png").write_bytes(png(small, 0, b"\0\0", (100_000, 100_000)))
    (tmp_path / "none.png").write_bytes(png(small, 0, b"\0\0", (0, 9)))
    tifffile.imwrite(tmp_path / "broken.tif", RGB, compression="zlib")
    content = bytearray((tmp_path / "broken.tif").read_bytes())
    content[100:400] = bytes(300)
    (tmp_path / "broken.tif").write_bytes(content)
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.webp").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path in [*tmp_path.iterdir(), tmp_path / "missing.png"]:
        for read in (read_picture, read_rgb):
            with pytest.raises(UserError) as refused:
                read(path)
            assert str(path) in str(refused.value)
            assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_transparency_of_16_bit_pictures_and_of_bmp_is_kept_or_its_loss_said(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    deep[0, :3] = (5, 6, 5)  # the same grey in 8 bits
    (tmp_path / "grey.png").write_bytes(png(deep, 0, struct.pack(">H", 5)))
    picture = read_picture(tmp_path / "grey.png")
    np.testing.assert_array_equal(picture.alpha == 0, deep == 5)
    assert picture.grey
    colour = np.stack([deep] * 3, 2).reshape(len(deep), -1)
    (tmp_path / "rgb.png").write_bytes(png(colour, 2, struct.pack(">HHH", 5, 5, 5), deep.shape))
    picture = read_picture(tmp_path / "rgb.png")
    assert picture.alpha is None
    assert "its transparent colour is left out" in picture.notes
    Image.fromarray(np.dstack([RGB, GREY])).save(tmp_path / "a.bmp")
    picture = read_picture(tmp_path / "a.bmp")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert "transparency" in picture.notes[0]


def test_drawings_are_saved_with_few_colours_and_photographs_with_all():
    def compressed(pixels: np.ndarray, lossy: str, most: float = 1.0) -> tuple[str, str, np.ndarray]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        kind, small = compress_figure(buffer.getvalue(), lossy)
        assert len(small) < most * len(buffer.getvalue())
        with Image.open(io.BytesIO(small)) as picture:
            assert picture.format.lower() == kind
            return kind, picture.mode, np.asarray(picture.convert("RGB"), int)

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (64, 64), dtype=np.uint8)
    mapped = np.stack([noise, 255 - noise, noise // 2], -1)
    kind, mode, small = compressed(mapped, "WEBP")
    assert (kind, mode) == ("png", "P")
    np.testing.assert_allclose(small, mapped, atol=4)
    photograph = coffee()[:128, :128]
    for lossy in ("WEBP", "JPEG"):
        kind, _, small = compressed(photograph, lossy, 0.6)
        assert kind == lossy.lower()
        assert np.abs(small - photograph).mean() < 4
    colours = random.integers(0, 256, (24, 24, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    kind, _, small = compressed(colours, "JPEG")
    assert kind == "png"  # flat areas: nothing to gain, so nothing is lost
    np.testing.assert_array_equal(small, colours)


def test_a_profile_stays_only_where_it_fits_the_colours(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for pixels, icc, kept in ((RGB, SRGB, True), (RGB, lab, False), (GREY, SRGB, False)):
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc)
        picture = read_picture(tmp_path / "a.png")
        assert picture.icc == (icc if kept else None)
        assert any("colour profile" in note for note in picture.notes) != kept
