import io
import json
import math
import os
import shlex
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from paperlib import environment
from paperlib.data.images import read_rgb
from paperlib.data.sources import embedded_path
from paperlib.errors import UserError
from paperlib.files import sha256_file, write_json
from paperlib.reporting.results import Results
from paperlib.run import ROW_COLUMNS, measured_row, open_run, run_folder
from paperlib.settings import parse_assignments


@pytest.fixture
def run(tmp_path):
    return open_run("smoke", tmp_path / "out")


def test_results_lie_in_the_clone_of_the_package_or_around_the_notebook(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert environment.root() == Path(environment.__file__).parents[1]
    assert run_folder(None, "smoke") == environment.root() / "results" / "smoke"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "site-packages" / "paperlib" / "environment.py"))
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    monkeypatch.chdir(clone / "notebooks")
    assert environment.root() == clone
    monkeypatch.chdir(tmp_path)
    assert environment.root() == tmp_path


def test_a_record_says_where_its_numbers_come_from(run):
    weights = run.stage_folder("stage1") / "student.safetensors"
    weights.write_bytes(b"weights")
    row = measured_row("B", "bicubic", "fp32", "psnr", 28.2, "validation")
    path = run.record("01_data", [row], inputs={"stage1": weights, "pixels": "abc"}, history=[{"step": 1}])
    record = json.loads(path.read_text())
    assert path == run.out / "records" / "01_data.json"
    assert record["rows"] == [row]
    assert record["inputs"] == {
        "stage1": {"file": "checkpoints/stage1/student.safetensors", "sha256": sha256_file(weights)}, "pixels": "abc"}
    assert record["history"] == [{"step": 1}]
    assert record["settings"] == run.settings.model_dump(mode="json")
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["versions"]["tensorflow"]
    assert {"commit", "dirty", "profile", "seed", "device", "threads", "started"} <= record.keys()
    assert record["seconds"] >= 0
    assert record["peak_memory_bytes"] > 1e6
    assert run.read_record("01_data") == record == run.records()["01_data"]


def test_the_processor_is_described_by_its_instructions(tmp_path):
    intel, arm = tmp_path / "intel", tmp_path / "arm"
    intel.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx avx512f avx512_vnni\n\n"
                     "processor\t: 1\nmodel name\t: Another\nflags\t\t: fpu\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    found = environment.processor(intel)
    assert (found["model"], found["instructions"]) == ("Some CPU @ 2 GHz", ["avx", "avx2", "avx512f", "avx512_vnni"])
    assert environment.processor(arm)["instructions"] == ["asimd", "asimddp"]
    assert environment.processor(tmp_path / "none")["instructions"] is None
    assert environment.provenance()["cpu"] == environment.processor()


def test_inputs_outside_the_run_are_found_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path))
    teacher = tmp_path / "teacher.pth"
    teacher.write_bytes(b"x")
    run.record("03_teacher", [], inputs={"teacher": teacher})
    named = run.read_record("03_teacher")["inputs"]["teacher"]["file"]
    assert named == "$PAPERLIB_ASSETS/teacher.pth"
    assert environment.from_portable(named, run.out) == teacher
    assert environment.from_portable("checkpoints/x.pt", run.out) == run.out / "checkpoints" / "x.pt"
    assert environment.from_portable("/elsewhere/x.pt", run.out) == Path("/elsewhere/x.pt")


def test_what_cannot_be_recorded_or_opened_is_refused_before_any_work(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="stage1"):
        run.record("02_stage1", [], inputs={"stage1": run.out / "nothing.safetensors"})
    with pytest.raises(ValueError, match="seed"):
        run.record("01_data", [], seed=1)
    with pytest.raises(UserError, match="unknown profile '5'"):
        open_run(5, tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=OSError(30, "Read-only file system")))
    with pytest.raises(UserError, match="Read-only file system"):
        open_run("smoke", tmp_path / "out")


def test_numbers_of_other_libraries_become_plain_json(run):
    run.record("01_data", [], values={"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": math.nan,
                                      "d": (np.int64(3), Path("x")), 5: np.array([[math.inf, 1.0]])})
    assert run.read_record("01_data")["values"] == {"a": 0.5, "b": [1, 2], "c": None, "d": [3, "x"], "5": [[None, 1.0]]}


