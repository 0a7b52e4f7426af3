"""The notebooks 01 to 07 headlessly: skip what is current, resume, then tables and report.

A notebook is current when its record is there, unchanged, and nothing that it depends on has
changed: its cells, the settings, paperlib's sources, the photographs and weights that go in, and
what the notebooks before it depend on.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from paperlib.data.sources import named_folder, split_sources
from paperlib.environment import assets_dir, from_portable, root
from paperlib.errors import UserError
from paperlib.evaluation.audit import authors_folder
from paperlib.files import file_lock, read_json, remove_stale, sha256_file, write_json
from paperlib.profiles import NOTEBOOKS
from paperlib.reporting.ending import ending_text
from paperlib.reporting.report import write_report, write_summary
from paperlib.reporting.results import Results
from paperlib.reporting.tables import write_tables
from paperlib.run import Run, open_run
from paperlib.running import notebooks
from paperlib.running.notebooks import NotebookError, execute, notebook_hash
from paperlib.training.ablations import check_switches
from paperlib.weights import start_file

STATE = ".state.json"
"""In the run's folder: what is remembered of its notebooks."""


def input_files(run: Run) -> list[Path]:
    """The files outside the run that its results depend on: photographs, test sets, weights in
    PAPERLIB_ASSETS, the authors' downloaded files, the checkpoint that `quant.start` names.
    """
    settings = run.settings.data
    sources = [source for split in ("train", "valid") for source in split_sources(settings, split)]
    files = [path for source in sources for path in (source.hr, source.lr) if path is not None]
    folders = {*map(named_folder, settings.tests), assets_dir(), authors_folder()} - {None}
    files += [start_file(start)] if (start := run.settings.quant.start) else []
    return files + sorted({path for folder in folders for path in folder.rglob("*")
                           if path.is_file()})


def package_files() -> list[Path]:
    """The files of this package: sources, tables, templates and the shipped weights."""
    folder = Path(__file__).parents[1]
    return sorted(path for path in folder.rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts)


def fingerprints(paths: Sequence[Path], run: Run) -> dict[str, str]:
    """What each notebook's result depends on, as a hash that contains those of the ones before."""
    package = [sha256_file(path) for path in package_files()]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns]
             for path in input_files(run) if path.exists()]
    value, found = json.dumps([package, files, run.settings.model_dump(mode="json")]), {}
    for path in paths:
        value = found[path.stem] = sha256((value + notebook_hash(path)).encode()).hexdigest()
    return found


def is_current(run: Run, name: str, fingerprint: str, state: Mapping[str, Any]) -> bool:
    """Whether a notebook need not run: same fingerprint, what it wrote and read is as it was."""
    known = state.get(name)
    if known is None or known["fingerprint"] != fingerprint or not known.get("files"):
        return False

    def unchanged(file: str, expected: str) -> bool:
        path = from_portable(file, run.out)
        return path.is_file() and sha256_file(path) == expected

    return all(unchanged(*written) for written in known["files"].items()) and all(
        unchanged(entry["file"], entry["sha256"])
        for entry in run.read_record(name)["inputs"].values() if isinstance(entry, dict))


def _written(run: Run, name: str) -> dict[str, str]:
    """SHA-256 of a notebook's record, executed copy and figures, by their place in the run."""
    paths = [run.out / "records" / f"{name}.json", run.out / "notebooks" / f"{name}.ipynb",
             *sorted((run.out / "figures").glob(f"{name[:2]}_*"))]
    return {str(path.relative_to(run.out)): sha256_file(path) for path in paths}


def time_left(
    names: Sequence[str], index: int, elapsed: float, state: Mapping[str, Any],
) -> float | None:
    """Estimated seconds from the start of `names[index]` to the end; None: nothing to go by.

    Args:
        names: the notebooks that run, in order; those before `index` took `elapsed` seconds.
        state: what earlier runs took, by notebook.
    """
    known = [state.get(name, {}).get("seconds") for name in names[index:]]
    if None not in known:
        return sum(known)
    shares = [NOTEBOOKS[name].share if name in NOTEBOOKS else 10 for name in names]
    done, left = sum(shares[:index]), sum(shares[index:])
    return elapsed * left / done if done >= 10 else None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _read_state(path: Path) -> dict[str, Any]:
    """What is remembered of each notebook: fingerprint, seconds, peak_bytes, files (SHA-256)."""
    if not path.is_file():
        return {}
    state = read_json(path)
    needed = {"fingerprint", "seconds", "peak_bytes"}
    if not isinstance(state, dict) or any(
            not isinstance(known, dict) or not needed <= known.keys() for known in state.values()):
        raise UserError(f"{path} is no state of this version of the kit. Delete it; every notebook "
                        "then runs again.")
    return state


