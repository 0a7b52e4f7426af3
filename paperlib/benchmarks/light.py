"""What the command line costs as a whole process: enlarging one picture beside the least script that could do it."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from paperlib.data.images import read_rgb
from paperlib.data.sources import embedded_path
from paperlib.weights import pretrained

BARE = """
import sys
import numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter
lr = np.asarray(Image.open(sys.argv[2]).convert("RGB"))
interpreter = Interpreter(sys.argv[1], num_threads=2)
entry = interpreter.get_input_details()[0]["index"]
interpreter.resize_tensor_input(entry, [1, *lr.shape])
interpreter.allocate_tensors()
interpreter.set_tensor(entry, (lr.astype(np.int16) - 128).astype(np.int8)[None])
interpreter.invoke()
sr = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
Image.fromarray((sr.astype(np.int16) + 128).astype(np.uint8)).save(sys.argv[3])
"""
"""The same work by hand: load the file, run it, save a PNG; no checks, no tiles, no colour profile."""


def _process(command: list[str]) -> tuple[float, float, int]:
    """Wall and processor seconds and peak memory (bytes) of a command that must succeed."""
    code = ("import json, resource, subprocess, sys, time; begin = time.perf_counter();"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
            "print(json.dumps([time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def bench_light(rounds: int = 5, size: int = 512) -> dict[str, Any]:
    """`paperlib upscale` on one picture of size² pixels against `BARE`; `--help` and `import` against `pass`.

    Returns:
        Medians over `rounds` runs in turn, after one each that is not counted: `upscale` and `bare` (seconds of wall
        and processor, bytes), `ratio_vs_bare` (times faster), `memory_of_bare` (a share: below 1 is better), and
        `help_seconds`, `import_seconds` above an empty program.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "a.png"
        Image.fromarray(read_rgb(embedded_path("astronaut.png"))[:size, :size]).save(picture)
        python = [sys.executable, "-c"]
        commands = {
            "upscale": [sys.executable, "-m", "paperlib", "upscale", str(picture), "--out", f"{folder}/out"],
            "bare": [*python, BARE, str(pretrained()), str(picture), f"{folder}/bare.png"],
            "help": [sys.executable, "-m", "paperlib", "--help"], "import": [*python, "import paperlib"],
            "pass": [*python, "pass"]}
        times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                figures = _process(command)
                if number:
                    times[name].append(figures)
    median = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    named = {name: dict(zip(("wall_seconds", "processor_seconds", "peak_bytes"), median[name], strict=True))
             for name in ("upscale", "bare")}
    return named | {
        "what": "`paperlib upscale` on one picture against a bare script with LiteRT and Pillow, whole processes",
        "ratio_vs_bare": median["bare"][0] / median["upscale"][0],
        "memory_of_bare": median["upscale"][2] / median["bare"][2],
        "help_seconds": median["help"][0] - median["pass"][0],
        "import_seconds": median["import"][0] - median["pass"][0],
        "measured_on": f"{size}×{size} pixels, {rounds} runs each in turn"}
