"""The command line: exit codes, one line for bad input, and what the commands write."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.data import chelsea, coffee

from paperlib.cli import build_parser, main
from paperlib.errors import UserError
from paperlib.profiles import PROFILES
from paperlib.quantisation.qat import prepare_qat, save_qat
from paperlib.settings import QuantSettings, StudentSettings, parse_assignments
from paperlib.student.models import fuse_model, save_student
from paperlib.student.network import Student

COMMANDS = ("reproduce", "train", "evaluate", "upscale", "inspect", "export", "page", "verify", "bench", "data",
            "table")


def shell(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paperlib", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, text=True, check=False, timeout=120, **options)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    for name, image in (("a", coffee()[:60, :90]), ("b", chelsea()[:61, :47]), ("c", coffee()[100:130, :33])):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def one_line(capsys) -> str:
    """The only line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paperlib: ")
    return line


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert name in text
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        examples = [line.strip() for line in capsys.readouterr().out.partition("examples:")[2].splitlines()]
        assert len(examples) == 3
        for example in examples[1:]:
            args = build_parser().parse_args(shlex.split(example)[1:])
            assert args.run.__name__ == name
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_assignments_are_json_or_text():
    overrides = parse_assignments(["stage1.steps=500", "data.train=[\"/a\", \"b\"]", "student.arch=repdw", "x=a=b"])
    assert overrides == {"stage1.steps": 500, "data.train": ["/a", "b"], "student.arch": "repdw", "x": "a=b"}
    for bad in ("steps", "=5"):
        with pytest.raises(UserError, match="field=value"):
            parse_assignments([bad])


def test_reproduce_passes_on_what_it_was_given(monkeypatch):
    calls = []
    monkeypatch.setattr("paperlib.running.reproduce.reproduce", lambda *arguments: calls.append(arguments) or 1)
    monkeypatch.delenv("PAPERLIB_PROFILE", raising=False)
    assert main(["reproduce"]) == 1
    line = "reproduce --profile smoke --out here --from 3 --until 05 --set a.b=1 c.d=x --set e.f=2.5 --force"
    assert main(line.split()) == 1
    assert calls[0] == ("demo", None, "01", "07", {}, False)
    profile, out, *rest = calls[1]
    assert (profile, str(out)) == ("smoke", "here")
    assert rest == ["03", "05", {"a.b": 1, "c.d": "x", "e.f": 2.5}, True]


@pytest.mark.parametrize(("arguments", "words"), [
    ("reprodce", "invalid choice: 'reprodce'"), ("reproduce --profil demo", "--profil"), ("reproduce --profile demmo",
    "invalid choice: 'demmo'"), ("upscale --out here", "INPUT"), ("evaluate bicubic --hr . --max-images 0",
    "whole number from 1 up"), ("data clean", "invalid choice: 'clean'"), ("reproduce --set stage1.stepz=5",
    "unknown setting 'stage1.stepz'.*Nearest: stage1.steps"), ("reproduce --set stage1.steps=many",
    "stage1.steps = 'many'"), ("reproduce --set stage1.steps", "field=value"), ("evaluate bicubik --hr {hr}",
    "unknown model 'bicubik'"), ("evaluate bicubic --hr {tmp}/none", "no folder at"), ("evaluate bicubic --hr {empty}",
    "holds no image"), ("evaluate bicubic --hr {hr} --lr {empty}", "holds no image"),
    ("upscale {empty} --out {tmp}/out --model bicubic", "holds no image"),
    ("upscale {hr} --out {hr}/a.png --model bicubic", "cannot write"), ("upscale {hr} --out /proc/none --model bicubic",
    "cannot write"), ("evaluate bicubic --hr {hr} --json {hr}/a.png/x.json", "cannot write"),
    ("evaluate bicubic --hr {hr} --json {empty}", "is a folder"),
    ("export pretrained --out {tmp} --height 9999999", "export.height"), ("data fetch open --set seed=5", "no --set"),
    ("export {tmp}/none.safetensors --out {tmp}", "no file at"),
    ("export {tmp}/none.safetensors --out {tmp} --height 0", "export.height = 0"), ("export {hr}/a.png --out {tmp}",
    "is no checkpoint.*nothing can be exported from .png"), ("table --out {empty}", "no table")])
