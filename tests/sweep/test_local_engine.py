"""The local engine: cells finish, die, resume and never run twice."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sweeping_helper import cell_processes, read_rows, run, write_sweep_file

from llgae_cli.errors import InputError
from llgae_cli.storage import list_runs
from llgae_cli.sweep import SweepFolder, SweepProgress
from llgae_cli.sweep.process import describe_exit

HELPER = Path(__file__).parents[1] / "sweeping_helper.py"
GRADIENT = {"trainer": "gradient", "K": 4, "beta": 0.2, "lr": 0.02}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 60.0) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.slow
def test_a_sweep_ends_in_a_leaderboard_and_finished_cells_do_not_run_again(tmp_path: Path) -> None:
    out, file = tmp_path / "out", write_sweep_file(tmp_path / "s.yaml", grid={"K": [2, 4], "embed-dim": [3]})
    leaderboard = run(file, out)
    assert [row["K"] for row in leaderboard.rows] == [4, 2] and leaderboard.ranked_by == "mean_l2"
    assert leaderboard.rows[0]["train_mean_l2"] < leaderboard.rows[1]["train_mean_l2"]
    assert all(Path(row["checkpoint"]).is_file() and row["threads"] == 1 for row in leaderboard.rows)
    with open(out / "results.csv") as table:
        assert [float(row["mean_l2"]) for row in csv.DictReader(table)] == [row["mean_l2"] for row in leaderboard.rows]
    listed = list_runs(out)  # one checkpoint a cell, two levels down
    assert [row["checkpoint"] for row in listed] == [row["checkpoint"] for row in leaderboard.rows]

    with pytest.raises(InputError, match="2 of this sweep's 2 are done; continue with --resume"):
        run(file, out)
    draws: list[SweepProgress] = []
    assert run(file, out, draw=draws.append, resume=True).rows == leaderboard.rows and draws == []

    with SweepFolder(out).lock(), pytest.raises(InputError, match=f"at work here.*{os.getpid()}"):
        run(file, out, resume=True)


@pytest.mark.slow
def test_cells_that_raise_are_killed_or_fill_memory_leave_the_others_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(1200, 1000)).astype(np.float32))
    grid = [
        {"K": 3, "embed-dim": 3},
        {"trainer": "gradient", "lr": 1e30, "K": 2},  # diverges
        {"trainer": "gradient", "epochs": 10**6, "K": 5},  # never ends: to be killed
        {"task": f"npy:{tmp_path / 'wide.npy'}", "K": 900, "embed-dim": 900},  # W alone is 3.2 GB
    ]
    out, file = tmp_path / "out", write_sweep_file(tmp_path / "s.yaml", grid=grid, base={"embed-dim": 2})

    def kill() -> None:
        log = next(path for path in out.glob("cells/*/config.yaml") if "K: 5" in path.read_text()).with_name("log.txt")
        if wait_until(lambda: log.exists() and "epoch 1/" in log.read_text()):
            os.kill(int(log.with_name("lock").read_text().split()[0]), signal.SIGKILL)

    killer = threading.Timer(0.5, kill)
    killer.start()
    leaderboard = run(file, out, memory=1.5)
    killer.join()
    assert [row["K"] for row in leaderboard.rows] == [3]
    failed = {int(failure["label"].split("K=")[1].split()[0]): failure for failure in leaderboard.failed}
    assert failed.keys() == {2, 5, 900}
    assert failed[2]["reason"] == "exit code 1" and "the loss became" in failed[2]["last_line"]
    assert failed[5]["reason"].startswith("killed by SIGKILL") and failed[5]["last_line"].startswith("epoch ")
    assert "memory" in failed[900]["last_line"]

    draws: list[SweepProgress] = []
    assert len(run(file, out, resume=True, draw=draws.append).failed) == 3 and draws == []


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_resumes_to_the_same_results(tmp_path: Path) -> None:
    base = {**GRADIENT, "epochs": 100}
    file = write_sweep_file(tmp_path / "s.yaml", grid={"embed-dim": [2, 3]}, base=base)
    run(file, tmp_path / "undisturbed")
    out, rng = tmp_path / "out", random.Random(4)
    for kill in range(3):
        parent = subprocess.Popen([sys.executable, HELPER, file, out])
        sign = "cells/*/lock" if kill == 0 else "cells/*/S*.pkl"  # in the first seconds, then in the middle of training
        assert wait_until(lambda sign=sign: any(out.glob(sign)))
        time.sleep(rng.uniform(0.0, 0.5))
        parent.kill()
        parent.wait()
        orphans = cell_processes(out)
        if kill % 2 == 0:  # the cells too; the other time they end on their own
            for pid in orphans:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda orphans=orphans: not any(is_alive(pid) for pid in orphans))
    leaderboard = run(file, out, resume=True)
    assert not leaderboard.failed and not leaderboard.missing
    assert any("resumed after epoch" in log.read_text() for log in out.glob("cells/*/log.txt"))
    assert read_rows(out) == read_rows(tmp_path / "undisturbed")
    assert len(list_runs(out)) == 2


@pytest.mark.slow
def test_on_sigterm_cells_save_and_the_exit_code_is_143(tmp_path: Path) -> None:
    file = write_sweep_file(tmp_path / "s.yaml", base={**GRADIENT, "epochs": 10**6, "save-every": 500_000})
    out = tmp_path / "out"
    program = [sys.executable, "-m", "llgae_cli", "sweep", "-c", file, "-o", out]
    parent = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: any("epoch 3/" in log.read_text() for log in out.glob("cells/*/log.txt")))
    parent.terminate()
    _, stderr = parent.communicate(timeout=60)
    assert parent.returncode == 143 and "interrupted" in stderr
    assert not any(is_alive(pid) for pid in cell_processes(out))
    assert [row["epoch"] >= 3 for row in list_runs(out)] == [True]
    assert not list(out.glob("cells/*/failed.json"))
    assert json.loads((out / "results.json").read_text())["missing"] == 1


@pytest.mark.slow
def test_halving_stops_the_worse_cells_by_validation_mean_l2(tmp_path: Path) -> None:
    base = {**GRADIENT, "embed-dim": 3, "epochs": 3, "validation": 0.2}
    file = write_sweep_file(
        tmp_path / "s.yaml", grid={"lr": [1e-6, 0.02]}, base=base, halving={"rungs": [1], "keep": 0.5}
    )
    leaderboard = run(file, tmp_path / "out")
    assert leaderboard.ranked_by == "validation_mean_l2"
    assert [(row["status"], row["lr"], row["epoch"]) for row in leaderboard.rows] == [
        ("done", 0.02, 3),
        ("stopped", 1e-6, 1),
    ]
    whole = write_sweep_file(tmp_path / "w.yaml", grid={"lr": [0.02]}, base=base)
    run(whole, tmp_path / "whole")
    assert read_rows(tmp_path / "whole") == read_rows(tmp_path / "out")[:1]


def test_an_exit_status_is_described_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert "memory" in describe_exit(-signal.SIGKILL)
