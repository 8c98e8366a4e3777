"""A headless Chromium, driven over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import IO, Self

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
# Long: it is for what never comes, and not for a machine with other work to do.
DEADLINE = 30.0


def chromium() -> str | None:
    """Return the browser of this machine: what CHROMIUM names, or the first of the usual names."""
    found = (shutil.which(name) for name in (os.environ.get("CHROMIUM", ""), *NAMES) if name)
    return next((path for path in found if path), None)


class Browser:
    """A browser with a profile of its own, inside a `with` block. Its pages share it, cookies included."""

    def __init__(self, profile: Path, *flags: str) -> None:
        self._profile = profile
        self._flags = flags
        self._pages: list[Page] = []

    def __enter__(self) -> Self:
        program = chromium()
        assert program is not None
        self._process = subprocess.Popen(
            [program, *FLAGS, *self._flags, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self._address = self._read_address(self._process.stderr)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close_pages()
        self._process.terminate()
        self._process.communicate()

    def open(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> "Page":
        """Open a page in a window of this size, on a system that prefers this colour scheme."""
        request = urllib.request.Request(f"{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request) as answer:
            target = json.load(answer)
        # Without pings: a page that is busy does not answer them, and is not lost for that.
        page = Page(connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None))
        self._pages.append(page)
        page.prepare(width, height, scheme)
        page.go(url)
        return page

    def close_pages(self) -> None:
        """Close every page. A browser has six connections at most to one server, streams included."""
        while self._pages:
            self._pages.pop().close()

    @staticmethod
    def _read_address(output: IO[bytes]) -> str:
        for line in output:
            if line.startswith(b"DevTools listening on ws://"):
                return "http://" + line.decode().split("//")[1].split("/")[0]
        raise RuntimeError("the browser did not start")


class Page:
    """One page. Whatever it complains of is in `complaints`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._opened = contextlib.ExitStack()
        self._connection = self._opened.enter_context(connection)
        self._opened.callback(self.call, "Page.close")
        self._number = 0
        self.complaints: list[str] = []

    def prepare(self, width: int, height: int, scheme: str) -> None:
        """Set what a page sees of its machine."""
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def go(self, url: str) -> None:
        """Load a page, and wait until it has."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def back(self) -> None:
        """Go back to the page before, as its visitor does. Returns at once."""
        history = self.call("Page.getNavigationHistory")
        current, entries = history["currentIndex"], history["entries"]
        assert isinstance(current, int)
        assert isinstance(entries, list)
        self.call("Page.navigateToHistoryEntry", entryId=entries[current - 1]["id"])

    def close(self) -> None:
        """Close the page, as its visitor does. Harmless the second time."""
        self._opened.close()

    def evaluate(self, script: str) -> object:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        result = answer["result"]
        assert isinstance(result, dict)
        value: object = result.get("value")
        return value

    def tried(self, script: str) -> object:
        """Return the value of an expression, None where the page is not ready for it."""
        try:
            return self.evaluate(script)
        except AssertionError:
            return None

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def wait_for(self, condition: str) -> None:
        """Wait in the page until a JavaScript expression is true."""
        self.evaluate(
            "new Promise((resolve, reject) => {"
            f"  const deadline = Date.now() + {1000 * DEADLINE};"
            f"  const look = () => ({condition}) ? resolve()"
            f"    : Date.now() < deadline ? setTimeout(look, 10) : reject(Error({json.dumps(condition)}));"
            "  look();"
            "})"
        )

    def click(self, selector: str) -> None:
        """Press an element, as a visitor does: in its middle, whatever lies over it."""
        x, y, width, height = self._box(selector)
        place = x + width / 2, y + height / 2
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, *place, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def call(self, method: str, **parameters: object) -> dict[str, object]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=DEADLINE + 5))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, object] = message["result"]
                return result
            self._note(message)

    def _box(self, selector: str) -> list[float]:
        found = self.evaluate(
            "(({x, y, width, height}) => [x, y, width, height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        assert isinstance(found, list)
        return found

    def _mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def _note(self, message: dict[str, object]) -> None:
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(message["params"]))
        if message["method"] == "Log.entryAdded":
            entry = message["params"]["entry"]  # type: ignore[index]
            if entry["level"] in ("error", "warning"):
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
