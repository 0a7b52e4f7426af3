"""A run's folder and its records: every number with commit, settings, seed, versions and hashes.

`results/<profile>/` (git-ignored) holds tables, records, figures, executed notebooks, checkpoints
and `report.html`; `results/reference/` holds committed runs.
"""

import html
import json
import math
import resource
import shlex
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from paperlib import files
from paperlib.data.images import compress_figure
from paperlib.environment import absolutise_env, provenance, root, to_portable
from paperlib.errors import UserError
from paperlib.profiles import HARMLESS, TRAINED_BY, load_settings, note
from paperlib.settings import Settings, flatten, settings_hash

if TYPE_CHECKING:  # a training under torchrun needs neither
    from IPython.display import HTML, Image
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("paper.mplstyle")
SMOKE = ("Profile smoke: a few steps on a few small pictures, to show that every cell runs. Its "
         "pictures are wrong, its scores mean nothing. For a real run open the notebooks with make "
         "lab, or set profile to demo above.")
"""What stands in red where a smoke run is shown."""
LEFT = '<div style="text-align: left">{}</div>'
"""A cell of a notebook's table that holds words; all others are aligned to the right."""
SHOWN = 8
"""Settings that a notebook shows unfolded."""


def measured_row(
    table: str, row: str, precision: str, metric: str, value: float | Sequence[float] | None,
    dataset: str, **more: Any,
) -> dict[str, Any]:
    """One measured number for a record.

    Args:
        table: the paper's table (A, B, C, D, abstract), or a name of ours for what none has.
        row: the model, as in `reported.csv`.
        precision: fp32, int8 or fake-quant.
        value: the number, or one per seed (mean and sample standard deviation are kept too); None
            where it could not be measured.
        dataset: the image set; the tables read "validation".
    """
    line = {"table": table, "row": row, "precision": precision, "metric": metric,
            "dataset": dataset}
    if not isinstance(value, Sequence):
        return line | {"value": value} | more
    spread = statistics.stdev(value) if len(value) > 1 else None
    return line | {"value": statistics.fmean(value), "values": list(value), "sd": spread} | more


