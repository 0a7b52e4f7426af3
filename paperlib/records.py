"""A run's folder and its records: every number with commit, settings, seed, versions and input hashes beside it.

`results/<profile>/` holds tables, records, figures, executed notebooks, checkpoints (git-ignored) and `report.html`.
"""

import json
import math
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from paperlib.checkpoint import flatten
from paperlib.config import Settings, load_settings
from paperlib.errors import UserError
from paperlib.files import atomic_path, sha256_file, write_json

NOTEBOOKS = ("01_data", "02_stage1", "03_teacher", "04_stage2", "05_fuse_qat", "06_tflite_eval", "07_ablations")
PACKAGES = ("paperlib", "torch", "torchvision", "tensorflow", "ai-edge-litert", "timm", "numpy", "accelerate",
            "mamba-ssm", "scikit-image")


def root() -> Path:
    """The clone that holds the package, or the current folder where paperlib is installed without one."""
    clone = Path(__file__).parents[1]
    return clone if (clone / "pyproject.toml").is_file() else Path.cwd()


def measured_row(table: str, row: str, precision: str, metric: str, value: float | Sequence[float] | None,
                 dataset: str, **more: Any) -> dict[str, Any]:
    """One measured number for a record.

    Args:
        value: the number, or one per seed (then its mean and standard deviation are kept too).
        dataset: the image set it was measured on.
    """
    line = {"table": table, "row": row, "precision": precision, "metric": metric, "dataset": dataset}
    if isinstance(value, Sequence):
        mean = math.fsum(value) / len(value)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in value) / (len(value) - 1)) if len(value) > 1 else None
        return line | {"value": mean, "values": list(value), "sd": spread} | more
    return line | {"value": value} | more


@cache
def _commit() -> dict[str, Any]:
    """Commit and whether the work tree differs from it (results excepted); None outside a git checkout."""
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root()), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", ":!results")
    except FileNotFoundError:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def provenance() -> dict[str, Any]:
    """Commit, versions, device and threads of this process."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return _commit() | {"versions": versions, "device": device, "cuda": torch.cuda.is_available(),
                        "threads": torch.get_num_threads(), "platform": platform.platform()}


class Run:
    """A profile's settings and the folder of its results."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def folder(self, name: str) -> Path:
        """A subfolder of the results, made if missing."""
        path = self.out / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}. Choose a writable folder with --out.") from error
        return path

    def checkpoint(self, stage: str) -> Path:
        """Folder of a stage's training state and weights."""
        return self.folder(f"checkpoints/{stage}")

    def describe(self, *sections: str) -> pd.DataFrame:
        """The settings as a table, all or only the named sections."""
        flat = flatten("", self.settings.model_dump(mode="json"))
        chosen = {key: value for key, value in flat.items() if not sections or key.split(".")[0] in sections}
        if not sections:
            chosen = {"profile": f"{self.settings.profile} ({self.settings.note})", "seed": self.settings.seed,
                      "results": str(self.out)} | {key: v for key, v in chosen.items() if key.startswith("data.")}
        return pd.DataFrame({"setting": chosen.keys(), "value": [str(value) for value in chosen.values()]})

    def figure(self, name: str, figure: Figure) -> Figure:
        """Save a figure as figures/<name>.png and give it back for display."""
        with atomic_path(self.folder("figures") / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png")
        return figure

    def record(self, name: str, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any] | None = None,
               **extra: Any) -> Path:
        """Write records/<name>.json: the measured rows with everything needed to believe them.

        Args:
            inputs: label → file (its SHA-256 is recorded) or a hash.
            extra: anything else worth keeping (histories, layer statistics), JSON-able; nan becomes null.
        """
        hashed = {label: sha256_file(value) if isinstance(value, Path) else value
                  for label, value in (inputs or {}).items()}
        content = provenance() | {
            "name": name, "profile": self.settings.profile, "note": self.settings.note, "seed": self.settings.seed,
            "settings": self.settings.model_dump(mode="json"), "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1), "inputs": hashed, "rows": list(rows)} | extra
        return write_json(self.folder("records") / f"{name}.json", _plain(content))

    def read_record(self, name: str) -> dict[str, Any]:
        """A record of this run.

        Raises:
            UserError: there is none; the message says which notebook writes it.
        """
        path = self.out / "records" / f"{name}.json"
        if not path.is_file():
            raise UserError(f"no record at {path}. Run notebook {name} first.")
        return json.loads(path.read_text(encoding="utf-8"))

    def records(self) -> dict[str, dict[str, Any]]:
        """All records of this run by name."""
        return {path.stem: json.loads(path.read_text(encoding="utf-8"))
                for path in sorted((self.out / "records").glob("*.json"))}


def _plain(value: Any) -> Any:
    """JSON's own types: numbers of numpy and torch become Python's, paths text, and undefined numbers null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return _plain(value.item())
    return str(value) if isinstance(value, Path) else value


def open_run(profile: str | None = None, out: str | Path | None = None, overrides: str | dict | None = None) -> Run:
    """Open (or start) a run.

    Args:
        profile: smoke, demo, benchmark or paper; empty: the variable PAPERLIB_PROFILE, else smoke.
        out: folder for the results; empty: results/<profile> in the clone, wherever the notebook runs.
        overrides: single settings, a dict or a JSON object in a string.

    Raises:
        UserError: unknown profile or setting, or a folder that cannot be written.
    """
    settings = load_settings(profile, overrides)
    run = Run(settings, Path(out).expanduser().absolute() if out else root() / "results" / settings.profile)
    run.folder("records")
    return run
