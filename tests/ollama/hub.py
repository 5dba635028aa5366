"""A hub on a port of the loopback interface: its two calls, listing a repository and giving parts of its files."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub with one repository, `o/R-GGUF`; use it in a `with` statement. `token` is demanded when it is given.

    It is a proxy as well: whatever host a tunnel is asked for, it is the hub that answers through it.
    """

    def __init__(self, files: dict[str, Path], token: str | None = None, digests: dict[str, str] | None = None) -> None:
        self.files, self.token = files, token
        self.digests = digests or {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        self.requests: list[tuple[str, str | None]] = []
        self.tunnels: list[str] = []

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_CONNECT(self) -> None:
                hub.tunnels.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, span = request.path.split("?")[0], request.headers.get("range")
        self.requests.append((path, span))
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b"{}")
        if path == "/api/models/o/R-GGUF/tree/main":
            return self.send(request, 200, json.dumps([self.entry(name) for name in self.files]).encode())
        found = re.fullmatch(r"/o/R-GGUF/resolve/[^/]+/(.+)", path)
        if not found or found.group(1) not in self.files:
            return self.send(request, 404, b"{}")
        file = self.files[found.group(1)]
        size = file.stat().st_size
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
        with file.open("rb") as opened:
            opened.seek(first)
            body = opened.read(last + 1 - first)
        more = {"content-range": f"bytes {first}-{first + len(body) - 1}/{size}", "x-repo-commit": COMMIT}
        self.send(request, 206, body, more)

    def entry(self, name: str) -> dict:
        size = self.files[name].stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": "1f", "lfs": {"oid": self.digests[name], "size": size}}

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, more: dict | None = None) -> None:
        request.send_response(status)
        for name, value in ((more or {}) | {"content-length": str(len(body))}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
