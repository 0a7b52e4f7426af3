"""The notebooks 01 to 07 headlessly in order: skip what is current, resume, then tables and report (paper section 7).

A notebook is current when its record is there, unchanged, and nothing that it depends on has changed: its own cells,
the settings, paperlib's sources, the photographs and weights that go in, and what the notebooks before it depend on.
"""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from paperlib.data.sources import named_folder, split_sources
from paperlib.environment import assets_dir, from_portable, root
from paperlib.errors import UserError
from paperlib.evaluation.audit import authors_folder
from paperlib.files import file_lock, read_json, remove_stale, sha256_file, write_json
from paperlib.profiles import NOTEBOOKS
from paperlib.reporting.ending import ending_text
from paperlib.reporting.exported import export_notebooks
from paperlib.reporting.report import write_report, write_summary
from paperlib.reporting.results import Results
from paperlib.reporting.tables import write_tables
from paperlib.run import Run, open_run
from paperlib.running.notebooks import NotebookError, execute, find_notebooks, kernel_environment, notebook_hash
from paperlib.training.ablations import check_switches
from paperlib.weights import start_file

STATE = ".state.json"
"""In the run's folder: what is remembered of its notebooks."""


def input_files(run: Run) -> list[Path]:
    """The files outside the run that its results depend on: photographs, test sets, weights in PAPERLIB_ASSETS, the
    authors' files where they were downloaded, the checkpoint that `quant.start` names. (A downloaded teacher has one
    hash or is refused.)

    Raises:
        UserError: a folder of photographs is missing.
    """
    settings = run.settings.data
    sources = [source for split in ("train", "valid") for source in split_sources(settings, split)]
    files = [path for source in sources for path in (source.hr, source.lr) if path is not None]
    folders = {*map(named_folder, settings.tests), assets_dir(), authors_folder()} - {None}
    files += [start_file(start)] if (start := run.settings.quant.start) else []
    return files + sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()})


def package_files() -> list[Path]:
    """The files of this package: sources, tables, templates and the shipped weights."""
    folder = Path(__file__).parents[1]
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def fingerprints(paths: Sequence[Path], run: Run) -> dict[str, str]:
    """What each notebook's result depends on, as a hash; each one's contains those of the notebooks before it."""
    package = [sha256_file(path) for path in package_files()]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in input_files(run) if path.exists()]
    value, found = json.dumps([package, files, run.settings.model_dump(mode="json")]), {}
    for path in paths:
        value = found[path.stem] = sha256((value + notebook_hash(path)).encode()).hexdigest()
    return found


def _intact(run: Run, name: str) -> bool:
    """Whether the files of the run that a record names are there as they were."""
    inputs = [entry for entry in run.read_record(name).get("inputs", {}).values() if isinstance(entry, dict)]
    if any(not {"file", "sha256"} <= entry.keys() for entry in inputs):
        return False  # of another version
    files = [(from_portable(entry["file"], run.out), entry["sha256"]) for entry in inputs]
    return all(path.is_file() and sha256_file(path) == expected for path, expected in files)


def is_current(run: Run, name: str, fingerprint: str, state: Mapping[str, Any]) -> bool:
    """Whether a notebook need not run: same fingerprint, and all that it wrote is there as it was."""
    known = state.get(name)
    if known is None or known["fingerprint"] != fingerprint or not known.get("files"):
        return False
    files = {run.out / place: expected for place, expected in known["files"].items()}
    return all(path.is_file() and sha256_file(path) == expected
               for path, expected in files.items()) and _intact(run, name)


def _written(run: Run, name: str) -> dict[str, str]:
    """SHA-256 of a notebook's record, executed copy and figures, by their place in the run's folder."""
    paths = [run.out / "records" / f"{name}.json", run.out / "notebooks" / f"{name}.ipynb",
             *sorted((run.out / "figures").glob(f"{name[:2]}_*"))]
    return {str(path.relative_to(run.out)): sha256_file(path) for path in paths}


def time_left(names: Sequence[str], index: int, elapsed: float, state: Mapping[str, Any]) -> float | None:
    """Estimated seconds from the start of `names[index]` to the end; None while there is nothing to go by.

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


def command_line(run: Run, name: str, overrides: Mapping[str, Any] | None) -> str:
    """The command that continues a run at a notebook."""
    words = ["paperlib", "reproduce", "--profile", run.settings.profile, "--from", name[:2]]
    if run.out != root() / "results" / run.settings.profile:
        words += ["--out", str(run.out)]
    if overrides:
        words += ["--set", *(f"{field}={value if isinstance(value, str) else json.dumps(value)}"
                             for field, value in overrides.items())]
    return shlex.join(words)


class Finished(BaseModel):
    """What `.state.json` remembers of a notebook."""

    fingerprint: str
    seconds: float
    peak_bytes: int
    files: dict[str, str] = {}
    """SHA-256 of what it wrote, by place in the run's folder; an older version knew none."""


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    state = read_json(path)
    try:
        TypeAdapter(dict[str, Finished]).validate_python(state)
    except ValidationError as error:
        raise UserError(f"{path} is no state of this version of the kit ({error.errors()[0]['msg']}). Delete it; every "
                        "notebook then runs again.") from error
    return state