def test_folders_of_this_machine_are_named_by_their_variables(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PAPERLIB_DATA", "/")
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: "/temporary")
    path = run.record("01_data", [], teacher=f"found at {tmp_path}/assets/t.pth; scan: numba",
                      places=[tmp_path / "cache", tmp_path / "cached" / "x", tmp_path / "assets"],
                      words=f"out={run.out}; 'clone' \"{environment.root()}/notebooks\", (/somebody/x) /temporary/y. "
                            f"/somebodyelse https://host/somebody {tmp_path}/cache.")
    record = json.loads(path.read_text())
    assert record["teacher"] == "found at $PAPERLIB_ASSETS/t.pth; scan: numba"
    assert record["places"] == ["$PAPERLIB_CACHE", f"{tmp_path}/cached/x", "$PAPERLIB_ASSETS"]
    assert record["words"] == ("out=$OUT; 'clone' \"$CLONE/notebooks\", ($HOME/x) $TMPDIR/y. "
                               "/somebodyelse https://host/somebody $PAPERLIB_CACHE.")


def test_all_rows_are_one_tidy_frame_in_the_records_order(run):
    assert measured_row("C", "repdw", "int8", "psnr", [30.0], "validation")["sd"] is None
    run.record("07_ablations", [measured_row("C", "repdw", "int8", "psnr", [30.0, 31.0], "Set5", steps=200)])
    run.record("01_data", [measured_row("B", "bicubic", "fp32", "psnr", 28.2, "validation", note="kept in the record"),
                           measured_row("B", "bicubic", "fp32", "npu", None, "validation")])
    rows = Results(run).rows
    assert tuple(rows.columns) == ROW_COLUMNS
    assert rows["record"].tolist() == ["01_data", "01_data", "07_ablations"]
    first, unmeasured, seeds = rows.to_dict("records")
    assert (first["value"], first["seeds"], first["values"]) == (28.2, 1, None)
    assert pd.isna([first["sd"], first["steps"], unmeasured["value"]]).all()
    assert (seeds["value"], seeds["seeds"], seeds["steps"], seeds["values"]) == (30.5, 2, 200, [30.0, 31.0])
    assert seeds["sd"] == pytest.approx(math.sqrt(0.5))


def test_a_run_without_records_has_no_rows_but_the_columns(run):
    assert tuple(Results(run).rows.columns) == ROW_COLUMNS
    assert Results(run).rows.empty
    with pytest.raises(UserError, match=r"reproduce --profile smoke --from 02 --until 02 --out .*out$"):
        run.read_record("02_stage1")


def test_the_settings_stand_beside_the_papers_those_that_differ_first_and_after_eight_folded(run):
    overview = run.settings_table().set_index("setting")
    assert "not the paper's numbers" in overview.value["profile"]
    assert overview.value["results"] == str(run.out)
    assert overview.paper["data.source"] == "div2k"
    table = run.settings_table("student", "stage1").set_index("setting")
    assert set(table.index.str.split(".").str[0]) == {"student", "stage1"}
    assert table.paper["stage1.steps"] == "30000"
    own = (".expect", ".checkpoint_every")
    equal = [line.value == line.paper or name.endswith(own) for name, line in table.iterrows()]
    assert equal == sorted(equal)
    assert (equal[0], equal[-1]) == (False, True)
    shown, folded = run.describe("student", "stage1").data.split("<details>")
    assert shown.count("<tr>") == 8
    assert folded.count("<tr>") == len(table) - 8


def test_a_notebook_opened_too_early_names_those_before_it(run, tmp_path):
    with pytest.raises(UserError, match="02_stage1, 04_stage2, 05_fuse_qat"):
        run.require("stage3")
    for stage, name in (("stage1", "student"), ("stage2", "student")):
        (run.stage_folder(stage) / f"{name}.safetensors").touch()
    run.require("stage2")
    with pytest.raises(UserError, match=r"05_fuse_qat\. Run: .* --from 05 --until 05 --out "):
        run.require("stage3")
    (run.stage_folder("stage3") / "qat.safetensors").touch()
    run.require("stage3")
    open_run("smoke", tmp_path / "other", {"quant.start": "mine.pt"}).require("stage2")


def test_the_command_that_goes_on_makes_the_same_run(tmp_path):
    out = str(tmp_path / "my out")
    line = ["paperlib", "reproduce", "--profile", "demo", "--from", "05", "--out", out, "--set"]
    changes = {"method": "ours", "stage1.steps": 7, "data.train": ["a b", "c"], "stage3.loss.kd_mid": 0.5}
    words = shlex.split(open_run("demo", out, changes).command("05_fuse_qat"))
    assert words[:9] == line
    again = parse_assignments(words[9:])
    assert again == changes
    assert open_run("demo", out, again).id == open_run("demo", out, changes).id
    assert open_run("smoke", environment.root() / "results" / "smoke").command("01", "03") == (
        "paperlib reproduce --profile smoke --from 01 --until 03")


