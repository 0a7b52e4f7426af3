"""The command line: `paperlib COMMAND`. Parses, calls one function of the package and prints.

Exit codes: 0 done, 1 some inputs failed, 2 bad input (one line on stderr), 130 interrupted. Each
command imports what it needs when it runs, so that `paperlib --help` answers at once.
"""

import argparse
import io
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NoReturn

from paperlib import __version__
from paperlib.environment import Progress, absolutise_env
from paperlib.errors import UserError
from paperlib.files import check_folder, remove_stale, shown, user_path, write_json

MODELS = ("pretrained (default), pretrained-float, bicubic, bicubic-matlab, teacher, "
          "or a .safetensors, *_deploy.pt or .tflite file")
PROTOCOL_LINE = ("PSNR in dB, SSIM at most 1. _rgb: no crop, output not rounded; "
                 "_y: rounded to 8 bits, BT.601 luma, 3 pixels of border left out.")
FETCHED = ("open", "open_wallpapers", "cid22", "clic_val", "div2k-valid")
LONGEST = 1500
"""Characters of a line on stderr; what a file or a setting holds may be of any length."""


def one_line(message: object) -> str:
    """The message on one line, control characters escaped, a very long one shortened."""
    text = shown(" ".join(str(message).split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} … {text[-400:]}"


def _complain(messages: Iterable[object]) -> int:
    """Print what failed; returns the exit code."""
    lines = [f"{one_line(message)}\n" for message in messages]
    sys.stderr.writelines(lines)
    return int(bool(lines))


def _named(upscaler: Any) -> str:
    """Its name and, of a TFLite file, the range of its values."""
    values = getattr(upscaler, "values", None)
    return f"{upscaler.name} with values {values}" if values else upscaler.name


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that `--set` changes."""
    from paperlib.settings import parse_assignments  # with pydantic, half of what --help would take

    return parse_assignments(args.assignments)


def _write(args: argparse.Namespace, value: Any) -> None:
    if args.json:
        write_json(args.json, value)


def reproduce(args: argparse.Namespace) -> int:
    from paperlib.running.reproduce import reproduce

    return reproduce(args.profile, args.out, args.first.zfill(2), args.last.zfill(2),
                     _changes(args), args.force)


def train(args: argparse.Namespace) -> None:
    from paperlib.run import open_run
    from paperlib.training.stages import train_stage

    run = open_run(args.profile, args.out, _changes(args))
    print(f"trained: {train_stage(run, args.stage).path}")


def evaluate(args: argparse.Namespace) -> int:
    from paperlib.data.photographs import Pairs, read_pairs
    from paperlib.evaluation.scoring import evaluate, score_lines
    from paperlib.evaluation.upscalers import load_upscaler

    pairs = Pairs(read_pairs(args.hr, args.lr, complete=False).sources[:args.max_images])
    upscaler = load_upscaler(args.model)
    with closing(Progress("image")) as progress:
        result = evaluate(upscaler, pairs, progress.update)
    if result["failed"] and len(pairs) == 1:
        raise UserError(result["failed"][0])
    print(f"{_named(upscaler)} on {one_line(args.hr)}\n{PROTOCOL_LINE}\n{score_lines(result)}")
    _write(args, result)
    _complain(result["notes"])
    return _complain(result["failed"])


def upscale(args: argparse.Namespace) -> int:
    from paperlib.evaluation.upscalers import load_upscaler
    from paperlib.upscale import upscale_files

    check_folder(args.out)
    remove_stale(args.out, below=False)
    upscaler = load_upscaler(args.model)
    with closing(Progress("picture")) as progress:
        done, failed = upscale_files(
            args.inputs, args.out, upscaler, lambda line: print(one_line(line)), progress.update,
            recursive=args.recursive, skip_existing=args.skip_existing, strip=args.strip)
    if not done and len(failed) == 1:
        raise UserError(failed[0])
    print(f"{len(done)} enlarged with {_named(upscaler)}, {len(failed)} failed")
    return _complain(failed)


def inspect(args: argparse.Namespace) -> None:
    from paperlib.export.inspection import describe, inspect_model

    about = inspect_model(args.file)
    _write(args, about)
    print(describe(about))


def export(args: argparse.Namespace) -> None:
    name = Path(args.checkpoint)
    if name.is_file() and name.suffix.lower() not in (".safetensors", ".pt"):
        raise UserError(f"{name} is no checkpoint (.safetensors of this kit, the authors' .pt): "
                        f"nothing can be exported from {name.suffix or 'it'}. `paperlib inspect` "
                        "says what a .tflite file is.")
    from paperlib.export.convert import export_lines, export_named
    from paperlib.profiles import load_settings

    sizes = {"export.height": args.height, "export.width": args.width}
    settings = load_settings("paper", sizes).export
    check_folder(args.out)
    print(export_lines(export_named(args.checkpoint, args.out, settings, args.input), args.out))


def page(args: argparse.Namespace) -> None:
    from paperlib.export.page import build_page

    path = build_page(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs no network")


def verify(args: argparse.Namespace) -> None:
    import pandas as pd

    from paperlib.evaluation.verify import GET_DIV2K, div2k_summary, verify

    result = verify(args.div2k)
    _write(args, result)
    parts = {"The paper (reported) and the authors' log and report (reproduced)": "recomputed",
             "Their files here on every set at hand": "measured"}
    if result["div2k"]:
        parts |= {"Each image of DIV2K at hand, their dynamic INT8 file": "div2k",
                  div2k_summary(result): "div2k_rows"}
    for title, part in parts.items():
        frame = pd.DataFrame(result[part])
        frame = frame.drop(columns=["images"] if part == "measured" else [], errors="ignore")
        print(f"{title}\n{frame.to_string(index=False, na_rep='')}\n")
    if not result["div2k"]:
        print(GET_DIV2K)


def bench(args: argparse.Namespace) -> None:
    from paperlib.benchmarks.suite import run_benchmarks

    result = run_benchmarks(args.only)
    _write(args, result)
    print(json.dumps(result, indent=2))


def data(args: argparse.Namespace) -> int:
    if args.action == "fetch":
        return _fetch(args)
    if args.what or args.to:
        raise UserError(f"data {args.action} takes no {args.what or '--to'}; "
                        "that is for `paperlib data fetch`.")
    from paperlib.data.pixel_store import open_store
    from paperlib.data.sources import status
    from paperlib.profiles import load_settings

    settings, failed = load_settings(args.profile, _changes(args)).data, []
    if args.action == "prepare":
        if settings.source == "div2k":
            _prepare_div2k(settings)
        with closing(Progress("photograph")) as progress:
            store = open_store(settings, progress.update)
        print(f"training pixels of {len(store)} photographs: {store.folder}")
        failed = list(store.left_out.values())
    lines = status(settings)
    for line in lines:
        print(one_line(f"{line['split']}: {line['state']}: {line['where']}"))
    return _complain(failed) or int("missing" in {line["state"] for line in lines})


def _prepare_div2k(settings: Any, **options: Any) -> None:
    from paperlib.data.div2k import prepare

    with closing(Progress("B")) as progress:
        done = prepare(settings, progress=progress.update, **options)
    print("\n".join(done))


def _fetch(args: argparse.Namespace) -> int:
    from paperlib.data.download import fetch_photographs, listed
    from paperlib.environment import data_dir

    if not args.what:
        names = ", ".join(f"`paperlib data fetch {name}`" for name in FETCHED)
        raise UserError(f"data fetch: what? There is {names}.")
    if args.assignments:
        raise UserError("data fetch takes no --set. Name the folder with --to.")
    if args.what == "div2k-valid":
        from paperlib.settings import DataSettings

        _prepare_div2k(DataSettings(div2k=str(args.to or "")), splits=("valid",))
        return 0
    if not args.to and not data_dir():
        raise UserError(f"data fetch {args.what}: into which folder? Set PAPERLIB_DATA to the one "
                        "with the folders of your photographs, or name one with --to.")
    folder = args.to or data_dir() / args.what
    failed = fetch_photographs(folder, listed(args.what), tell=lambda line: print(line, flush=True))
    return _complain(failed)


def table(args: argparse.Namespace) -> None:
    from paperlib.environment import root
    from paperlib.reporting.tables import format_tables

    text = format_tables(args.out or root() / "results" / args.profile, args.format)
    print("\n".join(map(shown, text.splitlines())))


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s: one line, no usage text before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="paperlib", formatter_class=plain,
                     description="Reproduce the paper, use and measure its models.",
                     epilog="examples:\n  paperlib reproduce --profile smoke\n"
                            "  paperlib upscale picture.jpg folder -o enlarged")
    parser.set_defaults(run=lambda _: parser.print_help())
    parser.add_argument("--version", action="version", version=f"paperlib {__version__}")
    parsers = parser.add_subparsers(metavar="COMMAND")

    def add(run: Any, text: str, options: str, *examples: str) -> argparse.ArgumentParser:
        lines = [f"  paperlib {run.__name__} {example}".rstrip() for example in examples]
        command = parsers.add_parser(run.__name__, help=text, description=text, allow_abbrev=False,
                                     epilog="\n".join(["examples:", *lines]),
                                     formatter_class=plain)
        command.set_defaults(run=run)
        chosen = options.split()
        if "profile" in chosen:
            command.add_argument("--profile", choices=("smoke", "demo", "benchmark", "paper"),
                                 default=os.environ.get("PAPERLIB_PROFILE") or "demo",
                                 help="default: PAPERLIB_PROFILE, else demo")
        if "results" in chosen:
            command.add_argument("-o", "--out", type=user_path, metavar="DIR",
                                 help="results; default: results/<profile>")
        if "target" in chosen:
            command.add_argument("-o", "--out", type=user_path, required=True, metavar="PATH",
                                 help="where to write")
        if "set" in chosen:
            command.add_argument("--set", dest="assignments", nargs="+", action="extend",
                                 default=[], metavar="FIELD=VALUE",
                                 help="override settings, for instance stage1.steps=500")
        if "json" in chosen:
            command.add_argument("--json", type=user_path, metavar="FILE", help="write all values")
        return command

    command = add(reproduce, "Run the notebooks in order; skip what is current, resume what was "
                             "stopped.", "profile results set", "--profile smoke",
                  "--until 05 -o results/mine --set stage3.steps=100")
    command.add_argument("--from", dest="first", default="01", metavar="NN",
                         help="first notebook, 01 to 07")
    command.add_argument("--until", dest="last", default="07", metavar="NN", help="last notebook")
    command.add_argument("--force", action="store_true", help="run also what is current")

    command = add(train, "Train one stage without its notebook, also under torchrun.",
                  "profile results set", "stage1 --profile benchmark",
                  "stage2 --profile benchmark --set stage2.lr=1e-4")
    command.add_argument("stage", choices=("stage1", "stage2", "stage3"))

    command = add(evaluate, "PSNR and SSIM of a model on a folder of images.", "json",
                  "--hr photographs", "bicubic --hr Set5/HR --json scores.json")
    command.add_argument("model", nargs="?", default="pretrained", metavar="MODEL", help=MODELS)
    command.add_argument("--hr", type=user_path, required=True, metavar="DIR",
                         help="folder of HR images")
    command.add_argument("--lr", type=user_path, metavar="DIR",
                         help="folder of LR images; default: MATLAB bicubic ÷3")
    command.add_argument("--max-images", type=_count, metavar="N", help="only the first N images")

    command = add(upscale, "Enlarge pictures ×3 into a folder.", "target",
                  "picture.jpg folder -o enlarged", "-o enlarged -- -a-dash.png")
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder, or glob")
    command.add_argument("--model", default="pretrained", metavar="MODEL", help=MODELS)
    command.add_argument("--recursive", action="store_true", help="subfolders too")
    command.add_argument("--skip-existing", action="store_true", help="leave present results")
    command.add_argument("--strip", action="store_true",
                         help="leave out EXIF (with its place), XMP, texts and resolution")

    command = add(inspect, "What a model file is: precision, operators, input and output, MACs, "
                           "reach.", "json", "student_dynamic_int8.tflite",
                  "stage3/qat.safetensors")
    command.add_argument("file", type=user_path, metavar="FILE",
                         help=".tflite (anybody's), .safetensors, authors' .pt")

    command = add(export, "INT8 and float TFLite files from a quantised checkpoint, into a folder.",
                  "target", "pretrained -o files", "stage3/qat.safetensors -o files")
    command.add_argument("checkpoint", type=user_path, metavar="CHECKPOINT",
                         help="pretrained (the bundled student), qat.safetensors of a run, "
                              "the authors' *_qat.pt")
    command.add_argument("--input", choices=("int8", "uint8"),
                         help="type of the pixels; default for pretrained: both")
    command.add_argument("--height", type=int, default=720, help="input height of the fixed file")
    command.add_argument("--width", type=int, default=1280, help="input width of the fixed file")

    add(page, "One HTML file that enlarges pictures in a browser, offline.", "target",
        "-o upscale.html", "-o /srv/www/index.html")

    command = add(verify, "Measure the authors' files again (downloads them): reported, their own "
                          "report, ours.", "json", "", "--div2k DIV2K --json audit.json")
    command.add_argument("--div2k", type=user_path, metavar="DIR",
                         help="DIV2K's validation images, or some of them (default: the cache)")

    command = add(bench, "Benchmarks, each a ratio inside one run.", "json", "--only int8",
                  "--json bench.json")
    command.add_argument("--only", metavar="NAME", help="one benchmark")

    command = add(data, "Image sets: what is there, what is missing and how to get it; fill the "
                        "pixel cache.", "profile set", "status --profile benchmark",
                  "fetch open --to photographs/open")
    command.add_argument("action", choices=("status", "prepare", "fetch"),
                         help="what is there; decode it; or fetch photographs that are public")
    command.add_argument(
        "what", nargs="?", choices=FETCHED,
        help="for fetch: open (51 photographs, 43 MB), open_wallpapers (385, 330 MB), cid22 (209, "
             "72 MB), clic_val (14, 37 MB), div2k-valid (100 and their LR, 504 MB)")
    command.add_argument("--to", type=user_path, metavar="DIR",
                         help="for fetch: the folder (default: its own in $PAPERLIB_DATA; "
                              "DIV2K's in the cache)")

    command = add(table, "Print the tables of a run.", "profile results", "--profile demo",
                  "-o results/mine --format markdown")
    command.add_argument("--format", choices=("text", "markdown", "latex"), default="text")
    return parser


def _catch_signals() -> None:
    """A closed window or `kill` cleans up as Ctrl-C does, unless somebody wants otherwise."""
    again = [0.0]

    def interrupt(number: int, _: object) -> None:
        if time.monotonic() > again[0]:  # cleaning up is not interrupted
            again[0] = time.monotonic() + 5
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL and current_thread() is main_thread():
            signal.signal(number, interrupt)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. PAPERLIB_DEBUG=1 shows where an error comes from."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow would bury the one line
    _catch_signals()
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"paperlib: {one_line(message)}\n"
    debug = os.environ.get("PAPERLIB_DEBUG") == "1"
    try:
        args = build_parser().parse_args(argv)
        absolutise_env()
        if getattr(args, "json", None):
            if args.json.is_dir():
                raise UserError(f"--json {args.json} is a folder. Name a file in it.")
            check_folder(args.json.parent, "--json")
        code = args.run(args)
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        message: object = error
        if debug:
            raise
    except ModuleNotFoundError as error:
        if debug or (error.name or "paperlib").startswith("paperlib"):
            raise
        message = (f"this needs the Python package {error.name}, which the light installation "
                   "leaves out. Install the whole kit, in a clone: pip install '.[kit]'")
    except (KeyboardInterrupt, RuntimeError) as error:
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):  # 3.11 may wrap it
            raise
        eval("0")  # CPython notes an interrupt inside eval or exec, and would end by SIGINT
        print("\npaperlib: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError) as error:
        cause = "not enough memory" if isinstance(error, MemoryError) else error
        message = f"{cause}. Give less at once, or name another place."
    print(f"paperlib: {one_line(message)}", file=sys.stderr)
    return 2
