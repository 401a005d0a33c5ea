"""Shards as tasks of a real Ray cluster of two nodes, one of which is killed midway. `make install` brings Ray."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from batching_helper import make_shards, read_results, run_inline, train  # tests/batching_helper.py

pytestmark = [
    pytest.mark.slow,
    pytest.mark.numeric,
    pytest.mark.skipif(
        find_spec("ray") is None and os.environ.get("CI") != "true",
        reason="Ray is not installed: pip install 'llgae[ray]'",
    ),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each, with Ray's files in a folder whose name is short enough for its sockets."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        started.add_node(**node)
        try:
            yield started
        finally:
            with suppress(Exception):  # one of its nodes has been killed
                started.shutdown()


def test_two_nodes_one_killed_midway_give_the_local_results(tmp_path: Path, cluster: Any) -> None:
    data, out = make_shards(tmp_path / "data", 40, rows=2000), tmp_path / "out"
    checkpoint = train(tmp_path, data)
    run_inline("compress", checkpoint, data, tmp_path / "local", max_abs=[6.0])
    program = [sys.executable, "-m", "llgae_cli", "compress", checkpoint, "--task", f"npy:{data}", "-o", out, "--json"]
    program += ["--max-abs", "6", "--engine", "ray", "--address", cluster.address]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while len(read_results(out, ".llgae")) < 5 and process.poll() is None:
            time.sleep(0.01)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        midway = len(read_results(out, ".llgae"))
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert midway < 40
    assert json.loads(stdout)["done"] == 40  # Ray's own messages are not in it
    assert read_results(out, ".llgae") == read_results(tmp_path / "local", ".llgae")
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (out, tmp_path / "local")]
    assert manifests[0]["shards"] == manifests[1]["shards"]
