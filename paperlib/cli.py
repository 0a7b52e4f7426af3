"""The command line: `paperlib COMMAND`. Parses, calls one function of the package, prints, and turns errors into exit
codes: 0 done, 1 some inputs failed, 2 bad input (one line on stderr), 130 interrupted.

Each command imports what it needs when it runs, so that `paperlib --help` answers at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from paperlib import __version__, commands
from paperlib.environment import escape_unprintable, settle_folders
from paperlib.errors import UserError

MODELS = ("pretrained (default), pretrained-float, bicubic, bicubic-matlab, teacher, or a .safetensors, *_deploy.pt or "
          ".tflite file")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s: one line, no usage text before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def _count(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _profile_name(text: str) -> str:
    """The name of a profile, for argparse; pydantic is loaded only where one is given."""
    from paperlib.profiles import PROFILES

    if text not in PROFILES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(PROFILES)})")
    return text


_count.__name__ = "whole number from 1 up"  # argparse: "invalid whole number from 1 up value: '0'"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="paperlib", description="Reproduce the paper, use and measure its models.")
    parser.add_argument("--version", action="version", version=f"paperlib {__version__}")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = parsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    def choose(command: argparse.ArgumentParser, *what: str) -> None:
        command.add_argument("--profile", type=_profile_name, metavar="{smoke,demo,benchmark,paper}",
                             help="default: PAPERLIB_PROFILE, else demo")
        if "out" in what:
            command.add_argument("--out", type=Path, metavar="DIR", help="results; default: results/<profile>")
        if "set" in what:
            command.add_argument("--set", dest="assignments", nargs="+", action="extend", default=[],
                                 metavar="FIELD=VALUE", help="override settings, for instance stage1.steps=500")

    command = add("reproduce", commands.reproduce,
                  "Run the notebooks in order; skip what is current, resume what was stopped.")
    choose(command, "out", "set")
    command.add_argument("--from", dest="first", default="01", metavar="NN", help="first notebook, 01 to 07")
    command.add_argument("--until", dest="last", default="07", metavar="NN", help="last notebook")
    command.add_argument("--force", action="store_true", help="run notebooks again that are current")

    command = add("train", commands.train, "Train one stage without its notebook, also under torchrun.")
    command.add_argument("stage", choices=("stage1", "stage2", "stage3"))
    choose(command, "out", "set")

    command = add("evaluate", commands.evaluate, "PSNR and SSIM of a model on a folder of images.")
    command.add_argument("model", nargs="?", default="pretrained", metavar="MODEL", help=MODELS)
    command.add_argument("--hr", type=Path, required=True, metavar="DIR", help="folder of HR images")
    command.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images; default: MATLAB bicubic ÷3")
    command.add_argument("--json", type=Path, metavar="FILE", help="write per-image values, protocol and provenance")
    command.add_argument("--max-images", type=_count, metavar="N", help="only the first N images")

    command = add("upscale", commands.upscale, "Enlarge pictures ×3.")
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="picture of up to 150 megapixels, folder, or glob")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the enlarged pictures")
    command.add_argument("--model", default="pretrained", metavar="MODEL", help=MODELS)

    command = add("inspect", commands.inspect,
                  "What a model file is: precision, operators, input and output, MACs, reach.")
    command.add_argument("file", type=Path, metavar="FILE", help=".tflite (anybody's), .safetensors, authors' .pt")
    command.add_argument("--json", type=Path, metavar="FILE", help="write it all")

    command = add("export", commands.export, "INT8 and float TFLite files from a quantised checkpoint.")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                         help="pretrained (the student in the box), qat.safetensors of a run, the authors' *_qat.pt")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    command.add_argument("--input", choices=("int8", "uint8"), help="type of the pixels; default for pretrained: both")
    command.add_argument("--height", type=int, default=720, help="input height of the fixed file")
    command.add_argument("--width", type=int, default=1280, help="input width of the fixed file")

    command = add("page", commands.page, "One HTML file that enlarges pictures in a browser, offline.")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")

    command = add("verify", commands.verify,
                  "Measure the authors' files again (downloads them): reported, their own report, ours.")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all values")

    command = add("bench", commands.bench, "Benchmarks, each a ratio inside one run.")
    command.add_argument("--only", metavar="NAME", help="one benchmark")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all values")

    command = add("data", commands.data,
                  "Image sets: what is there, what is missing and how to get it; fill the pixel cache.")
    command.add_argument("action", choices=("status", "prepare", "fetch"),
                         help="what is there; decode it; or fetch photographs that are public")
    command.add_argument("what", nargs="?", choices=("open", "cid22", "clic_val", "div2k-valid"),
                         help="for fetch: open (51 photographs, 43 MB), cid22 (209, 72 MB), "
                              "clic_val (14, 37 MB), div2k-valid (100 and their LR, 504 MB)")
    command.add_argument("--to", type=Path, metavar="DIR", help="for fetch: the folder (default: its own in "
                              "$PAPERLIB_DATA; DIV2K's in the cache)")
    choose(command, "set")

    command = add("table", commands.table, "Print the tables of a run.")
    choose(command, "out")
    command.add_argument("--format", choices=("text", "markdown", "latex"), default="text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A traceback for bad input is shown only with PAPERLIB_DEBUG=1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter would bury the one line that matters
    settle_folders()
    escape_unprintable()
    warnings.formatwarning = lambda message, *_, **__: f"paperlib: {commands.one_line(message)}\n"  # no source code
    try:
        args = build_parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        if os.environ.get("PAPERLIB_DEBUG") == "1":
            raise
        print(f"paperlib: {commands.one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if os.environ.get("PAPERLIB_DEBUG") == "1" or (error.name or "paperlib").startswith("paperlib"):
            raise
        print(f"paperlib: this needs the Python package {error.name}, which the light installation leaves out. Install "
              f"the whole kit, in a clone: pip install '.[kit]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npaperlib: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError) as error:
        cause = "not enough memory" if isinstance(error, MemoryError) else error
        print(commands.one_line(f"paperlib: {cause}. Give less at once, or name another place."), file=sys.stderr)
        return 2
