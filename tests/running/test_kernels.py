"""Kernels of killed processes, and machines on which none can be reached."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from paperlib.running import notebooks
from paperlib.running.notebooks import KERNEL_FOLDER, execute, kernel_environment


def test_kernel_folders_of_killed_processes_are_swept():
    place = Path(tempfile.gettempdir())
    gone, living = place / f"{KERNEL_FOLDER}4194303-abc", place / f"{KERNEL_FOLDER}{os.getppid()}-abc"
    gone.mkdir(exist_ok=True), living.mkdir(exist_ok=True)
    try:
        with kernel_environment():
            assert not gone.exists()
            assert living.exists()
    finally:
        living.rmdir()


def test_lines_of_a_kernel_and_of_its_workers_are_seen_once(tmp_path, capfd, monkeypatch):
    """dask workers are processes of the kernel, and write to its terminal."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it ipykernel captures nothing of other processes
    cells = ["print('own: step 1/1 loss 0.1, 0 s left')",
             "import subprocess, time\nsubprocess.run(['echo', 'worker: step 1/1 loss 0.1, 0 s left'])\ntime.sleep(1)"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]),
                   tmp_path / "a.ipynb")
    with kernel_environment():
        execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path / "log")
    shown = capfd.readouterr().out
    assert [shown.count(f"{who}: step 1/1") for who in ("own", "worker")] == [1, 1]


def test_memory_is_measured_however_soon_a_notebook_is_done(tmp_path, monkeypatch):
    """The clock of the samples stands still here, as it did for a kernel that lived for less than half a second."""
    monkeypatch.setattr(notebooks._PeakMemory, "_watch", lambda self: None)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("block = b'x' * 10**8")]),
                   tmp_path / "a.ipynb")
    with kernel_environment():
        assert execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb", {}, tmp_path / "log") > 1e8


def test_without_loopback_the_reason_is_told(tmp_path):
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no network namespace can be made here")
    script = ("import sys\nfrom pathlib import Path\nfrom paperlib.running.notebooks import *\n"
              "out = Path(sys.argv[1])\nimport nbformat\n"
              "nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1')]), out / 'a.ipynb')\n"
              "with kernel_environment():\n"
              "    try: execute(out / 'a.ipynb', out / 'b.ipynb', {}, out / 'log')\n"
              "    except NotebookError as error: print('told:', error)\n")
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", script, str(tmp_path)], capture_output=True,
                          text=True, timeout=200, check=False)
    assert "told: its kernel" in done.stdout, done.stderr[-2000:]
