"""What the tests of reliability start: the command line in a process of its own, and two programs.

The programs are a run that is stopped over and over, and a long series of short runs. Processes are forked from one
that has imported torch and started no thread, so that each costs a tenth of a second and not two; they run the same
`main` as `python -m llgae_cli`, and signals, limits and disks are real ones.
"""

import contextlib
import functools
import gc
import io
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import BY_GRADIENT  # tests/command_line.py

from llgae_cli import experiment, figures  # noqa: F401 - a forked run finds them imported
from llgae_cli.__main__ import main
from llgae_cli.storage import Checkpoint, load

ENDLESS = BY_GRADIENT.replace("epochs: 3", "epochs: 1000000")


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and plain values are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def last(folder: Path, epoch: int) -> Checkpoint:
    """The checkpoint of an epoch."""
    (path,) = folder.glob(f"*_{epoch}_*.pkl")
    return load(path)


def check_same_run(one: Checkpoint, other: Checkpoint) -> None:
    """The same run to the last bit: weights, optimiser, generators, history and final numbers."""
    assert equal(one.state, other.state) and equal(one.trainer_state, other.trainer_state)
    assert equal(one.extras, other.extras) and one.train_mean_l2 == other.train_mean_l2 is not None
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in c.history] for c in (one, other)]
    assert timeless[0] == timeless[1]


class Started:
    """The command line at work in `folder`, in a process of its own; what it writes goes to files.

    `before` is a function of this module that the process calls first.
    """

    def __init__(self, folder: Path, *arguments: object, before: str = "", out: str = "", err: str = ""):
        self.folder = folder
        name = f".said-{secrets.token_hex(4)}"
        self.out, self.err = Path(out or folder.parent / f"{name}-out"), Path(err or folder.parent / f"{name}-err")
        told = (str(folder), [str(argument) for argument in arguments], str(self.out), str(self.err), before)
        self.process = _forkserver().Process(target=_run, args=told)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code, or minus the signal that killed it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.said()}"
        return self.process.exitcode

    def said(self) -> str:
        """What it has written to stderr so far."""
        return self.err.read_text() if self.err.exists() else ""

    def wait_for(self, words: str, after: int = 0) -> None:
        """Wait until it has written these words to stderr, behind the first `after` characters."""
        end = time.monotonic() + 60
        while words not in self.said()[after:]:
            alive = self.process.is_alive()
            assert (alive or words in self.said()[after:]) and time.monotonic() < end, f"no '{words}' in {self.said()}"
            time.sleep(0.005)

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


@functools.cache
def _forkserver() -> Any:
    # Threads: read once, when torch is imported. The path: before Python 3.13 the server ignores the one it is told,
    # would not find this module, and every process would import torch anew.
    wanted = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["reliability_helper"])
        multiprocessing.forkserver.ensure_running()
        return context
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(folder: str, arguments: list[str], out: str, err: str, before: str) -> None:
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["llgae", *arguments]
    if before:
        globals()[before]()
    main()


def limit_files() -> None:
    """From the third epoch on, no file may be larger than half a checkpoint."""
    save = experiment.save

    def limited(run: Any, **more: Any) -> Any:
        if run.done == 3:
            size = min(path.stat().st_size for path in run.config.checkpoint_dir.glob("*.pkl"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        return save(run, **more)

    experiment.save = limited


def slow_disk() -> None:
    """A disk that takes a minute to say that it has a file."""
    os.fsync = lambda handle: time.sleep(60)


def terminal() -> None:
    """Have a closed terminal heard of, also where these tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def nohup() -> None:
    """Have a closed terminal ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def fork_command(arguments: list[str], log: Path) -> int:
    """Fork a process that runs the command line; return its number."""
    early = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, early)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
        return child
    code = 99
    try:
        for signum in early:  # as `main` answers until it listens: a signal may come before that
            signal.signal(signum, lambda number, _: os._exit(128 + number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["llgae", *arguments]
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def epochs_saved(folder: Path) -> int:
    """Return the last epoch that has a checkpoint."""
    names = [name for name in os.listdir(folder) if name.endswith(".pkl")] if folder.is_dir() else []
    return max((int(name.split("_")[-2]) for name in names), default=0)


def stops(config: str, folder: str, signums: list[int], seed: int) -> dict[str, Any]:
    """Train to the end, stopped by each of the signals on the way and resumed each time.

    A signal comes a random number of epochs after the run's start (the first: none) and, from there, a random time
    within one epoch or within the start. Returns how it went.
    """
    rng, log, where = random.Random(seed), Path(folder).with_name(f"{Path(folder).name}.log"), Path(folder)
    story: dict[str, Any] = {"codes": [], "epochs": [], "cut_files": 0}
    command = ["train", "--config", config, "--set", f"checkpoint-dir={folder}", "--set", "save-every=1"]
    span = 0.1  # seconds that an epoch, or a start, takes at most
    for i, signum in enumerate(signums):
        before = epochs_saved(where)
        child = fork_command([*command, *(["--resume", "last"] if before else [])], log)
        target, end = before + (rng.randrange(3) if i else 0), time.monotonic() + 60
        while epochs_saved(where) < target and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, span if target == before else span / 3))
        os.kill(child, signum)  # or its zombie, should it have ended: it has not been waited for
        story["codes"].append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        story["epochs"].append(epochs_saved(where))
        story["cut_files"] += where.is_dir() and any(name.startswith(".tmp-") for name in os.listdir(where))
    last = fork_command([*command, *(["--resume", "last"] if epochs_saved(where) else [])], log)
    story["code"] = os.waitstatus_to_exitcode(os.waitpid(last, 0)[1])
    story["left"] = sorted(name for name in os.listdir(where) if not name.endswith(".pkl"))
    story["log"] = log.read_text()
    return story


def soak(configs: list[str], folder: str, runs: int, warm: int, drawn: int) -> dict[str, Any]:
    """`runs` trainings by the configs in turn and as many evaluations after `warm` of each, then `drawn` with figures.

    Returns resident memory in bytes, open files, threads and other files before, half-way and after.
    """
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder

    def both(config: str, **more: str) -> None:
        options = [part for key, value in more.items() for part in ("--set", f"{key}={value}")]
        told = call_command(["train", "--config", config, "--json", *options])
        checkpoint = json.loads(told)["checkpoint"]
        call_command(["eval", checkpoint, "--json"])

    def series(number: int, first: int, **more: str) -> None:
        for i in range(number):
            both(configs[i % len(configs)], seed=str(first + i), **more)

    story: dict[str, Any] = {}
    for name, warming, number, more in (("plain", warm, runs, {}), ("drawn", 5, drawn, {"figures": "true"})):
        series(warming, 0, **more)
        before = measure_resources()
        series(number // 2, warming, **more)
        half = measure_resources()
        series(number - number // 2, warming + number // 2, **more)
        story[name] = {"before": before, "half": half, "after": measure_resources()}
    return story


def call_command(arguments: list[str]) -> str:
    """Run the command line in this process and return what it prints."""
    out = io.StringIO()
    sys.argv = ["llgae", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()


def measure_resources() -> dict[str, int]:
    """Return resident memory, open files, threads, and the number of files below this folder that are no results."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    others = [path for path in Path().rglob("*") if path.is_file() and path.suffix not in (".pkl", ".png", ".yaml")]
    return {
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "others": len(others),
    }


PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {"stops": stops, "soak": soak}

if __name__ == "__main__":
    json.dump(PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2])), sys.stdout)
