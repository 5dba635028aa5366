"""Who may ask, and how much."""

import socket

import requests

from hypura_server import SMOLLM2, HypuraServer


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# two\nfrom-file\n")
    with HypuraServer(SMOLLM2, tmp_path, "--api-key", "secret", "--api-key-file", keys, "--body-limit", "1K") as server:
        assert server.get("/").status_code == 200, "whether the server runs is no secret"
        for path in ("/api/tags", "/v1/models", "/metrics", "/hypura", "/hypura/figures", "/nothing"):
            refusal = server.get(path)
            assert refusal.status_code == 401 and "Bearer" in str(refusal.json()["error"]), path
            assert server.get(path, headers={"x-api-key": "secret"}).status_code in (200, 404), "as Anthropic's clients"
            for key in ("secret", "from-file"):
                assert server.get(path, headers={"Authorization": f"Bearer {key}"}).status_code in (200, 404)
            assert server.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert server.get("/hypura", auth=("anyone", "secret")).status_code == 200, "as a browser asks"
        key = {"Authorization": "Bearer secret"}
        for path in ("/api/generate", "/v1/chat/completions"):
            large = server.post(path, {"model": "smollm2", "prompt": "x" * 2000}, headers=key)
            assert large.status_code == 413 and "--body-limit" in large.text


def test_llama_server_itself_wants_a_key_that_nobody_knows(server):
    server.ask("/api/generate", {"model": "smollm2"})
    (process_id,) = server.llama_servers()
    arguments = open(f"/proc/{process_id}/cmdline", "rb").read().split(b"\0")
    port = int(arguments[arguments.index(b"--port") + 1])
    assert requests.get(f"http://127.0.0.1:{port}/props", timeout=60).status_code == 401
    assert not any(b"api" in argument for argument in arguments), "the list of processes does not tell it"


def test_web_pages(server):
    def status(**headers) -> int:
        return server.get("/api/tags", headers={name.title(): value for name, value in headers.items()}).status_code

    assert status(origin="http://localhost:3000") == 200 and status(origin="https://evil.example") == 403
    assert status(host="evil.example") == 403 and status(host="localhost:1") == 200
    for origin in ("app://obsidian.md", "tauri://localhost", "file://", "vscode-webview://1a", "vscode-file://vscode-app"):
        assert status(origin=origin) == 200, origin
    for host in ("0.0.0.0:11434", "host.docker.internal:11434", "box.local", "192.168.0.9", socket.gethostname()):
        assert status(host=host) == 200, host
    allowed = server.get("/api/tags", headers={"Origin": "http://127.0.0.1:1"})
    assert allowed.headers["access-control-allow-origin"] == "http://127.0.0.1:1"
    preflight = requests.options(
        f"{server.url}/api/chat", headers={"Origin": "http://localhost", "Access-Control-Request-Headers": "content-type"}, timeout=60
    )
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-headers"] == "content-type"
