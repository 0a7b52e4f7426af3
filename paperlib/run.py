"""A run's folder and its records: every number with commit, settings, seed, versions and input hashes beside it.

`results/<profile>/` holds tables, records, figures, executed notebooks, checkpoints (git-ignored) and `report.html`;
what is measured follows the paper's section 7.
"""

import json
import math
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image
from matplotlib import style
from matplotlib.figure import Figure

from paperlib.environment import portable, provenance, root, settle_folders
from paperlib.errors import UserError
from paperlib.files import atomic_path, explain, sha256_file, user_path, write_json
from paperlib.profiles import load_settings
from paperlib.settings import Settings, flatten

NOTEBOOKS = ("01_data", "02_stage1", "03_teacher", "04_stage2", "05_fuse_qat", "06_tflite_eval", "07_ablations")
STYLE = Path(__file__).with_name("paper.mplstyle")


def measured_row(table: str, row: str, precision: str, metric: str, value: float | Sequence[float] | None,
                 dataset: str, **more: Any) -> dict[str, Any]:
    """One measured number for a record.

    Args:
        table: the paper's table (A, B, C, D, abstract), or a name of ours for numbers that no table of the paper has.
        row: the model, as in `reported.csv`.
        precision: fp32, int8 or fake-quant.
        metric: psnr, ssim, or a further one.
        value: the number, or one per seed (then their mean and sample standard deviation are kept too); None where
            it could not be measured.
        dataset: the image set it was measured on; the tables read "validation".
        more: anything that belongs beside the number, such as `note`, or `steps` of the training behind it.
    """
    line = {"table": table, "row": row, "precision": precision, "metric": metric, "dataset": dataset}
    if isinstance(value, Sequence):
        mean = math.fsum(value) / len(value)
        spread = math.sqrt(math.fsum((x - mean) ** 2 for x in value) / (len(value) - 1)) if len(value) > 1 else None
        return line | {"value": mean, "values": list(value), "sd": spread} | more
    return line | {"value": value} | more


def _inputs(inputs: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Files as path and SHA-256 (paths inside `out` relative to it, so that they can be checked later), hashes as is.

    Raises:
        UserError: a file is missing.
    """
    described: dict[str, Any] = {}
    for label, value in inputs.items():
        if isinstance(value, Path):
            if not value.is_file():
                raise UserError(f"the record's input {label!r} is not a file: {value}. Run the step that writes it.")
            place = value.relative_to(out) if value.is_relative_to(out) else value
            described[label] = {"file": str(place), "sha256": sha256_file(value)}
        else:
            described[label] = value
    return described


class Run:
    """A profile's settings and the folder of its results; records count their duration from when it was made."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def folder(self, name: str) -> Path:
        """A subfolder of the results, made if missing.

        Raises:
            UserError: it cannot be made.
        """
        path = self.out / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(error, path) from error
        return path

    def check_writable(self) -> None:
        """Write and remove a file in the results folder, before hours of work go into it.

        Raises:
            UserError: the folder takes no files.
        """
        folder = self.folder("records")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror}. Choose a writable folder with --out."
                            ) from error

    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage's training state and weights."""
        return self.folder(f"checkpoints/{stage}")

    def describe(self, *sections: str) -> pd.DataFrame:
        """The settings as a table: the named sections, or profile, seed, folder and data where none is named."""
        flat = flatten("", self.settings.model_dump(mode="json"))
        chosen = {key: value for key, value in flat.items() if not sections or key.split(".")[0] in sections}
        if not sections:
            chosen = {"profile": f"{self.settings.profile} ({self.settings.note})", "seed": self.settings.seed,
                      "results": str(self.out)} | {key: v for key, v in chosen.items() if key.startswith("data.")}
        return pd.DataFrame({"setting": chosen.keys(), "value": [str(value) for value in chosen.values()]})

    def figure(self, name: str, figure: Figure) -> Image:
        """Save a figure as figures/<name>.png and give that very picture for display, at half its pixel size."""
        path = self.folder("figures") / f"{name}.png"
        with style.context(STYLE), atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", pil_kwargs={"optimize": True})
        return Image(filename=path, width=round(figure.get_figwidth() * 80), alt=name.replace("_", " "))

    def record(self, name: str, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any] | None = None,
               **extra: Any) -> Path:
        """Write records/<name>.json: the measured rows with everything needed to believe them.

        Args:
            name: NN_name of the notebook.
            rows: see `measured_row`.
            inputs: label → Path of a file (its SHA-256 is recorded), or a hash.
            extra: anything else worth keeping (histories, layer statistics), JSON-able; undefined numbers become null.

        Raises:
            UserError: an input file is missing, or the folder cannot be written.
        """
        content = provenance() | {
            "name": name, "profile": self.settings.profile, "note": self.settings.note, "seed": self.settings.seed,
            "settings": self.settings.model_dump(mode="json"), "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "inputs": _inputs(inputs or {}, self.out), "rows": list(rows)}
        if taken := content.keys() & extra.keys():
            raise ValueError(f"a record has these fields already: {', '.join(sorted(taken))}")
        return write_json(self.folder("records") / f"{name}.json", _plain(content | extra))

    def read_record(self, name: str) -> dict[str, Any]:
        """A record of this run.

        Raises:
            UserError: there is none (the message says which notebook writes it), or it is damaged.
        """
        path = self.out / "records" / f"{name}.json"
        if not path.is_file():
            raise UserError(f"no record at {path}. Run notebook {name} with profile {self.settings.profile} first.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}). Run notebook {name} again.") from error
        except OSError as error:
            raise explain(error, path, "read") from error
        if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
            raise UserError(f"{path} is no record: it has no rows. Run notebook {name} again.")
        sound = isinstance(record.get("inputs", {}), dict) and all(isinstance(row, dict) for row in record["rows"])
        if not sound or not isinstance(record.get("settings", {}), dict):
            raise UserError(f"{path} is no record of this version of the kit. Run notebook {name} again.")
        return record

    def records(self) -> dict[str, dict[str, Any]]:
        """All records of this run by name, in the notebooks' order."""
        return {path.stem: self.read_record(path.stem) for path in sorted((self.out / "records").glob("*.json"))}


def _plain(value: Any) -> Any:
    """JSON's own types: numbers of numpy and torch become Python's, paths portable text, undefined numbers null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return portable(str(value)) if isinstance(value, str | Path) else value


def open_run(profile: str | None = None, out: str | Path | None = None, overrides: str | dict | None = None) -> Run:
    """Open (or start) a run.

    Args:
        profile: smoke, demo, benchmark or paper; empty: the variable PAPERLIB_PROFILE, else smoke.
        out: folder for the results; empty: results/<profile> in the clone, wherever the notebook runs.
        overrides: single settings, a dict or a JSON object in a string.

    Raises:
        UserError: unknown profile or setting, or a folder that cannot be written.
    """
    settle_folders()
    if not isinstance(overrides, str | dict | None):
        raise UserError(f"overrides = {overrides!r} is no JSON object. Write for instance {{\"stage1.steps\": 500}}.")
    try:
        settings = load_settings(None if profile is None else str(profile), overrides)
    except RecursionError as error:
        raise UserError("overrides is nested deeper than any setting. Shorten it.") from error
    run = Run(settings, user_path(out).absolute() if out else root() / "results" / settings.profile)
    run.check_writable()
    return run
