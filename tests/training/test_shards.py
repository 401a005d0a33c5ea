"""With `shards: own` several processes, each with other files, give the result of one that has them all."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Command, check_refused
from torchrun_helper import child_of_rank, torchrun

from llgae_cli import experiment
from llgae_cli.config import read_config
from llgae_cli.storage import load
from llgae_cli.tasks.shards import assign_shards

pytestmark = [pytest.mark.numeric, pytest.mark.slow]
# Rounding decides which optimum restarts find, and scales of several processes are not rounded as one's are: only the
# gradient trainer, which has no restarts, gets scaled rows.
CONFIG = "K: 9\nembed-dim: 2\nepochs: 3\nfigures: false\nshards: own\n"
CONFIGS = {
    "closed-form": f"{CONFIG}scaling: none\nrestarts: 1\nmoves: 2\ncandidates: 4\ntol: 0\n",
    "rows": f"{CONFIG}scaling: none\nrestarts: 1\nmoves: 2\nrows: 1000\nvalidation: 0.1\n",
    "rate": f"{CONFIG}scaling: none\nbits: 30\nshrinkage: 20\nleave-one-out: true\ntol: 0\n",
    "gradient": f"{CONFIG}trainer: gradient\nbatch-size: 70\n",
}
# Shard: (owner, rows). The first of a rank is not its only one, and rows of two ranks alternate.
LAYOUTS = {
    "npy": ({"a": (1, 900), "b": (0, 1700), "c": (2, 37)}, 4),  # three shards, an empty rank
    "parquet": ({"a": (2, 5), "b": (0, 800), "c": (2, 1200), "d": (0, 600)}, 3),  # nothing on rank 1
}
WORKER = """
import sys
from pathlib import Path
import torch
from llgae_cli import distributed, experiment
from llgae_cli.cli.console import set_up_logging
from llgae_cli.config import read_config
set_up_logging(False)
assert distributed.join(torch.device("cpu"))
for path in sorted(Path().glob("*.yaml")):
    outcome = experiment.train(read_config([path], [f"checkpoint-dir={path.stem}"]))
    sys.stdout.write(f"{path.stem} {outcome.mean_l2} {outcome.checkpoint}\\n")
    sys.stdout.flush()
distributed.leave()
"""


def write_data(folder: Path, kind: str, shards: dict[str, tuple[int, int]]) -> None:
    """Rows near seven subspaces of R^12, in shards of their owners' folders."""
    rng = np.random.default_rng(5)
    mu, W = rng.normal(size=(7, 12)) * 9 + 50, rng.normal(size=(7, 12, 2)) * 4
    for name, (owner, n) in shards.items():
        k = rng.integers(7, size=n)
        x = mu[k] + np.einsum("nde,ne->nd", W[k], rng.normal(size=(n, 2))) + rng.normal(size=(n, 12))
        x *= np.arange(1, 13)  # columns of different scales
        (folder / f"node-{owner}").mkdir(exist_ok=True)
        if kind == "npy":
            np.save(folder / f"node-{owner}" / f"{name}.npy", x)
        else:
            table = pa.table({f"v{j}": x[:, j] for j in range(12)})
            pq.write_table(table, folder / f"node-{owner}" / f"{name}.parquet", row_group_size=100)


