"""Reading and writing every kind of picture that people have."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage.data import coffee

from paperlib.data.images import Picture, check_writable, read_picture, write_picture
from paperlib.errors import UserError

RGB = coffee()[100:140, 200:260]
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.TIFF", "a.bmp"])
def test_lossless_rgb_comes_back(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    picture = read_picture(tmp_path / name)
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert (picture.alpha, picture.grey, picture.notes) == (None, False, [])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"])
def test_what_is_written_can_be_read(tmp_path, suffix):
    icc = None if suffix == ".bmp" else SRGB
    again = read_picture(write_picture(tmp_path / f"a{suffix}", Picture(RGB, icc=icc)))
    assert np.abs(again.rgb.astype(int) - RGB).mean() < (4 if suffix in (".jpg", ".jpeg", ".webp") else 1e-9)
    assert again.icc == icc
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
    palette.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "plain.png").rgb, np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "clear.png", transparency=3)
    picture = read_picture(tmp_path / "clear.png")
    np.testing.assert_array_equal(picture.alpha == 0, np.asarray(palette) == 3)
    np.testing.assert_array_equal(picture.rgb, np.asarray(palette.convert("RGB")))


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


def test_cmyk_becomes_rgb(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    picture = read_picture(tmp_path / "a.jpg")
    assert np.abs(picture.rgb.astype(int) - RGB).mean() < 6
    assert "approximate" in picture.notes[0]
    assert picture.icc is None


def test_only_the_first_frame_is_used_and_said(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.notes == ["only the first of 2 frames is used"]


def test_bad_files_are_told(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.webp").touch()
    tifffile.imwrite(tmp_path / "float.tif", GREY.astype(np.float32))
    for name, words in (("cut.png", "cannot read .*cut.png"), ("text.jpg", "cannot read"), ("none.png", "no picture"),
                        ("empty.webp", "cannot read"), ("float.tif", "32 bits a channel")):
        with pytest.raises(UserError, match=words):
            read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="megapixels"):
        read_picture(tmp_path / "good.png")


def test_what_a_format_cannot_hold_is_known_before_the_work():
    check_writable("a.png", 70_000, 10)
    for name, words in (("a.jpg", "65535"), ("a.webp", "16383"), ("a.gif", "unknown kind")):
        with pytest.raises(UserError, match=words):
            check_writable(name, 70_000, 10)