def reproduce(
    profile: str | None = None, out: str | Path | None = None, first: str = "01", last: str = "07",
    overrides: dict[str, Any] | None = None, force: bool = False, folder: Path | None = None,
) -> int:
    """Run the notebooks from `first` to `last`, then write tables, summary and report.

    Args:
        profile, out, overrides: see `paperlib.run.open_run`.
        first, last: numbers of notebooks, two digits.
        force: run notebooks again that are current; finished trainings are not repeated.
        folder: where the notebooks lie; None: the clone's.

    Returns:
        0 if every notebook ran or was current, else 1.
    """
    run, overrides = open_run(profile, out, overrides), overrides or {}
    check_switches(run.settings)
    paths = notebooks.find_notebooks(folder or root() / "notebooks")
    numbers = [path.stem[:2] for path in paths]
    for number in (first, last):
        if number not in numbers:
            raise UserError(f"no notebook {number!r}. There are {', '.join(numbers)}.")
    if first > last:
        raise UserError(f"--from {first} comes after --until {last}. Exchange them.")
    chosen = [path for path in paths if first <= path.stem[:2] <= last]
    with file_lock(run.out / ".lock"), notebooks.kernel_environment():
        remove_stale(run.out)
        prints, state = fingerprints(paths, run), _read_state(run.out / STATE)
        due = [path.stem for path in chosen
               if force or not is_current(run, path.stem, prints[path.stem], state)]
        began = time.monotonic()
        for number, path in enumerate(chosen, 1):
            name = path.stem
            label = f"[{number}/{len(chosen)}] {name}"
            if name not in due:
                print(f"{label}: up to date", flush=True)
                continue
            elapsed = time.monotonic() - began
            left = time_left(due, due.index(name), elapsed, state)
            then = "time left not known yet" if left is None else f"about {_minutes(left)} left"
            print(f"{label}: running, {_minutes(elapsed)} so far, {then}", flush=True)
            resume = f"      to resume: {run.command(name)}"
            try:
                done = _one(path, run, overrides)
            except NotebookError as error:
                copy = run.out / "notebooks" / path.name
                again = "" if error.of_settings else f"\n{resume}"
                print(f"{label}: failed: {error}\n      executed copy: {copy}{again}",
                      file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"\n{label}: interrupted; finished work is kept.\n{resume}",
                      file=sys.stderr)
                raise
            state[name] = done | {"fingerprint": prints[name]}
            write_json(run.out / STATE, state)  # at once: later ones may fail
            print(f"{label}: done in {_minutes(done['seconds'])}, peak memory "
                  f"{done['peak_bytes'] / 1e9:.1f} GB", flush=True)
        write_results(run, state, overrides)
    return 0


def _one(path: Path, run: Run, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Run one notebook; returns what the state remembers of it, but for its fingerprint."""
    clock = time.monotonic()
    parameters = {"profile": run.settings.profile, "out": str(run.out),
                  "overrides": json.dumps(overrides)}
    record = run.out / "records" / f"{path.stem}.json"
    before = record.stat().st_mtime_ns if record.is_file() else None
    execute(path, run.folder("notebooks") / path.name, parameters, run.out / ".kernel.log")
    if not record.is_file() or record.stat().st_mtime_ns == before:
        raise NotebookError(f"it ran but wrote no {record}; restore its last cells")
    return {"seconds": round(time.monotonic() - clock, 1),
            "peak_bytes": read_json(record).get("peak_memory_bytes", 0),
            "files": _written(run, path.stem)}


def write_results(
    run: Run, state: Mapping[str, Any], overrides: Mapping[str, Any] | None = None,
) -> None:
    """Tables, summary and report from whatever records there are; prints what came out."""
    costs = {name: {key: value[key] for key in ("seconds", "peak_bytes")}
             for name, value in sorted(state.items())}
    run.record("00_reproduce", [], notebooks=costs, overrides=overrides or {})
    results = Results(run)
    write_tables(results)
    write_summary(results)
    notebooks.to_html(run)
    write_report(results)
    print(f"\n{ending_text(results)}", flush=True)
