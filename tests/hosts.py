"""A local host of files for tests of downloads, and how it may misbehave."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def host(contents: Mapping[str, bytes], prefix: str = "/") -> Iterator[ThreadingHTTPServer]:
    """Serve `contents` by path without `prefix`; `asked` of the server lists (path, Range).

    `behave` of the server maps the end of a path to a function (handler, data) that answers in its
    own way and returns True.
    """
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.replace("%20", " ").removeprefix(prefix)
            self.server.asked.append((path, self.headers.get("Range")))
            own = next((answer for end, answer in self.server.behave.items() if path.endswith(end)), None)
            if path not in contents:
                self.send_error(404, "Not Found")
            elif not (own and own(self, contents[path])):
                data, first = contents[path], int(self.headers.get("Range", "bytes=0-")[6:-1])
                self.send_response(206 if first else 200)
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                self.wfile.write(data[first:])

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.behave, httpd.asked = {}, []
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def answer(status: int, body: bytes, **headers: str):
    """A way to behave: this status, these headers (`Content_Range` …), this body."""
    def behave(handler, _):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        return True
    return behave


def break_off(handler, data):
    """Announce all, send 100 bytes and hang up; a request that continues is answered as usual."""
    if handler.headers.get("Range"):
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:100])
    handler.wfile.flush()
    handler.close_connection = True
    return True
