"""Kernels of killed processes, and machines on which none can be reached."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paperlib.running.notebooks import kernel_environment


def test_a_kernel_folder_is_locked_while_in_use_and_swept_when_its_process_was_killed(monkeypatch):
    script = ("import os, signal\nfrom paperlib.running.notebooks import kernel_environment\n"
              "with kernel_environment():\n    print(os.environ['JUPYTER_PATH'].split(os.pathsep)[0], flush=True)\n"
              "    os.kill(os.getpid(), signal.SIGKILL)\n")
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    monkeypatch.setenv("TQDM_MININTERVAL", "1")
    before = dict(os.environ)
    with kernel_environment():
        assert not left.exists()
        assert os.environ["TQDM_MININTERVAL"] == "30"
        mine = Path(os.environ["JUPYTER_PATH"].split(os.pathsep)[0])
        with kernel_environment():
            specification = json.loads((mine / "kernels" / "python3" / "kernel.json").read_text())
        assert specification["argv"][0] == sys.executable
    assert dict(os.environ) == before
    assert not mine.exists()


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
