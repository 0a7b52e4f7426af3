"""The authors' files from a local server: fetched once, checked, refused where they are others."""

import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from paperlib.errors import UserError
from paperlib.evaluation import authors
from paperlib.evaluation.authors import FILES, LOG, PUBLISHED, REPORT, Published, authors_folder, fetch_authors

CONTENTS = {"a.pt": b"weights" * 99, "b.csv": b"1,2\n"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A host of two files; `server.lies` maps a name to what it sends instead."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            name = self.path.rpartition("/")[2]
            data = self.server.lies.get(name, CONTENTS[name])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.lies = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(authors, "URL", f"http://127.0.0.1:{server.server_port}/at/commit")
    monkeypatch.setattr(authors, "PUBLISHED", {
        name: Published(f"in/{name[0]}", len(data), sha256(data).hexdigest()) for name, data in CONTENTS.items()})
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("PAPERLIB_ASSETS", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_they_are_fetched_once_into_the_cache(server, tmp_path):
    assert authors_folder() is None
    folder = fetch_authors()
    assert folder == tmp_path / "aio_mai" == authors_folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert server.asked == ["/at/commit/in/a/a.pt", "/at/commit/in/b/b.csv"]
    assert fetch_authors() == folder
    assert len(server.asked) == 2


@pytest.mark.parametrize("lie", [b"<!doctype html><title>Sign in</title>" * 4, b"weightz" * 99])
def test_other_bytes_are_refused_and_half_a_set_is_none(server, tmp_path, lie):
    server.lies["b.csv"] = lie[:4]
    with pytest.raises(UserError, match=r"b\.csv.* gave wrong bytes"):
        fetch_authors()
    assert authors_folder() is None  # a.pt alone is not the set
    server.lies = {"a.pt": lie}
    (tmp_path / "aio_mai" / "a.pt").unlink()
    with pytest.raises(UserError, match=r"a\.pt"):
        fetch_authors()
    assert not (tmp_path / "aio_mai" / "a.pt").exists()
    server.lies = {}
    assert authors_folder() is None
    assert fetch_authors() == authors_folder()


def test_files_of_the_user_come_first(server, monkeypatch, tmp_path):
    mine = tmp_path / "assets" / "aio_mai"
    mine.mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_ASSETS", str(tmp_path / "assets"))
    assert fetch_authors() == mine
    assert server.asked == []


def test_the_pinned_hashes_are_those_of_the_files_at_hand(assets):
    assert {*FILES.values(), REPORT, LOG} == PUBLISHED.keys()
    for name, file in PUBLISHED.items():
        content = (assets / "aio_mai" / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (file.bytes, file.sha256), name
