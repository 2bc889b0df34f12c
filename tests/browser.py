"""A browser for tests of web pages: a client of chromedriver's WebDriver interface, with the standard library alone.

    with browsing() as browser:             skips the test, with the reason, where chromium or chromedriver is missing
        browser.open("http://127.0.0.1:8181/")
        browser.wait("document.querySelector('tbody tr')")      a JavaScript expression that must become true
        browser.click("#suspend")                               as a user does: what is hidden or covered is refused
        browser.script("return document.title")
        browser.complaints()                                    what the console says of errors and refused content
        browser.requests()                                      every address that was asked for

One browser may serve many tests, as starting one takes a second: `forget` gives it a new, empty window and no cookies.
"""
from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from tests.support import free_port, running

__unittest = True

WAIT_S = 60.0                   # for a condition in the page
REPLY_S = 100.0                 # for chromedriver's answer, a browser's start included
SCRIPT_S = 50.0                 # for a script
SLICE_S = 0.5                   # so long one looks that waits, then it is started again: it may be lost with its page
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"         # the key by which WebDriver marks a reference to an element

ENTER, ESCAPE, TAB, SPACE = "\ue007", "\ue00c", "\ue004", " "

# Whoever runs the tests has no business with the net: no updates, no start page, no reports. Windows have a fixed size.
ARGUMENTS = ("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-breakpad", "--disable-extensions",
             "--disable-dev-shm-usage", "--lang=en", "--window-size=1280,900")

# Calls back with the value of an expression once it is true; null when it has not been for so many milliseconds.
WAIT_SCRIPT = """
const [limit, done] = arguments, until = performance.now() + limit;
const look = () => {
  let value = null;
  try { value = (%s); } catch (error) { if (!(error instanceof TypeError)) throw error; }
  if (value) done(value === Object(value) ? true : value);
  else if (performance.now() > until) done(null);
  else setTimeout(look, 15);
};
look();
"""


