"""Running the notebooks headlessly in order (papermill): skip what is current, resume, and report.

A notebook is current when its record is there and nothing that it depends on has changed: its own cells, the settings,
paperlib's sources, the training pixels, and the records of the notebooks before it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from papermill.exceptions import PapermillExecutionError

from paperlib.config import load_settings
from paperlib.errors import UserError
from paperlib.files import atomic_path, file_lock, sha256_file, write_json
from paperlib.records import Run, open_run, root

PARAMETERS = ("profile", "out", "overrides")
KERNEL_ENVIRONMENT = {
    # glibc otherwise maps and unmaps large activations at every step, which costs more than computing them.
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "500000000",
    "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_MININTERVAL": "30", "PAPERLIB_PROGRESS": "plain",
}


def find_notebooks(folder: Path, first: str = "01", last: str = "07") -> list[Path]:
    """The numbered notebooks from `first` to `last` (two digits), each with exactly the three known parameters.

    Raises:
        UserError: none in that range, or one without a proper `parameters` cell.
    """
    paths = [path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if first <= path.name[:2] <= last]
    if not paths:
        raise UserError(f"no notebook from {first} to {last} in {folder}. Numbers go from 01 to 07; run from a clone.")
    for path in paths:
        cells = nbformat.read(path, as_version=4).cells
        tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        names = [line.split("=")[0].strip() for source in tagged for line in source.splitlines() if "=" in line]
        if len(tagged) != 1 or tuple(names) != PARAMETERS:
            raise UserError(f"{path} must have one cell tagged 'parameters' that sets {', '.join(PARAMETERS)}; it sets "
                            f"{', '.join(names) or 'nothing'} in {len(tagged)}. Restore the notebook.")
    return paths


def _sources_hash(folder: Path, pattern: str) -> str:
    return sha256("".join(sha256_file(path) for path in sorted(folder.glob(pattern))).encode()).hexdigest()


def notebook_hash(path: Path) -> str:
    """Hash of a notebook's cells; outputs and execution counts do not matter."""
    cells = nbformat.read(path, as_version=4).cells
    return sha256(json.dumps([[cell.cell_type, cell.source] for cell in cells]).encode()).hexdigest()


def fingerprint(path: Path, run: Run, before: str) -> str:
    """What a notebook's result depends on; `before` is the fingerprint of the notebook before it."""
    package = _sources_hash(Path(__file__).parent, "*.py")
    folders = json.dumps({name: os.environ.get(name) for name in ("PAPERLIB_ASSETS", "PAPERLIB_DATA")})
    settings = run.settings.model_dump_json()
    return sha256("\n".join([notebook_hash(path), package, settings, folders, before]).encode()).hexdigest()


@contextmanager
def _environment(extra: Mapping[str, str]):
    old = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _kernel_folder(out: Path) -> Path:
    """A kernel specification that starts this very Python, so that no other installation can answer."""
    folder = out / ".jupyter"
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", spec)
    return folder


class _PeakMemory:
    """Largest resident memory of this process's children, sampled twice a second while the block runs."""

    def __enter__(self) -> "_PeakMemory":
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:  # it ended between being listed and being asked
                    continue
            self.bytes = max(self.bytes, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _TrainingLines:
    """A text stream that passes on a kernel's training progress lines, indented, and drops everything else."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if " left" in line and "step " in line:
                print(f"    {line}", flush=True)
        return len(text)

    def flush(self) -> None:
        pass


def _execute(path: Path, run: Run, parameters: dict[str, str]) -> int:
    """Run one notebook; returns the kernel's peak memory in bytes. The executed copy stays also when it fails."""
    target = run.folder("notebooks") / path.name
    with _PeakMemory() as peak, atomic_path(target) as temporary:
        try:
            papermill.execute_notebook(
                str(path), str(temporary), parameters, kernel_name="python3", progress_bar=False,
                stdout_file=_TrainingLines(), cwd=str(path.parent))
        except PapermillExecutionError:
            temporary.replace(target)
            raise
    return peak.bytes


def reproduce(
    profile: str | None = None, out: str | Path | None = None, first: str = "01", last: str = "07",
    overrides: dict[str, Any] | None = None, force: bool = False, folder: Path | None = None,
) -> int:
    """Run the notebooks from `first` to `last`, then write tables, summary and report.

    Args:
        force: run notebooks again that are current. Finished trainings are still not repeated; delete their folder
            under checkpoints/ for that.
        folder: where the notebooks lie; default: the clone's.

    Returns:
        0 if every notebook ran or was current, else 1.

    Raises:
        UserError: unknown profile, setting or notebook number; unusable folder; another run in the same folder.
    """
    load_settings(profile, overrides)
    run = open_run(profile, out, overrides)
    paths = find_notebooks(folder or root() / "notebooks", first, last)
    everything = find_notebooks(folder or root() / "notebooks", "01", last)
    parameters = {"profile": run.settings.profile, "out": str(run.out), "overrides": json.dumps(overrides or {})}
    state_path = run.out / ".state.json"
    with file_lock(run.out / ".lock"), _environment(
            KERNEL_ENVIRONMENT | {"JUPYTER_PATH": str(_kernel_folder(run.out))}):
        state = json.loads(state_path.read_text()) if state_path.is_file() else {}
        began, before = time.monotonic(), ""
        for path in everything:
            before = fingerprint(path, run, before)
            if path not in paths:
                continue
            name, record = path.stem, run.out / "records" / f"{path.stem}.json"
            known = state.get(name, {})
            if not force and record.is_file() and known == {
                    "fingerprint": before, "record": sha256_file(record), "seconds": known.get("seconds")}:
                print(f"{name}: up to date", flush=True)
                continue
            print(f"{name}: running ({run.settings.note})", flush=True)
            clock = time.monotonic()
            try:
                peak = _execute(path, run, parameters)
            except PapermillExecutionError as error:
                print(f"{name}: failed: {error.ename}: {error.evalue}\n"
                      f"  executed copy: {run.out / 'notebooks' / path.name}\n"
                      "  put it right and run the same command again: finished work is kept", file=sys.stderr)
                return 1
            seconds = time.monotonic() - clock
            if not record.is_file():
                raise UserError(f"{name} ran but wrote no {record}. Restore the notebook's last cells.")
            state[name] = {"fingerprint": before, "record": sha256_file(record), "seconds": round(seconds, 1)}
            write_json(state_path, state)
            print(f"{name}: done in {seconds:.0f} s, {time.monotonic() - began:.0f} s so far, peak memory "
                  f"{peak / 1e9:.1f} GB", flush=True)
        _finish(run)
    return 0


def _finish(run: Run) -> None:
    from paperlib.report import write_report
    from paperlib.summary import write_summary
    from paperlib.tables import format_tables, write_tables

    write_tables(run)
    summary = write_summary(run)
    page = write_report(run)
    print(f"\n{format_tables(run.out)}\nSummary: {summary}\nReport: {page}")


def interrupt_children() -> None:
    """Ask the kernels that this process started to stop."""
    for child in psutil.Process().children(recursive=True):
        child.send_signal(signal.SIGINT)
