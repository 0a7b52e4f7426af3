"""Enlarging a picture loads no training framework, and the base installation needs none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paperlib.weights import pretrained

HEAVY = ("torch", "tensorflow", "timm", "pandas", "matplotlib", "IPython")
COMMANDS = {
    "--help": ["--help"],
    "upscale": ["upscale", "{folder}/a.png", "--out", "{folder}/out"],
    "evaluate": ["evaluate", "--hr", "{folder}", "--json", "{folder}/scores.json"],
    "bicubic": ["evaluate", "bicubic-matlab", "--hr", "{folder}"],
    "inspect": ["inspect", "{folder}/student.tflite", "--json", "{folder}/about.json"],
    "status": ["data", "status", "--profile", "paper"]}


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shutil.copyfile(pretrained(), tmp_path / "student.tflite")
    return tmp_path


def run(python: str | Path, arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    code = ("import sys, json; from paperlib.cli import main\n"
            "try: code = main(sys.argv[1:])\n"
            "except SystemExit as end: code = end.code\n"
            "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)")
    arguments = [argument.format(folder=folder) for argument in arguments]
    return subprocess.run([str(python), "-c", code, *arguments], capture_output=True, text=True, check=True,
                          cwd=folder, env=os.environ | {"PAPERLIB_CACHE": str(folder / "cache")} | environment)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_light_command_loads_nothing_heavy(name, folder):
    done = run(sys.executable, COMMANDS[name], folder, PYTHONPATH=str(Path(__file__).parents[1]))
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code in ((0, 1) if name == "status" else (0,))  # DIV2K need not be here
    assert not set(HEAVY) & set(modules)
    if name == "--help":  # half of what it would take to answer
        assert not {"pydantic", "skimage"} & set(modules)


@pytest.mark.skipif("PAPERLIB_BASE_PYTHON" not in os.environ,
                    reason="PAPERLIB_BASE_PYTHON is unset: no environment with the base installation to test")
class TestBaseInstallation:
    """In an environment of its own, made by `pip install .` (`.ci/run` makes one)."""

    python = os.environ.get("PAPERLIB_BASE_PYTHON", "")

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name != "--help"])
    def test_does_what_it_is_for(self, name, folder):
        code, _ = json.loads(run(self.python, COMMANDS[name], folder).stderr.splitlines()[-1])
        assert code in ((0, 1) if name == "status" else (0,))
        if name == "upscale":
            assert Image.open(folder / "out" / "a_x3.png").size == (180, 144)
        if name == "evaluate":
            provenance = json.loads((folder / "scores.json").read_text())["provenance"]
            assert provenance["versions"]["torch"] is None
            assert provenance["versions"]["paperlib"]

    @pytest.mark.parametrize("arguments", [["reproduce"], ["evaluate", "teacher", "--hr", "{folder}"],
                                           ["upscale", "{folder}/a.png", "--out", "{folder}", "--model",
                                            "pretrained-float"], ["bench"]])
    def test_says_what_more_is_needed_in_one_line(self, arguments, folder):
        done = run(self.python, arguments, folder)
        *said, last = done.stderr.splitlines()
        assert json.loads(last)[0] == 2
        assert len(said) == 1
        assert "pip install '.[kit]'" in said[0]
