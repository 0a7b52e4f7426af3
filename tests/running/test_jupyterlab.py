"""Notebooks in a real JupyterLab, in headless Chromium driven over the DevTools protocol.
By default 01 and the widgets of 06 on bicubic upscalers. PAPERLIB_LAB=all runs the seven in order (minutes)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from browser import Page, chromium, open_page, stop

from paperlib.profiles import NOTEBOOKS

ROOT = Path(__file__).parents[2]
pytest.importorskip("websocket")
pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine (Debian: apt install chromium)")
PATIENCE = 1500 if os.environ.get("PAPERLIB_LAB") == "all" else 120
"""Seconds that one notebook may take."""
SETTINGS = {
    # Cells outside the window are otherwise not in the page, and their figures cannot be checked.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
EXPLORE = """
from paperlib.data import dataset
from paperlib.evaluation import upscalers
from paperlib.reporting import viewer
from paperlib.run import open_run

images = dataset.open_data(open_run("", out, {"data.valid_crop": 384}).settings.data)
viewer.explore(images.valid, {name: upscalers.load_upscaler(name) for name in ("bicubic", "bicubic-matlab")})
"""


class Lab(Page):
    """JupyterLab in Chromium."""

    def __init__(self, socket) -> None:
        super().__init__(socket)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # JupyterLab's current widget follows the focus

    def _note(self, method: str | None, event: dict) -> None:
        # an attachment is asked for before JupyterLab has put its content there (`check` looks whether it did);
        # a page that is left before anybody touched it may not ask first
        if "attachment:" not in str(event) and "beforeunload" not in str(event):
            super()._note(method, event)

    def key(self, name: str) -> None:
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[name]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)


def _until(answer, process: subprocess.Popen, log: Path, seconds: float = 90):
    """The first result of `answer` that is not an error: not there, or half written."""
    end = time.monotonic() + seconds
    while True:
        try:
            return answer()
        except (OSError, ValueError):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(log.read_text(errors="replace")[-3000:])
            time.sleep(0.2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with copies of the notebooks, whose results go beside them."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        parameters.source += f"\nout = {str(folder / 'out')!r}"
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
        if name == "06_tflite_eval":
            cells = [parameters, nbformat.v4.new_code_cell(EXPLORE.strip())]
            widgets = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
            nbformat.write(widgets, folder / "notebooks" / "widgets.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(workspace):
    """Address of a JupyterLab on that folder, with its own settings, and its token."""
    places = {name: str(workspace / name.lower()) for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    for name, values in SETTINGS.items():
        path = Path(places["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{name}.jupyterlab-settings")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | places | {"PAPERLIB_PROFILE": "smoke", "PYTHONPATH": search}
    environment.pop("PAPERLIB_WIDGETS", None)
    log = workspace / "lab.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               "--ServerApp.port=0", "--IdentityProvider.token=secret",
               f"--ServerApp.root_dir={workspace / 'notebooks'}", "--LabApp.expose_app_in_browser=True"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, cwd=workspace, stdout=file, stderr=file)
    try:
        about = Path(places["JUPYTER_RUNTIME_DIR"], f"jpserver-{process.pid}.json")
        address = _until(lambda: json.loads(about.read_text())["url"].rstrip("/"), process, log)
        _until(lambda: urlopen(f"{address}/api/status?token=secret", timeout=5).close(), process, log)
        yield address
    finally:
        stop(process)


@pytest.fixture(scope="module")
def page(workspace, lab):
    with open_page(1440, 1100, PATIENCE, Lab) as browser:
        yield browser


def run_all(page: Lab, lab: str, name: str) -> list[dict]:
    """Open a notebook by its address, run all its cells, and give its code cells when the kernel rests."""
    page.errors.clear()
    page.call("Page.navigate", url=f"{lab}/lab/tree/{name}.ipynb?token=secret&reset")
    page.wait("Boolean(window.jupyterapp && document.readyState == 'complete')")
    page.run("window.jupyterapp.restored.then(() => true)")
    opened = f"[...window.jupyterapp.shell.widgets('main')].find(at => at.context?.path == '{name}.ipynb')"
    page.wait(f"Boolean(window.panel = {opened})", 30)
    page.run("""(async () => {
      window.jupyterapp.shell.activateById(panel.id);
      await panel.context.ready; await panel.sessionContext.ready;
      window.ran = false;
      window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.ran = true; });
    })()""")
    page.wait("window.ran && panel.sessionContext.session?.kernel?.status == 'idle'")
    cells = json.loads(page.run("JSON.stringify(panel.content.model.toJSON().cells)"))
    return [cell for cell in cells if cell["cell_type"] == "code"]


def close(page: Lab) -> None:
    """Save the notebook, end its kernel and close its tab: a progress bar reopened without its kernel is an error."""
    page.run("""(async () => {
      await panel.context.save(); await panel.sessionContext.shutdown(); panel.dispose(); return true;
    })()""")


def check(page: Lab, cells: list[dict]) -> None:
    """Every cell ran, none failed, pictures are really drawn, and nothing complains in the browser."""
    for cell in cells:
        failed = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert not failed, "\n".join(failed[0]["traceback"])
    assert all(cell["execution_count"] for cell in cells)
    drawn = sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    shown = ("[...panel.node.querySelectorAll('.jp-RenderedImage img')]"
             ".filter(image => !image.closest('.widget-output'))")
    inside = "[...panel.node.querySelectorAll('.jp-RenderedMarkdown img')]"
    told = page.run("JSON.stringify(panel.content.model.toJSON().cells.map(cell => cell.attachments || {}))")
    for pictures, count in ((shown, drawn), (inside, sum(map(len, json.loads(told))))):  # in results, and in the text
        page.wait(f"{pictures}.every(image => image.complete && image.naturalWidth > 0)", 60)
        assert page.run(f"{pictures}.length") == count
    assert page.errors == []


def test_01_runs_and_shows_its_figures(page, lab):
    cells = run_all(page, lab, "01_data")
    check(page, cells)
    assert page.run("panel.node.querySelectorAll('.jp-RenderedImage img').length") == 3
    close(page)


def test_the_widgets_answer_to_the_keyboard(page, lab):
    cells = run_all(page, lab, "widgets")
    source = "document.querySelectorAll('.widget-output img')"
    page.wait(f"{source}.length == 1 && {source}[0].naturalWidth > 0", 60)
    check(page, cells)
    before = page.run(f"{source}[0].src")
    page.run("document.querySelectorAll('.widget-slider .noUi-handle')[0].focus()")
    page.key("ArrowRight")
    page.wait(f"{source}.length == 1 && {source}[0].src != {json.dumps(before)}", 30)
    assert page.errors == []
    close(page)


@pytest.mark.skipif(os.environ.get("PAPERLIB_LAB") != "all", reason="PAPERLIB_LAB=all runs all seven, for minutes")
def test_all_seven_run_in_order(page, lab):
    for name in NOTEBOOKS:
        check(page, run_all(page, lab, name))
        close(page)
