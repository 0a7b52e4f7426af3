"""How to use the file, as the READMEs say: the Python runs as it stands, table and tool are true."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import coffee

from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.convert import export_tflite, shipped_graph
from paperlib.export.inspection import inspect_tflite
from paperlib.upscale import upscale_pixels
from paperlib.weights import pretrained

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "paperlib" / "weights" / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"^\| `(student_(dynamic|fixed)_(u?int8)\.tflite)` \| (.*?) \| (.*?) \|", SECTION, re.M)


def test_the_python_block_enlarges_a_picture_as_upscale_does(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    file = tmp_path / re.search(r'Interpreter\("(.+?)"', code)[1]
    file.parent.mkdir(parents=True)
    shutil.copy(pretrained(), file)
    assert len(code.splitlines()) <= 15
    assert set(re.findall(r"^(?:from|import) (\w+)", code, re.M)) == {"numpy", "ai_edge_litert", "PIL"}
    lr = coffee()[:70, :90]
    Image.fromarray(lr).save(tmp_path / "photo.png")
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / "photo_x3.png") as made:
        np.testing.assert_array_equal(np.asarray(made), upscale_pixels(load_upscaler("pretrained"), lr))


def test_the_table_is_what_the_files_are(tmp_path):
    assert len(FILES) == 4
    for name, form, pixels, *columns in FILES:
        size = (720, 1280) if form == "fixed" else ()
        file = export_tflite(shipped_graph(), tmp_path / name, *size, pixels=pixels)
        about = inspect_tflite(file, 24, 24)
        for end, column, scale in (("inputs", columns[0], 1), ("outputs", columns[1], 3)):
            (port,) = about[end]
            sides = (720 * scale, 1280 * scale) if form == "fixed" else (-1, -1)
            assert (port["type"], port["shape"]) == (pixels, [1, *sides, 3])
            assert column.startswith(f"{pixels} (1, ")
            assert (form == "dynamic") != (f"{sides[0]}, {sides[1]}, 3" in column)


def test_the_tool_for_milliseconds_is_there(tmp_path):
    (command,) = re.findall(r"`python (-m ai_edge_litert\S+ [^`]*)`", SECTION)
    model = export_tflite(shipped_graph(), tmp_path / "small.tflite", 24, 24)
    command = command.replace("shipped/student_fixed_int8.tflite", str(model)).split()
    done = subprocess.run([sys.executable, *command, "--num_runs", "2", "--result_json", str(tmp_path / "ms.json")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ms.json").stat().st_size > 0