def test_bad_input_is_one_line_and_exit_code_2(photographs, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"hr": photographs, "tmp": tmp_path, "empty": tmp_path / "empty"}
    assert main(arguments.format(**places).split()) == 2
    assert re.search(words, one_line(capsys))


def test_wrong_checkpoints_are_one_line(photographs, tmp_path, capsys):
    other = Student(StudentSettings(channels=8, blocks=1))
    other.settings = StudentSettings(channels=16, blocks=1)
    save_student(other, tmp_path / "other.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.tflite").write_text("text")
    for name, words in (("other.safetensors", "is not a checkpoint"), ("foreign.safetensors", "is not a checkpoint"),
                        ("text.tflite", "not a TFLite file")):
        assert main(["evaluate", str(tmp_path / name), "--hr", str(photographs)]) == 2
        assert words in one_line(capsys)
    student = save_student(fuse_model(Student(StudentSettings(channels=8, blocks=1))), tmp_path / "student.safetensors")
    assert main(["export", str(student), "--out", str(tmp_path)]) == 2
    assert "not quantised" in one_line(capsys)


def test_a_traceback_only_when_asked_for(monkeypatch):
    monkeypatch.setenv("PAPERLIB_DEBUG", "1")
    with pytest.raises(UserError):
        main(["evaluate", "bicubik", "--hr", "."])


def test_evaluate_prints_and_writes_scores_and_tells_its_progress_in_lines(photographs, tmp_path, capsys, monkeypatch):
    target = tmp_path / "new" / "scores.json"
    command = ["evaluate", "bicubic", "--hr", str(photographs)]
    assert main([*command, "--json", str(target), "--max-images", "2"]) == 0
    result = json.loads(target.read_text())
    assert [row["name"] for row in result["images"]] == ["a", "b"]
    assert set(result) >= {"model", "images", "mean", "protocol", "provenance"}
    shown = capsys.readouterr()
    assert f"{result['mean']['psnr_rgb']:.3f}" in shown.out
    assert "PSNR in dB" in shown.out.splitlines()[1]
    assert shown.err == ""
    monkeypatch.setattr("paperlib.environment.Progress.interval", -1.0)
    monkeypatch.delenv("PAPERLIB_PROGRESS", raising=False)
    assert main(command) == 0
    told = capsys.readouterr().err
    assert re.search(r"^image 1/\d+, \d+ s left$", told, re.MULTILINE)
    assert "\r" not in told


def test_upscale_takes_what_people_have(tmp_path, capsys):
    image = coffee()[:20, :30]
    tifffile.imwrite(tmp_path / "deep.tif", image[..., 0].astype(np.uint16) * 257)
    Image.fromarray(image).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(image[:2, :2]).save(tmp_path / "two.png")
    arguments = ["upscale", str(tmp_path), "--out", str(tmp_path / "out"), "--model", "bicubic"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "3 enlarged with bicubic, 0 failed" in shown.out
    assert "16 bits a channel reduced to 8" in shown.out
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"deep_x3.tif": (90, 60), "cmyk_x3.jpg": (90, 60), "two_x3.png": (6, 6)}
    (tmp_path / "cut.png").write_bytes((tmp_path / "two.png").read_bytes()[:40])
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cut.png" in line
    assert main(["upscale", str(tmp_path / "cut.png"), *arguments[2:]]) == 2
    assert "cut.png" in one_line(capsys)


def test_export_writes_the_three_files(tmp_path, capsys):
    fused = fuse_model(Student(StudentSettings(channels=8, blocks=1, init="bilinear")))
    qat = prepare_qat(fused, QuantSettings(quantiser="tflite"), [coffee()[:30, :30]])
    path = save_qat(qat, tmp_path / "qat.safetensors")
    assert main(["export", str(path), "--out", str(tmp_path / "out"), "--height", "24", "--width", "32"]) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    names = {"student_dynamic_int8.tflite", "student_fixed_int8.tflite", "student_float.tflite"}
    assert set(report["files"]) == names
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "export.json"}
    assert "0 float tensors" in capsys.readouterr().out
    picture = tmp_path / "a.png"
    Image.fromarray(coffee()[:40, :50]).save(picture)
    for name in names:
        model, out = str(tmp_path / "out" / name), str(tmp_path / name[:-7])
        assert main(["upscale", str(picture), "--out", out, "--model", model]) == 0
    results = [np.asarray(Image.open(tmp_path / name[:-7] / "a_x3.png")).astype(int) for name in sorted(names)]
    assert np.abs(results[0] - results[1])[15:-15, 15:-15].max() <= 1  # dynamic and fixed, away from the padding
    assert np.abs(results[0] - results[2]).mean() < 4


