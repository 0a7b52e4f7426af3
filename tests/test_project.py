"""The repository itself: the two environments agree, and the top level is the design's."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import paperlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = {"notebooks", "paperlib", "results", "environment.yml", "README.md", "tests", "pyproject.toml", "Makefile", ".ci",
       "LICENSE", "CITATION.cff"}


def tracked(folder: str = ".") -> list[str]:
    command = ["git", "ls-files", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return done.stdout.splitlines()


def test_environment_yml_installs_this_project_with_its_extras():
    text = (ROOT / "environment.yml").read_text()
    assert PROJECT["requires-python"] == ">=3.11"  # the light installation; TensorFlow has no wheel for 3.14
    assert "- python>=3.11,<3.14" in text
    (extras,) = re.findall(r"- --editable \.\[(.+)\]", text)
    assert set(extras.split(",")) == {"kit", "dev", "npu"} <= set(PROJECT["optional-dependencies"])
    assert f"'.[{extras}]'" in (ROOT / "Makefile").read_text()


def test_the_cards_packages_are_declared():
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    declared = " ".join(PROJECT["dependencies"] + extras)
    names = set(re.findall(r"[a-z][\w-]*(?=[<>=\[])", declared))
    assert {"jupyterlab", "papermill", "torch", "timm", "einops", "mamba-ssm", "matplotlib", "tensorflow",
            "nbval"} <= names
    assert PROJECT["version"] == paperlib.__version__
    assert f"version: {paperlib.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_every_runtime_dependency_is_imported_or_is_a_tool():
    sources = "\n".join(path.read_text() for path in [*ROOT.glob("paperlib/**/*.py"), *ROOT.glob("notebooks/*.ipynb")])
    modules = {"pillow": "PIL", "scikit-image": "skimage", "ipython": "IPython", "tensorflow-cpu": "tensorflow"}
    # `make lab`; timm imports torchvision; scikit-learn gives photographs, read from its wheel
    tools = {"jupyterlab", "torchvision", "scikit-learn"}
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["kit"]:
        name = re.match(r"[\w-]+", requirement)[0]
        if name not in tools:
            module = modules.get(name, name.replace("-", "_"))
            assert re.search(rf"(import|from) {module}\b", sources), f"{name} is never imported"


def test_top_level_is_the_designs():
    top = {name.split("/")[0] for name in tracked()}
    assert {name for name in top if not name.startswith(".")} - TOP == set()


def test_a_run_leaves_the_clone_clean_and_references_are_committed():
    inside = ("records/01_data.json", "summary.md", "notebooks/01_data.ipynb", "checkpoints/x")
    ignored = {"results/committed/demo/notebooks/01_data.ipynb", "results/reference/demo/.state.json",
               *(f"results/demo/{name}" for name in inside),
               "results/reference/stage3_from_published/grid/checkpoints/x",
               "results/reference/demo/notebooks/01_data.html", "results/reference/demo/checkpoints/x"}
    kept = {"results/README.md", *(f"results/reference/demo/{name}" for name in inside[:3]),
            "results/reference/stage3_from_published/grid/records/07_ablations.json"}
    done = subprocess.run(["git", "check-ignore", "--no-index", *ignored, *kept], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    assert set(done.stdout.splitlines()) == ignored


def test_committed_results_are_light_and_hold_no_path_of_any_machine():
    committed = [ROOT / name for name in tracked("results")]
    assert sum(path.stat().st_size for path in committed) <= 10_000_000
    local = re.compile(r"(?<![\w.+/$~-])/(?:home|root|tmp|work|opt|mnt|srv|var|usr|Users|private)/[^\s\"'<]*")
    assert local.findall("at /work/x, \"/tmp/y\" $OUT/tmp/z") == ["/work/x,", "/tmp/y"]
    for path in committed:
        if path.suffix not in (".png", ".webp"):
            for line in path.read_text(encoding="utf-8").splitlines():
                line = line.replace("\\n", " ")  # JSON's line breaks end in a letter
                assert not (found := local.findall(line)), (path, found[:3])


def test_nobody_is_sent_to_somebody_elses_package():
    """On package indexes `paperlib` is another project: our words say `.` in a clone, or our own name."""
    wrong = re.compile(r"pip install [^\n]*['\" ]paperlib(\[|['\"\s]|$)")
    for name in tracked():
        kinds = (".py", ".md", ".ipynb", ".toml", ".yml", ".html", "Makefile")
        if not name.startswith("tests") and name.endswith(kinds):
            assert not wrong.search((ROOT / name).read_text(encoding="utf-8")), name
    assert PROJECT["name"] != "paperlib"


@pytest.mark.parametrize(("ran", "opened"), [(False, "results/committed/demo/notebooks/01_data.ipynb"),
                                             (True, "notebooks/01_data.ipynb")])
def test_make_lab_shows_the_committed_pictures_until_there_is_a_run_of_ones_own(ran, opened, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "results" / "reference" / "demo" / "notebooks").mkdir(parents=True)
    (tmp_path / "results" / "reference" / "demo" / "notebooks" / "01_data.ipynb").touch()
    if ran:
        (tmp_path / "results" / "demo").mkdir()
    outside = {name: value for name, value in os.environ.items()  # what the `make test` around it hands down
               if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PROFILE", "VENV",
                               "PAPERLIB_PROFILE")}
    shown = subprocess.run(["make", "--dry-run", "lab"], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env=outside).stdout
    assert "PAPERLIB_PROFILE=demo" in shown
    assert shown.rstrip().endswith(f"--LabApp.default_url=/lab/tree/{opened}")
    assert '--ServerApp.root_dir="$PWD"' in shown
    assert ("cp -r results/reference/demo results/committed/demo;" in shown) is not ran
