"""Workers on this machine: any number of them gives the same bytes, and killing them or the command loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from batching_helper import make_shards, read_results, run_inline, train  # tests/batching_helper.py

pytestmark = [pytest.mark.slow, pytest.mark.numeric]
KILLS = 10  # of workers and of the command, in each test
OPTIONS = {"encode": {}, "compress": {"max_abs": [6.0]}}
SUFFIXES = {"encode": ".npz", "compress": ".llgae"}
Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint and the folder of its 50 shards."""
    folder = tmp_path_factory.mktemp("local")
    shards = make_shards(folder / "data", 50)
    return train(folder, shards), shards


def start(command: str, made: Made, out: Path, *options: str) -> "subprocess.Popen[str]":
    checkpoint, data = made
    program = [sys.executable, "-m", "llgae_cli", command, str(checkpoint), "--task", f"npy:{data}", "-o", str(out)]
    program += ["-j", "2", "--json", *(["--max-abs", "6"] if command == "compress" else []), *options]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def entries_of(out: Path) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads((out / "manifest.json").read_text())["shards"]
    return entries


@pytest.mark.parametrize("command", ["encode", "compress"])
def test_random_kills_lose_nothing(tmp_path: Path, made: Made, command: str) -> None:
    undisturbed, out, suffix = tmp_path / "undisturbed", tmp_path / "out", SUFFIXES[command]
    run_inline(command, *made, undisturbed, **OPTIONS[command])
    draw, process = random.Random(command), start(command, made, out)
    for kill in range(KILLS):
        while len(read_results(out, suffix)) < 4 * kill and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.02))
        victim = draw.choice([process.pid, *children(process.pid)])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.communicate(timeout=120)
            process = start(command, made, out, "--resume")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and json.loads(stdout)["done"] == 50, stderr
    assert read_results(out, suffix) == read_results(undisturbed, suffix)
    assert entries_of(out) == entries_of(undisturbed) and len(entries_of(out)) == 50
    assert not list(out.glob(".tmp-*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_workers_and_keeps_what_is_done(tmp_path: Path, made: Made, signum: int) -> None:
    for attempt in range(10):  # a busy machine may show the first result only when all are done
        out = tmp_path / f"out{attempt}"
        process = start("encode", made, out)
        while not list(out.glob("*.npz")) and process.poll() is None:
            time.sleep(0.01)
        workers = children(process.pid)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=60)
        if process.returncode:
            break
    assert process.returncode == 128 + signum and stdout == ""
    assert "of 50 shards are done; continue with --resume" in stderr and "Traceback" not in stderr
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "Traceback" not in (out / "log.txt").read_text()
    done = [entry["state"] for entry in entries_of(out)].count("done")
    outcome = run_inline("encode", *made, out, resume=True)
    assert (outcome.skipped, len(outcome.done)) == (done, 50)


def test_a_shard_whose_worker_dies_each_time_fails_alone(tmp_path: Path, made: Made) -> None:
    out = tmp_path / "out"
    process = start("encode", made, out)
    log = out / "log.txt"
    while not log.exists() and process.poll() is None:
        time.sleep(0.01)
    first: set[int] = set()
    while len(first) < 2 * 3 and process.poll() is None:  # before any has loaded torch
        for pid in set(children(process.pid)) - first:
            first.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    stdout, stderr = process.communicate(timeout=120)
    document = json.loads(stdout)
    assert process.returncode == 1 and document["done"] + len(document["failed"]) == 50
    assert "its worker died 3 times (killed by SIGKILL (as the system does when memory runs out))" in stderr
    assert "shards failed; --resume runs them again" in stderr