def test_data_says_what_is_there_and_fills_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    assert main(["data", "status", "--profile", "smoke"]) == 0
    assert "train: 4 photographs" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    assert main(["data", "prepare", "--profile", "smoke", "--set", "data.max_train=2"]) == 0
    assert "training pixels of 2 photographs" in capsys.readouterr().out
    assert len(list(tmp_path.glob("photographs/*.hr.npy"))) == 2
    assert main(["data", "status", "--profile", "paper"]) == 1
    assert "train: missing: DIV2K" in capsys.readouterr().out


@pytest.mark.parametrize("how", ['exec("raise KeyboardInterrupt")', 'type("", (), {"name": Interrupting()})'])
def test_interrupting_says_that_work_is_kept(tmp_path, how):  # CPython notes one in exec, wraps one in __set_name__
    (tmp_path / "interrupted.py").write_text(f"""import paperlib.cli, paperlib.data.images
assert not paperlib.data.images.Image.init(), "an interrupted import would look like a fault of the picture"
class Interrupting:
    def __set_name__(self, *names): raise KeyboardInterrupt
paperlib.cli.build_parser = lambda: {how}
raise SystemExit(paperlib.cli.main())""")
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, b"what was finished is kept" in done.stderr) == (130, True)


def test_as_a_module_and_into_a_closed_pipe(photographs):
    done = shell("evaluate", "bicubik", "--hr", str(photographs))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = shell("evaluate", "bicubic", "--hr", str(photographs), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_parser_knows_the_documented_syntax():
    parse = build_parser().parse_args
    args = parse(["upscale", "a.png", "b", "--out", "c", "--model", "teacher"])
    assert (args.inputs, str(args.out), args.model) == (["a.png", "b"], "c", "teacher")
    args = parse(["export", "qat.safetensors", "--out", "o", "--height", "480"])
    assert (args.height, args.width) == (480, 1280)
    assert parse(["bench", "--only", "scan", "--json", "f"]).only == "scan"
    args = parse(["train", "stage2", "--profile", "demo", "--set", "stage2.steps=3", "--out", "o"])
    assert (args.stage, args.profile, args.assignments) == ("stage2", "demo", ["stage2.steps=3"])
    assert {parse(["table", "--profile", name]).profile for name in PROFILES} == set(PROFILES)


def test_train_says_what_it_waits_for_in_lines_where_stderr_is_a_file(tmp_path):
    start = Student(StudentSettings(channels=4, blocks=1, branches=2))
    save_student(start, tmp_path / "start.safetensors")
    words = ["train", "stage3", "--profile", "smoke", "--out", str(tmp_path / "out"), "--set",
             f"quant.start={tmp_path / 'start.safetensors'}", "student.channels=4", "student.blocks=1",
             "student.branches=2", "teacher.stage3=student", "quant.quantiser=tflite", "quant.rounding=data",
             "stage3.loss.kd_mid=null"]
    environment = {name: value for name, value in os.environ.items() if name != "PAPERLIB_PROGRESS"}
    with (tmp_path / "log").open("w") as log:
        done = shell(*words, stderr=log, env=environment | {"PAPERLIB_CACHE": str(tmp_path / "cache")})
    told = (tmp_path / "log").read_bytes().decode()
    assert done.returncode == 0, told
    assert done.stdout.splitlines() == [f"trained: {tmp_path / 'out/checkpoints/stage3/qat.safetensors'}"]
    assert "\r" not in told
    for line in ("opening the store of training pixels", "2 calibration images: rounding the kernels to them, then "
                 "calibrating", "stage3: step 5/5 loss"):
        assert line in told


def test_a_file_name_may_begin_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(coffee()[:8, :9]).save("-a.png")
    assert main(["upscale", "-o", "out", "--model", "bicubic", "--", "-a.png"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["-a_x3.png"]
