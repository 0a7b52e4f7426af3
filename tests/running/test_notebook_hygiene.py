"""The notebooks as files: short, runnable anywhere, nothing hidden, nothing left over."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from paperlib import reporting
from paperlib.profiles import NOTEBOOKS, load_settings
from paperlib.running.notebooks import PARAMETERS, find_notebooks

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
CHECKED = "nbval-check-output"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def cells(request):
    return nbformat.read(request.param, as_version=4).cells


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_there_are_the_seven():
    assert [path.stem for path in PATHS] == list(NOTEBOOKS)
    assert [path.stem for path in find_notebooks(FOLDER)] == list(NOTEBOOKS)


def test_parameters_are_three_and_empty_by_default(cells):
    (cell,) = (cell for cell in cells if "parameters" in tags(cell))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == dict.fromkeys(PARAMETERS, "")
    assert list(values) == list(PARAMETERS)
    assert code(cells)[0] is cell


def test_cells_are_few_and_short_define_nothing_and_run_anywhere(cells):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert len(code(cells)) <= 21
    for cell in code(cells):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert 0 < len(lines) <= 15, cell.source
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert not [node for node in nodes if isinstance(node, kinds)], cell.source
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), cell.source
        assert not re.search(r"\b(chdir|getcwd|Path\.cwd|Path\(\))", cell.source), cell.source
        for text in (node.value for node in nodes if isinstance(node, ast.Constant)):  # f-strings too
            relative = r"\.{0,2}/|results/|notebooks/|paperlib/"
            assert not (isinstance(text, str) and re.match(relative, text)), cell.source


def test_outputs_are_kept_where_they_are_compared_in_several_cells_of_each(cells):
    assert sum(CHECKED in tags(cell) for cell in code(cells)) >= 3
    for cell in code(cells):
        assert bool(cell.outputs) is (CHECKED in tags(cell)), cell.source
        # nbval compares nothing where the count is missing
        assert cell.execution_count or not cell.outputs, cell.source
        assert all(output.output_type != "error" for output in cell.outputs), cell.source


def test_the_methods_code_is_shown_and_every_named_file_is_there(cells):
    assert "reporting.source(" in "\n".join(cell.source for cell in code(cells)) or cells[0].source.startswith("# 07")
    for name in re.findall(r"`(paperlib/[\w/]+\.py)`", text(cells)):
        assert (FOLDER.parent / name).is_file(), name


def test_each_opens_with_its_question_and_writes_its_own_record(cells, request):
    assert re.search(r"^# 0.+\*\*Question:\*\*[^*]+\?", cells[0].source, re.DOTALL)
    source = "\n".join(cell.source for cell in code(cells))
    assert re.search(rf"run\.record\(\s*\"{request.node.callspec.id}\"", source)


def text(cells):
    """All Markdown of a notebook."""
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def section(cells, heading):
    """The cells from a heading to the next one of any level."""
    start = next(index for index, cell in enumerate(cells) if cell.source.startswith(f"## {heading}"))
    after = (index for index, cell in enumerate(cells) if index > start and cell.source.startswith("#"))
    return cells[start : next(after, len(cells))]


def test_each_has_an_equation_and_a_drawing(cells):
    equations = re.findall(r"\$\$(.+?)\$\$", text(cells), re.DOTALL)
    assert [equation for equation in equations if "=" in equation or "\\sqrt" in equation]
    source = "\n".join(cell.source for cell in code(cells))
    assert re.search(r"attachment:|reporting\.figures\.\w+\(", source + text(cells))
    for name in re.findall(r"reporting\.(figures\.\w+)\(", source):
        module, function = name.split(".")
        assert callable(getattr(getattr(reporting, module), function)), name


def test_diagrams_are_pictures_that_jupyterlab_draws_and_every_one_is_shown(cells):
    """JupyterLab draws attached bitmaps alone, no SVG. An odd dollar makes prose mathematics."""
    for cell in cells:
        if cell.cell_type == "markdown":
            assert cell.source.replace("$$", "").count("$") % 2 == 0, cell.source
            assert cell.source.count("$$") % 2 == 0, cell.source
        attached = cell.get("attachments", {})
        assert set(re.findall(r"!\[[^]]+\]\(attachment:([^)]+)\)", cell.source)) == set(attached)
        assert all(list(kinds) == ["image/png"] for kinds in attached.values())


def test_links_lead_on_back_and_to_paper_and_readme(cells, request):
    names = list(NOTEBOOKS)
    index = names.index(request.node.callspec.id)
    links = set(re.findall(r"\]\(([^)\s]+)\)", text(cells)))
    neighbours = {f"{name}.ipynb" for name in names[max(0, index - 1) : index + 2]} - {f"{names[index]}.ipynb"}
    assert neighbours | {"../README.md", "https://arxiv.org/abs/2604.20291"} <= links
    for link in links:
        assert link.startswith(("https://", "attachment:")) or (FOLDER / link).is_file(), link


def test_what_we_saw_is_computed_and_two_exercises_change_one_setting_each(cells):
    (said,) = code(section(cells, "What we saw"))
    assert re.fullmatch(r"reporting\.saw\(run, \"\d\d_\w+\"\)", said.source)
    part = section(cells, "Exercises")[0].source
    exercises = re.findall(r"^\d\. `(\{.+?\})`: (.+?)(?=^\d\. |\n\n|\Z)", part, re.MULTILINE | re.DOTALL)
    assert len(exercises) == 2
    for overrides, expected in exercises:
        assert len(json.loads(overrides)) == 1
        assert load_settings("demo", overrides) != load_settings("demo"), overrides
        assert "Expect" in expected
