"""The repository itself: the two environments agree, and the top level is the design's."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import paperlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = {"notebooks", "paperlib", "results", "environment.yml", "README.md", "tests", "pyproject.toml", "Makefile", ".ci",
       "LICENSE", "CITATION.cff"}


def test_environment_yml_installs_this_project_with_its_extras():
    text = (ROOT / "environment.yml").read_text()
    assert f"- python{PROJECT['requires-python']}" in text
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


def test_every_runtime_dependency_is_imported_or_is_a_tool():
    sources = "\n".join(path.read_text() for path in [*ROOT.glob("paperlib/**/*.py"), *ROOT.glob("notebooks/*.ipynb")])
    modules = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn",
               "ai-edge-litert": "ai_edge_litert", "ipython": "IPython", "lazy-loader": "lazy_loader"}
    # `make lab`; timm imports torchvision; scikit-learn gives photographs, read from its wheel
    tools = {"jupyterlab", "torchvision", "scikit-learn"}
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["kit"]:
        name = re.match(r"[\w-]+", requirement)[0]
        if name not in tools:
            assert re.search(rf"(import|from) {modules.get(name, name)}\b", sources), f"{name} is never imported"


def test_top_level_is_the_designs():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} - TOP == set()


def test_modules_stay_small():
    for path in ROOT.glob("paperlib/**/*.py"):
        assert len(path.read_text().splitlines()) <= 300, f"{path.name} is more than one concept"


def test_nobody_is_sent_to_somebody_elses_package():
    """On package indexes `paperlib` is another project: our words say `.` in a clone, or our own name."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    wrong = re.compile(r"pip install [^\n]*['\" ]paperlib(\[|['\"\s]|$)")
    for name in listed.stdout.splitlines():
        kinds = (".py", ".md", ".ipynb", ".toml", ".yml", ".html", "Makefile")
        if not name.startswith("tests") and name.endswith(kinds):
            assert not wrong.search((ROOT / name).read_text(encoding="utf-8")), name
    assert PROJECT["name"] != "paperlib"


def test_make_lab_opens_the_demo_profile_unless_another_is_chosen():
    recipe = (ROOT / "Makefile").read_text().partition("\nlab:")[2].partition("\n\n")[0]
    assert "PAPERLIB_PROFILE=$${PAPERLIB_PROFILE:-$(PROFILE)}" in recipe
    assert re.search(r"^PROFILE \?= demo$", (ROOT / "Makefile").read_text(), re.MULTILINE)