def _select(paths: list[Path], first: str, last: str) -> list[str]:
    names = [path.stem for path in paths]
    numbers = [name[:2] for name in names]
    for number in (first, last):
        if number not in numbers:
            raise UserError(f"no notebook {number!r}. There are {', '.join(numbers)}.")
    if first > last:
        raise UserError(f"nothing lies between --from {first} and --until {last}. Exchange them.")
    return [name for name in names if first <= name[:2] <= last]


def reproduce(
    profile: str | None = None, out: str | Path | None = None, first: str = "01", last: str = "07",
    overrides: dict[str, Any] | None = None, force: bool = False, folder: Path | None = None,
) -> int:
    """Run the notebooks from `first` to `last`, then write tables, summary and report and print the tables.

    Args:
        profile: smoke, demo, benchmark or paper; None: the variable PAPERLIB_PROFILE, else smoke.
        out: folder for the results; None: results/<profile> in the clone.
        first, last: numbers of notebooks, two digits.
        overrides: dotted settings and values.
        force: run notebooks again that are current. Finished trainings are still not repeated; delete their folder
            under checkpoints/ for that.
        folder: where the notebooks lie; None: the clone's.

    Returns:
        0 if every notebook ran or was current, else 1.

    Raises:
        UserError: unknown profile, setting or notebook number; missing photographs; a folder that cannot be written,
            or in which another run is going on.
    """
    run = open_run(profile, out, overrides)
    check_switches(run.settings)
    paths = find_notebooks(folder or root() / "notebooks")
    chosen = _select(paths, first, last)
    with file_lock(run.out / ".lock"), kernel_environment():
        remove_stale(run.out)
        plan = _plan(run, overrides or {}, paths, chosen, force)
        if not _execute(plan):
            return 1
        write_results(run, plan.state, overrides)
    return 0


@dataclass(frozen=True)
class _Plan:
    """What one call does: which notebooks were asked for, and which of them must run."""

    run: Run
    overrides: Mapping[str, Any]
    paths: Mapping[str, Path]
    chosen: Sequence[str]
    due: Sequence[str]
    prints: Mapping[str, str]
    """Fingerprint of every notebook."""
    state: dict[str, Any]
    """What is remembered of every notebook that ran; grows as they run."""


def _plan(run: Run, overrides: Mapping[str, Any], paths: Sequence[Path], chosen: Sequence[str], force: bool) -> _Plan:
    prints, state = fingerprints(paths, run), _read_state(run.out / STATE)
    due = [name for name in chosen if force or not is_current(run, name, prints[name], state)]
    return _Plan(run, overrides, {path.stem: path for path in paths}, chosen, due, prints, state)


def _execute(plan: _Plan) -> bool:
    """Run what is due, in order; False where a notebook failed. What is finished is remembered at once."""
    run, began = plan.run, time.monotonic()
    for number, name in enumerate(plan.chosen, 1):
        label = f"[{number}/{len(plan.chosen)}] {name}"
        if name not in plan.due:
            print(f"{label}: up to date", flush=True)
            continue
        elapsed = time.monotonic() - began
        left = time_left(plan.due, plan.due.index(name), elapsed, plan.state)
        print(f"{label}: running, {_minutes(elapsed)} so far, "
              f"{'time left not known yet' if left is None else f'about {_minutes(left)} left'}", flush=True)
        resume = f"      to resume: {command_line(run, name, plan.overrides)}"
        try:
            done = plan.state[name] = _one(plan.paths[name], run, plan.overrides, plan.prints[name])
        except NotebookError as error:
            print(f"{label}: failed: {error}\n      executed copy: {run.out / 'notebooks' / plan.paths[name].name}\n"
                  f"{resume}", file=sys.stderr, flush=True)
            return False
        except KeyboardInterrupt:
            print(f"\n{label}: interrupted; finished work is kept.\n{resume}", file=sys.stderr, flush=True)
            raise
        write_json(run.out / STATE, plan.state)
        print(f"{label}: done in {_minutes(done['seconds'])}, peak memory "
              f"{done['peak_bytes'] / 1e9:.1f} GB", flush=True)
    return True


def _one(path: Path, run: Run, overrides: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """Run one notebook; returns what the state remembers of it."""
    clock = time.monotonic()
    parameters = {"profile": run.settings.profile, "out": str(run.out), "overrides": json.dumps(overrides)}
    record = run.out / "records" / f"{path.stem}.json"
    before = record.stat().st_mtime_ns if record.is_file() else None
    peak = execute(path, run.folder("notebooks") / path.name, parameters, run.out / ".kernel.log")
    if not record.is_file() or record.stat().st_mtime_ns == before:
        raise NotebookError(f"it ran but wrote no {record}; restore its last cells")
    return {"fingerprint": fingerprint, "seconds": round(time.monotonic() - clock, 1), "peak_bytes": peak,
            "files": _written(run, path.stem)}


def write_results(run: Run, state: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> None:
    """Tables, summary and report from whatever records there are.

    Prints what came out, how it compares with the committed run, and where everything lies.
    """
    costs = {name: {key: value[key] for key in ("seconds", "peak_bytes")} for name, value in sorted(state.items())}
    run.record("00_reproduce", [], notebooks=costs, overrides=overrides or {})
    results = Results(run)
    write_tables(results)
    write_summary(results)
    export_notebooks(run)
    write_report(results)
    print(f"\n{ending_text(results)}", flush=True)
