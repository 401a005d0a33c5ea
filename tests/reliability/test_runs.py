"""Runs that are killed, interrupted, started twice or repeated: nothing is lost, changed, left behind or piled up."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import BY_GRADIENT, FAST  # tests/command_line.py
from reliability_helper import ENDLESS, Started, check_same_run, equal, last  # tests/reliability_helper.py

from llgae_cli import experiment, interrupts
from llgae_cli.cli import app, signals
from llgae_cli.config import Config, read_config
from llgae_cli.errors import InputError, Interrupted, ProcessLostError, RunError
from llgae_cli.storage import CheckpointName, Lock, checkpoint_file, clean_locks, load, locks
from llgae_cli.storage.atomic import temporary_path
from llgae_cli.sweep import cell

pytestmark = pytest.mark.slow
HELPER = Path(__file__).parents[1] / "reliability_helper.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # one thread: the order of sums is part of "bit for bit"
KILLS = 20
RUNS = int(os.environ.get("LLGAE_SOAK_RUNS", "200"))
MB = 1 << 20


def helped(program: str, **options: Any) -> dict[str, Any]:
    """What a program of the helper tells."""
    command = [sys.executable, HELPER, program, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def a_config(folder: Path, *overrides: str, text: str = FAST) -> Config:
    """A config's `text`, with its checkpoints in `folder`."""
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(text)
    return read_config([path], [f"checkpoint-dir={folder}", *overrides])


def write_config(folder: Path, trainer: str, epochs: int) -> Path:
    """A small config that is still changing after `epochs` epochs."""
    config = folder / "config.yaml"
    if trainer == "gradient":
        text = BY_GRADIENT.replace("epochs: 3", f"epochs: {epochs}").replace("K: 4", "K: 2")
        config.write_text(f"{text}batch-size: 1000\nvalidation: 0.1\n")
    else:  # no clusters, and a prior that keeps it from ending: its last bits change in every pass of float32
        np.save(folder / "cloud.npy", np.random.default_rng(0).normal(size=(3000, 30)).astype(np.float32))
        config.write_text(
            f"task: npy:{folder / 'cloud.npy'}\nK: 40\nembed-dim: 2\nshrinkage: 20\nrestarts: 1\nmoves: 0\n"
            f"epochs: {epochs}\ntol: 0\nfigures: false\n"
        )
    return config


@pytest.fixture(autouse=True)
def no_signal() -> Iterator[None]:
    """What a test makes this process believe to have heard is forgotten after it."""
    yield
    interrupts.reset()


# ---- Killed and resumed


@pytest.mark.parametrize("trainer", ["gradient", "closed-form"])
def test_twenty_kills_and_resumptions_end_in_the_same_bits(tmp_path: Path, trainer: str) -> None:
    epochs, whole, cut = 64, tmp_path / "whole", tmp_path / "cut"  # three epochs a kill, so that none comes too late
    config = str(write_config(tmp_path, trainer, epochs))
    assert helped("stops", config=config, folder=str(whole), signums=[], seed=0)["code"] == 0
    story = helped("stops", config=config, folder=str(cut), signums=[signal.SIGKILL] * KILLS, seed=5)
    assert story["codes"] == [-signal.SIGKILL] * KILLS  # every one hit a run at work
    assert story["epochs"] == sorted(story["epochs"]) and story["epochs"][-1] < epochs
    assert story["epochs"][0] == 0 and len(set(story["epochs"])) > 5  # during the start, and in many epochs
    assert story["code"] == 0 and story["left"] == []  # no temporary file, no lock
    check_same_run(last(whole, epochs), last(cut, epochs))
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in cut.iterdir())
    assert not equal(last(whole, epochs - 1).state, last(whole, epochs).state)


# ---- Interrupted


def test_interrupts_at_random_moments_always_save_and_say_so(tmp_path: Path) -> None:
    epochs, cut = 20, tmp_path / "cut"
    config = str(write_config(tmp_path, "gradient", epochs))
    assert helped("stops", config=config, folder=str(tmp_path / "whole"), signums=[], seed=0)["code"] == 0
    signums = [signal.SIGINT, signal.SIGTERM] * 3
    story = helped("stops", config=config, folder=str(cut), signums=signums, seed=2)
    assert story["codes"] == [128 + signum for signum in signums]
    assert story["cut_files"] == 0 and story["left"] == [] and story["code"] == 0
    assert "Traceback" not in story["log"] and "Exception ignored" not in story["log"]
    assert story["log"].count("llgae: interrupted; saved ") >= len(signums) // 2  # a start has nothing to save
    check_same_run(last(tmp_path / "whole", epochs), last(cut, epochs))