def rows_over_seeds(
    records: Sequence[Mapping[str, Any]], names: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Rows of single trainings, one each over its seeds: mean, standard deviation, every value.

    Args:
        records: with `training` (name, seed, identity); of one name, those that are trained
            otherwise than the newest are left out.
        names: which trainings, in this order; None: all.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_name.setdefault(record["training"]["name"], []).append(record)
    rows = []
    for name in by_name if names is None else names:
        newest = max(by_name[name], key=lambda record: record["started"])
        found = sorted((record for record in by_name[name] if record["training"].get("identity")
                        == newest["training"].get("identity")),
                       key=lambda record: record["training"]["seed"])
        if len(found) == 1:
            rows += map(dict, found[0]["rows"])
            continue
        seeds = [record["training"]["seed"] for record in found]
        rows += [measured_row(*(same[0][field] for field in ROW_COLUMNS[1:5]),
                              [row["value"] for row in same], same[0]["dataset"],
                              steps=same[0]["steps"], seed_ids=seeds,
                              images=[row["images"] for row in same])
                 for same in zip(*(record["rows"] for record in found), strict=True)]
    return rows


ABLATIONS = "07_ablations"
SCHEDULE = ("stage1_steps", "stage2_steps", "stage3_steps", "keep")
"""Settings of `ablation` that 07's trainings have in common; the others say which there are."""
ROW_COLUMNS = (
    "record", "table", "row", "precision", "metric", "dataset", "value", "sd", "seeds", "steps",
    "values", "seed_ids", "images")


def tidy_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Pairs of a record's name and one of its rows (see `measured_row`) as one frame.

    `value` and `sd` (over the seeds) are floats, nan where there is none; `seeds` how many there
    were; `steps` of the training behind the number, or <NA>; `values` a list of one number a seed,
    or None; `seed_ids` which seeds; `images` the values of the images, a list, or one a seed.
    """
    lines = [{name: row.get(name) for name in ROW_COLUMNS} | {
        "record": record, "seeds": len(row.get("values") or [None])} for record, row in rows]
    return pd.DataFrame(lines, columns=list(ROW_COLUMNS)).astype({
        "value": float, "sd": float, "seeds": int, "steps": "Int64", "values": object,
        "seed_ids": object, "images": object})


def _inputs(inputs: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Files as path (inside `out` relative to it) and SHA-256; hashes as they are."""
    paths = {label: value for label, value in inputs.items() if isinstance(value, Path)}
    for label, path in paths.items():
        if not path.is_file():
            raise UserError(f"the record's input {label!r} is not a file: {path}. "
                            "Run the step that writes it.")
    return dict(inputs) | {
        label: {"file": str(path.relative_to(out) if path.is_relative_to(out) else path),
                "sha256": files.sha256_file(path)} for label, path in paths.items()}


class Run:
    """A profile's settings and the folder of its results.

    Args:
        until: the notebook that asks; records of later ones, of an earlier run, are not read.
        every_record: read all records of the folder, whatever settings they were made with.
    """

    def __init__(
        self, settings: Settings, out: Path, until: str = "", every_record: bool = False,
    ) -> None:
        self.settings, self.out, self.until, self.every_record = settings, out, until, every_record
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    @property
    def id(self) -> str:
        """What makes two notebooks parts of one run: the hash of every setting of its trainings."""
        tree = self.settings.model_dump(mode="json", exclude={"ablation", "export"})
        return settings_hash(json.dumps(tree, sort_keys=True))

    def folder(self, name: str) -> Path:
        """A subfolder of the results, made if missing."""
        path = self.out / name
        with files.explained(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def stage_folder(self, stage: str) -> Path:
        """Folder of a stage's training state and weights."""
        return self.folder(f"checkpoints/{stage}")

    def command(self, first: str, last: str = "") -> str:
        """The command that runs notebooks `first` to `last` ("": to the end) of this run."""
        profile, method = self.settings.profile, self.settings.method
        words = ["paperlib", "reproduce", "--profile", profile, "--from", first[:2]]
        words += ["--until", last[:2]] if last else []
        words += ["--out", str(self.out)] if self.out != run_folder(None, profile) else []
        changed = [f"method={method}"] if method != load_settings(profile).method else []
        usual = _flat(load_settings(profile, {"method": method}))
        changed += [f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                    for name, value in _flat(self.settings).items() if value != usual[name]]
        return shlex.join([*words, *(["--set", *changed] if changed else [])])

    def settings_table(self, *sections: str) -> pd.DataFrame:
        """Columns setting, value and the paper's value: the named sections, or what a run is.

        What is not the paper's comes first.
        """
        def chosen(settings: Settings, out: str) -> dict[str, Any]:
            about = {"profile": f"{settings.profile} ({note(settings)})", "seed": settings.seed,
                     "results": out}
            return ({} if sections else about) | {
                key: value for key, value in _flat(settings).items()
                if key.split(".")[0] in (sections or ("data",))}

        mine, paper = chosen(self.settings, str(self.out)), chosen(load_settings("paper"), "")
        order = sorted(mine, key=lambda key: mine[key] == paper[key] or key.endswith(HARMLESS))
        return pd.DataFrame({"setting": order, "value": [_words(mine[key]) for key in order],
                             "paper": [_words(paper[key]) for key in order]})

    def describe(self, *sections: str) -> "HTML":
        """`settings_table` for display: the first eight, bold where not the paper's, and a fold."""
        from IPython.display import HTML

        lines = self.settings_table(*sections).map(html.escape)
        other = lines["value"] != lines["paper"]
        lines["value"] = lines["value"].mask(other, "<b>" + lines["value"] + "</b>")
        lines["setting"] = lines["setting"].map(LEFT.format)
        lines.columns = [LEFT.format("setting"), "this run", "the paper"]
        smoke = f'<p style="color:#d93025"><b>{SMOKE}</b></p>' * (self.settings.profile == "smoke")
        first, more = (part.to_html(index=False, escape=False, border=0)
                       for part in (lines[:SHOWN], lines[SHOWN:]))
        fold = f"<details><summary>{len(lines) - SHOWN} more settings</summary>{more}</details>"
        return HTML(smoke + first + fold * (len(lines) > SHOWN))

    def require(self, stage: str) -> None:
        """Refuse to go on without the weights of the stages up to this one."""
        missing = [notebook for name, notebook in TRAINED_BY.items() if name <= stage and not (
            self.out / "checkpoints" / name /
            f"{'qat' if name == 'stage3' else 'student'}.safetensors").is_file()]
        started = stage == "stage2" and self.settings.quant.start  # stage 3 has the user's file
        if TRAINED_BY[stage] in missing and not started:
            raise UserError(
                f"this starts from weights that are not in {self.out} yet, those of "
                f"{', '.join(missing)}. Run: {self.command(missing[0], TRAINED_BY[stage])}")

    @staticmethod
    def show(figure: "Figure", alt: str = "") -> "Image":
        """A figure for display, at half its pixel size; nothing is saved."""
        return _shown(_drawn(figure), alt)

    def figure(self, name: str, figure: "Figure") -> "Image":
        """Save a figure as figures/<name>.png (.webp with photographs); gives it for display."""
        kind, content = compress_figure(drawn := _drawn(figure), "WEBP")
        with files.atomic_path(self.folder("figures") / f"{name}.{kind}") as temporary:
            temporary.write_bytes(content)
        other = "webp" if kind == "png" else "png"
        (self.folder("figures") / f"{name}.{other}").unlink(missing_ok=True)
        return _shown(drawn, name.replace("_", " "))

    def record(self, name: str, rows: Sequence[Mapping[str, Any]],
               inputs: Mapping[str, Any] | None = None, **extra: Any) -> Path:
        """Write records/<name>.json: the measured rows with everything needed to believe them.

        Args:
            name: NN_name of the notebook.
            inputs: label → Path of a file (its SHA-256 is recorded), or a hash.
            extra: anything else worth keeping; undefined numbers become null.
        """
        content = provenance() | {
            "name": name, "run": self.id, "profile": self.settings.profile,
            "note": note(self.settings), "seed": self.settings.seed,
            "settings": self.settings.model_dump(mode="json"),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "inputs": _inputs(inputs or {}, self.out), "rows": list(rows)}
        if taken := content.keys() & extra.keys():
            raise ValueError(f"a record has these fields already: {', '.join(sorted(taken))}")
        path = self.folder("records") / f"{name}.json"
        return files.write_json(path, plain(content | extra, self.out))

    def read_record(self, name: str) -> dict[str, Any]:
        """A record of this run; one that is missing or damaged is told with its notebook."""
        path = self.out / "records" / f"{name}.json"
        if not path.is_file():
            raise UserError(f"no record at {path}. Run: {self.command(name, name)}")
        record = files.read_json(path)
        try:
            tidy_rows((name, row) for row in record["rows"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). "
                            f"Run notebook {name} again.") from error
        return record

    def record_path(self, name: str) -> str:
        """Where a record lies in the run; notebook 07's may be its trainings' alone."""
        path = f"records/{name}.json"
        return path if (self.out / path).is_file() else f"records/{name[:2]}"

    def _names(self, folder: str = ".") -> list[str]:
        """The records there; a hidden file is half written, now or by a killed process."""
        paths = (self.out / "records" / folder).glob("[!.]*.json")
        return sorted(path.stem for path in paths)

    def trainings(self) -> list[dict[str, Any]]:
        """The records of notebook 07's single trainings (records/07/<name>-<seed>.json)."""
        found = [self.read_record(f"07/{name}") for name in self._names("07")]
        size = self.settings.ablation.model_dump(include=set(SCHEDULE))
        return [record for record in found if self.every_record or (
            record.get("run") == self.id
            and size == {field: record["settings"]["ablation"].get(field) for field in SCHEDULE})]

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of this run by name, in the notebooks' order: none of other settings, none
        after `until`. What 07's single trainings measured stands in its record, over all seeds."""
        found = {name: self.read_record(name) for name in self._names()}
        found = {name: record for name, record in found.items() if self.every_record or (
            record.get("run", self.id) == self.id and name <= (self.until or name))}
        trainings = [] if self.until and self.until < ABLATIONS else self.trainings()
        if not trainings:
            return found
        rows = rows_over_seeds(trainings)
        key = lambda row: tuple(row[name] for name in ROW_COLUMNS[1:6])
        held = {key(row) for row in rows}
        own = found.get(ABLATIONS, max(trainings, key=lambda record: record["started"]))
        rest = [row for row in own["rows"] if key(row) not in held] if ABLATIONS in found else []
        seconds = round(sum(record["seconds"] for record in trainings), 1)
        found[ABLATIONS] = own | {"name": ABLATIONS, "rows": rest + rows, "seconds": seconds}
        return dict(sorted(found.items()))


def _drawn(figure: "Figure") -> bytes:
    from matplotlib import style

    with style.context(STYLE):
        figure.savefig(buffer := BytesIO(), format="png")
    return buffer.getvalue()


def _shown(png: bytes, alt: str) -> "Image":
    from IPython.display import Image

    kind, content = compress_figure(png, "JPEG")
    return Image(content, format=kind, width=int.from_bytes(png[16:20]) // 2, alt=alt)


def _flat(settings: Settings) -> dict[str, Any]:
    return flatten("", settings.model_dump(mode="json"))


def _words(value: Any) -> str:
    """A setting's value for the eye."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def plain(value: Any, out: Path | None) -> Any:
    """JSON's own types: numpy's and torch's numbers too, paths portable, undefined numbers null."""
    if isinstance(value, Mapping):
        return {str(key): plain(part, out) for key, part in value.items()}
    if isinstance(value, pd.DataFrame):
        return plain(value.to_dict("records"), out)
    if isinstance(value, list | tuple):
        return [plain(part, out) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist(), out)
    return to_portable(str(value), out) if isinstance(value, str | Path) else value


def run_folder(out: str | Path | None, profile: str) -> Path:
    """Where a run's results go: the folder named, else `results/<profile>` in the clone.

    `$OUT` stands in executed notebooks for the run that they lie in; opened again, they go on
    there, but a committed run is left as it is.
    """
    if str(out) == "$OUT":
        around = Path.cwd().parent
        committed = around.is_relative_to(root() / "results" / "reference")
        out = around if (around / "records").is_dir() and not committed else None
    return files.user_path(out).absolute() if out else root() / "results" / profile


def open_run(
    profile: str | None = None, out: str | Path | None = None, overrides: str | dict | None = None,
    until: str = "",
) -> Run:
    """Open (or start) a run.

    Args:
        profile: smoke, demo, benchmark or paper; empty: the variable PAPERLIB_PROFILE, else demo.
        out: folder for the results; empty: results/<profile> in the clone.
        overrides: single settings, a dict or a JSON object in a string.
        until: the notebook that asks; it reads no record of later ones.
    """
    absolutise_env()
    settings = load_settings(None if profile is None else str(profile), overrides)
    run = Run(settings, run_folder(out, settings.profile), until)
    files.check_folder(run.out / "records")
    return run
