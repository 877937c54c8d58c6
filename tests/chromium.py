"""A headless Chromium for tests, driven over its DevTools protocol: real keys, real clicks, real rendering.

`TIDEWHEEL_CHROMIUM` names another program than the `chromium` on the path; `make setup` installs it on Debian.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--window-size=1280,860",
)
_KEYS = {"Enter": ("\r", 13), "Tab": ("\t", 9)}
SECONDS = 20.0
START_SECONDS = 60.0


class PageError(AssertionError):
    """A script in the page raised."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.ensure_future(self._read())
        self.complaints: list[
            str
        ] = []  # errors on the console, of scripts and of the content security policy
        self.requests: list[str] = []  # URLs that were asked for

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(SECONDS):
            told = await answer
        if "error" in told:
            raise PageError(f"{method}: {told['error']['message']}")
        return told["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise PageError(f"{script}: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true; gives its value."""
        waiting = f"""new Promise((done, fail) => {{
            const ends = performance.now() + {SECONDS * 1000};
            const look = () => {{
                const value = {condition};
                if (value) done(value);
                else if (performance.now() > ends) fail(new Error("never: " + document.body.innerText));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return await self.run(waiting)

    async def open(self, url: str) -> None:
        """Go there and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def click(self, selector: str) -> None:
        """Press and release the left button in the middle of an element."""
        place = await self.run(
            f"""(() => {{
                const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    async def write(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as if it were typed."""
        await self.click(selector)
        await self.run(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """One key on whatever has the focus."""
        text, code = _KEYS[key]
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    async def text(self, selector: str) -> str:
        """What people read there."""
        return await self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    async def screenshot(self, path: Path) -> None:
        """A picture of the window."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
                continue
            match told["method"], told["params"]:
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    self.complaints.append(str(details))
                case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                    self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
                case "Network.requestWillBeSent", {"request": request}:
                    self.requests.append(request["url"])

    async def close(self) -> None:
        self._reading.cancel()
        await self._socket.close()


class Chromium:
    """A browser with an empty profile; use it as a context manager."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __enter__(self) -> Self:
        program = os.environ.get("TIDEWHEEL_CHROMIUM") or shutil.which("chromium")
        if program is None:
            raise AssertionError(
                "no chromium on the path; `make setup` installs it on Debian as root, TIDEWHEEL_CHROMIUM names another"
            )
        log = self._profile.with_suffix(".log")
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [program, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
                stdout=said,
                stderr=said,
            )
        ends = time.monotonic() + START_SECONDS
        while not (
            found := re.search(r"DevTools listening on ws://([^/]+)/", log.read_text(errors="replace"))
        ):
            if self._process.poll() is not None or time.monotonic() > ends:
                self.__exit__()
                raise AssertionError(f"chromium did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        self._address = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Page]:
        """A new tab; it is closed at the end."""
        async with aiohttp.ClientSession(f"http://{self._address}") as session:
            async with session.put("/json/new?about:blank") as answer:
                tab = await answer.json()
            page = Page(await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=1 << 26))
            try:
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
            finally:
                await page.close()
                async with session.get(f"/json/close/{tab['id']}") as answer:
                    await answer.read()