def test_an_executed_notebook_goes_on_in_its_run_and_a_committed_one_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr("paperlib.run.root", lambda: tmp_path)
    for folder in ("mine", "results/reference/demo", "no run"):
        (tmp_path / folder / "notebooks").mkdir(parents=True)
        if folder != "no run":
            (tmp_path / folder / "records").mkdir()
    for folder, expected in (("mine", "mine"), ("results/reference/demo", "results/demo"), ("no run", "results/demo")):
        monkeypatch.chdir(tmp_path / folder / "notebooks")
        assert open_run("demo", "$OUT").out == tmp_path / expected
    assert list((tmp_path / "results" / "reference" / "demo" / "records").iterdir()) == []
    assert open_run("demo", tmp_path / "other").out == tmp_path / "other"


def test_the_figure_shown_is_the_figure_saved(run):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    shown = run.figure("01_pair", figure)
    saved = (run.out / "figures" / "01_pair.png").read_bytes()
    assert shown.data == saved
    assert int.from_bytes(saved[16:20]) == 2 * shown.width
    assert shown.alt == "01 pair"


def test_a_figure_with_a_photograph_is_saved_as_webp_in_place_of_an_earlier_png(run):
    figure = Figure(figsize=(3, 2))
    figure.subplots().imshow(read_rgb(embedded_path("astronaut.png")), interpolation="bilinear")
    (run.folder("figures") / "01_pair.png").write_bytes(b"of an earlier run")
    shown = run.figure("01_pair", figure)
    assert [path.name for path in (run.out / "figures").iterdir()] == ["01_pair.webp"]
    with Image.open(run.out / "figures" / "01_pair.webp") as saved, Image.open(io.BytesIO(shown.data)) as displayed:
        assert displayed.format in ("PNG", "JPEG")  # what every viewer of notebooks can show
        assert saved.size == displayed.size == (2 * shown.width, saved.height)
        change = np.asarray(saved.convert("RGB"), float) - np.asarray(displayed.convert("RGB"), float)
    assert np.abs(change).mean() < 8


def test_a_notebook_sees_the_records_of_its_run_up_to_itself(tmp_path):
    row = lambda value: [measured_row("B", "fsrcnn", "fp32", "psnr", value, "validation")]
    run = open_run("smoke", tmp_path)
    run.record("01_data", row(1.0))
    assert run.record_path("07_ablations") == "records/07"  # its trainings' records alone
    run.record("07_ablations", row(20.8772))
    (tmp_path / "records" / ".paperlib-0a.json").write_text("{")  # a killed process was writing it
    open_run("smoke", tmp_path, {"stage1.steps": 9}).record("02_stage1", row(3.0))  # a foreign one
    assert list(run.records()) == ["01_data", "07_ablations"]
    fourth = open_run("smoke", tmp_path, until="04_stage2")
    fourth.record("04_stage2", row(4.0))
    assert list(fourth.records()) == ["01_data", "04_stage2"]
    other = open_run("smoke", tmp_path, {"ablation.seeds": [1, 2], "export.height": 33})  # the same trainings
    assert list(other.records()) == ["01_data", "04_stage2", "07_ablations"]
    assert run.read_record("04_stage2")["run"] == run.id == other.id


def test_library_chatter_is_kept_back_unless_something_fails(capfd):
    with environment.silence_native_stderr():
        os.write(2, b"delegate created")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"

    def fail():
        with environment.silence_native_stderr():
            os.write(2, b"why it failed")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capfd.readouterr().err == "why it failed"


def test_lists_of_numbers_take_one_line_in_a_file_and_everything_is_read_back_as_it_was(tmp_path):
    value = {"images": [[27.125, -3e-07, None], [1, 2, 3]], "names": ["1", "2,\n3"], "empty": [], "flags": [True],
             "text": "[\n  1,\n  2\n]", "mixed": [1, "a", {"b": [4]}]}
    text = write_json(tmp_path / "record.json", value).read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "  [27.125, -3e-07, null],\n  [1, 2, 3]\n" in text
    assert '"b": [4]' in text
