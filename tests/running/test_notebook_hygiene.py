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
    assert len(code(cells)) <= 21
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


def test_a_changed_number_breaks_a_cell_of_every_notebook():
    checked = {path.stem: sum(CHECKED in tags(cell) for cell in code(nbformat.read(path, as_version=4).cells))
               for path in PATHS}
    assert min(checked.values()) >= 3, checked
    assert sum(checked.values()) >= 25, checked


def test_the_methods_code_is_shown_and_every_named_file_is_there(cells):
    assert "reporting.source(" in "\n".join(cell.source for cell in code(cells)) or cells[0].source.startswith("# 07")
    for name in re.findall(r"`(paperlib/[\w/]+\.py)`", text(cells)):
        assert (FOLDER.parent / name).is_file(), name


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


def text(cells):
    """All Markdown of a notebook."""
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def section(cells, heading):
    """The cells from a heading to the next one of any level."""
    start = next(index for index, cell in enumerate(cells) if cell.source.startswith(f"## {heading}"))
    after = (index for index, cell in enumerate(cells) if index > start and cell.source.startswith("#"))
    return cells[start : next(after, len(cells))]


def test_each_asks_a_question_and_answers_it_with_an_equation_and_a_drawing(cells):
    assert "**Question:**" in cells[0].source
    assert re.search(r"\*\*Question:\*\*[^*]+\?", cells[0].source)
    equations = re.findall(r"\$\$(.+?)\$\$", text(cells), re.DOTALL)
    assert [equation for equation in equations if "=" in equation or "\\sqrt" in equation]
    source = "\n".join(cell.source for cell in code(cells))
    assert re.search(r"attachment:|reporting\.figures\.\w+\(", source + text(cells))
    for name in re.findall(r"reporting\.(figures\.\w+)\(", source):
        module, function = name.split(".")
        assert callable(getattr(getattr(reporting, module), function)), name


def test_diagrams_are_pictures_that_jupyterlab_draws_and_every_one_is_shown(cells):
    """JupyterLab draws attached bitmaps alone, no SVG."""
    for cell in cells:
        attached = cell.get("attachments", {})
        assert set(re.findall(r"!\[[^]]+\]\(attachment:([^)]+)\)", cell.source)) == set(attached)
        assert all(list(kinds) == ["image/png"] for kinds in attached.values())


def test_dollars_pair_up(cells):
    """An odd dollar would turn prose into mathematics."""
    for cell in cells:
        if cell.cell_type == "markdown":
            assert cell.source.replace("$$", "").count("$") % 2 == 0, cell.source
            assert cell.source.count("$$") % 2 == 0, cell.source


def test_links_lead_on_back_and_to_paper_and_readme(cells, request):
    names = list(NOTEBOOKS)
    index = names.index(request.node.callspec.id)
    links = set(re.findall(r"\]\(([^)\s]+)\)", text(cells)))
    neighbours = {f"{name}.ipynb" for name in names[max(0, index - 1) : index + 2]} - {f"{names[index]}.ipynb"}
    assert neighbours | {"../README.md", "https://arxiv.org/abs/2604.20291"} <= links
    for link in links:
        assert link.startswith(("https://", "attachment:")) or (FOLDER / link).is_file(), link


def test_what_we_saw_is_computed(cells):
    part = section(cells, "What we saw")
    (said,) = code(part)
    assert re.fullmatch(r"reporting\.saw\(run, \"\d\d_\w+\"\)", said.source)


def test_two_exercises_change_one_setting_each(cells):
    part = section(cells, "Exercises")[0].source
    exercises = re.findall(r"^\d\. `(\{.+?\})`: (.+?)(?=^\d\. |\n\n|\Z)", part, re.MULTILINE | re.DOTALL)
    assert len(exercises) == 2
    for overrides, expected in exercises:
        assert len(json.loads(overrides)) == 1
        assert load_settings("demo", overrides) != load_settings("demo"), overrides
        assert "Expect" in expected


def test_no_lab_diary(cells):
    """Speeds and histories belong to the results, where a record stands behind them."""
    assert not re.search(r"\d+ times (the speed|less|faster)|\d(\.\d)? GB are|on the machine where", text(cells))
