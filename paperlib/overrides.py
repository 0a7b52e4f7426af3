"""Single settings changed by name: `--set stage1.steps=500`, a notebook's `overrides`, an ablation's one change."""

import ast
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.files import user_path
from paperlib.settings import Settings


def nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.4) or sorted(names)
    return ", ".join(close)


def _insert(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `tree["a"]["b"]` for the field `a.b`; unknown fields are an error that names the nearest."""
    *sections, last = dotted.split(".")
    branch, seen = tree, []
    for name in [*sections, last]:
        if not isinstance(branch, dict) or name not in branch:
            names = list(branch) if isinstance(branch, dict) else []
            place = ".".join(seen) or "the settings"
            hint = f"Nearest: {nearest(name, names)}." if names else f"{place} has no fields."
            raise UserError(f"unknown setting {dotted!r}: {place} has no field {name!r}. {hint}")
        seen.append(name)
        if name is not last or len(seen) <= len(sections):
            branch = branch[name]
    if isinstance(branch[last], dict):
        raise UserError(f"{dotted!r} is a section, not a field. Its fields: {', '.join(branch[last])}.")
    branch[last] = value


def override(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with single fields changed, validated as a whole.

    Args:
        changes: dotted field names and values, for instance {"stage3.loss.kd": 0}.

    Raises:
        UserError: an unknown field (the nearest names are given), or a value of the wrong kind or range.
        ValueError: `method`, which is many settings; see `paperlib.profiles.load_settings`.
    """
    if "method" in changes:
        raise ValueError("a method is chosen when settings are loaded")
    tree = settings.model_dump()
    for field, value in changes.items():
        _insert(tree, field, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        raise UserError(f"setting {place}{value}: {first['msg'].removeprefix('Value error, ')}.") from error


def parse_overrides(overrides: str | dict[str, Any] | None) -> dict[str, Any]:
    """Overrides as a dict of dotted fields, from a dict or a JSON object in a string.

    Raises:
        UserError: the string is not a JSON object.
    """
    if isinstance(overrides, dict) or not overrides:
        return dict(overrides or {})
    try:
        value = json.loads(overrides)
    except json.JSONDecodeError as error:
        raise UserError(f"overrides is not JSON ({error}). Write for instance {{\"stage1.steps\": 500}}.") from error
    if not isinstance(value, dict):
        raise UserError("overrides must be a JSON object, for instance {\"stage1.steps\": 500}.")
    return value


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set` arguments as overrides: "stage1.steps=500" → {"stage1.steps": 500}; values are JSON, else plain text.

    Raises:
        UserError: an argument without "=".
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals or not field:
            raise UserError(f"--set {assignment}: expected field=value, for instance --set stage1.steps=500.")
        try:
            overrides[field] = json.loads(text)
        except json.JSONDecodeError:
            overrides[field] = text
    return overrides


PARAMETERS = ("profile", "out", "overrides")
"""What every notebook takes."""


def check_injected() -> None:
    """Refuse parameters that papermill set in this notebook and no notebook takes; it only warns of them in its log.

    Raises:
        UserError: there is one; the nearest name is given.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    cells = shell.user_ns.get("In", []) if shell else []
    for cell in cells:
        if not cell.startswith("# Parameters\n"):  # as papermill begins the cell that it adds
            continue
        names = [ast.unparse(target) for node in ast.parse(cell).body if isinstance(node, ast.Assign)
                 for target in node.targets]
        if unknown := [name for name in names if name not in PARAMETERS]:
            raise UserError(f"unknown parameter {unknown[0]!r}. Nearest: {nearest(unknown[0], list(PARAMETERS))}.")


def run_folder(out: str | Path | None, profile: str) -> Path:
    """Where a run's results go: the folder named, else `results/<profile>` in the clone.

    `$OUT` stands in executed notebooks for the run that they lie in; opened again, they go on there, but a committed
    run is left as it is.
    """
    if str(out) == "$OUT":
        around = Path.cwd().parent
        committed = around.is_relative_to(root() / "results" / "reference")
        out = around if (around / "records").is_dir() and not committed else None
    return user_path(out).absolute() if out else root() / "results" / profile
