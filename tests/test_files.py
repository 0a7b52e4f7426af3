"""Temporary files and folders: what this kit left is swept, what is anybody else's never."""

import errno
import os
import time
from pathlib import Path

import pytest

from paperlib import files
from paperlib.cli import main
from paperlib.environment import absolutise_env, cache_dir
from paperlib.errors import UserError
from paperlib.files import atomic_path, building_folder, file_lock, remove_stale
from paperlib.weights import pretrained

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


def test_building_beside_a_users_hidden_folders_leaves_them_alone(tmp_path, monkeypatch):
    """Names that end in a number of no living process, or of none that can be."""
    others = [tmp_path / name for name in (".backup.4194304", ".snapshot.20261101120000", ".git")]
    for folder in others:
        folder.mkdir()
        (folder / "photograph.png").touch()
        os.utime(folder, (0, 0))
    left = tmp_path / ".paperlib-0123456789abcdef"
    left.mkdir()
    (left / ".lock").touch()  # that nobody holds
    at_lock = []
    monkeypatch.setattr(files, "_lock", lambda file: at_lock.append((Path(file.name).parent / ".lock").exists()))
    with building_folder(tmp_path / "DIV2K_train_HR") as building:
        (building / "0001.png").touch()
        assert not left.exists()
    assert at_lock == [False]  # under its name a lock is held from the first moment
    assert all((folder / "photograph.png").is_file() for folder in others)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in others} | {"DIV2K_train_HR"}
    assert [path.name for path in Path(tmp_path / "DIV2K_train_HR").iterdir()] == ["0001.png"]


def test_a_locked_place_names_its_owner_and_what_to_choose_instead(tmp_path):
    with file_lock(tmp_path / "lock"):
        for place in ("--out", "PAPERLIB_CACHE"):
            with pytest.raises(UserError, match=f"process {os.getpid()}.*another {place}"), \
                    file_lock(tmp_path / "lock", place):
                pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_work_goes_on_and_says_so(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), file_lock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with pytest.warns(UserWarning, match="has no locks"), building_folder(tmp_path / "made") as building:
        (building / "a").touch()
    assert (tmp_path / "made" / "a").is_file()


def test_no_folder_is_called_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert main(["inspect", "pretrained", "--json=~/r.json"]) == 2  # no file of that name
    assert main(["inspect", str(pretrained()), "--json=~/r.json"]) == 0
    assert (tmp_path / "home" / "r.json").is_file()
    assert main(["evaluate", "bicubic", "--hr=~/none"]) == 2
    assert f"no folder at {tmp_path}/home/none" in capsys.readouterr().err
    assert main(["upscale", "", "--out", "o"]) == main(["upscale", "a.png", "--out", ""]) == 2
    for value, folder in (("", "home/.cache"), ("relative", "home/.cache"), (str(tmp_path / "xdg"), "xdg")):
        monkeypatch.delenv("PAPERLIB_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_dir() == tmp_path / folder / "paperlib"
    monkeypatch.setenv("PAPERLIB_CACHE", "~/c")
    assert cache_dir() == tmp_path / "home" / "c"
    absolutise_env()
    assert os.environ["PAPERLIB_CACHE"] == str(tmp_path / "home" / "c")
    assert not any(path.name.startswith("~") for path in tmp_path.rglob("*"))
