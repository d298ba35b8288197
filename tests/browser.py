"""A headless Chromium, driven by the DevTools protocol over two pipes: no package and no port is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a browser; close it after use.

    Attributes:
        requests: the addresses of all requests that the page has made, without data URLs.
        errors: uncaught errors of its scripts, and violations of its policy.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (to_read, self._to), (self._from, to_write) = os.pipe(), os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars",
                   "--disable-background-networking", "--no-first-run", "about:blank"]  # fmt: skip

        def connect() -> None:  # the browser reads from descriptor 3 and writes to 4
            reader, writer = os.dup(to_read), os.dup(to_write)
            reader, writer = (os.dup(one) if one in (3, 4) else one for one in (reader, writer))
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            preexec_fn=connect,
            close_fds=False,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self._session = 0, b"", ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for answer in self._messages(end - time.monotonic()):
                if answer.get("id") == self._number:
                    assert "error" not in answer, (method, answer["error"])
                    return dict(answer["result"])
        raise TimeoutError(method)

    def _messages(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that have arrived, of which events are noted."""
        if not select.select([self._from], [], [], max(0.0, seconds))[0]:
            return []
        received = os.read(self._from, 2**20)
        assert received, "the browser has ended"
        *parts, self._rest = (self._rest + received).split(b"\0")
        messages = [json.loads(part) for part in parts]
        for message in messages:
            params = message.get("params", {})
            if message.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                self.requests += [] if url.startswith(("data:", "blob:")) else [url]
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(params["exceptionDetails"])[:500])
            elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}"[:500])
        return messages

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise TimeoutError(f"{expression}: {self.evaluate('document.body.innerText')[:1000]} {self.errors}")

    def show(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window, and the colours that the page's visitor prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
