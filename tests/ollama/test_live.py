"""The live page and the metrics."""

import re
import shutil
import subprocess
import threading

import pytest

from hypura_server import GREEDY, HypuraServer, wait_until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def told_tokens(server) -> int:
    """Tokens by the statistics, which are written every two seconds, once there are any."""
    wait_until(lambda: (server.get("/hypura/figures").json()["statistics"] or {}).get("tokens"), "statistics of tokens")
    return server.get("/hypura/figures").json()["statistics"]["tokens"]


def test_metrics(server):
    server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY})
    told_tokens(server)
    wait_until(lambda: server.metrics()["hypura_requests_in_flight"] == "0", "the end of other tests' requests")
    wait_until(lambda: server.busy_slots() is not None, "llama-server's own metrics")
    text = server.get("/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \S+ .+|[a-z_:]+(\{.*\})? -?[0-9.e+-]+", line), line
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["hypura_model_loaded"] == "1"
    assert float(values["hypura_read_bytes_total"]) > 0 and float(values["hypura_tokens_total"]) > 0
    assert float(values["llamacpp:tokens_predicted_total"]) > 0, "llama-server's own are there, too"
    assert float(values['hypura_http_answers_total{path="/api/generate",status="200"}']) > 0


def test_figures(server):
    server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY})
    told_tokens(server)
    figures = server.get("/hypura/figures").json()
    weights = figures["model"]["weights"]
    assert weights["experts"] == 0 and sum(weights.values()) == figures["statistics"]["model_bytes"]
    assert figures["statistics"]["mode"] == "dense-streaming"
    layers = figures["model"]["layers"]
    assert [layer["layer"] for layer in layers] == list(range(30))
    streamed = figures["statistics"]["layers"]
    assert [layer["layer"] for layer in streamed] == list(range(30))
    for whole, part in zip(layers, streamed):
        assert 0 <= part["resident_bytes"] <= part["streamed_bytes"] < whole["bytes"] and part["streamed_bytes"] > 0
    assert 0 < sum(layer["resident_bytes"] for layer in streamed) == figures["statistics"]["resident_bytes"] <= 20 << 20
    assert figures["loading"] is None and figures["model"]["memory_bytes"] > 1 << 20


def test_figures_while_a_model_is_loading(directory, tmp_path):
    """A model takes a while to load: the page says so, and not that there is none."""
    with HypuraServer(directory, tmp_path / "log", "--ctx", "512") as server:
        asking = threading.Thread(target=server.ask, args=("/api/generate", {"model": "first"}))
        asking.start()
        seen = []
        # What llama-server counts is left out while it is too busy to tell.
        wait_until(lambda: seen.append(server.get("/hypura/figures").json()) or seen[-1]["served"], "loading", 120)
        asking.join()
        assert any(figures["loading"] and figures["loading"]["name"] == "first:latest" for figures in seen)
        assert seen[-1]["statistics"] is None and seen[-1]["served"]["generated_tokens"] is not None, "resident: llama-server counts"


def test_the_page_needs_nothing_from_elsewhere(server):
    page = server.get("/hypura")
    assert not re.search(r"(src|href)\s*=|@import|https?://", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_page_in_a_browser(server, tmp_path):
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium; on Debian: apt install chromium")
    server.ask("/api/generate", {"model": "smollm2", "prompt": "Hi", "stream": False, "options": GREEDY})
    before = told_tokens(server)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--hide-scrollbars", "--window-size=980,640"]
    # Time passes fast for the page; it has to ask a few times before it shows rates.
    command = [browser, *flags, "--virtual-time-budget=6000", "--enable-logging=stderr", "--dump-dom", f"{server.url}/hypura"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    shown = re.sub(r"<(script|style)>.*?</\1>", "", run.stdout, flags=re.DOTALL)
    told = ["smollm2:latest", "llama 134.52M Q4_1", "dense-streaming", "streamed, in RAM now", "per second", "expected", "30 layers of up to"]
    for words in [*told, "of a layer is in RAM", "under way"]:
        assert words in shown, f"'{words}' is not on the page:\n{shown}"
    assert re.search(r'id="problem"[^>]*hidden', shown), "the page reports a problem"
    assert "CONSOLE" not in run.stderr, run.stderr
    (tokens,) = map(int, re.findall(r"per second.*?(\d+) so far", shown, re.DOTALL)[:1])
    assert before <= tokens <= told_tokens(server)
