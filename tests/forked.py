"""Workloads in processes of their own, forked from a server that has imported everything and computed nothing.

Run as a program it is the server: for each line of JSON with `work`, `folder` and `changes` it forks a child that does
the work, answers the child's process number, waits for it and answers its exit code. A process that has computed has
threads (OpenMP's, TensorFlow's) and locks that a fork takes over for ever, so the test's own process is never forked.
"""

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

LONGEST = 300.0
"""Seconds after which a child that does not end is taken for hung."""


class Forks:
    """The server; `work` names a function in the file `module` that takes an open run."""

    def __init__(self, module: Path):
        self.log: Path | None = None
        self.server = subprocess.Popen([sys.executable, str(Path(__file__)), str(module)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, bufsize=1)

    def answer(self) -> int:
        """The server's next line."""
        if not select.select([self.server.stdout], [], [], LONGEST)[0]:
            raise TimeoutError(f"a child hangs; its output: {self.log and self.log.read_text()}")
        return int(self.server.stdout.readline())

    def child(self, work: str, folder: Path, changes: dict[str, Any], after: float | None = None,
              file: str = "") -> bool:
        """Do the work, killed `after` that many seconds, or once a `file` is there; whether it was killed."""
        self.log = log = folder.parent / "child.log"
        self.server.stdin.write(json.dumps({"work": work, "folder": str(folder), "changes": changes,
                                            "log": str(log)}) + "\n")
        pid = self.answer()
        if after is not None:
            time.sleep(after)
        while file and not any(folder.glob(file)):
            time.sleep(0.002)
            os.kill(pid, 0)  # it must not have ended before
        if after is not None or file:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = self.answer()
        assert code in (0, -signal.SIGKILL), log.read_text()
        return code != 0

    def close(self) -> None:
        """End the server."""
        self.server.stdin.close()
        self.server.wait(10)


def serve(module: Path) -> None:
    """Fork a child for every line that comes in."""
    import torch  # by the server alone: the test's own process has it from elsewhere

    from paperlib.run import open_run

    spec = importlib.util.spec_from_file_location("trainings", module)
    trainings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainings)
    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                torch.set_num_threads(1)
                getattr(trainings, task["work"])(open_run("smoke", Path(task["folder"]), task["changes"]))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
