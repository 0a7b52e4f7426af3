"""Grids of jobs: here one after the other, on a cluster all at once; nothing is repeated, nothing finished is lost."""

from functools import partial

import pytest

from paperlib.errors import UserError
from paperlib.training import jobs as grid


def job(folder, name):
    """A stand-in for a training: idempotent, leaves a file, fails where told."""
    done = folder / f"{name}.done"
    if not done.exists():
        if (folder / f"{name}.fails").exists():
            raise UserError(f"{name} failed")
        done.write_text("trained")
        with (folder / f"{name}.log").open("a") as log:
            log.write("x")
    return name


def test_a_cluster_runs_all_jobs_in_order_and_repeats_nothing(tmp_path, monkeypatch, scheduler):
    monkeypatch.setenv("PAPERLIB_DASK", scheduler)
    jobs = [(tmp_path, str(number)) for number in range(4)]
    (tmp_path / "1.fails").touch()
    with pytest.raises(UserError, match="1 failed"):
        grid.run_jobs(job, jobs)
    assert sorted(path.stem for path in tmp_path.glob("*.done")) == ["0", "2", "3"]
    (tmp_path / "1.fails").unlink()
    for _ in range(2):
        assert grid.run_jobs(job, jobs) == ["0", "1", "2", "3"]
    assert [path.read_text() for path in sorted(tmp_path.glob("*.log"))] == ["x"] * 4


def test_without_a_cluster_jobs_run_here_and_the_first_failure_ends_them(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_DASK", raising=False)
    (tmp_path / "1.fails").touch()
    with pytest.raises(UserError, match="1 failed"):
        grid.run_jobs(partial(job, tmp_path), [("0",), ("1",), ("2",)])
    assert (tmp_path / "0.done").exists()
    assert not (tmp_path / "2.done").exists()


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("PAPERLIB_DASK", "nowhere")
    with pytest.raises(UserError, match="PAPERLIB_DASK=nowhere"):
        grid.run_jobs(print, [])
