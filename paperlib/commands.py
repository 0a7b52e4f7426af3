"""What each command of the command line does: call one function of the package, print, give an exit code.

Each imports what it needs when it runs, so that `paperlib --help` answers at once.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paperlib.errors import UserError
from paperlib.files import check_folder, shown, user_path, write_json

INTERVAL = 20.0
"""Seconds between two plain lines of progress."""


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    from paperlib.overrides import parse_assignments  # with pydantic, which is half of what --help would take

    try:
        return parse_assignments(assignments)
    except (RecursionError, ValueError) as error:  # JSON nested very deep, numbers of thousands of digits
        raise UserError(f"--set: a value that no setting can have ({error}). Shorten it.") from error


LONGEST = 1500
"""Characters of a line on stderr; what a file or a setting holds may be of any length."""


def one_line(message: object) -> str:
    """A message as one line that no terminal takes for a command and that ends: start and end of a very long one."""
    text = shown(" ".join(str(message).split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} … {text[-400:]}"


def listed(messages: Iterable[str]) -> None:
    for message in messages:
        print(one_line(message), file=sys.stderr)


def _write_json(path: Path | None, value: Any) -> None:
    if path:
        write_json(path, value)


@contextmanager
def _progress(unit: str) -> Iterator[Any]:
    """A bar on stderr, elsewhere than in a terminal a line every 20 s; gives what to call with (done, total)."""
    from tqdm import tqdm

    from paperlib.environment import plain_lines

    plain, spoke = plain_lines(), time.monotonic()
    with tqdm(unit=unit, disable=plain is not None, leave=False) as bar:
        def update(done: int, total: int) -> None:
            nonlocal spoke
            bar.total = total
            bar.update(done - bar.n)
            if plain is not None and time.monotonic() - spoke > INTERVAL:
                spoke = time.monotonic()
                print(f"{unit} {done} of {total}", file=sys.stderr, flush=True)

        yield update


def _profile(profile: str | None) -> str:
    return profile or os.environ.get("PAPERLIB_PROFILE") or "demo"


def reproduce(args: argparse.Namespace) -> int:
    from paperlib.running.reproduce import reproduce

    return reproduce(_profile(args.profile), args.out, args.first.zfill(2), args.last.zfill(2),
                     _overrides(args.assignments), args.force)


def train(args: argparse.Namespace) -> int:
    from paperlib.run import open_run
    from paperlib.training.stages import train_stage

    run = open_run(_profile(args.profile), args.out, _overrides(args.assignments))
    print(f"trained: {train_stage(run, args.stage).path}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
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
    print(f"{result['model']} on {one_line(args.hr)}\n{score_lines(result)}")
    _write_json(args.json, result)
    listed((*result["notes"], *result["failed"]))
    return 1 if result["failed"] else 0


def upscale(args: argparse.Namespace) -> int:
    from paperlib.evaluation.upscalers import load_upscaler
    from paperlib.upscale import upscale_files

    args.out = user_path(args.out)
    check_folder(args.out)
    upscaler = load_upscaler(args.model)
    with _progress("picture") as progress:
        done, failed = upscale_files(args.inputs, args.out, upscaler, lambda line: print(one_line(line)), progress)
    if not done and len(failed) == 1:
        raise UserError(failed[0])
    print(f"{len(done)} enlarged with {upscaler.name}, {len(failed)} failed")
    listed(failed)
    return 1 if failed else 0


def inspect(args: argparse.Namespace) -> int:
    from paperlib.export.inspection import describe, inspect_model

    about = inspect_model(args.file)
    _write_json(args.json, about)
    print(describe(about))
    return 0


def export(args: argparse.Namespace) -> int:
    from paperlib.export.convert import export_lines
    from paperlib.export.read_back import export_named
    from paperlib.profiles import load_settings

    settings = load_settings("paper", {"export.height": args.height, "export.width": args.width}).export
    check_folder(args.out)
    print(export_lines(export_named(args.checkpoint, args.out, settings, args.input), args.out))
    return 0


def page(args: argparse.Namespace) -> int:
    from paperlib.reporting.page import build_page

    path = build_page(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs no network")
    return 0


def verify(args: argparse.Namespace) -> int:
    import pandas as pd

    from paperlib.evaluation.audit import verify

    if args.json:
        check_folder(args.json.parent)
    result = verify()
    _write_json(args.json, result)
    for title, part in (("The paper, the authors' log and report, and here (DIV2K validation)", "side_by_side"),
                        ("Their files here on every set at hand", "measured")):
        table = pd.DataFrame(result[part]).drop(columns="images", errors="ignore")
        print(f"{title}\n{table.to_string(index=False, na_rep='')}\n")
    return 0


def bench(args: argparse.Namespace) -> int:
    from paperlib.benchmarks.suite import run_benchmarks

    if args.json:
        check_folder(args.json.parent)
    result = run_benchmarks(args.only)
    _write_json(args.json, result)
    print(json.dumps(result, indent=2))
    return 0


def _prepare_div2k(settings: Any, **options: Any) -> None:
    from paperlib.data.div2k import prepare

    with _progress("B") as progress:
        done = prepare(settings, progress=lambda name, have, size: progress(have, size), **options)
    print("\n".join(done))


def _fetch(args: argparse.Namespace) -> int:
    from paperlib.data.public_photographs import SETS, fetch_photographs
    from paperlib.data.public_photographs import listed as photographs_of
    from paperlib.environment import data_dir

    if not args.what:
        names = ", ".join(f"`paperlib data fetch {name}`" for name in (*SETS, "div2k-valid"))
        raise UserError(f"data fetch: what? There is {names}.")
    if args.what == "div2k-valid":
        from paperlib.data.div2k import VALIDATION
        from paperlib.settings import DataSettings

        _prepare_div2k(DataSettings(div2k=str(args.to or "")), archives=VALIDATION)
        return 0
    if not args.to and not data_dir():
        raise UserError(f"data fetch {args.what}: into which folder? Set PAPERLIB_DATA to the one with the folders of "
                        "your photographs, or name one with --to.")
    folder = user_path(args.to) if args.to else data_dir() / args.what
    failed = fetch_photographs(folder, photographs_of(args.what), tell=lambda line: print(line, flush=True))
    listed(failed)
    return 1 if failed else 0


def data(args: argparse.Namespace) -> int:
    if args.action == "fetch":
        return _fetch(args)
    if args.what or args.to:
        raise UserError(f"data {args.action} takes no {args.what or '--to'}; that is for `paperlib data fetch`.")
    from paperlib.data.pixel_store import open_store
    from paperlib.data.splits import status
    from paperlib.profiles import load_settings

    settings, failed = load_settings(_profile(args.profile), _overrides(args.assignments)).data, []
    if args.action == "prepare":
        if settings.source == "div2k":
            _prepare_div2k(settings)
        with _progress("photograph") as progress:
            store = open_store(settings, progress)
        print(f"training pixels of {len(store)} photographs: {store.folder}")
        failed = list(store.left_out.values())
    lines = status(settings)
    print(*(one_line(f"{line['split']}: {line['state']}: {line['where']}") for line in lines), sep="\n")
    listed(failed)
    return 1 if failed or any(line["state"] == "missing" for line in lines) else 0


def table(args: argparse.Namespace) -> int:
    from paperlib.environment import root
    from paperlib.reporting.printed import format_tables

    print(format_tables(args.out or root() / "results" / _profile(args.profile), args.format), end="")
    return 0
