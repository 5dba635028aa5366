"""Every command but `serve`, on real models: what it prints, its JSON, and what it says to wrong input."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
import xml.etree.ElementTree as ElementTree

import pytest

import kinds
from hypura_server import HYPURA, MODELS, NO_REPACK, PROJECTOR, REPOSITORY, SMOLLM2, STREAMED, TIMEOUT_SECONDS, children_of, environment, is_alive, wait_until

LLAMA = ["--llama", REPOSITORY / "build" / "llama" / "bin"]
MOE = MODELS / "smollm2-moe.gguf"
COMMANDS = ["inspect", "plan", "profile", "pull", "run", "chat", "serve", "bench", "replay", "completions", "man"]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is remembered of machines and models is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def hypura(*arguments, text: str | None = None, **settings: str) -> subprocess.CompletedProcess:
    command = [HYPURA, *map(str, arguments)]
    source = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(command, env=environment() | settings, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, **source)


def succeeds(*arguments, **more) -> str:
    run = hypura(*arguments, **more)
    assert run.returncode == 0, run.stderr
    return run.stdout


def as_json(*arguments) -> dict:
    return json.loads(succeeds(*arguments, "--json"))


def fails(*arguments, words: list[str], status: int = 1, **more) -> str:
    run = hypura(*arguments, **more)
    assert run.returncode == status, (run.returncode, run.stdout, run.stderr)
    for some in words:
        assert some in run.stderr, f"'{some}' is not in: {run.stderr}"
    assert run.stdout == "", "a failure prints nothing for programs to read"
    return run.stderr


def test_help():
    overview = succeeds("--help")
    for command in COMMANDS:
        assert f"\n  {command} " in overview
        text = succeeds(command, "--help")
        assert f"Usage: hypura {command}" in text
        assert len(re.findall(rf"^  .*hypura {command} .*$", text, re.MULTILINE)) >= 2, "there are examples"
        assert all(len(line) <= 100 for line in text.splitlines()), "it fits a terminal"


@pytest.mark.parametrize("model", [SMOLLM2, MOE], ids=["dense", "experts"])
def test_inspect(model):
    figures = as_json("inspect", model)
    assert figures["file_bytes"] == model.stat().st_size and figures["files"] == [{"path": str(model), "bytes": figures["file_bytes"]}]
    weights = figures["weight_bytes"]
    assert sum(role["bytes"] for role in figures["roles"]) == weights
    assert sum(layer["bytes"] for layer in figures["layers"]) == weights
    assert sum(figures["quantization"]["bytes_by_type"].values()) == weights
    assert sum(role["streamable_bytes"] for role in figures["roles"]) == figures["streamable_bytes"]
    assert figures["architecture"]["layers"] == 30 and len(figures["layers"]) == 31
    # 30 layers, 3 heads for keys and values, of 64, f16.
    assert figures["kv_cache_bytes_per_token"] == 30 * 3 * (64 + 64) * 2
    assert 0 < figures["least_ram_bytes"] < weights
    if model == MOE:
        assert (figures["experts"]["count"], figures["experts"]["used"]) == (8, 2)
        assert figures["used_bytes_per_token"] < weights / 2 < figures["experts"]["bytes"]
    else:
        assert figures["experts"] is None
    text = succeeds("inspect", model)
    assert "could stream" in text and "0 to 29, each" in text
    assert ("8 experts a layer of which 2 are used" in text) == (model == MOE)


def test_plan():
    plan = as_json("plan", SMOLLM2, "--ram", "60M", "--ctx", "256")
    assert plan["kv_cache_bytes"] == 256 * 23040 and plan["ram_bytes"] == 60 * MIB
    placed = plan["plan"]
    assert placed["mode"] == "dense-streaming" and placed["ram_budget_bytes"] == plan["ram_bytes"] - plan["kv_cache_bytes"]
    assert placed["ram_bytes"] + placed["drive_bytes"] == plan["weight_bytes"]
    assert placed["ram_bytes"] + placed["ring_bytes"] <= placed["ram_budget_bytes"]
    assert sum(layer["ram_bytes"] + layer["drive_bytes"] for layer in plan["layers"]) == plan["weight_bytes"]
    assert placed["prediction"]["tokens_per_second"] > 0 and placed["prediction"]["limit"]
    rams, speeds = zip(*((point["ram_bytes"], point["tokens_per_second"]) for point in plan["speed_by_ram"]))
    assert list(rams) == sorted(rams) and speeds[0] <= speeds[-1] * 1.001
    assert plan["machine"]["memory"]["bytes_per_second"] > 1e8 and plan["machine"]["drive"]["bytes_per_second"] > 1e6

    assert as_json("plan", SMOLLM2)["plan"]["mode"] == "full-resident"
    on_gpu = as_json("plan", MOE, "--ram", "300M", "--gpu", "200M")["plan"]
    assert 0 < on_gpu["gpu_bytes"] <= 200 * MIB and on_gpu["mode"] != "dense-streaming"
    longer = as_json("plan", SMOLLM2, "--ram", "100M", "--ctx", "1024")
    assert longer["plan"]["ram_bytes"] < as_json("plan", SMOLLM2, "--ram", "100M", "--ctx", "16")["plan"]["ram_bytes"]


def test_plan_draws_a_row_a_layer():
    text = succeeds("plan", SMOLLM2, "--ram", "60M", "--ctx", "256")
    rows = re.findall(r"^ +(\d+|other) [█░▓]+ ", text, re.MULTILINE)
    assert rows == [*map(str, range(30)), "other"]
    assert "░ drive" in text and "█ RAM" in text and "limited by" in text and "▲ 60.0 MiB" in text
    assert "\x1b" not in text, "no colours where there is no terminal"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments, **settings: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        self.process = subprocess.Popen(
            [HYPURA, *map(str, arguments)],
            env=environment() | {"TERM": "xterm"} | settings,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def read(self) -> bool:
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def read_until(self, words: str) -> None:
        end = time.monotonic() + TIMEOUT_SECONDS
        while words not in self.text:
            assert time.monotonic() < end and self.read(), f"'{words}' never came:\n{self.text}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        while self.read():
            pass
        os.close(self.master)
        return self.process.wait(TIMEOUT_SECONDS)


def test_colours_in_a_terminal():
    terminal = Terminal("plan", SMOLLM2, "--ram", "60M", "--ctx", "256")
    assert terminal.end() == 0
    assert "\x1b[34m█" in terminal.text and "\x1b[33m░" in terminal.text
    drawn = [re.sub(r"\x1b\[\d+m", "", line) for line in terminal.text.splitlines() if "█" in line]
    assert len(drawn) > 30 and max(map(len, drawn)) <= 90, "it fits the terminal"
    plain = Terminal("plan", SMOLLM2, "--ram", "60M", "--ctx", "256", NO_COLOR="1")
    assert plain.end() == 0
    assert "\x1b" not in plain.text and "░" in plain.text


def test_profile():
    figures = as_json("profile", SMOLLM2, "--seconds", "0.02")
    assert figures["memory"]["limit_bytes"] >= figures["memory"]["available_bytes"] > 0
    assert figures["memory"]["bytes_per_second"] > 1e8 and figures["cores"]["parallel"] >= 1
    assert figures["reads"]["file"] == str(SMOLLM2)
    speeds = [setting["bytes_per_second"] for setting in figures["reads"]["measured"]]
    assert len(speeds) == 5 and figures["drive"]["bytes_per_second"] == max(speeds) > 1e6
    text = succeeds("profile", SMOLLM2.parent, "--seconds", "0.02")
    assert "bandwidth" in text and "libhypura's choice" in text and "smollm2" in text


def test_profile_without_a_model(tmp_path):
    figures = as_json("profile", tmp_path)
    assert figures["drive"]["bytes_per_second"] is None and figures["reads"]["measured"] == []
    assert any("not measured" in note for note in figures["notes"])


def run_smollm2(*arguments, **more) -> str:
    return succeeds("run", SMOLLM2, *LLAMA, *arguments, **more)


def test_run():
    greedy = ["--", *NO_REPACK, "--temp", "0"]
    raw = ["--raw", "-n", "12", "-p", "Once upon a time"]
    resident = run_smollm2(*raw, *greedy)
    assert len(resident.split()) >= 4
    assert run_smollm2(*raw, *STREAMED, *greedy) == resident, "streamed or not, the text is the same"
    assert run_smollm2("--raw", "-n", "12", "-p", "-", *greedy, text="Once upon a time\n") == resident
    chat = run_smollm2("-n", "12", "-p", "Say hello.", *greedy)
    assert chat.strip() and "im_start" not in chat and chat != resident
    assert run_smollm2("-n", "12", "--system", "You are a pirate.", "-p", "Say hello.", *greedy) != chat


def test_run_takes_backslashes_as_they_are():
    log = hypura("run", SMOLLM2, *LLAMA, "--raw", "-n", "1", "-p", r"a\nb", "--verbose", "--", *NO_REPACK, "--verbose-prompt").stderr
    assert r"a\nb" in log


def test_run_shows_how_streaming_goes():
    terminal = Terminal("run", SMOLLM2, *LLAMA, *STREAMED, "--raw", "-n", "4", "-p", "Once upon a time", "--", *NO_REPACK, "--ignore-eos")
    assert terminal.end() == 0
    assert "\x1b[1;29r" in terminal.text, "the last row does not scroll"
    assert terminal.text.rindex("\x1b[r") > terminal.text.rindex("\x1b[1;29r"), "in the end all rows do again"
    assert "dense-streaming" in terminal.text
    quiet = Terminal("run", SMOLLM2, *LLAMA, *STREAMED, "--no-status", "--raw", "-n", "4", "-p", "Hi", "--", *NO_REPACK)
    assert quiet.end() == 0 and "\x1b7" not in quiet.text


def test_chat():
    terminal = Terminal("chat", SMOLLM2, *LLAMA, *STREAMED, "--", *NO_REPACK, "-n", "8", "--temp", "0")
    terminal.read_until("> ")
    terminal.type("Say hello.\n")
    terminal.read_until("Generation:")
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_an_interrupt_ends_both():
    terminal = Terminal("run", SMOLLM2, *LLAMA, *STREAMED, "--raw", "-n", "3000", "-p", "Once", "--", *NO_REPACK, "--ignore-eos")
    # A speed is what happened between two statistics, which are seconds apart, however fast tokens come.
    terminal.read_until("% · ")
    assert re.search(r"\d+\.\d tok/s · reading [\d.]+ [MG]B/s · waiting \d+%", terminal.text), terminal.text
    (child,) = children_of(terminal.process.pid)
    terminal.type("\x03")
    assert terminal.end() == 130
    assert not is_alive(child)
    assert terminal.text.rindex("\x1b[r") > terminal.text.rindex("tok/s"), "the terminal is as it was"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left(number):
    command = [HYPURA, "run", SMOLLM2, *LLAMA, *STREAMED, "--raw", "-n", "3000", "-p", "Once", "--", *NO_REPACK, "--ignore-eos"]
    process = subprocess.Popen(list(map(str, command)), env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    process.stdout.read(1)
    (child,) = children_of(process.pid)
    process.send_signal(number)
    process.stdout.close()
    process.wait(TIMEOUT_SECONDS)
    wait_until(lambda: not is_alive(child), "the end of llama-completion")


def test_bench(tmp_path):
    chart = tmp_path / "chart.svg"
    options = ["--ram", "600M", "--stream", "--tokens", "12", "--rounds", "1", "--svg", chart, *LLAMA]
    run = hypura("bench", SMOLLM2, *options, "--json", HYPURA_RAM="20M")
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures["kinds"].keys() == {"mmap", "streamed", "resident"}
    for kind in figures["kinds"].values():
        (one,) = kind["runs"]
        assert one["failure"] is None and one["tokens"] == 12 and one["tokens_per_second"] > 0, one
    (streamed,) = figures["kinds"]["streamed"]["runs"]
    assert streamed["streaming"]["read_bytes_per_token"] > MIB and streamed["streaming"]["budget_bytes"] <= 20 * MIB
    assert streamed["drive_bytes_per_second"] > 1e6
    roofline = figures["roofline"]
    longer = max(roofline["compute_seconds"], roofline["read_seconds"])
    assert roofline["tokens_per_second"] == pytest.approx(1 / longer) and roofline["compute_is_measured"]
    assert roofline["share"] == pytest.approx(figures["kinds"]["streamed"]["tokens_per_second"] * longer)
    assert figures["texts_are_equal"]
    assert figures["memory_limit_bytes"] == 600 * MIB or any("no memory limit" in note for note in figures["notes"])
    assert "tokens per second" in run.stderr and "roofline" in run.stderr, "the table is there, too"
    # Not `glob`, which minds that others' cgroups go while it looks.
    left = [directory for directory, *_ in os.walk("/sys/fs/cgroup") if "/hypura-bench-" in directory]
    assert not left, "no cgroup is left"
    texts = [element.text for element in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert "llama.cpp with libhypura" in texts and any(text.startswith("roofline") for text in texts)


def test_replay_of_a_recorded_run(tmp_path):
    trace = tmp_path / "trace.csv"
    succeeds("run", MOE, *LLAMA, "--stream", "--raw", "-n", "40", "-p", "Once upon a time", "--", *NO_REPACK, "--ignore-eos", HYPURA_TRACE=str(trace))
    (figures,) = as_json("replay", trace)
    assert (figures["layers"], figures["experts"]) == (30, 8) and figures["generated_tokens"] >= 39
    for part in ("after_prompts", "generated_tokens_alone"):
        rates = {row["policy"]: row["hit_percent"] for row in figures[part]}
        best = rates.pop("Belady")
        assert len(best) == len(figures["cached_percent"]) and rates
        for policy, percents in rates.items():
            assert all(percent <= most + 1e-9 for percent, most in zip(percents, best)), policy
    text = succeeds("replay", trace, trace)
    assert text.count("Belady") == 4 and "30 layers of 8 experts" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "elvish", "powershell"])
def test_completions(shell):
    script = succeeds("completions", shell)
    assert all(command in script for command in COMMANDS)


def test_completions_work_in_bash():
    asked = 'COMP_WORDS=(hypura pl); COMP_CWORD=1; _hypura hypura pl hypura; echo "${COMPREPLY[@]}"'
    run = subprocess.run(["bash", "-c", f'source <("$0" completions bash); {asked}', HYPURA], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "plan", run.stderr


def test_man(tmp_path):
    page = succeeds("man")
    assert page.startswith(".") and ".SH SYNOPSIS" in page and "hypura\\-plan" in page
    assert ".TH hypura-plan 1" in succeeds("man", "plan").replace("\\-", "-")
    succeeds("man", "--dir", tmp_path / "man1")
    names = {path.name for path in (tmp_path / "man1").iterdir()}
    assert names >= {"hypura.1", *(f"hypura-{command}.1" for command in COMMANDS)}


def test_a_reader_that_stops_early_is_no_failure():
    run = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" plan "$1" --ram 60M --ctx 256 | head -1', HYPURA, SMOLLM2],
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip
    assert run.returncode == 0 and run.stderr == "" and run.stdout.count("\n") == 1


ON_A_MODEL = ["inspect", "plan", "run", "chat", "bench"]


@pytest.mark.parametrize("command", [*ON_A_MODEL, "profile"])
def test_missing_models(command, tmp_path):
    fails(command, tmp_path / "nothing.gguf", words=["cannot open", "is the path right?"])


@pytest.mark.parametrize("command", [*ON_A_MODEL, "profile", "serve"])
def test_names_of_the_hub_where_a_file_is_wanted(command):
    if command != "plan":
        fails(command, "hf:o/R-GGUF:Q8_0", words=["cannot open", "'hypura pull hf:o/R-GGUF:Q8_0' prints where it is"])
        fails(command, "https://example.org/a.gguf", words=["download it first"])
    fails(command, "hf:only", words=["hf:only is no repository of the hub", "hf:OWNER/REPO:Q4_K_M"])


@pytest.mark.parametrize("command", [*ON_A_MODEL, "profile"])
def test_files_that_are_no_models(command, tmp_path):
    rubbish = tmp_path / "rubbish.gguf"
    rubbish.write_bytes(b"not a model at all")
    fails(command, rubbish, words=["starts with 'not '", "convert_hf_to_gguf.py"])
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(SMOLLM2.read_bytes()[: 20 * MIB])
    fails(command, cut, words=["was it downloaded completely?"])


@pytest.mark.parametrize("command", ["inspect", "plan", "run", "chat"])
def test_what_goes_with_a_model_is_none(command, tmp_path):
    for words, pairs in [
        ("is a projector", {"general_type": "mmproj", "general_architecture": "clip"}),
        ("is an adapter", {"general_type": "adapter", "general_architecture": "llama"}),
        ("is an importance matrix", {"general_type": "imatrix"}),
        ("is a control vector", {"general_architecture": "controlvector"}),
    ]:
        fails(command, kinds.write(tmp_path / "mmproj-x.gguf", **pairs), words=[words])
    part = tmp_path / "a-00002-of-00003.gguf"
    part.write_bytes(SMOLLM2.read_bytes()[:MIB])
    fails(command, part, words=["is a later part of a split model; name its first", "a-00001-of-00003.gguf"])


def test_bench_under_a_limit_that_is_too_small():
    run = hypura("bench", SMOLLM2, "--ram", "60M", "--stream", "--tokens", "4", "--rounds", "1", *LLAMA, "--json")
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    if figures["memory_limit_bytes"] is None:
        pytest.skip("no memory cgroup can be made here")
    (failed,) = figures["kinds"]["streamed"]["runs"]
    assert failed["tokens_per_second"] is None and failed["failure"], failed
    assert figures["kinds"]["resident"]["tokens_per_second"] > 0 and figures["roofline"] is None


@pytest.mark.parametrize("command", ON_A_MODEL)
def test_directories(command, tmp_path):
    fails(command, tmp_path, words=["is a directory without models"])
    (tmp_path / "some.gguf").symlink_to(SMOLLM2)
    fails(command, tmp_path, words=["is a directory; name a model in it", "some.gguf"])


def test_wrong_sizes_and_numbers(tmp_path):
    for command in ("plan", "run", "chat", "bench", "serve"):
        fails(command, SMOLLM2, "--ram", "6X", words=["6X is not a size", "such as 6G"], status=2)
    fails("plan", SMOLLM2, "--gpu", "much", words=["much is not a size"], status=2)
    fails("plan", SMOLLM2, "--ram", "1M", "--ctx", "4096", words=["a context of 4096 tokens takes 90.0 MiB", "smaller --ctx"])
    message = fails("plan", SMOLLM2, "--ram", "10M", "--ctx", "16", words=["too little for this model: give at least --ram"])
    enough = re.search(r"--ram (\d+M)", message).group(1)
    succeeds("plan", SMOLLM2, "--ram", enough, "--ctx", "16")
    for count in ("-1", "0", "many"):
        fails("run", SMOLLM2, "-p", "x", "-n", count, words=["without -n an answer may have any length"], status=2)
    fails("profile", SMOLLM2, "--seconds", "0", words=["more than 0"])
    fails("bench", SMOLLM2, "--rounds", "0", words=["0 is not in 1..=100"], status=2)
    fails("bench", SMOLLM2, *LLAMA, "--svg", tmp_path / "none" / "chart.svg", words=["is not a directory", "make it first"])
    fails("completions", "tcsh", words=["tcsh", "bash"], status=2)
    fails("man", "nothing", words=["there is no command nothing", "plan"])
    fails("inspect", words=["<MODEL>", "--help"], status=2)


@pytest.mark.parametrize(("command", "program"), [("run", "llama-completion"), ("chat", "llama-cli"), ("bench", "llama-server")])
def test_missing_programs(command, program, tmp_path):
    prompt = ["-p", "x"] if command == "run" else []
    fails(command, SMOLLM2, *prompt, "--llama", tmp_path, words=[f"{program} is not in {tmp_path}", "make llama"])


def test_prompts_that_are_missing():
    fails("run", SMOLLM2, *LLAMA, words=["the prompt is empty", "-p TEXT"])
    fails("run", SMOLLM2, *LLAMA, "-p", "", words=["the prompt is empty"])
    fails("run", SMOLLM2, *LLAMA, "-p", "x", "--raw", "--system", "y", words=["cannot be used with"], status=2)


def test_what_llama_cpp_refuses_is_passed_on(tmp_path):
    (tmp_path / "picture.png").write_text("no picture")
    picture = [SMOLLM2, *LLAMA, "--mmproj", PROJECTOR, "-p", "x", "--image"]
    fails("run", *picture, tmp_path / "picture.png", words=["failed to decode", "llama-mtmd-cli ended with status 1; --verbose"])
    fails("run", *picture, tmp_path / "none.png", words=["cannot read", "none.png"])
    fails("run", SMOLLM2, *LLAMA, "-p", "x", "--", "--no-such-option", words=["--no-such-option"])
    fails("run", SMOLLM2, *LLAMA, "-p", "x", HYPURA_RAM="6X", words=["HYPURA_RAM=6X is not a size"])


def test_wrong_traces(tmp_path):
    fails("replay", tmp_path / "none.csv", words=["cannot read", "HYPURA_TRACE"])
    (tmp_path / "odd.csv").write_text("a,b\n")
    fails("replay", tmp_path / "odd.csv", words=["is not a trace", "HYPURA_TRACE"])
