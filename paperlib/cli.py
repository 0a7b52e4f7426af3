"""The command line: `paperlib COMMAND`. Parses, calls one function of the package, prints, and turns errors into exit
codes: 0 done, 1 some inputs failed, 2 bad input (one line on stderr), 130 interrupted.

Each command imports what it needs when it runs, so that `paperlib --help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from paperlib import __version__
from paperlib.environment import escape_unprintable, settle_folders
from paperlib.errors import UserError
from paperlib.files import check_folder, shown, user_path, write_json
from paperlib.profiles import PROFILES, parse_assignments

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


_count.__name__ = "whole number from 1 up"  # argparse: "invalid whole number from 1 up value: '0'"


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    try:
        return parse_assignments(assignments)
    except (RecursionError, ValueError) as error:  # JSON nested very deep, numbers of thousands of digits
        raise UserError(f"--set: a value that no setting can have ({error}). Shorten it.") from error


def _line(message: object) -> str:
    """A message as one line that no terminal takes for a command."""
    return shown(" ".join(str(message).split()))


def _list(messages: Iterable[str]) -> None:
    for message in messages:
        print(_line(message), file=sys.stderr)


def _write_json(path: Path | None, value: Any) -> None:
    if path:
        write_json(path, value)


@contextmanager
def _progress(unit: str) -> Iterator[Any]:
    """A bar on stderr, only in a terminal; gives the function to call with (done, total)."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None, leave=False) as bar:
        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _profile(profile: str | None) -> str:
    return profile or os.environ.get("PAPERLIB_PROFILE") or "demo"


def _reproduce(args: argparse.Namespace) -> int:
    from paperlib.running.reproduce import reproduce

    return reproduce(_profile(args.profile), args.out, args.first.zfill(2), args.last.zfill(2),
                     _overrides(args.assignments), args.force)