class BrowserError(AssertionError):
    """What chromedriver refused, with its kind of error (attribute `kind`)."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__("%s: %s" % (kind, text.splitlines()[0] if text else ""))
        self.kind = kind


def programs() -> Dict[str, str]:
    """Paths of `chromium` and `chromedriver`. Raises SkipTest where one of them is missing."""
    found = {"chromium": shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"),
             "chromedriver": shutil.which("chromedriver")}
    missing = [name for name, path in found.items() if not path]
    if missing:
        raise unittest.SkipTest("needs %s (packages chromium and chromium-driver)" % " and ".join(missing))
    return {name: str(path) for name, path in found.items()}


class Browser:
    """One window; made by `browsing`. Every method may be called from the thread of the test alone."""

    def __init__(self, port: int, chromium: str, profile: Path) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPLY_S)
        self._path = ""
        self._requests: List[str] = []
        self._complaints: List[str] = []
        arguments = list(ARGUMENTS) + ["--user-data-dir=%s" % profile]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")            # chromium refuses to run as root otherwise
        wanted = {"browserName": "chrome", "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                  "goog:chromeOptions": {"binary": chromium, "args": arguments},
                  "timeouts": {"script": int(SCRIPT_S * 1000)}, "unhandledPromptBehavior": "ignore"}
        try:
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._connection.close()
            raise
        self._path = "/session/" + session["sessionId"]

    def _call(self, method: str, path: str, body: Optional[Dict[str, Any]] = None) -> Any:
        data = json.dumps(body or {}) if method == "POST" else None
        self._connection.request(method, self._path + path, data, {"Content-Type": "application/json"})
        value = json.loads(self._connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise BrowserError(value["error"], value["message"])
        return value

    def close(self) -> None:
        """Close the window and end the browser."""
        with contextlib.suppress(OSError, http.client.HTTPException, BrowserError):
            self._call("DELETE", "")
        self._connection.close()

    # Pages --------------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to `url` and wait until it is loaded."""
        self._call("POST", "/url", {"url": url})

    def forget(self) -> None:
        """Leave the page, and remove cookies and what was logged."""
        self.open("about:blank")
        self.cdp("Network.clearBrowserCookies")
        self._read_logs()
        self._requests, self._complaints = [], []

    @property
    def url(self) -> str:
        """Address of the page."""
        return self._call("GET", "/url")

    def script(self, code: str, *args: Any) -> Any:
        """Run JavaScript in the page, which finds `args` in its `arguments`; what it returns."""
        return self._call("POST", "/execute/sync", {"script": code, "args": list(args)})

    def wait(self, condition: str, timeout_s: float = WAIT_S) -> Any:
        """Wait in the page until a JavaScript expression is true; its value, True if it is an object.

        A property of what is not there yet counts as false, and the page may change meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s, value = deadline - time.monotonic(), None
            try:
                value = self._call("POST", "/execute/async", {
                    "script": WAIT_SCRIPT % condition, "args": [1000 * max(0.0, min(SLICE_S, left_s))]})
            except BrowserError as error:               # the page that was asked is gone: the next one is
                if not re.search("script timeout|unloaded|navigat", str(error)):
                    raise
            if value is None and left_s > 0:
                continue
            if value is None:
                raise AssertionError("not within %g s in %s: %s\nThe page says:\n%s\nThe console says:\n%s" % (
                    timeout_s, self.url, condition, self.script("return document.body.innerText")[:2000],
                    "\n".join(self.complaints())))
            return value

    def text(self, css: str) -> str:
        """What a user reads in the first element that matches."""
        return self._with(css, "GET", "text")

    def _with(self, css: str, method: str, what: str, body: Optional[Dict[str, Any]] = None) -> Any:
        """Do something with the first element that matches; with the next one when it is replaced in that moment."""
        while True:
            found = self._call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]
            try:
                return self._call(method, "/element/%s/%s" % (found, what), body)
            except BrowserError as error:
                if error.kind != "stale element reference":
                    raise

    # What a user does ---------------------------------------------------------------------------------------------

    def click(self, css: str) -> None:
        """Click on the first element that matches; it must be visible, and not covered by another."""
        self._with(css, "POST", "click")

    def type(self, css: str, text: str, clear: bool = True) -> None:
        """Type into a field."""
        if clear:
            self._with(css, "POST", "clear")
        self._with(css, "POST", "value", {"text": text})

    def press(self, keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def alert(self) -> Optional[str]:
        """Text of an open alert of the page; None when there is none, as should be."""
        try:
            return self._call("GET", "/alert/text")
        except BrowserError as error:
            if error.kind == "no such alert":
                return None
            raise

    # What the browser saw -----------------------------------------------------------------------------------------

    def _read_logs(self) -> None:
        for entry in self._call("POST", "/se/log", {"type": "browser"}):
            if entry["level"] in ("SEVERE", "WARNING"):
                self._complaints.append("%(level)s %(source)s: %(message)s" % entry)
        for entry in self._call("POST", "/se/log", {"type": "performance"}):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self._requests.append(event["params"]["request"]["url"])

    def complaints(self) -> List[str]:
        """Errors and warnings of the console since `forget`: scripts, refused content, failed requests."""
        self._read_logs()
        return list(self._complaints)

    def requests(self) -> List[str]:
        """Addresses that the pages asked for since `forget`."""
        self._read_logs()
        return list(self._requests)

    def cdp(self, command: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Make the page so large, in its own pixels, and let it believe that its user likes it dark, or light."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)
        self.cdp("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self, path: Any) -> None:
        """Write what the window shows to `path`, as PNG."""
        Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))


def _started(*args: Any) -> Browser:
    """A browser. Raises SkipTest, with the reason, where the one that is installed does not run."""
    try:
        return Browser(*args)
    except BrowserError as error:
        if error.kind != "session not created":         # versions that do not fit, no right to make a sandbox
            raise
        raise unittest.SkipTest("chromium does not start here: %s" % error) from None


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser with a profile of its own, ended with the block. Raises SkipTest where there is none."""
    found = programs()
    profile = tempfile.mkdtemp(prefix="browser-")
    try:
        port = free_port()              # 0 makes chromedriver choose one that it may not get for both kinds of address
        with running([found["chromedriver"], "--port=%d" % port], ready="started successfully on port") as driver:
            try:
                browser = _started(port, found["chromium"], Path(profile, "profile"))
                try:
                    yield browser
                finally:
                    browser.close()
            finally:
                with contextlib.suppress(AttributeError, ProcessLookupError):   # a platform without groups; all gone
                    os.killpg(driver.pid, signal.SIGKILL)       # chromium, too: it outlives chromedriver otherwise
    finally:
        shutil.rmtree(profile, ignore_errors=True)
