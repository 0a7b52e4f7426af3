import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from paperlib.errors import UserError
from paperlib.evaluation.audit import PUBLISHED
from paperlib.run import open_run
from paperlib.running import notebooks, reproduce

PARAMETERS = 'profile = ""\nout = ""  # a folder\noverrides = ""'
RECORD = """
import json, os, pathlib, sys
place = pathlib.Path(out) / "records" / "{name}.json"
place.parent.mkdir(exist_ok=True)
place.write_text(json.dumps({{"rows": [], "inputs": {{}}, "overrides": overrides, "python": sys.executable,
    "commit": None, "dirty": None, "seconds": 1, "seed": 1, "versions": {{"torch": ""}}, "device": "", "threads": 1,
    "settings": {{}}, "peak_memory_bytes": 99e6, "profile": profile, "note": "", "started": "",
    "malloc": os.environ["MALLOC_MMAP_MAX_"], "at": os.getcwd()}}))
"""


def write_notebook(folder: Path, name: str, code: str = "", parameters: str | None = PARAMETERS) -> Path:
    cells = []
    if parameters is not None:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells.append(nbformat.v4.new_code_cell(code + RECORD.format(name=name)))
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("01_one", "02_two"):
        write_notebook(tmp_path / "notebooks", name)
    return tmp_path / "notebooks"


def go(folder: Path, **more) -> int:
    return reproduce.reproduce("smoke", folder.parent / "out", more.pop("first", "01"), more.pop("last", "02"),
                         folder=folder, **more)


def ran(capsys) -> list[str]:
    """Names of the notebooks that the lines on stdout say were run."""
    return [line.split()[1].rstrip(":") for line in capsys.readouterr().out.splitlines() if ": done in" in line]


def test_runs_in_order_then_skips_what_is_current_and_reruns_what_changed(folder, capsys):
    assert go(folder) == 0
    text = capsys.readouterr().out
    assert text.index("[1/2] 01_one: done") < text.index("[2/2] 02_two: running") < text.index("Every notebook ran")
    out = folder.parent / "out"
    record = json.loads((out / "records" / "01_one.json").read_text())
    assert record["python"] == sys.executable
    assert (record["profile"], record["overrides"], record["malloc"]) == ("smoke", "{}", "0")
    assert record["at"] == str(folder)
    assert {path.name for path in (out / "notebooks").glob("*.ipynb")} == {"01_one.ipynb", "02_two.ipynb"}
    assert all((out / name).is_file() for name in ("summary.md", "report.html", "tables/B.csv"))
    measured = open_run("smoke", out).read_record("00_reproduce")["notebooks"]
    assert measured.keys() == {"01_one", "02_two"}
    assert measured["01_one"]["peak_bytes"] == 99e6

    assert go(folder) == 0
    assert ran(capsys) == []

    (out / "records" / "02_two.json").unlink()
    assert go(folder) == 0
    assert ran(capsys) == ["02_two"]

    write_notebook(folder, "01_one", "changed = True\n")
    assert go(folder) == 0
    assert ran(capsys) == ["01_one", "02_two"]


def test_executed_copies_and_pages_name_no_folder_of_this_machine(folder):
    code = "import sys\nprint('written to', out)\nprint(sys.prefix, file=sys.stderr)\nout + '/checkpoints'\n"
    write_notebook(folder, "01_one", code)
    assert go(folder, last="01", overrides={"quant.start": str(folder.parent / "out" / "x.pt")}) == 0
    out = folder.parent / "out"
    copy = (out / "notebooks" / "01_one.ipynb").read_text()
    assert "written to $OUT" in copy
    assert nbformat.reads(copy, as_version=4).metadata.papermill.parameters.out == "$OUT"
    files = [path for path in out.rglob("*") if path.suffix in (".ipynb", ".html", ".json", ".md", ".csv")
             and not path.name.startswith(".")]
    written = [path for path in files if path != out / "records" / "01_one.json"]  # that one is the notebook's own
    assert len(written) > 4
    for path in written:
        for place in (str(folder.parent), sys.prefix, str(Path.home()) + "/"):
            assert place not in path.read_text(encoding="utf-8"), (path, place)


def test_a_failure_stops_with_exit_code_1_and_is_taken_up_again_there(folder, capsys):
    error = "from paperlib.errors import UserError\nraise UserError('no photographs. Add some.')\n"
    write_notebook(folder, "02_two", error)
    assert go(folder, overrides={"stage1.steps": 7}) == 1
    shown = capsys.readouterr()
    copy = folder.parent / "out" / "notebooks" / "02_two.ipynb"
    assert "[2/2] 02_two: failed: no photographs. Add some." in shown.err
    assert str(copy) in shown.err
    assert "--from 02" in shown.err
    assert "--set stage1.steps=7" in shown.err
    assert "no photographs" in copy.read_text()
    assert "Table A: " not in shown.out

    write_notebook(folder, "02_two")
    assert go(folder, overrides={"stage1.steps": 7}) == 0
    assert ran(capsys) == ["02_two"]


