"""`results/settings.md`: every setting with its values in the profiles and its meaning.

Read from the fields of `paperlib.settings` and the strings below them, and from the profiles and
methods as data, so that nothing is said twice. `python results/pages.py` writes it.
"""

import json
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from paperlib.profiles import METHODS, load_settings
from paperlib.settings import LossSettings, Settings, StageSettings

SHOWN = ("paper", "benchmark", "demo")
STAGES = ("stage1", "stage2", "stage3")
TYPES = {str: "text", int: "integer", float: "number", bool: "`true` or `false`",
         type(None): "`null`"}
LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "multiple_of": "a multiple of {}"}
HEADING = """# Settings

Written by `python results/pages.py` from `paperlib/settings.py` and `paperlib/profiles.py`.

Any setting is changed by `--set NAME=VALUE` (several after one `--set`), in a notebook by the
parameter `overrides`, for `make` by `ARGS="--set NAME=VALUE"`. A value is JSON; text may stand
without quotes. An unknown name or a value out of range is refused before anything runs.

The columns show each profile's values. `paper` and `demo` use the paper's method, `benchmark` ours.
`smoke` runs every code path in little time and is not shown."""


def kind(field: FieldInfo) -> str:
    """What a field takes, in words: the words themselves, or a type and its limits."""
    return ", ".join([_kind(field.annotation), *(
        text.format(f"{getattr(limit, name):g}")
        for limit in field.metadata for name, text in LIMITS.items()
        if getattr(limit, name, None) is not None)])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is UnionType:
        return " or ".join(map(_kind, get_args(annotation)))
    return TYPES[annotation]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value in ("", [], ()) else json.dumps(value).strip('"')


@cache
def _profile(name: str) -> dict[str, Any]:
    return load_settings(name).model_dump(mode="json")


def _values(names: list[str], profile: str) -> str:
    """The values of a field in a profile; in the three stages one where they are equal."""
    values = []
    for name in names:
        value: Any = _profile(profile)
        for part in name.split("."):
            value = value[part]
        values.append(_value(value))
    return values[0] if len(set(values)) == 1 else " / ".join(value or "–" for value in values)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _section(title: str, section: type[BaseModel], places: tuple[str, ...]) -> str:
    """A section as a table; sections inside it have tables of their own."""
    lines = []
    for name, field in section.model_fields.items():
        if _is_section(field) or name == "expect":
            continue
        full = [f"{place}.{name}" if place else name for place in places]
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        values = [_values(full, profile) for profile in SHOWN]
        cells = [f"`{full[0] if len(places) == 1 else name}`", meaning, *values, kind(field)]
        lines.append("| " + " | ".join(cells) + " |")
    head = "| " + " | ".join(["setting", "meaning", *SHOWN, "takes"]) + " |\n" + "| --- " * 6 + "|"
    return "\n\n".join([f"## {title}", (section.__doc__ or "").strip(), "\n".join([head, *lines])])


def settings_text() -> str:
    """The page as Markdown."""
    parts = [HEADING, _section("General", Settings, ("",))]
    for name, field in Settings.model_fields.items():
        if name not in STAGES and _is_section(field):
            parts.append(_section(f"`{name}.`", field.annotation, (name,)))
    parts += [
        _section("`stage1.`, `stage2.`, `stage3.`", StageSettings, STAGES),
        _section(", ".join(f"`{stage}.loss.`" for stage in STAGES), LossSettings,
                 tuple(f"{stage}.loss" for stage in STAGES))]
    rows = "\n".join(
        f"| `{name}` | {_value(value)} | {_value(METHODS['ours'][name])} |"
        for name, value in METHODS["paper"].items() if value != METHODS["ours"][name])
    parts.append(
        "## What `method` switches\n\n`method=paper` or `method=ours` sets these together; single "
        "settings lie on top. `method=released`, for profile `paper` alone, is the run that made the "
        "reported numbers, as far as this kit has its terms: another rate and smaller patches in stage "
        "2; in stage 3 batch 1, 120,000 steps, its own weight λ(t) of the teacher, and the stage-2 "
        "student as that.\n\n"
        f"| setting | paper | ours |\n| --- | --- | --- |\n{rows}")
    return "\n\n".join(parts) + "\n"
