"""Fixtures: where optional downloaded files lie; tests that need them skip, saying so, when they are absent."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is unset: no downloaded files to test against")
    return Path(value)


def pytest_collection_modifyitems(items) -> None:
    """The longest file first: otherwise one process is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_sequence.py")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of published weights (PAPERLIB_ASSETS)."""
    return _folder("PAPERLIB_ASSETS")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of image sets (PAPERLIB_DATA)."""
    return _folder("PAPERLIB_DATA")


@pytest.fixture(scope="session")
def set5(data_root):
    """Set5's pairs, with the LR images that came with it."""
    from paperlib.data.photographs import read_pairs

    folder = data_root / "benchmark" / "Set5"
    return read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of reference tensors, beside PAPERLIB_ASSETS."""
    folder = _folder("PAPERLIB_ASSETS").parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no reference tensors to test against")
    return folder


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def scheduler():
    """Address of a dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="distributed (extra cluster) is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def _alike(monkeypatch) -> None:
    """The same seed and, whatever the shell has set, the same variables for every test."""
    torch.manual_seed(0)
    for name in ("DEBUG", "PROFILE", "PROGRESS", "DASK", "OFFLINE", "DIV2K_URL", "WIDGETS"):
        monkeypatch.delenv(f"PAPERLIB_{name}", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
