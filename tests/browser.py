"""A page in headless Chromium, driven over the DevTools protocol, to measure there and to test (section 7)."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from paperlib.errors import UserError


def chromium() -> str | None:
    """The browser's command, or None where none is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of a Chromium; `errors` keeps what it complained about."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._count = socket, itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []  # addresses asked for, the page's own first
        for domain in ("Runtime", "Page", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command's result; a RuntimeError where the browser refuses it."""
        number = next(self._count)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv())).get("id") != number:
            self._note(message.get("method"), message.get("params", {}))
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return dict(message["result"])

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}".strip())
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith(("blob:", "data:")):
            self.requests.append(event["request"]["url"])

    def open(self, path: str | Path) -> None:
        """Load a file of this machine, from `file://`."""
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited; a RuntimeError where it throws."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = 120) -> Any:
        """The first true value of an expression that is asked for again and again."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s: {script} {self.errors}")
            time.sleep(0.1)
        return value

    def choose(self, selector: str, path: str | Path) -> None:
        """Give a file to a file input, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

def stop(process: subprocess.Popen) -> None:
    """End a process, by force where it does not listen."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def open_page(width: int = 1200, height: int = 1000, patience: float = 600,
              kind: type[Page] = Page) -> Iterator[Page]:
    """An empty page, of `kind`, in a Chromium of its own."""
    command = chromium()
    if command is None:
        raise UserError("no Chromium on this machine. Install it (Debian: apt install chromium).")
    try:
        import websocket
    except ImportError as error:
        raise UserError("driving a browser needs websocket-client: pip install websocket-client.") from error
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        port = Path(home) / "profile" / "DevToolsActivePort"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-port=0", f"--user-data-dir={port.parent}", f"--window-size={width},{height}"]
        process = subprocess.Popen([command, *options, "about:blank"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=os.environ | {"HOME": home})
        try:
            end = time.monotonic() + 90
            while not port.is_file() or not port.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise UserError("Chromium does not start on this machine. Start it by hand to see why.")
                time.sleep(0.1)
            with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=30) as answer:
                targets = json.load(answer)
            address = next(at["webSocketDebuggerUrl"] for at in targets if at["type"] == "page")
            socket = websocket.create_connection(address, timeout=patience, suppress_origin=True)
            yield kind(socket)
            socket.close()
        finally:
            stop(process)
