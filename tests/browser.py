"""An installed Chromium that is driven by its DevTools protocol: real keys, a real pointer, screenshots.

Protocol: https://chromedevtools.github.io/devtools-protocol/ (Page, Runtime, Input, Emulation).
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time

import pytest
import requests

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HEADLESS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
HEADLESS += ["--disable-component-update", "--disable-sync"]
DRIVEN = ["--remote-debugging-port=0", "--hide-scrollbars"]
CODES = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Delete": 46, "Escape": 27}
PATIENCE = 20  # seconds


class Page:
    """The browser's one page."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(told["params"]["exceptionDetails"]["exception"].get("description"))
            elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(told["params"]["entry"]["text"])
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(told["error"]["message"])
                return told["result"]

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page is being left for another
                if found := self.value(expression):
                    return found
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE} s: {expression}; errors {self.errors}")

    def key(self, key, modifiers=0):
        text = {} if len(key) > 1 else {"text": key}
        about = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": CODES.get(key, ord(key.upper()[0]))}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({} if modifiers else text))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def drag(self, *points):
        """Press the button at the first point, go through the others, and release it at the last."""
        for k, (x, y) in enumerate(points):
            kind = "mouseMoved" if k else "mousePressed"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = points[-1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def scroll_to(self, node):
        """Bring the node to the middle and wait two frames: the first has the event of scrolling, which hides notes."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        self.value(f"{node}.scrollIntoView({{ behavior: 'instant', block: 'center' }}); {frames}")

    def hover(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def size(self, width, height, dark=False, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(folder):
    """A page of a Chromium that keeps its things in `folder`."""
    import websocket

    command = [CHROMIUM, *HEADLESS, *DRIVEN, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "DevToolsActivePort", process)
        pages = requests.get(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE).json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        try:
            yield Page(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        process.wait()


def _port(path, process):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, IndexError):
            return path.read_text().split("\n")[0] or path.read_text().split("\n")[1]
        time.sleep(0.05)
    raise AssertionError("Chromium did not start")
