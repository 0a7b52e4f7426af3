"""Temporary files and folders: what this kit left is swept, what is anybody else's never."""

import os
import time
from pathlib import Path

import pytest

from paperlib.files import atomic_path, building_folder, remove_stale

OTHERS = (".vscode.settings.json", ".state.json", ".kernel.log", ".x.abcdefgh.png", ".config.20241101")


@pytest.mark.parametrize("left_at", [0, 4e9])
def test_what_a_killed_process_left_half_written_is_removed_later(tmp_path, left_at):
    """Whether the clock went on or was set back by years (4e9 is in 2096)."""
    killed = atomic_path(tmp_path / "checkpoints" / "qat.safetensors")
    left = killed.__enter__()  # and never left
    for name in OTHERS:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert remove_stale(tmp_path) == []  # young: somebody may still be writing
    os.utime(left, (time.time() + 1000, time.time() + 1000))  # the clock was set a little: still young
    assert remove_stale(tmp_path) == []
    os.utime(left, (left_at, left_at))
    assert remove_stale(tmp_path) == [left]
    assert not left.exists()
    assert all((tmp_path / name).is_file() for name in OTHERS)


def test_building_beside_a_users_hidden_folders_leaves_them_alone(tmp_path):
    """Names that end in a number of no living process, or of none that can be."""
    others = [tmp_path / name for name in (".backup.4194304", ".snapshot.20261101120000", ".git")]
    for folder in others:
        folder.mkdir()
        (folder / "photograph.png").touch()
        os.utime(folder, (0, 0))
    left = tmp_path / ".paperlib-0123456789abcdef"
    left.mkdir()
    (left / ".lock").touch()  # that nobody holds
    with building_folder(tmp_path / "DIV2K_train_HR") as building:
        (building / "0001.png").touch()
        assert not left.exists()
    assert all((folder / "photograph.png").is_file() for folder in others)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in others} | {"DIV2K_train_HR"}
    assert [path.name for path in Path(tmp_path / "DIV2K_train_HR").iterdir()] == ["0001.png"]