def test_one_request_that_arrives_twice_still_saves(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    with Started(tmp_path, "train", "-c", "c.yaml") as run:
        run.wait_for("epoch 2/")
        for _ in range(3):
            run.send_signal(signal.SIGTERM)
        assert run.wait() == 143 and "interrupted; saved checkpoints/S28-" in run.said()
    assert len(os.listdir(tmp_path / "checkpoints")) == 1


def test_a_closed_terminal_saves_unless_it_is_to_be_ignored(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    with Started(tmp_path, "train", "-c", "c.yaml", before="nohup") as run:
        run.wait_for("epoch 2/")
        run.send_signal(signal.SIGHUP)
        time.sleep(2 * signals.ECHO)
        run.wait_for("epoch ", after=len(run.said()))
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 143 and "saved checkpoints/S28-" in run.said()
    ours, theirs = pty.openpty()
    with Started(
        tmp_path, "train", "-c", "c.yaml", "--resume", "last", err=os.ttyname(theirs), before="terminal"
    ) as run:
        shown = ""
        while "mean L2" not in shown:  # an epoch is done
            shown += os.read(ours, 1000).decode("utf-8", "replace")
        os.close(theirs)
        os.close(ours)
        run.send_signal(signal.SIGHUP)
        assert run.wait() == 129
    assert len(os.listdir(tmp_path / "checkpoints")) == 2


def test_a_second_interrupt_leaves_at_once_and_its_rest_is_cleaned_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    folder = tmp_path / "checkpoints"
    folder.mkdir()  # or the slow disk would hold up its making
    with Started(tmp_path, "train", "-c", "c.yaml", before="slow_disk") as run:
        run.wait_for("epoch 2/")
        run.send_signal(signal.SIGINT)
        while not list(folder.glob(".tmp-*")):
            time.sleep(0.01)
        time.sleep(2 * signals.ECHO)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130 and time.monotonic() - began < 2
    (dead,) = folder.glob(".tmp-*")
    assert list(folder.glob(".lock-*"))
    live = temporary_path(folder)  # this process's
    live.touch()
    with Started(tmp_path, "train", "-c", "c.yaml", "-S", "epochs=1", "-q") as run:
        assert run.wait() == 0
    assert live.exists() and not dead.exists() and not list(folder.glob(".lock-*"))


DEEP = """
import sys, time
import torch
from llgae_cli.cli.signals import install_handlers
matrix = torch.randn(3000, 3000, generator=torch.Generator().manual_seed(0))
install_handlers()
print("ready", file=sys.stderr, flush=True)
began = time.monotonic()
torch.linalg.eigvals(matrix)
print("done", time.monotonic() - began, flush=True)
"""


def test_a_second_interrupt_leaves_even_from_one_long_call(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEEP], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None and run.stderr.readline() == "ready\n"
        time.sleep(0.5)
        for _ in range(2):
            run.send_signal(signal.SIGINT)
            time.sleep(3 * signals.ECHO)
        assert run.wait(2) == 130
        assert run.stdout is not None and run.stdout.read() == ""  # it was still in the call


def test_a_signal_while_the_command_line_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")  # found first
    command = [sys.executable, "-m", "llgae_cli", "train", "-c", "none.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_torchrun_passes_an_interrupt_on_and_it_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "llgae_cli"]
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True, "start_new_session": True}
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen([*command, "train", "-c", "c.yaml"], cwd=tmp_path, env=environment, **streams) as run:
        try:
            while not run.stderr.readline().startswith("epoch 2/"):
                assert run.poll() is None
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: torchrun and both ranks
            said = run.stderr.read()
            run.wait(60)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert f"interrupted; saved checkpoints/{saved.name}" in said and load(saved).epoch >= 2


def test_an_interrupt_waits_for_a_file_to_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = experiment.train(a_config(tmp_path))
    assert outcome.checkpoint is not None
    sign = checkpoint_file.sign

    def interrupted(file: Any) -> None:
        interrupts.receive(signal.SIGINT)
        sign(file)

    monkeypatch.setattr(checkpoint_file, "sign", interrupted)
    name = CheckpointName.parse(outcome.checkpoint.name)
    with pytest.raises(Interrupted):
        checkpoint_file.save(load(outcome.checkpoint), tmp_path / "other", name)
    assert [load(path).epoch for path in (tmp_path / "other").iterdir()] == [outcome.epochs]


def test_an_interrupt_in_a_destructor_is_not_printed_and_raised_again() -> None:
    program = """
import os, signal
from llgae_cli import interrupts
from llgae_cli.cli import signals

class Destroyed:
    def __init__(self, action): self.action = action
    def __del__(self): self.action()

signals.install_handlers()
Destroyed(lambda: 1 // 0)
Destroyed(lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    interrupts.check()
except interrupts.Interrupted as interrupt:
    print(interrupt.signum)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{signal.SIGTERM.value}\n"
    assert "ZeroDivisionError" in done.stderr and "Interrupted" not in done.stderr


def test_an_interrupt_that_is_swallowed_ends_the_run_after_the_next_epoch(tmp_path: Path) -> None:
    def swallow(record: dict[str, float], epochs: int) -> None:
        with suppress(Interrupted):  # as a destructor or an import in C does
            interrupts.receive(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        experiment.train(a_config(tmp_path, text=BY_GRADIENT), on_epoch=swallow)
    assert caught.value.saved is not None and load(caught.value.saved).epoch == 2


def test_an_interrupt_that_becomes_another_error_still_saves(tmp_path: Path) -> None:
    def replace(record: dict[str, float], epochs: int) -> None:
        try:
            interrupts.receive(signal.SIGINT)
        except Interrupted:  # as C++ code does that calls Python
            raise RuntimeError("error in a callback") from None

    with pytest.raises(Interrupted) as caught:
        experiment.train(a_config(tmp_path, text=BY_GRADIENT), on_epoch=replace)
    assert caught.value.saved is not None and load(caught.value.saved).epoch == 1


def receive_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let a SIGTERM arrive at the first call of the function."""
    function, pending = getattr(owner, name), [signal.SIGTERM]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if pending:
            interrupts.receive(pending.pop())
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    "owner, name", [(experiment, "replace_lost_saver"), (experiment, "save"), (experiment.RunFolder, "save")]
)
def test_a_signal_while_a_run_that_lost_a_process_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def lose(record: dict[str, float], epochs: int) -> None:
        raise ProcessLostError("rank 0 of 2: another process died")

    receive_once(monkeypatch, owner, name)
    with pytest.raises(Interrupted) as caught:
        experiment.train(a_config(tmp_path, text=BY_GRADIENT), on_epoch=lose)
    assert caught.value.saved is not None and load(caught.value.saved).epoch == 1
    assert list(tmp_path.iterdir()) == [caught.value.saved]


@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_while_a_run_is_ending_names_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def end(record: dict[str, float], epochs: int) -> None:
        if fails:
            raise ProcessLostError("rank 0 of 2: another process died")

    config = a_config(tmp_path, text=BY_GRADIENT)
    receive_once(monkeypatch, Lock, "_remove")  # which releasing the run's lock calls
    with pytest.raises(Interrupted) as caught:
        experiment.train(config, on_epoch=end)
    assert caught.value.saved is not None and load(caught.value.saved).epoch == (1 if fails else 3)
    assert Lock.of_run(tmp_path, config).attempt()  # it was released all the same


def test_a_process_that_does_not_save_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(record: dict[str, float], epochs: int) -> None:
        raise Interrupted(signal.SIGTERM)

    def set_up(*arguments: Any) -> Any:
        run = make_run(*arguments)
        run.saves = False
        return run

    config, make_run = a_config(tmp_path, text=BY_GRADIENT), experiment.set_up
    with pytest.raises(Interrupted) as caught:
        experiment.train(config, on_epoch=interrupted)
    assert caught.value.saved is not None

    monkeypatch.setattr(experiment, "set_up", set_up)
    monkeypatch.setattr(experiment, "replace_lost_saver", lambda run: None)
    with pytest.raises(Interrupted) as caught:
        experiment.train(config, "last", on_epoch=interrupted)
    assert caught.value.saved is None


def test_a_signal_after_a_failed_run_reports_the_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "rank 0 of 2: another process died; saved file.pkl, continue with --resume last"

    def fail() -> None:
        try:
            raise RunError(error)
        finally:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(signals, "install_handlers", lambda: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == f"llgae: {error}\n"


def test_a_run_saved_at_its_last_epoch_is_completed_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise Interrupted(signal.SIGINT)

    config = a_config(tmp_path, text=BY_GRADIENT)
    with monkeypatch.context() as during, pytest.raises(Interrupted) as caught:
        during.setattr(experiment, "measure", interrupted)
        experiment.train(config)
    assert caught.value.saved is not None and load(caught.value.saved).train_mean_l2 is None
    outcome = experiment.train(config, "last")
    assert outcome.checkpoint == caught.value.saved
    assert load(outcome.checkpoint).train_mean_l2 == outcome.train_mean_l2 and load(outcome.checkpoint).extras
    assert len(os.listdir(tmp_path)) == 1

    longer = config.model_copy(update={"epochs": 5, "save_every": 3})  # passes epoch 3, without the final numbers
    experiment.train(longer)
    assert load(outcome.checkpoint).train_mean_l2 == outcome.train_mean_l2
    assert len(os.listdir(tmp_path)) == 2


# ---- Two at once


def test_a_second_run_of_one_config_is_told_or_waits_and_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    folder = tmp_path / "checkpoints"
    with Started(tmp_path, "train", "-c", "c.yaml") as first:
        first.wait_for("epoch 1/")
        with (
            Started(tmp_path, "train", "-c", "c.yaml", "-S", "epochs=5") as second,
            Started(tmp_path, "train", "-c", "c.yaml", "-S", "epochs=3", "--wait") as patient,
            Started(tmp_path, "train", "-c", "c.yaml", "-S", "epochs=2", "-S", "seed=1", "-q") as other,
        ):
            assert second.wait() == 2
            said = second.said()
            assert said.count("\n") == 1 and said.startswith("llgae: checkpoints: ")
            assert f"process {first.pid} is already training" in said and "--wait" in said and "seed 28" in said
            assert other.wait() == 0 and other.said() == ""
            patient.wait_for(f"waiting for process {first.pid}")
            assert first.process.is_alive() and patient.process.is_alive()
            first.send_signal(signal.SIGINT)
            assert first.wait() == 130 and "; saved " in first.said()
            assert patient.wait() == 0
    assert len(os.listdir(folder)) == 3 and not [name for name in os.listdir(folder) if name.startswith(".")]
    found = sorted((load(path).config["seed"], load(path).epoch) for path in folder.iterdir())
    assert found[:2] == [(1, 2), (28, 3)] and found[2][0] == 28


def test_one_of_many_has_the_lock_and_cleaning_disturbs_nobody(tmp_path: Path) -> None:
    config, inside, most, taken = a_config(tmp_path), [], [], [0]
    end = time.monotonic() + 1.5

    def contend() -> None:
        lock = Lock.of_run(tmp_path, config)
        while time.monotonic() < end:
            if lock.attempt():
                inside.append(0)
                most.append(len(inside))
                taken[0] += 1
                time.sleep(0.0005)
                inside.pop()
                lock.release()

    def clean() -> None:
        while time.monotonic() < end:
            clean_locks(tmp_path)

    threads = [threading.Thread(target=work) for work in (contend, contend, contend, clean)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and taken[0] > 50 and os.listdir(tmp_path) == []


def test_a_lock_that_a_killed_run_left_is_nothing(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    lock = Lock.of_run(tmp_path, config)
    lock.path.write_text("1 elsewhere\n")  # process 1 lives, and holds nothing
    assert lock.attempt() and not clean_locks(tmp_path)
    twin = Lock.of_run(tmp_path, config)
    assert not twin.attempt() and twin.holder == f"process {os.getpid()}"
    lock.path.write_text("77 elsewhere\n")
    assert not twin.attempt() and twin.holder == "process 77 on another machine"
    lock.path.write_text("")
    assert not twin.attempt() and twin.holder == "another process"
    lock.release()
    lock.release()
    lock.path.touch()
    assert clean_locks(tmp_path) == 1 and os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_reported_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(locks, "lock_handle", lambda handle: None)
    assert experiment.train(a_config(tmp_path)).checkpoint is not None
    assert "has no locks" in caplog.text
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("patience", [0.0, 20.0])
def test_a_sweeps_cell_waits_for_a_live_run_and_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    config = a_config(tmp_path)
    (tmp_path / "config.yaml").write_text(FAST)
    monkeypatch.setattr(cell, "PATIENCE", patience)
    lock = Lock.of_run(tmp_path, config)
    assert lock.attempt()
    if patience:
        threading.Timer(0.5, lock.release).start()
        cell.run_cell(tmp_path)
        assert (tmp_path / "result.json").exists()
        return
    with pytest.raises(InputError, match=f"process {os.getpid()} is already training this config"):
        cell.run_cell(tmp_path)
    lock.release()


# ---- Over and over


def test_hundreds_of_runs_pile_nothing_up(tmp_path: Path) -> None:
    np.save(tmp_path / "tiny.npy", np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32))
    text = f"task: npy:{tmp_path / 'tiny.npy'}\nK: 2\nembed-dim: 1\nepochs: 2\nsave-every: 1\nfigures: false\n"
    (tmp_path / "c.yaml").write_text(f"{text}restarts: 1\nmoves: 0\n")
    (tmp_path / "g.yaml").write_text(f"{text}trainer: gradient\n")
    configs = ["c.yaml", "g.yaml"]
    story = helped("soak", configs=configs, folder=str(tmp_path), runs=RUNS, warm=20, drawn=max(6, RUNS // 40))
    print(json.dumps(story, indent=2))
    for part, allowed in (("plain", 6 * MB), ("drawn", 12 * MB)):
        before, half, after = (story[part][when] for when in ("before", "half", "after"))
        for what in ("handles", "threads", "others"):
            assert before[what] == half[what] == after[what], f"{part}: {what}"
        assert after["resident"] - before["resident"] < allowed, f"{part}: memory"
