"""Which file a setting means, whatever folder the command or the notebook runs in."""

import pytest

from paperlib.errors import UserError
from paperlib.weights import pretrained, start_file


def test_a_start_is_absolute_or_under_the_assets_or_in_the_box(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"the one in the current folder is not meant")
    assert start_file("a.pt") == tmp_path / "assets" / "a.pt"
    assert start_file(str(tmp_path / "a.pt")) == tmp_path / "a.pt"
    assert start_file("pretrained-float") == pretrained("pretrained-float")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert start_file("~/a.pt") == tmp_path / "a.pt"


def test_a_relative_start_without_assets_says_what_to_do(monkeypatch):
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    with pytest.raises(UserError, match=r"quant.start=a.pt: PAPERLIB_ASSETS is unset. Set it to the folder"):
        start_file("a.pt")
