"""Notebooks without a browser: what they may be given, and running one by papermill in this very Python.

The kernel gets an environment of its own (allocator, quiet progress), its training lines are passed on to the terminal
while it works, and its memory is watched. The notebooks follow the paper's sections 1 to 7.
"""

import ast
import errno
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import zmq
from ipykernel.kernelspec import write_kernel_spec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from paperlib.environment import KERNEL_ENVIRONMENT, to_portable
from paperlib.errors import UserError
from paperlib.files import atomic_path

PARAMETERS = ("profile", "out", "overrides")
"""What every notebook takes."""

KERNEL_CONFIG = Config({"KernelManager": {"transport_encryption": "auto"}})
"""Kernels otherwise talk to us over TCP in the clear, and warn of it for each notebook."""

KERNEL_ARGUMENTS = ["--IPKernelApp.capture_fd_output=False"]
"""What a dask worker started by a kernel prints reaches the terminal; captured as well, every line would come twice."""

KERNEL_FOLDER = "paperlib-kernel-"
"""Temporary folders of kernel specifications; the owner's process id and random letters follow."""


class NotebookError(Exception):
    """A notebook that stopped; the message is its error's last line."""


def parameter_names(path: Path) -> tuple[str, ...]:
    """The names that a notebook's `parameters` cells set, in order; empty where it has no such cell."""
    names: list[str] = []
    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            statements = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
            names += [ast.unparse(target) for node in statements for target in node.targets]
    return tuple(names)


def find_notebooks(folder: Path) -> list[Path]:
    """The numbered notebooks of a folder in order, each with exactly the three known parameters.

    papermill only warns of a parameter that a notebook does not have; this refuses it.

    Raises:
        UserError: there are none, or one takes other parameters.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise UserError(f"no numbered notebooks in {folder}. Run from a clone of the repository.")
    for path in paths:
        if (names := parameter_names(path)) != PARAMETERS:
            raise UserError(f"{path} must have one cell tagged 'parameters' that sets {', '.join(PARAMETERS)}; it sets "
                            f"{', '.join(names) or 'nothing'}. Restore the notebook.")
    return paths


def notebook_hash(path: Path) -> str:
    """SHA-256 of a notebook's cells; outputs and execution counts do not matter."""
    cells = nbformat.read(path, as_version=4).cells
    return sha256(json.dumps([[cell.cell_type, cell.source] for cell in cells]).encode()).hexdigest()


@contextmanager
def kernel_environment() -> Iterator[None]:
    """For the block, environment variables for new kernels, and `python3` meaning this interpreter (`sys.executable`).

    A kernel specification of the user or the machine may start another Python, with other packages or none.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{KERNEL_FOLDER}*"):
        owner = left.name.removeprefix(KERNEL_FOLDER).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    with tempfile.TemporaryDirectory(prefix=f"{KERNEL_FOLDER}{os.getpid()}-") as folder:
        write_kernel_spec(Path(folder) / "kernels" / "python3", extra_arguments=KERNEL_ARGUMENTS)
        before = dict(os.environ)
        places = [folder, *filter(None, [before.get("JUPYTER_PATH")])]
        os.environ.update(KERNEL_ENVIRONMENT | {"JUPYTER_PATH": os.pathsep.join(places)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class _PeakMemory:
    """Largest resident memory of this process's descendants in bytes, sampled during the block.

    Twice a second, and whenever `sample` is called: a notebook may be done sooner than the first half second is over.
    """

    def __enter__(self) -> "_PeakMemory":
        self.bytes, self._stop, self._lock = 0, threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.sample()

    def sample(self, **_: object) -> None:
        """Look once; takes what nbclient tells its hooks, and needs none of it."""
        total = 0
        for child in psutil.Process().children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:  # it ended between being listed and being asked
                continue
        with self._lock:
            self.bytes = max(self.bytes, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _TrainingLines:
    """A text stream that passes on a training's progress lines, indented, and drops everything else."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if ": step " in line and line.endswith(" left"):
                print(f"      {line}", flush=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


@contextmanager
def _library_messages(log: Path) -> Iterator[None]:
    """For the block, what this process and its children write to stderr goes to the end of a file."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _name_folders(path: Path, out: Path | None) -> None:
    """Rewrite an executed notebook without the paths of this machine."""
    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(part) for key, part in value.items()}
        if isinstance(value, list):
            return [named(part) for part in value]
        return to_portable(value, out) if isinstance(value, str) else value

    notebook = named(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def execute(path: Path, target: Path, parameters: dict[str, Any], log: Path) -> int:
    """Run a notebook; its executed copy goes to `target`, also when it fails or is interrupted.

    The copy names this machine's folders by their variables (`to_portable`).

    Call inside `kernel_environment`. The kernel is gone when this returns or raises.

    Args:
        log: file that libraries' own messages are added to; TensorFlow has many.

    Returns:
        Peak memory of the kernel and its children in bytes.

    Raises:
        NotebookError: a cell raised, or the kernel died.
        UserError: `target` cannot be written.
    """
    out = Path(parameters["out"]) if parameters.get("out") else None
    with _PeakMemory() as peak, atomic_path(target) as temporary, _library_messages(log):
        def keep() -> None:
            _name_folders(temporary, out)
            temporary.replace(target)

        try:
            papermill.execute_notebook(
                str(path), str(temporary), parameters, kernel_name="python3", language="python",
                progress_bar=False, stdout_file=_TrainingLines(), cwd=str(path.parent), config=KERNEL_CONFIG,
                on_cell_executed=peak.sample)
        except PapermillExecutionError as error:
            keep()
            kind = "" if error.ename == "UserError" else f"{error.ename}: "
            lines = str(error.evalue).strip().splitlines() or ["no message"]
            if error.ename in ("MemoryError", "_ArrayMemoryError"):
                raise NotebookError(f"not enough memory: its kernel had {peak.bytes / 1e9:.1f} GB ({lines[-1]}); close "
                                    "other programs, or take a smaller profile") from error
            raise NotebookError(kind + lines[-1]) from error
        except DeadKernelError as error:
            keep()
            raise NotebookError(f"its kernel died at {peak.bytes / 1e9:.1f} GB: crashed, or killed (for lack of "
                                f"memory, say); its last words are in {log}") from error
        except (RuntimeError, OSError, zmq.ZMQError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise  # `target` cannot be written
            raise NotebookError(f"its kernel cannot be started or reached ({' '.join(str(error).split())[:200]}); "
                                "notebooks need 127.0.0.1, processes and a writable temporary folder") from error
        except KeyboardInterrupt:
            keep()
            raise
        _name_folders(temporary, out)
    return peak.bytes
