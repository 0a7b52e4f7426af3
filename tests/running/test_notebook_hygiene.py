"""The notebooks as files: short, runnable anywhere, nothing hidden, nothing left over."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from paperlib.run import NOTEBOOKS
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


def strings(cell):
    """Every string in a cell's code, also inside f-strings."""
    return [node.value for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Constant)
            and isinstance(node.value, str)]


def test_there_are_the_seven():
    assert [path.stem for path in PATHS] == list(NOTEBOOKS)
    assert [path.stem for path in find_notebooks(FOLDER)] == list(NOTEBOOKS)


def test_parameters_are_three_and_empty_by_default(cells):
    (cell,) = (cell for cell in cells if "parameters" in tags(cell))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert values == dict.fromkeys(PARAMETERS, "")
    assert list(values) == list(PARAMETERS)
    assert code(cells)[0] is cell


def test_cells_are_few_and_short(cells):
    assert len(code(cells)) <= 20
    for cell in code(cells):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert 0 < len(lines) <= 15, cell.source


def test_nothing_is_defined_in_a_notebook(cells):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code(cells):
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)], cell.source


def test_no_magics_and_no_shell(cells):
    for cell in code(cells):
        assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), cell.source


def test_no_paths_relative_to_wherever_the_kernel_runs(cells):
    for cell in code(cells):
        for text in strings(cell):
            assert not re.match(r"\.{0,2}/|results/|notebooks/|paperlib/", text), cell.source
        assert not re.search(r"\b(chdir|getcwd|Path\.cwd|Path\(\))", cell.source), cell.source


def test_outputs_are_kept_only_where_they_are_compared(cells):
    checked = [cell for cell in code(cells) if CHECKED in tags(cell)]
    assert checked, "one small deterministic cell is compared by nbval"
    for cell in code(cells):
        if CHECKED in tags(cell):
            # nbval compares nothing where the count is missing.
            assert cell.outputs, cell.source
            assert cell.execution_count, cell.source
        else:
            assert not cell.outputs, cell.source
        assert all(output.output_type != "error" for output in cell.outputs), cell.source


def test_each_opens_with_its_title_paper_section_and_rows(cells):
    first = cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# 0")
    assert "**Paper:**" in first.source
    assert "section" in first.source
    assert "*What to expect:*" in first.source


def test_each_writes_its_own_record(cells, request):
    name = request.node.callspec.id
    assert re.search(rf"run\.record\(\s*\"{name}\"", "\n".join(cell.source for cell in code(cells)))