def write_configs(folder: Path, task: str) -> None:
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(f"task: '{task}'\n{text}")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_processes_with_other_files_each_equal_one_with_all(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, processes = LAYOUTS[kind]
    write_data(tmp_path, kind, shards)
    write_configs(tmp_path, f"{kind}:node-{{rank}}/*.{kind}")
    (tmp_path / "worker.py").write_text(WORKER)
    with torchrun(processes, tmp_path, "worker.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: with more threads, sums round differently
    for name in CONFIGS:
        alone = experiment.train(read_config([Path(f"{name}.yaml")], [f"checkpoint-dir=alone-{name}"]))
        assert alone.checkpoint is not None
        (path,) = Path(name).iterdir()
        one, several = load(alone.checkpoint), load(path)
        said = [line.split() for line in out.splitlines() if line.startswith(f"{name} ")]
        assert {float(line[1]) for line in said} == {several.mean_l2} and len(said) == processes
        assert several.data["fingerprint"] == one.data["fingerprint"] and several.data["N"] == one.data["N"] > 2000
        for number in ("centre", "scale") if name == "gradient" else ():
            assert several.data["scaling"][number] == pytest.approx(one.data["scaling"][number], rel=1e-12)
        compare(several, one)
    torch.set_num_threads(threads)


def compare(several: Any, one: Any) -> None:
    """Checkpoints of several processes and of one: equal to 1e-5."""
    assert several.mean_l2 == pytest.approx(one.mean_l2, rel=1e-5)
    assert several.train_mean_l2 == pytest.approx(one.train_mean_l2, rel=1e-5)
    # Rounding may decide whether a pass still gains something, so one may end a pass before the other.
    for row, expected in zip(several.history, one.history, strict=False):
        assert row["train_mean_l2"] == pytest.approx(expected["train_mean_l2"], rel=1e-5)
    torch.testing.assert_close(several.extras["count"], one.extras["count"])
    if "novelty" in one.extras:
        for name, values in one.extras["novelty"].items():
            # Axes of nearly equal variance turn by rounding; what they are worth does not.
            if name != "axes":
                torch.testing.assert_close(several.extras["novelty"][name], values, rtol=1e-3, atol=1e-3)


def test_shards_have_one_owner_and_owners_equally_many_rows() -> None:
    assert assign_shards([10, 10, 10, 30], [[0, 1]] * 4, 2) == [1, 1, 1, 0]
    assert assign_shards([10, 30, 5], [[0, 1, 2], [0], [0, 1, 2]], 3) == [1, 0, 2]
    assert assign_shards([5, 5], [[2], [2]], 3) == [2, 2]


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_process_ends_all_with_a_saved_state_that_fewer_go_on_with(tmp_path: Path, lost: int) -> None:
    write_data(tmp_path, "npy", {"a": (0, 900), "b": (0, 1700), "c": (0, 37), "d": (0, 600)})
    (tmp_path / "c.yaml").write_text(f"task: 'npy:node-0'\n{CONFIG}trainer: gradient\nbatch-size: 70\n")
    command = ("-m", "llgae_cli", "train", "-c", "c.yaml", "--json")
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with torchrun(3, tmp_path, *command, "-S", "epochs=1000000", **output) as run:
        assert run.stderr is not None
        try:
            for line in run.stderr:
                if line.startswith("epoch 2/"):
                    break
            time.sleep(random.random())
            os.kill(child_of_rank(run.pid, lost), signal.SIGKILL)
            began = time.monotonic()
            err = run.stderr.read()
            run.wait(60)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert time.monotonic() - began < 30, err  # seconds, on a machine that does nothing else
    ours = [line for line in err.splitlines() if line.startswith("llgae: ")]
    (path,) = (tmp_path / "checkpoints").glob("*.pkl")
    assert any(f"saved checkpoints/{path.name}" in line for line in ours), err
    saved = load(path)
    assert saved.epoch >= 2 and 0 < saved.data["measured"] < saved.data["N"]
    with torchrun(2, tmp_path, *command, "-S", f"epochs={saved.epoch + 2}", "--resume", "last", **output) as run:
        out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    result = json.loads(out)
    last = load(tmp_path / result["checkpoint"])
    assert last.history[: saved.epoch] == saved.history and last.epoch == saved.epoch + 2
    assert result["mean_l2"] < 2 * saved.mean_l2 and "measured" not in last.data


def test_what_is_wrong_on_one_process_ends_all_with_its_reason(tmp_path: Path) -> None:
    write_data(tmp_path, "npy", LAYOUTS["npy"][0])
    np.save(tmp_path / "node-1" / "z.npy", np.zeros((4, 5)))
    (tmp_path / "node-2" / "c.npy").write_bytes(b"no array")
    config = tmp_path / "c.yaml"
    config.write_text(f"task: 'npy:node-{{rank}}/*.npy'\n{CONFIG}")
    for words in (
        "rank 2 of 4: node-2/c.npy: not an .npy file",
        "z.npy: holds rows of 5 float64, and a.npy rows of 12",
    ):
        command = ("-m", "llgae_cli", "train", "-c", "c.yaml")
        with torchrun(4, tmp_path, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            out, err = run.communicate(timeout=120)
        assert run.returncode and out == "" and words in err
        (tmp_path / "node-2" / "c.npy").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("npy:node-0/b.npy", {}, ("shards: own is for a folder or a pattern",)),
        ("subspaces", {}, ("shards: own has no effect with task subspaces",)),
        ("npy:node-{rank}/*.npy", {"labels": "x.npy"}, ("labels: cannot be given with shards: own",)),
        ("npy:node-{rank}/*.npy", {"missing": "drop"}, ("missing: cannot be given with shards: own",)),
        ("npy:node-?/*.npy", {"twice": "b"}, ("b.npy: two shards of this name",)),
        ("npy:nowhere-{rank}/*.npy", {}, ("no .npy files",)),
    ],
)
def test_data_that_cannot_be_divided_is_refused(
    llgae: Command, tmp_path: Path, task: str, options: dict[str, str], words: tuple[str, ...]
) -> None:
    write_data(tmp_path, "npy", LAYOUTS["npy"][0])
    if "twice" in options:
        np.save(tmp_path / "node-1" / "b.npy", np.zeros((3, 12)))
    keys = [f"{key}={value}" for key, value in options.items() if key != "twice"]
    given = [part for key in (f"task={task}", "shards=own", *keys) for part in ("-S", key)]
    check_refused(llgae("train", "-c", "fast.yaml", *given), *words)
