"""Grids of trainings as jobs: one after the other here, all at once on a dask cluster (paper section 7's tables)."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib

from paperlib.errors import UserError


@contextmanager
def cluster() -> Iterator[bool]:
    """Let joblib use the dask cluster that PAPERLIB_DASK names; gives whether there is one.

    Raises:
        UserError: dask is not installed, or nobody answers at the address.
    """
    address = os.environ.get("PAPERLIB_DASK", "").strip()
    if not address:
        yield False
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("PAPERLIB_DASK is set, but dask is not installed. Run: pip install '.[cluster]' in a clone, or "
                        "unset the variable.") from error
    try:
        client = Client(threads_per_worker=1) if address == "local" else Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler at PAPERLIB_DASK={address} ({error}). Start one with `dask scheduler` and "
                        "`dask worker`, or set the variable to local.") from error
    with client, joblib.parallel_config(backend="dask", client=client):
        yield True


def _attempt(function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(*job), None
    except Exception as error:
        return None, error


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of function(*job), in the jobs' order; on a cluster all at once.

    Raises:
        Exception: the first error of a job; on a cluster after all the others are finished. Or one of sending a job.
    """
    with cluster() as remote:
        if not remote:
            return joblib.Parallel()(joblib.delayed(function)(*job) for job in jobs)
        from distributed.protocol.pickle import dumps

        dumps((function, jobs))  # joblib would wait for ever for a job that cannot be sent
        results = joblib.Parallel()(joblib.delayed(_attempt)(function, job) for job in jobs)
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results]
