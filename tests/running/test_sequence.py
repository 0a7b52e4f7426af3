"""The smoke profile from end to end: real papermill, real kernel, real converter, the committed notebooks."""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from paperlib.evaluation.paper_numbers import reported
from paperlib.profiles import NOTEBOOKS
from paperlib.reporting.tables import COLUMNS, TABLES
from paperlib.reporting.verdicts import Verdict

KILLS = int(os.environ.get("PAPERLIB_TEST_KILLS", "2"))
"""How often the sequence is killed; 20 are for a run by hand."""
MOMENTARY = {"seconds", "started", "peak_memory_bytes", "load_average", "notebooks"}
"""Fields of records that say when, how long and with how much memory."""
WEIGHTS = (".safetensors", ".pth", ".tflite")


def clean(folder: Path) -> dict[str, str]:
    """An environment without settings of ours but for a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAPERLIB_")}
    return kept | {"PAPERLIB_CACHE": str(folder / "cache")}


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "paperlib", "reproduce", "--profile", "smoke", "--out", str(folder / "smoke")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished smoke run: its folder and what the terminal showed."""
    folder = tmp_path_factory.mktemp("reproduce")
    done = subprocess.run(command(folder), capture_output=True, text=True, env=clean(folder), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "smoke", done.stdout


def test_every_notebook_leaves_its_record_and_executed_copy_and_all_a_page_without_network(results):
    out, _ = results
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<img" in page
    for name in NOTEBOOKS:
        record = json.loads((out / "records" / f"{name}.json").read_text())
        assert record["profile"] == "smoke"
        assert record["seed"] == 1234
        assert record["versions"]["torch"]
        assert record["rows"] or name == "05_fuse_qat"
        assert (out / "notebooks" / f"{name}.ipynb").is_file()


def test_tables_have_every_reported_number_with_an_honest_verdict(results):
    out, shown = results
    found = {}
    for name in TABLES:
        with (out / "tables" / f"{name}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            found |= {(row["table"], row["row"], row["precision"], row["metric"]): row for row in reader}
            assert tuple(reader.fieldnames) == COLUMNS
    assert set(reported()) <= set(found)
    words = {row["verdict"] for row in found.values()}
    assert words <= {verdict.value for verdict in Verdict} - {"reproduced", "missed"}
    assert float(found["B", "student_deploy", "int8", "psnr"]["reproduced"]) > 0
    assert "not the paper's numbers" in (out / "summary.md").read_text()
    assert "Every notebook ran" in shown


def test_the_int8_file_is_what_was_trained(results):
    record = json.loads((results[0] / "records" / "06_tflite_eval.json").read_text())
    assert len(record["parity"]) == 2
    for file in record["parity"]:
        assert file["within_1_lsb"] >= 0.99, file
    values = {(row["table"], row["row"]): row["value"] for row in record["rows"]
              if row["metric"] == "psnr" and row["dataset"] == "validation"}
    assert values["export", "tflite_dynamic"] == pytest.approx(values["export", "fakequant"], abs=0.01)


def start(folder: Path) -> subprocess.Popen:
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command(folder), env=clean(folder), stdout=log, stderr=log)


def kill(process: subprocess.Popen, folder: Path) -> None:
    """SIGKILL to the command and to its kernels, which have process groups of their own."""
    members = [psutil.Process(process.pid)]
    members += members[0].children(recursive=True)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(30)
    psutil.wait_procs(members, timeout=30)
    for _ in range(100):  # what one of them started meanwhile
        if not (born := strays(folder)):
            break
        for member in born:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        time.sleep(0.3)


def strays(folder: Path) -> list[psutil.Process]:
    """Processes that have this folder's cache in their environment."""
    cache = str(folder / "cache")
    return [process for process in psutil.process_iter(["cmdline", "environ"])
            if (process.info["environ"] or {}).get("PAPERLIB_CACHE") == cache]


def lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: lasting(part) for key, part in value.items() if key not in MOMENTARY}
    return [lasting(part) for part in value] if isinstance(value, list) else value


def final(out: Path) -> list[Path]:
    """Files under final names: a temporary one begins with a dot."""
    return sorted(path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))


def check_none_is_half(out: Path) -> None:
    for path in final(out):
        assert path.stat().st_size or path.name == "lock", path
        if path.suffix in (".json", ".ipynb"):
            json.loads(path.read_text())
        elif path.suffix in (".png", ".webp"):
            with Image.open(path) as picture:
                picture.load()


def ending(out: Path) -> dict[str, Any]:
    """What kills must not change: the records, the weights bit for bit, the names of all other files."""
    found = {}
    for path in final(out):
        name = re.sub(r"^(state-\d+)-.*", r"\1", path.name)  # the rest is a hash, also of the time spent
        key = str(path.relative_to(out).with_name(name))
        found[key] = sha256(path.read_bytes()).hexdigest() if path.suffix in WEIGHTS else ""
        if path.parent.name == "records":
            found[key] = lasting(json.loads(path.read_text()))
    return found


def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(results, tmp_path):
    """The small teacher included. A run that ends before it is killed is begun anew."""
    out, whole = tmp_path / "smoke", ending(results[0])
    length = sum(part["seconds"] for part in json.loads((results[0] / ".state.json").read_text()).values())
    moments, kills = random.Random(18), 0
    while kills < KILLS:
        process = start(tmp_path)
        try:
            assert process.wait(moments.uniform(3, 20 + length / KILLS)) == 0, (tmp_path / "log").read_text()
            assert ending(out) == whole
            shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            kill(process, tmp_path)
            kills += 1
            check_none_is_half(out)
        assert strays(tmp_path) == []
    last = start(tmp_path)
    try:
        assert last.wait(900) == 0, (tmp_path / "log").read_text()
    finally:
        if last.poll() is None:
            kill(last, tmp_path)
    found = ending(out)
    assert "checkpoints/teacher/teacher.pth" in found
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert found[name] == value, name
    assert strays(tmp_path) == []
