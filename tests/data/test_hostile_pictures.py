"""Pictures that a fuzzer found: what libraries print is not the user's, and memory is bounded wherever one is read."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.data import images, resize
from paperlib.data.photographs import make_pair
from paperlib.data.resize import bicubic_downscale, bicubic_upscale
from paperlib.errors import UserError
from paperlib.evaluation import scoring
from paperlib.evaluation.upscalers import Bicubic, load_upscaler


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_what_libtiff_says_of_a_damaged_file_is_not_printed(tmp_path, capfd, compression):
    folder = tmp_path / "in"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(coffee()[:40, :60]).save(buffer, format="TIFF", compression=compression)
    whole = buffer.getvalue()
    for place in range(20, len(whole), len(whole) // 25):
        (folder / f"{place}.tif").write_bytes(whole[:place] + bytes(40) + whole[place + 40 :])
    Image.fromarray(coffee()[:40, :60]).save(folder / "good.png")
    assert main(["upscale", str(folder), "--out", str(tmp_path / "out"), "--model", "bicubic"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith(str(folder)) for line in lines), lines


def test_bands_give_the_bits_of_the_whole(monkeypatch):
    picture = coffee()[:399, :300]
    small, large = bicubic_downscale(picture), bicubic_upscale(picture[:50, :41], kernel="matlab")
    monkeypatch.setattr(resize, "BAND", 1000)
    assert np.array_equal(bicubic_downscale(picture), small)
    assert np.array_equal(bicubic_upscale(picture[:50, :41], kernel="matlab"), large)


def test_making_a_large_picture_smaller_takes_little_beside_it():
    script = ("import numpy as np, resource; from paperlib.data.resize import bicubic_downscale\n"
              "picture = np.full((3000, 4500, 3), 7, np.uint8)\n"
              "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
              "before = peak(); bicubic_downscale(picture); print(peak() - before)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) * 1024 < 100e6  # 13.5 megapixels, 162 MB in float32


def test_a_picture_that_is_too_large_to_score_or_fails_in_the_model_costs_the_others_nothing(
        tmp_path, capsys, monkeypatch):
    for name, size in (("a", 30), ("b", 60), ("c", 33)):
        Image.fromarray(coffee()[:size, :size]).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(images, "free_memory", lambda: 2000 * images.SCORED)
    assert main(["evaluate", "bicubic", "--hr", str(tmp_path)]) == 1
    seen = capsys.readouterr()
    assert [line.split()[0] for line in seen.out.splitlines()[3:]] == ["a", "c", "mean"]
    (line,) = [line for line in seen.err.splitlines() if "60×60" in line]
    assert "Cut it into parts" in line

    def refuse(self, lr):
        if lr.shape[0] == 10:
            raise UserError("the model cannot take this one. Name another.")
        return bicubic_upscale(lr)

    monkeypatch.setattr(Bicubic, "__call__", refuse)
    assert main(["evaluate", "bicubic", "--hr", str(tmp_path)]) == 1
    seen = capsys.readouterr()
    assert [line.split()[0] for line in seen.out.splitlines()[3:]] == ["c", "mean"]
    assert sum("cannot take this one" in line for line in seen.err.splitlines()) == 1


def test_a_large_picture_is_scored_in_tiles_with_the_same_values(tmp_path, monkeypatch):
    upscaler, picture = load_upscaler("pretrained"), coffee()[:360, :540]
    pairs = [make_pair("a", picture)]
    whole = scoring.evaluate(upscaler, pairs)["images"]
    monkeypatch.setattr(scoring, "MOST_AT_ONCE", 1000)
    monkeypatch.setattr(scoring, "TILE", 50)
    seen, run = [], upscaler._run
    monkeypatch.setattr(upscaler, "_run", lambda image: seen.append(image.shape) or run(image))
    assert scoring.evaluate(upscaler, pairs)["images"] == whole
    assert len(seen) > 4
    assert set(seen) == {(50, 50, 3)}


def test_a_picture_that_is_scored_takes_the_memory_that_is_asked_for(tmp_path):
    """In a process of its own, at its most (not ru_maxrss, which a child has from pytest's own)."""
    script = ("import re, sys; from paperlib.cli import main\n"
              "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
              "code = main(['evaluate', 'pretrained', '--hr', sys.argv[1]]); print(code, peak())")
    most = []
    for name, side in (("small", 600), ("large", 3534)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side), (90, 50, 10)).save(tmp_path / name / "a.jpg", quality=10)
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)],
                              capture_output=True, text=True, timeout=300, check=True)
        code, peak = map(int, done.stdout.split()[-2:])
        assert code == 0
        most.append(peak)
    assert most[1] - most[0] < images.SCORED * 3534**2