def _train(args: argparse.Namespace) -> int:
    from paperlib.run import open_run
    from paperlib.training.stages import train_stage

    run = open_run(_profile(args.profile), args.out, _overrides(args.assignments))
    print(f"trained: {train_stage(run, args.stage).path}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from paperlib.data.photographs import Pairs, read_pairs
    from paperlib.evaluation.scoring import evaluate, score_lines
    from paperlib.evaluation.upscalers import load_upscaler

    if args.json:
        check_folder(args.json.parent)
    pairs, upscaler = Pairs(read_pairs(args.hr, args.lr).sources[:args.max_images]), load_upscaler(args.model)
    with _progress("image") as progress:
        result = evaluate(upscaler, pairs, progress)
    if result["failed"] and len(pairs) == 1:
        raise UserError(result["failed"][0])
    print(f"{result['model']} on {_line(args.hr)}\n{score_lines(result)}")
    _write_json(args.json, result)
    _list((*result["notes"], *result["failed"]))
    return 1 if result["failed"] else 0


def _upscale(args: argparse.Namespace) -> int:
    from paperlib.evaluation.upscalers import load_upscaler
    from paperlib.upscale import upscale_files

    args.out = user_path(args.out)
    check_folder(args.out)
    upscaler = load_upscaler(args.model)
    with _progress("picture") as progress:
        done, failed = upscale_files(args.inputs, args.out, upscaler, lambda line: print(_line(line)), progress)
    if not done and len(failed) == 1:
        raise UserError(failed[0])
    print(f"{len(done)} enlarged with {upscaler.name}, {len(failed)} failed")
    _list(failed)
    return 1 if failed else 0


def _export(args: argparse.Namespace) -> int:
    from paperlib.export.convert import export_all
    from paperlib.profiles import load_settings
    from paperlib.quantisation.qat import read_quantised

    settings = load_settings("paper", {"export.height": args.height, "export.width": args.width}).export
    model = read_quantised(args.checkpoint)
    check_folder(args.out)
    report = export_all(model, args.out, settings, upsample=settings.upsample)
    for name, file in report["files"].items():
        print(f"{args.out / name}: {file['bytes'] / 1e3:.0f} kB, {len(file['float_tensors'])} float tensors")
    parity = report["parity"]
    print(f"against fake-quant: {parity['within_1_lsb']:.4%} of values within 1 step, at most {parity['max_lsb']:.0f}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    import pandas as pd

    from paperlib.evaluation.audit import verify

    if args.json:
        check_folder(args.json.parent)
    result = verify()
    _write_json(args.json, result)
    for title, part in (("From the authors' log and report", "recomputed"), ("Their files, measured here", "measured")):
        print(f"{title}\n{pd.DataFrame(result[part]).to_string(index=False, na_rep='')}\n")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from paperlib.benchmarks.suite import run_benchmarks

    if args.json:
        check_folder(args.json.parent)
    result = run_benchmarks(args.only)
    _write_json(args.json, result)
    print(json.dumps(result, indent=2))
    return 0


def _data(args: argparse.Namespace) -> int:
    from paperlib.data.div2k import prepare
    from paperlib.data.pixel_store import open_store
    from paperlib.data.splits import status
    from paperlib.profiles import load_settings

    settings, failed = load_settings(_profile(args.profile), _overrides(args.assignments)).data, []
    if args.action == "prepare":
        if settings.source == "div2k":
            with _progress("B") as progress:
                done = prepare(settings, progress=lambda name, have, size: progress(have, size))
            print("\n".join(done))
        with _progress("photograph") as progress:
            store = open_store(settings, progress)
        print(f"training pixels of {len(store)} photographs: {store.folder}")
        failed = list(store.left_out.values())
    lines = status(settings)
    print(*(_line(f"{line['split']}: {line['state']}: {line['where']}") for line in lines), sep="\n")
    _list(failed)
    return 1 if failed or any(line["state"] == "missing" for line in lines) else 0


def _table(args: argparse.Namespace) -> int:
    from paperlib.environment import root
    from paperlib.reporting.tables import format_tables

    print(format_tables(args.out or root() / "results" / _profile(args.profile), args.format), end="")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="paperlib", description="Reproduce the paper, use and measure its models.")
    parser.add_argument("--version", action="version", version=f"paperlib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    def choose(command: argparse.ArgumentParser, *what: str) -> None:
        command.add_argument("--profile", choices=PROFILES, help="default: PAPERLIB_PROFILE, else demo")
        if "out" in what:
            command.add_argument("--out", type=Path, metavar="DIR", help="results; default: results/<profile>")
        if "set" in what:
            command.add_argument("--set", dest="assignments", nargs="+", action="extend", default=[],
                                 metavar="FIELD=VALUE", help="override settings, for instance stage1.steps=500")

    command = add("reproduce", _reproduce, "Run the notebooks in order; skip what is current, resume what was stopped.")
    choose(command, "out", "set")
    command.add_argument("--from", dest="first", default="01", metavar="NN", help="first notebook, 01 to 07")
    command.add_argument("--until", dest="last", default="07", metavar="NN", help="last notebook")
    command.add_argument("--force", action="store_true", help="run notebooks again that are current")

    command = add("train", _train, "Train one stage without its notebook, also under torchrun.")
    command.add_argument("stage", choices=("stage1", "stage2", "stage3"))
    choose(command, "out", "set")

    command = add("evaluate", _evaluate, "PSNR and SSIM of a model on a folder of images.")
    command.add_argument("model", nargs="?", default="pretrained", metavar="MODEL", help=MODELS)
    command.add_argument("--hr", type=Path, required=True, metavar="DIR", help="folder of HR images")
    command.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images; default: MATLAB bicubic ÷3")
    command.add_argument("--json", type=Path, metavar="FILE", help="write per-image values, protocol and provenance")
    command.add_argument("--max-images", type=_count, metavar="N", help="only the first N images")

    command = add("upscale", _upscale, "Enlarge pictures ×3.")
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder of pictures, or glob")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the enlarged pictures")
    command.add_argument("--model", default="pretrained", metavar="MODEL", help=MODELS)

    command = add("export", _export, "INT8 and float TFLite files from a quantised checkpoint.")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                         help="qat.safetensors of a run, or the authors' *_qat.pt")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    command.add_argument("--height", type=int, default=720, help="input height of the fixed file")
    command.add_argument("--width", type=int, default=1280, help="input width of the fixed file")

    command = add("verify", _verify, "Measure the authors' published files again: reported, their own report, ours.")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all values")

    command = add("bench", _bench, "Benchmarks, each a ratio inside one run.")
    command.add_argument("--only", metavar="NAME", help="one benchmark")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all values")

    command = add("data", _data, "Image sets: what is there, what is missing and how to get it; fill the pixel cache.")
    command.add_argument("action", choices=("status", "prepare"))
    choose(command, "set")

    command = add("table", _table, "Print the tables of a run.")
    choose(command, "out")
    command.add_argument("--format", choices=("text", "markdown", "latex"), default="text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A traceback for bad input is shown only with PAPERLIB_DEBUG=1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's chatter would bury the one line that matters
    settle_folders()
    escape_unprintable()
    try:
        args = build_parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        if os.environ.get("PAPERLIB_DEBUG") == "1":
            raise
        print(f"paperlib: {_line(error)}", file=sys.stderr)
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
        print(_line(f"paperlib: {cause}. Give less at once, or name another place."), file=sys.stderr)
        return 2