def test_a_kernel_that_dies_for_memory_costs_its_own_notebook_only(folder, capsys):
    out = folder.parent / "out"
    for code, words in (("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "its kernel died: "),
                        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
                         "x = bytearray(16 << 30)\n", "not enough memory: ")):
        write_notebook(folder, "02_two", code)
        assert go(folder) == 1
        failed, copy, resume = capsys.readouterr().err.splitlines()
        assert failed.startswith(f"[2/2] 02_two: failed: {words}")
        assert str(out / "notebooks" / "02_two.ipynb") in copy
        assert "paperlib reproduce --profile smoke --from 02" in resume
        assert (out / "notebooks" / "02_two.ipynb").is_file()
        assert (out / "records" / "01_one.json").is_file()
        assert not (out / "records" / "02_two.json").exists()


def test_an_exception_keeps_its_kind_and_a_notebook_that_writes_no_record_has_failed(folder, capsys):
    setting = "from paperlib.profiles import load_settings\nload_settings('smoke', {'stage1.lr': -1})"
    for end, words in (("1 / 0", "failed: ZeroDivisionError: division by zero"),
                       (setting, "stage1.lr"), ("pass", "wrote no")):
        path = write_notebook(folder, "01_one")
        book = nbformat.read(path, as_version=4)
        book.cells[-1].source = end
        nbformat.write(book, path)
        assert go(folder, last="01") == 1
        told = capsys.readouterr().err
        assert words in told
        assert ("to resume: paperlib reproduce" in told) == (end != setting)


def test_training_lines_reach_the_terminal_and_nothing_else_does(folder, capfd, monkeypatch):
    """Those of workers too: processes of the kernel, which write to its terminal."""
    own, worker = "stage1: step 5/9 loss 0.1 psnr 27.1 dB, 3 s left", "worker: step 1/1 loss 0.1, 0 s left"
    write_notebook(folder, "01_one", f"import os, subprocess, time\nprint('chatter')\nprint({own!r})\n"
                   f"os.write(2, b'a library speaks')\nsubprocess.run(['echo', {worker!r}])\ntime.sleep(1)\n")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it ipykernel captures nothing of other processes
    assert go(folder, last="01") == 0
    shown = capfd.readouterr()
    assert [shown.out.count(line) for line in (f"      {own}\n", worker)] == [1, 1]
    assert "chatter" not in shown.out
    assert shown.err == ""
    assert "a library speaks" in (folder.parent / "out" / ".kernel.log").read_text()


@pytest.mark.parametrize(("more", "words"), [
    ({"overrides": {"stage1.stepz": 5}}, "stage1.stepz"),
    ({"overrides": {"stage1.steps": -5}}, "stage1.steps"),
    ({"overrides": {"ablation.switches": ["teacher_non"]}}, "Nearest: teacher_none"),
    *[({"overrides": {"ablation.switches": [name]}}, words)
      for name, words in (("dct_off+", "unknown ablation.switches ''"), ("post_training+dct_off", "Name it alone"))],
    ({"last": "09"}, "no notebook '09'. There are 01, 02"),
    ({"first": "02", "last": "01"}, "Exchange")])
def test_what_is_unknown_is_refused_before_anything_runs(folder, more, words):
    with pytest.raises(UserError, match=words):
        go(folder, **more)
    assert not (folder.parent / "out" / "notebooks").exists()


@pytest.mark.parametrize("parameters", [
    None, PARAMETERS + "\nextra = 1", 'profile = ""', "out = profile = overrides = ''"])
def test_notebooks_with_other_parameters_are_refused(folder, parameters):
    write_notebook(folder, "02_two", parameters=parameters)
    with pytest.raises(UserError, match="02_two"):
        go(folder)


def test_fingerprints_depend_on_settings_files_and_earlier_notebooks(folder, tmp_path, monkeypatch):
    paths = notebooks.find_notebooks(folder)
    start, cache = tmp_path / "start.pt", tmp_path / "cache" / "aio_mai"
    weights = tmp_path / "assets" / "teacher.pth"
    for path in (weights.parent, cache):
        path.mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PAPERLIB_ASSETS", str(weights.parent))
    weights.write_bytes(b"one")
    names = {path.relative_to(Path(reproduce.__file__).parents[1]).as_posix() for path in reproduce.package_files()}
    assert {"settings.py", "training/loop.py", "evaluation/reported.csv", "reporting/report.html",
            "paper.mplstyle", "weights/student_dynamic_int8.tflite"} <= names
    changes, files = {"quant.start": str(start)}, [*reproduce.package_files(), weights]
    prints = lambda: reproduce.fingerprints(paths, open_run("smoke", tmp_path / "a", changes))
    seen = [prints()]
    assert seen[0] == prints()
    for change in (
            lambda: changes.update({"stage3.steps": 9}), lambda: start.write_bytes(b"one"),
            lambda: start.write_bytes(b"other"), lambda: weights.write_bytes(b"other"),
            lambda: monkeypatch.delenv("PAPERLIB_ASSETS"),
            lambda: [(cache / name).write_bytes(b"theirs") for name in PUBLISHED.index],
            lambda: monkeypatch.setattr(reproduce, "package_files", lambda: files)):
        change()
        seen.append(prints())
    assert len({value for found in seen for value in found.values()}) == 2 * len(seen)
    book = nbformat.read(paths[0], as_version=4)
    book.cells[0].outputs = [nbformat.v4.new_output("stream", text="done")]
    book.cells[0].execution_count = 3
    nbformat.write(book, paths[0])
    assert prints() == seen[-1]  # outputs do not count
    write_notebook(folder, "02_two", "changed = True\n")
    after = prints()
    assert after["01_one"] == seen[-1]["01_one"]
    assert after["02_two"] != seen[-1]["02_two"]


