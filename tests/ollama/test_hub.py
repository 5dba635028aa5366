"""Models that are elsewhere: planned for, downloaded, served; against a hub of our own."""

import json
import os
import struct
from pathlib import Path

import ollama
import pytest

import hypura_server
from hub import COMMIT, Hub
from hypura_server import GREEDY, SMOLLM2, HypuraServer
from test_commands import fails, succeeds

GIB = 1 << 30


def large_model(path: Path, layers: int, bytes_each: int, vocabulary: int) -> Path:
    """A mixture of experts with layers of so many bytes, and a vocabulary as large as those of today: a header, and a hole."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {"block_count": layers, "expert_count": 64, "expert_used_count": 8, "embedding_length": 2048, "context_length": 32768}
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("toy")]
    pairs += [text(f"toy.{name}") + struct.pack("<II", 4, number) for name, number in numbers.items()]
    words = b"".join(text(f"word {index}") for index in range(vocabulary))
    pairs.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, vocabulary) + words)
    length = bytes_each // (2048 * 64 * 2)
    tensors = [("token_embd.weight", [2048, 1000]), *((f"blk.{layer}.ffn_up_exps.weight", [2048, length, 64]) for layer in range(layers))]
    header, offset = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs), 0
    for name, shape in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", 1, offset)
        elements = 1
        for size in shape:
            elements *= size
        offset += -(-2 * elements // 32) * 32
    path.write_bytes(header)
    os.truncate(path, -(-len(header) // 32) * 32 + offset)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache, for the command and for the server."""
    for name, value in {"HF_HOME": tmp_path / "hf", "XDG_CACHE_HOME": tmp_path / "cache", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hf"


def test_plan_reads_the_header_only(home, tmp_path):
    files = {
        "R-Q8_0.gguf": large_model(tmp_path / "q8.gguf", 30, 4 * GIB, 150_000),
        "R-Q4_K_M.gguf": large_model(tmp_path / "q4.gguf", 30, 2 * GIB, 150_000),
        "R-Q2_K.gguf": large_model(tmp_path / "q2.gguf", 30, GIB, 150_000),
        "README.md": tmp_path / "q4.gguf",
    }
    digests = {name: f"{index:064x}" for index, name in enumerate(files)}
    with Hub(files, digests=digests) as hub:
        figures = json.loads(succeeds("plan", "hf:o/R-GGUF", "--ram", "8G", "--json", HF_ENDPOINT=hub.url))
        assert figures["weight_bytes"] > 59 * GIB and figures["file"] == "hf:o/R-GGUF"
        assert figures["received_bytes"] < 20e6, "a header, and not the model"
        rows = {row["quantization"]: row for row in figures["quantizations"]}
        assert list(rows) == ["Q8_0", "Q4_K_M", "Q2_K"]
        assert [row["is_planned"] for row in rows.values()] == [False, True, False]
        speeds = [row["tokens_per_second"] for row in rows.values()]
        assert speeds == sorted(speeds), "the smaller the faster"

        wanted = speeds[1] * 1.2
        found = json.loads(succeeds("plan", "hf:o/R-GGUF", "--ram", "8G", "--want", wanted, "--json", HF_ENDPOINT=hub.url))
        assert found["reaches"] == "Q2_K" and found["received_bytes"] < 20e6
        q2 = next(row for row in found["quantizations"] if row["quantization"] == "Q2_K")
        assert q2["is_planned"] and q2["tokens_per_second"] >= wanted
        assert q2["tokens_per_second"] == pytest.approx(speeds[2], rel=0.25), "the estimate was near"
        assert json.loads(succeeds("plan", "hf:o/R-GGUF", "--ram", "8G", "--want", 1e6, "--json", HF_ENDPOINT=hub.url))["reaches"] is None

        by_address = json.loads(succeeds("plan", f"{hub.url}/o/R-GGUF/resolve/main/R-Q2_K.gguf", "--ram", "8G", "--json"))
        assert by_address["weight_bytes"] == found["weight_bytes"]
        text = succeeds("plan", "hf.co/o/R-GGUF:Q8_0", "--ram", "8G", HF_ENDPOINT=hub.url)
        assert "were read to know this" in text and "Q4_K_M" in text
        fails("plan", "hf:o/R-GGUF:Q5_0", words=["has no Q5_0; it has Q8_0, Q4_K_M, Q2_K"], HF_ENDPOINT=hub.url)
        fails("plan", "hf:o/other", words=["not found"], HF_ENDPOINT=hub.url)
        fails("plan", f"{hub.url}/o/R-GGUF/resolve/main/README.txt", words=["not found"])
    assert not list(home.glob("**/*.gguf")), "nothing is kept"
    fails("plan", "hf:o/R-GGUF", words=["cannot reach"], HF_ENDPOINT=hub.url)
    fails("plan", SMOLLM2, "--want", "5", words=["--want chooses among the models of a repository"])


def test_proxies(home, tmp_path):
    """Hosts that only a proxy reaches; for encrypted ones it makes a tunnel, in which a hub without a certificate is refused."""
    files = {"R-Q2_K.gguf": large_model(tmp_path / "q2.gguf", 2, GIB, 1000)}
    with Hub(files, digests={name: f"{1:064x}" for name in files}) as hub:
        plain = {"HF_ENDPOINT": "http://hub.test", "HTTP_PROXY": hub.url, "http_proxy": hub.url}
        figures = json.loads(succeeds("plan", "hf:o/R-GGUF", "--ram", "8G", "--json", **plain))
        assert figures["weight_bytes"] > 2 * GIB and (not hub.tunnels or set(hub.tunnels) == {"hub.test:80"})
        hub.tunnels.clear()
        fails("plan", "hf:o/R-GGUF", words=["hub.test"], HF_ENDPOINT="https://hub.test", HTTPS_PROXY=hub.url, https_proxy=hub.url)
        assert set(hub.tunnels) == {"hub.test:443"}
        asked = len(hub.requests)
        fails("plan", "hf:o/R-GGUF", words=["cannot reach"], **plain, NO_PROXY="hub.test", no_proxy="hub.test")
        assert len(hub.requests) == asked


def test_pull_goes_into_the_shared_cache(home):
    with Hub({"R-Q4_1.gguf": SMOLLM2}, token="secret") as hub:
        fails("pull", "hf:o/R-GGUF", words=["401", "HF_TOKEN"], HF_ENDPOINT=hub.url)
        path = Path(succeeds("pull", "hf:o/R-GGUF", HF_ENDPOINT=hub.url, HF_TOKEN="secret").strip())
        assert path == home / "hub/models--o--R-GGUF/snapshots" / COMMIT / "R-Q4_1.gguf"
        assert path.read_bytes() == SMOLLM2.read_bytes() and path.is_symlink()
        assert path.resolve().name == hub.digests["R-Q4_1.gguf"], "named by its checksum, as other programs expect"
        assert (home / "hub/models--o--R-GGUF/refs/main").read_text() == COMMIT
        before = len(hub.requests)
        assert succeeds("pull", "o/R-GGUF", HF_ENDPOINT=hub.url, HF_TOKEN="secret").strip() == str(path)
        assert all("-0" in (span or "-0") for _, span in hub.requests[before:]), "nothing is downloaded twice"
    assert "Q4_1" in succeeds("inspect", path)


def test_ollamas_client_pulls_and_chats(home, tmp_path, monkeypatch):
    models = tmp_path / "models"
    models.mkdir()
    (models / "here.gguf").symlink_to(SMOLLM2)
    with Hub({"R-Q4_1.gguf": SMOLLM2}) as hub:
        own = hypura_server.environment() | {"HF_ENDPOINT": hub.url}
        monkeypatch.setattr(hypura_server, "environment", lambda: own)
        with HypuraServer(models, tmp_path / "log", "--ctx", "512") as server:
            client = ollama.Client(server.url)
            assert client.pull("here").status == "success", "it is there"
            steps = list(client.pull("hf.co/o/R-GGUF:Q4_1", stream=True))
            assert steps[0].status == "pulling manifest" and steps[-1].status == "success"
            completed = [step.completed for step in steps if step.digest]
            assert completed == sorted(completed) and completed[-1] == SMOLLM2.stat().st_size
            assert "hf.co/o/R-GGUF:Q4_1" in [model.model for model in client.list().models]
            answer = client.chat("hf.co/o/R-GGUF:Q4_1", [{"role": "user", "content": "Hi"}], options=GREEDY)
            assert answer.message.content
            for name, words in [("llama3", "only models of the Hugging Face hub"), ("hf.co/o/R-GGUF:Q9", "has no Q9; it has Q4_1")]:
                with pytest.raises(ollama.ResponseError, match=words):
                    client.pull(name)
