"""The Ray engine: the local engine's results, also when a worker dies midway. `make install` brings Ray."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweeping_helper import read_rows, run, write_sweep_file

from llgae_cli.errors import InputError
from llgae_cli.sweep.process import Share
from llgae_cli.sweep.ray_engine import RayEngine

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None and os.environ.get("CI") != "true",
    reason="Ray is not installed: pip install 'llgae[ray]'",
)


MARK = "LLGAE_TEST_SWEEP"  # in the environment of every process that a sweep starts


def find_marked(mark: str) -> list[str]:
    """Return the command lines of the living processes with this mark."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                lines.append((process / "cmdline").read_text().replace("\0", " "))
    return lines


def wait_for_end(mark: str) -> bool:
    """Wait up to half a minute for all of them to end; True."""
    end = time.monotonic() + 30
    while left := find_marked(mark):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    return True


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder for Ray's files, with a name short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@needs_ray
@pytest.mark.slow
def test_two_workers_one_killed_midway_give_the_local_results(tmp_path: Path, ray_folder: str) -> None:
    base = {"trainer": "gradient", "K": 4, "beta": 0.2, "lr": 0.02, "epochs": 60}
    file, out = write_sweep_file(tmp_path / "s.yaml", grid={"embed-dim": [2, 3]}, base=base), tmp_path / "out"
    options = ["-c", file, "-o", out, "-j", "2", "--engine", "ray", "--json"]
    program = [sys.executable, "-m", "llgae_cli", "sweep", *options]
    environment = os.environ | {MARK: secrets.token_hex(8), "RAY_TMPDIR": ray_folder}
    sweep = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    saved: list[Path] = []
    while not saved and sweep.poll() is None:
        time.sleep(0.02)
        saved = list(out.glob("cells/*/S*.pkl"))
    assert saved, sweep.communicate()
    assert len(find_marked(environment[MARK])) > 3  # the sweep, Ray's own processes, a cell
    cell = int(saved[0].with_name("lock").read_text().split()[0])
    worker = int(Path(f"/proc/{cell}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    try:
        stdout, stderr = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, stderr
    assert len(json.loads(stdout)) == 2  # Ray's own messages are not in it
    log = saved[0].with_name("log.txt").read_text()
    assert log.count("---") == 2 and "resumed after epoch" in log
    assert wait_for_end(environment[MARK])
    run(file, tmp_path / "local")
    assert read_rows(out) == read_rows(tmp_path / "local")


def test_without_ray_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'llgae\[ray\]'"):
        RayEngine(None, 1, Share(1))