def test_what_a_notebook_read_or_wrote_and_is_not_as_it_was_makes_it_due(tmp_path):
    run = open_run("smoke", tmp_path)
    weights = run.stage_folder("stage1") / "student.safetensors"
    copy, figure = run.folder("notebooks") / "02_stage1.ipynb", run.folder("figures") / "02_a.png"
    for path in (weights, copy, figure):
        path.write_bytes(b"as it was")
    record = run.record("02_stage1", [], inputs={"stage1": weights, "pixels": "abc"})
    state = {"02_stage1": {"fingerprint": "f", "files": reproduce._written(run, "02_stage1")}}
    current = lambda name="02_stage1", mark="f": reproduce.is_current(run, name, mark, state)
    assert not current(mark="g")
    assert not current("03_teacher")
    for path in (weights, copy, figure, record):
        content = path.read_bytes()
        assert current()
        path.write_bytes(content + b"\n")
        assert not current()
        path.unlink()
        assert not current()
        path.write_bytes(content)


def test_time_left_goes_by_earlier_runs_else_by_shares():
    names = ["01_data", "02_stage1", "07_ablations"]
    assert reproduce.time_left(names, 0, 0, {name: {"seconds": 10} for name in names}) == 30
    assert reproduce.time_left(names, 1, 99, {name: {"seconds": 10} for name in names}) == 20
    assert reproduce.time_left(names, 1, 4, {}) is None
    first, second, left = (reproduce.NOTEBOOKS[name].share for name in names)
    assert reproduce.time_left(names, 2, 56, {}) == pytest.approx(56 * left / (first + second))


def test_ctrl_c_ends_the_kernel_and_says_how_to_go_on(folder, tmp_path):
    mark = tmp_path / "pid"
    write_notebook(folder, "01_one", textwrap.dedent(f"""
        import os, time, pathlib
        pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))
        time.sleep(600)
    """))
    script = textwrap.dedent(f"""
        import signal, sys
        from pathlib import Path
        from paperlib.running.reproduce import reproduce
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        try:
            reproduce("smoke", {str(tmp_path / 'out')!r}, "01", "01", folder=Path({str(folder)!r}))
        except KeyboardInterrupt:
            sys.exit(130)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        while not (mark.is_file() and mark.read_text()) and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--from 01" in text
    assert not psutil.pid_exists(int(mark.read_text()))


def test_a_kernel_folder_is_locked_while_in_use_and_swept_when_its_process_was_killed(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the other tests' kernels sweep the usual one
    monkeypatch.setattr(tempfile, "tempdir", None)
    script = ("import os, signal\nfrom paperlib.running.notebooks import kernel_environment\n"
              "with kernel_environment():\n    print(os.environ['JUPYTER_PATH'].split(os.pathsep)[0], flush=True)\n"
              "    os.kill(os.getpid(), signal.SIGKILL)\n")
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    monkeypatch.setenv("TQDM_MININTERVAL", "1")
    before = dict(os.environ)
    with notebooks.kernel_environment():
        assert not left.exists()
        assert os.environ["TQDM_MININTERVAL"] == "30"
        mine = Path(os.environ["JUPYTER_PATH"].split(os.pathsep)[0])
        with notebooks.kernel_environment():
            specification = json.loads((mine / "kernels" / "python3" / "kernel.json").read_text())
        assert specification["argv"][0] == sys.executable
    assert dict(os.environ) == before
    assert not mine.exists()


def test_without_loopback_the_reason_is_told(tmp_path):
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no network namespace can be made here")
    path = write_notebook(tmp_path, "01_one")
    script = ("import functools, sys\nfrom pathlib import Path\nfrom paperlib.running.notebooks import *\n"
              "run = functools.partial(papermill.execute_notebook, start_timeout=5)\n"
              "papermill.execute_notebook, path = run, Path(sys.argv[1])\n"
              "with kernel_environment():\n"
              "    try: execute(path, path.with_name('b.ipynb'), {}, path.with_name('log'))\n"
              "    except NotebookError as error: print('told:', error)\n")
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", script, str(path)], capture_output=True,
                          text=True, timeout=200, check=False)
    assert "told: its kernel" in done.stdout, done.stderr[-2000:]
