"""A headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

try:
    import websocket
except ImportError:
    websocket = None

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_S = 60


def find():
    """Where a Chromium is; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


def needed():
    """Skip a test where what it needs is missing."""
    if websocket is None:
        pytest.skip("websocket-client is not installed: pip install websocket-client")
    if find() is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")


class Browser:
    """One browser process with a profile of its own; pages are opened one after another."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="tracetool-chromium-", ignore_cleanup_errors=True)
        command = [
            find(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        self._errors = Path(self._profile.name) / "stderr.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        self._address = self._wait_for_address()

    def _wait_for_address(self):
        for _ in range(_PATIENCE_S * 10):
            found = re.search(r"DevTools listening on (ws://\S+)", self._errors.read_text(errors="replace"))
            if found:
                return found.group(1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
                break
        raise AssertionError(f"Chromium did not start: {self._errors.read_text(errors='replace')[-2000:]}")

    def open(self, url, **settings):
        """A page that has loaded."""
        return Page(self._address, url, **settings)

    def close(self):
        self._process.terminate()
        self._process.wait()
        self._profile.cleanup()


class Page:
    """One tab: what it asks for from the network, and what it says on its console, is noted."""

    def __init__(self, address, url, *, width=1400, height=1000, dark=False):
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=_PATIENCE_S)
        self._number = 0
        self._session = None
        self.requests = []
        self.complaints = []
        self._loaded = False
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._target = target
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.prefer(dark=dark)
        self._send("Page.navigate", url=url)
        while not self._loaded:
            self._receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._send("Target.closeTarget", targetId=self._target)
        self._socket.close()

    def prefer(self, *, dark):
        value = "dark" if dark else "light"
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def run(self, expression):
        """The value of an expression, awaited."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def until(self, condition):
        """Wait until an expression holds."""
        self.run(
            f"new Promise((done, fail) => {{ const end = Date.now() + {_PATIENCE_S * 900};"
            f"const look = () => {{ if ({condition}) done(); else if (Date.now() > end) fail(new Error('waited for ' + "
            f"{json.dumps(condition)})); else setTimeout(look, 30); }}; look(); }})"
        )

    def press(self, key, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self._send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def picture(self, path, *, full=True):
        """A PNG of the page."""
        settings = {}
        if full:
            size = self._send("Page.getLayoutMetrics")["cssContentSize"]
            settings = {
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
            }
        answer = self._send("Page.captureScreenshot", captureBeyondViewport=full, **settings)
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def _send(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith("Target."):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        wanted = self._number
        while (answer := self._receive()).get("id") != wanted:
            pass
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self):
        message = json.loads(self._socket.recv())
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(parameters["exceptionDetails"].get("exception", {}).get("description", ""))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(one.get("value", "")) for one in parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(parameters["entry"]["text"])
        return message
