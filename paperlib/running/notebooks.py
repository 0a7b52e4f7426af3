"""Notebooks without a browser: running one by papermill in this very Python, and as HTML."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
import papermill
import zmq
from ipykernel.kernelspec import write_kernel_spec
from latex2mathml.converter import convert
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from paperlib.environment import KERNEL_ENVIRONMENT, silence_native_stderr, to_portable
from paperlib.errors import UserError
from paperlib.files import explained, reading, temporary_folder, write_text
from paperlib.run import Run, plain

PARAMETERS = ("profile", "out", "overrides")
"""What every notebook takes."""

KERNEL_CONFIG = Config({"KernelManager": {"transport_encryption": "auto"}})
"""Kernels otherwise talk to us over TCP in the clear, and warn of it for each notebook."""
KERNEL_ARGUMENTS = ["--IPKernelApp.capture_fd_output=False"]
"""A worker process of a kernel prints to the terminal; captured as well, its lines come twice."""


SETTING = re.compile(r"\bsettings?\b|\b(data|student|teacher|stage\d|quant|export|ablation)\.[a-z]")
"""What the message of an error names that settings cause."""


class NotebookError(Exception):
    """A notebook that stopped; the message is its error's last line."""

    of_settings = False
    """Whether to run it again with the same settings would change nothing."""


def find_notebooks(folder: Path) -> list[Path]:
    """The numbered notebooks of a folder in order, each with exactly the parameters `PARAMETERS`,
    for papermill only warns of one that a notebook does not have."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise UserError(f"no numbered notebooks in {folder}. Run from a clone of the repository.")
    for path in paths:
        with reading(path, "a notebook"):
            names = tuple(papermill.inspect_notebook(str(path)))
        if names != PARAMETERS:
            raise UserError(f"{path} must have one cell tagged 'parameters' that sets "
                            f"{', '.join(PARAMETERS)}; it sets {', '.join(names) or 'nothing'}. "
                            "Restore the notebook.")
    return paths


def notebook_hash(path: Path) -> str:
    """SHA-256 of a notebook's cells; outputs and execution counts do not matter."""
    cells = [[cell.cell_type, cell.source] for cell in nbformat.read(path, as_version=4).cells]
    return sha256(json.dumps(cells).encode()).hexdigest()


@contextmanager
def kernel_environment() -> Iterator[None]:
    """For the block, variables for new kernels, and `python3` meaning this very interpreter.

    A kernel specification of the user or the machine may start another Python.
    """
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        write_kernel_spec(folder / "kernels" / "python3", extra_arguments=KERNEL_ARGUMENTS)
        before = dict(os.environ)
        places = [str(folder), *filter(None, [before.get("JUPYTER_PATH")])]
        os.environ.update(KERNEL_ENVIRONMENT | {"JUPYTER_PATH": os.pathsep.join(places)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class _TrainingLines:
    """A text stream that passes on a training's progress lines, indented, and nothing else."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if ": step " in line and line.endswith(" left"):
                print(f"      {line}", flush=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def execute(path: Path, target: Path, parameters: dict[str, Any], log: Path) -> None:
    """Run a notebook; its executed copy goes to `target`, also when it fails or is interrupted.

    Call inside `kernel_environment`. The copy names this machine's folders by their variables
    (`to_portable`). The kernel is gone when this returns or raises.

    Args:
        log: file that libraries' own messages are added to; TensorFlow has many.

    Raises:
        NotebookError: a cell raised, or the kernel died.
    """
    out = Path(parameters["out"]) if parameters.get("out") else None
    temporary = Path(tempfile.gettempdir())
    with explained(target), temporary_folder(temporary) as folder, silence_native_stderr(log=log):
        copy = folder / target.name

        def keep() -> None:
            with suppress(FileNotFoundError, ValueError):  # not yet there, or half written
                notebook = plain(json.loads(copy.read_text(encoding="utf-8")), out)
                write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")

        try:
            papermill.execute_notebook(
                str(path), str(copy), parameters, kernel_name="python3", language="python",
                progress_bar=False, stdout_file=_TrainingLines(), cwd=str(path.parent),
                config=KERNEL_CONFIG)
        except PapermillExecutionError as error:
            keep()
            kind = "" if error.ename == "UserError" else f"{error.ename}: "
            last = (str(error.evalue).strip().splitlines() or ["no message"])[-1]
            if error.ename in ("MemoryError", "_ArrayMemoryError"):
                kind = "not enough memory: close other programs, or take a smaller profile: "
            failure = NotebookError(kind + last)
            failure.of_settings = error.ename == "UserError" and bool(SETTING.search(last))
            raise failure from error
        except DeadKernelError as error:
            keep()
            raise NotebookError("its kernel died: crashed, or killed (for lack of memory, say); "
                                f"its last words are in {log}") from error
        except (RuntimeError, OSError, zmq.ZMQError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NotebookError(f"its kernel cannot be started or reached ({reason}); notebooks "
                                "need 127.0.0.1, processes and a writable temporary folder"
                                ) from error
        except KeyboardInterrupt:
            keep()
            raise
        keep()


FORMULA = re.compile(r"`[^`]*`|\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
"""Code of Markdown, which is left alone, or a formula in it: a block, or within a line."""


def _typeset(found: re.Match[str]) -> str:
    """A formula as MathML; as it was where it is none, as between two dollars of a reader."""
    block, inline = found.groups()
    try:
        display = "block" if block else "inline"
        return convert((block or inline).strip(), display=display) if block or inline else found[0]
    except Exception:  # latex2mathml raises many kinds for what it cannot read
        return found[0]


def to_html(run: Run) -> list[Path]:
    """A run's executed notebooks as HTML beside them that loads nothing (widgets as plain text)."""
    names = ("require_js", "mathjax", "mermaid_js", "mermaid_layout_elk_js", "jquery",
             "jupyter_widgets_base")
    exporter = HTMLExporter(template_name="lab", **{f"{name}_url": "" for name in names})
    pages = []
    for path in sorted((run.out / "notebooks").glob("[0-9]*.ipynb")):
        with reading(path, "a notebook"):
            notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = FORMULA.sub(_typeset, cell.source)
        text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        pages.append(write_text(path.with_suffix(".html"), to_portable(text, run.out)))
    return pages
