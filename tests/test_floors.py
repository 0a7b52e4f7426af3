"""Imports go one way: a folder of paperlib imports from floors below its own, and notebooks import faces only."""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"errors"},
    {"settings", "files", "environment"},
    {"data", "student", "profiles", "weights"},
    {"teacher", "quantisation", "run"},
    {"export"},
    {"evaluation"},
    {"training", "reporting", "upscale"},
    {"running", "benchmarks"},
    {"cli"},
    {"__main__"},
)
"""From the ground. A room imports from lower floors, and from itself."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FACES = {"data", "student", "teacher", "quantisation", "export", "evaluation", "training", "reporting", "open_run"}


def imported(path: Path) -> list[str]:
    """The rooms that a module imports from, wherever in it the import stands."""
    rooms = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "paperlib":
            rooms += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paperlib."):
            rooms.append(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms += [name.name.split(".")[1] for name in node.names if name.name.startswith("paperlib.")]
    return rooms


def test_a_folder_imports_only_from_floors_below():
    upwards = []
    for path in sorted((ROOT / "paperlib").rglob("*.py")):
        inside = path.relative_to(ROOT / "paperlib")
        room = inside.parts[0].removesuffix(".py")
        if room == "__init__" or inside.as_posix() == "weights/release.py":  # a script, not the package
            continue
        upwards += [f"{inside} imports {other}" for other in imported(path)
                    if other not in (room, "__version__") and LEVEL[other] >= LEVEL[room]]
    assert not upwards


def test_every_room_has_a_floor_and_there_are_few():
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "paperlib").iterdir()
             if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")} - {"__init__"}
    assert rooms == set(LEVEL)
    tracked = subprocess.run(["git", "ls-files", "paperlib"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert len({line.split("/")[1] for line in tracked.stdout.splitlines()} - {"README.md"}) <= 22


def test_there_are_few_modules():
    assert len([path for path in (ROOT / "paperlib").rglob("*.py") if path.stem != "__init__"]) <= 80


def test_notebooks_import_faces_only():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paperlib"):
                assert node.module == "paperlib", f"{path.name} imports {node.module}"
                assert {name.name for name in node.names} <= FACES, path.name


def test_every_name_of_a_face_can_be_had():
    for name in sorted(FACES - {"open_run"}):
        face = importlib.import_module(f"paperlib.{name}")
        assert face.__all__
        for inside in face.__all__:
            assert hasattr(face, inside), f"{name}.{inside}"


def test_dotted_names_in_docstrings_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "paperlib").rglob("*.py"))
    missing = []
    for dotted in sorted(set(re.findall(r"`(paperlib(?:\.\w+)+)", text))):
        try:
            pkgutil.resolve_name(dotted)
        except (ImportError, AttributeError):
            missing.append(dotted)
    assert not missing
