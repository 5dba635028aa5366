"""Takes the picture of the live page in docs/SERVER.md: a streamed mixture of experts that answers for half a minute.

    python3 tests/ollama/screenshot.py docs/live.png [DIRECTORY]

With a directory, the page is also taken there as large and small screens show it, in light and dark: to be looked at.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import requests

from hypura_server import MODELS, HypuraServer
from test_live import BROWSERS, find_browser

SECONDS = 30
WIDTH, HEIGHT = 1280, 800
SCREENS = [(1280, 800), (390, 844)]


class Browser:
    """Chromium without a window, driven through a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()

        def take_pipes() -> None:
            # Chromium reads commands from descriptor 3 and answers on 4; copies first, so that neither overwrites the other.
            first, second = os.dup(commands), os.dup(answers)
            os.dup2(first, 3)
            os.dup2(second, 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--hide-scrollbars", "--remote-debugging-pipe"]
        self.process = subprocess.Popen([program, *flags], preexec_fn=take_pipes, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self.count, self.rest = 0, b""

    def ask(self, method: str, session: str | None = None, **parameters) -> dict:
        self.count += 1
        request = {"id": self.count, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.commands, json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                data = os.read(self.answers, 1 << 20)
                if not data:
                    raise SystemExit("the browser ended")
                self.rest += data
            message, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(message)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def keep_busy(server: HypuraServer, taken: threading.Event) -> None:
    while not taken.is_set():
        body = {"model": "smollm2-moe", "prompt": "Tell a story.", "stream": False, "options": {"num_predict": 60}}
        requests.post(server.url + "/api/generate", json=body, timeout=300)


def main() -> None:
    picture = Path(sys.argv[1])
    program = find_browser()
    if program is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as scratch, HypuraServer(MODELS / "smollm2-moe.gguf", Path(scratch), "--ram", "180M", "--stream") as server:
        server.ask("/api/generate", {"model": "smollm2-moe"})
        taken = threading.Event()
        clients = [threading.Thread(target=keep_busy, args=(server, taken)) for _ in range(2)]
        browser = Browser(program, Path(scratch, "profile"))
        try:
            target = browser.ask("Target.createTarget", url=f"{server.url}/hypura")["targetId"]
            session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for client in clients:
                client.start()
            time.sleep(SECONDS)
            take(browser, session, picture, WIDTH, HEIGHT, "light")
            for directory in map(Path, sys.argv[2:]):
                for width, height in SCREENS:
                    for scheme in ("light", "dark"):
                        take(browser, session, directory / f"live-{width}x{height}-{scheme}.png", width, height, scheme)
        finally:
            taken.set()
            browser.end()
        for client in clients:
            client.join()


def take(browser: Browser, session: str, picture: Path, width: int, height: int, scheme: str) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.ask("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
    time.sleep(2)  # the page asks once a second
    shot = browser.ask("Page.captureScreenshot", session, format="png")
    picture.write_bytes(base64.b64decode(shot["data"]))
    print(f"{picture}: {picture.stat().st_size} bytes")


if __name__ == "__main__":
    main()
