"""The Ray engine: the local engine's results, also when a worker dies midway. Runs where Ray is installed."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from sweeping_helper import lasting, swept, written

from llgae_cli.errors import InputError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'llgae[ray]'")


@needs_ray
def test_two_workers_one_killed_midway_give_the_local_results(tmp_path: Path) -> None:
    base = {"trainer": "gradient", "K": 4, "beta": 0.2, "lr": 0.02, "epochs": 60}
    file, out = written(tmp_path / "s.yaml", grid={"embed-dim": [2, 3]}, base=base), tmp_path / "out"
    program = [
        sys.executable,
        "-m",
        "llgae_cli",
        "sweep",
        "-c",
        file,
        "-o",
        out,
        "-j",
        "2",
        "--engine",
        "ray",
        "--json",
    ]
    sweep = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saved: list[Path] = []
    while not saved and sweep.poll() is None:
        time.sleep(0.02)
        saved = list(out.glob("cells/*/S*.pkl"))
    assert saved, sweep.communicate()
    cell = int(saved[0].with_name("lock").read_text().split()[0])
    worker = int(Path(f"/proc/{cell}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    try:
        said = sweep.communicate(timeout=240)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, said
    assert len(json.loads(said[0])) == 2  # Ray's own chatter is not among it
    log = saved[0].with_name("log.txt").read_text()
    assert log.count("---") == 2 and "resumed after epoch" in log
    swept(file, tmp_path / "local")
    assert lasting(out) == lasting(tmp_path / "local")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_says_how_to_install_it() -> None:
    from llgae_cli.sweep.cluster import Cluster
    from llgae_cli.sweep.process import Share

    with pytest.raises(InputError, match=r"pip install 'llgae\[ray\]'"):
        Cluster(None, 1, Share(1))
